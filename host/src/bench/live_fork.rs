// SPDX-License-Identifier: Apache-2.0
//! `midge bench live-fork`: how long a running sandbox stands still to be forked, and until both of them answer.
//!
//! Each parent is forked twice: as it was booted, its memory in large pages, and once more after its process has written to
//! all of it again, which by then is small pages and shared ones.

use std::time::Instant;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::greeting::since_us;
use super::lab::{self, LabOptions};
use super::{Aim, BenchError, Report, Sample, Series, Unit};
use crate::exec::{Exec, OutputReader, Running};
use crate::progress::Watch;
use crate::sandbox::Sandbox;

/// Guest memory beside what is touched: kernel, agent, the process itself.
const REST_MIB: u64 = 128;
/// Holds so many MiB, and writes to each page of them whenever it is sent a line.
const HOLDER: &str = "import sys\nmemory = bytearray(int(sys.argv[1]) << 20)\nones = b'\\1' * (len(memory) >> 12)\n\
    while True:\n    memory[::4096] = ones\n    print('written', flush=True)\n    sys.stdin.readline() or sys.exit()\n";
/// Which of a parent's forks.
const FORKS: [&str; 2] = ["first fork", "second fork"];

/// A guest's process that holds memory.
struct Holder {
    running: Running,
    said: BufReader<OutputReader>,
}

fn silent() -> BenchError {
    BenchError::Guest {
        contender: "midge",
        text: "the process that holds memory has ended; is there a python3 in the image?".into(),
    }
}

impl Holder {
    async fn start(sandbox: &Sandbox, mib: u64) -> Result<Self, BenchError> {
        let mib = mib.to_string();
        let mut running = sandbox.exec(Exec::new(["python3", "-c", HOLDER, &mib]).stdin(true)).await?;
        let said = BufReader::new(running.stdout.take().ok_or_else(silent)?);
        let mut holder = Self { running, said };
        holder.written().await?;
        Ok(holder)
    }

    /// Waits until all of it has been written to.
    async fn written(&mut self) -> Result<(), BenchError> {
        let mut line = String::new();
        self.said.read_line(&mut line).await.map_err(|_| silent())?;
        if line == "written\n" { Ok(()) } else { Err(silent()) }
    }

    async fn write_again(&mut self) -> Result<(), BenchError> {
        let stdin = self.running.stdin.as_mut().ok_or_else(silent)?;
        stdin.write_all(b"\n").await.map_err(|_| silent())?;
        self.written().await
    }
}

/// One live fork.
struct Forked {
    pause: Sample,
    made_us: u64,
    parent_us: u64,
    child_us: u64,
}

async fn fork_once(parent: &Sandbox) -> Result<Forked, BenchError> {
    let start = Instant::now();
    let forks = parent.fork(1).await?;
    let made_us = since_us(start);
    let pause = forks.pause;
    let Some(child) = forks.sandboxes.into_iter().next() else { return Err(silent()) };
    let answered = async |sandbox: &Sandbox| lab::answer(sandbox).await.map(|()| since_us(start));
    let (parent_us, child_us) = tokio::join!(answered(parent), answered(&child));
    child.kill().await;
    let stages = [("saved", pause.save_us), ("forked", pause.save_us + pause.fork_us), ("goes_on", pause.pause_us)];
    let stages = stages.map(|(name, us)| (name.to_owned(), us)).to_vec();
    let pause = Sample { value: pause.pause_us, stages };
    Ok(Forked { pause, made_us, parent_us: parent_us?, child_us: child_us? })
}

/// Runs the bench.
///
/// # Errors
/// The first run that fails ends it.
pub async fn live_fork(options: &LabOptions, watch: &dyn Watch) -> Result<Report, BenchError> {
    options.check()?;
    let touched = options.touched_mib;
    let mem_mib = options.mem_mib.max(touched + REST_MIB);
    let title = format!("live-fork: of a running sandbox, {touched} MiB touched of {mem_mib}, n = {}", options.runs);
    let mut report = Report::begin("live-fork", &title)
        .option("runs", options.runs)
        .option("touched_mib", touched)
        .option("mem_mib", mem_mib)
        .event("start", "the fork is asked for")
        .event("pause", "the parent's CPUs stand still; saved, forked, goes on: its parts, by the monitor's own clock")
        .event("made", "the child's agent is another one and takes commands")
        .event(
            "parent_answered",
            "the exit status of /bin/true, run after the fork in the parent, has reached the host",
        )
        .event("child_answered", "the same in the child; both are asked at once")
        .event("first fork", "of a parent that never was forked")
        .event("second fork", "of the same parent, after its process has written to all of its memory again");
    let mut all = FORKS.map(|_| Vec::new());
    watch.begin("forking running sandboxes", u64::from(options.runs + 1));
    for run in 0..=options.runs {
        let parent = options.builder().mem_mib(mem_mib).forkable().start().await?;
        let mut holder = Holder::start(&parent, touched).await?;
        for forks in &mut all {
            let forked = fork_once(&parent).await?;
            if run > 0 {
                forks.push(forked);
            }
            holder.write_again().await?;
        }
        parent.kill().await;
        watch.at(u64::from(run + 1));
    }
    watch.end("");
    for (who, forks) in FORKS.iter().zip(&all) {
        report.add(Series::new(who, "pause", Unit::Us, forks.iter().map(|forked| forked.pause.clone())));
        report.add(Series::new(who, "made", Unit::Us, forks.iter().map(|forked| forked.made_us)));
        report.add(Series::new(who, "parent_answered", Unit::Us, forks.iter().map(|forked| forked.parent_us)));
        report.add(Series::new(who, "child_answered", Unit::Us, forks.iter().map(|forked| forked.child_us)));
    }
    FORKS.iter().for_each(|who| report.aim(who, "pause", Aim::AtMost(2.0)));
    Ok(report)
}
