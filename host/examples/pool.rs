// SPDX-License-Identifier: Apache-2.0
//! Keeps forks of a template ready, takes some, runs a command in each, and says how long that took.
//!
//! `cargo run --release --example pool -- TEMPLATE [LEVEL] [RUNS]`; `midge ps` shows them meanwhile.

use std::error::Error;
use std::time::Instant;

use midge::exec::Exec;
use midge::pool::{Limits, Pool};
use midge::template::Template;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let name = words.first().ok_or("usage: pool TEMPLATE [LEVEL] [RUNS]")?;
    let number = |index: usize, default: usize| words.get(index).map_or(Ok(default), |word| word.parse());
    let (level, runs) = (number(1, 4)?, number(2, 10)?);
    let held = Template::open(name)?.hold().await?;
    let pool = Pool::new(held, Limits { level, ..Limits::default() })?;
    let start = Instant::now();
    pool.filled().await?;
    println!("{level} sandboxes ready after {:.1?}", start.elapsed());
    for run in 0..runs {
        let asked = Instant::now();
        let sandbox = pool.take().await?;
        let taken = asked.elapsed();
        let output = sandbox.exec(Exec::new(["hostname"])).await?.output().await?;
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        println!("run {run} in {name}: taken after {taken:.1?}, answered after {:.1?}", asked.elapsed());
        sandbox.kill().await;
    }
    println!("{:?}", pool.status());
    pool.drain().await;
    Ok(())
}
