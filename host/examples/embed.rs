// SPDX-License-Identifier: Apache-2.0
//! Midge embedded in another program: two sandboxes side by side, a conversation with a command, files, and a
//! directory whose changes come back as a diff.
//!
//! `cargo build --bins && cargo run --package midge --example embed`; `MIDGE_KERNEL` names another kernel.

use std::error::Error;
use std::time::Duration;

use midge::exec::Exec;
use midge::files::WriteOptions;
use midge::sandbox::Sandbox;
use midge::workspace::DiffOptions;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let project = tempfile::tempdir()?;
    std::fs::write(project.path().join("notes.txt"), "first line\n")?;

    // Two machines at once. The second has a copy of the directory at /workspace.
    let plain = Sandbox::builder().mem_mib(256).env("GREETING", "hello from");
    let working = Sandbox::builder().mem_mib(256).workspace(project.path());
    let (plain, working) = tokio::try_join!(plain.start(), working.start())?;

    // A short command, and all it printed.
    let script = "echo $GREETING $(hostname)";
    let output = plain.exec(Exec::new(["sh", "-c", script])).await?.output().await?;
    print!("{}", String::from_utf8_lossy(&output.stdout));

    // A conversation: its streams are ordinary async readers and writers.
    let python = Exec::new(["python3", "-u", "-c", "import sys\nfor line in sys.stdin: print(eval(line))"]);
    let mut calculator = plain.exec(python.stdin(true).timeout(Duration::from_secs(60))).await?;
    let mut input = calculator.stdin.take().ok_or("no input")?;
    let mut answers = BufReader::new(calculator.stdout.take().ok_or("no output")?).lines();
    for question in ["6 * 7", "2 ** 64"] {
        input.write_all(format!("{question}\n").as_bytes()).await?;
        println!("{question} = {}", answers.next_line().await?.unwrap_or_default());
    }
    drop(input);
    println!("the calculator ended with {}", calculator.wait().await?);

    // Files go in and out without a shell.
    let options = WriteOptions { parents: true, ..WriteOptions::default() };
    plain.files().write("/tmp/in/data", options, &mut &b"some bytes"[..]).await?;
    println!("{} bytes came back", plain.files().read("/tmp/in/data", 1 << 20).await?.len());

    // Work on the copy; the directory here stays as it is until the changes are applied.
    working.exec(Exec::new(["sh", "-c", "echo second line >> notes.txt"])).await?.wait().await?;
    if let Some(workspace) = working.workspace() {
        let changes = workspace.collect().await?;
        changes.write_diff(&mut std::io::stdout(), &DiffOptions::default())?;
        let report = changes.apply(workspace.dir(), &midge::workspace::ApplyOptions::default())?;
        println!("{} change applied", report.applied.len());
    }
    print!("{}", std::fs::read_to_string(project.path().join("notes.txt"))?);

    println!("ready after {:?} us", plain.timeline().stages.iter().find(|s| s.name == "hello").map(|s| s.at_us));
    tokio::join!(plain.stop(), working.stop());
    Ok(())
}
