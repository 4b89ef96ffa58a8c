// SPDX-License-Identifier: Apache-2.0
//! `midge bench density`: many idle forks of one template alive at once: that all of them answer, what each takes, and that
//! nothing is left of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::greeting::since_us;
use super::lab::{self, Ground, LabOptions};
use super::memory::{self, Account};
use super::{Aim, BenchError, Jail, Report, Sample, Series, Unit};
use crate::progress::Watch;
use crate::run_dir;
use crate::sandbox::Sandbox;

const WHO: &str = "midge fork";
const MACHINE: &str = "the machine, per fork";
/// How long a monitor that was told to end may be seen.
const LEFT_MAX: Duration = Duration::from_secs(10);

/// Something that has to be gone with a sandbox.
fn traces(sandbox: &Sandbox) -> impl Iterator<Item = PathBuf> + use<> {
    let process = sandbox.monitor_pid().map(|pid| Path::new("/proc").join(pid.to_string()));
    std::iter::once(run_dir::default_base().join(sandbox.id())).chain(process)
}

/// How many of these are still there when they should not be.
async fn left(traces: &[PathBuf]) -> u64 {
    let start = Instant::now();
    loop {
        let left = traces.iter().filter(|path| path.exists()).count();
        if left == 0 || start.elapsed() > LEFT_MAX {
            return left as u64;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs the bench with `options.runs` forks.
///
/// # Errors
/// The first fork that cannot be made or does not answer ends it.
pub async fn density(options: &LabOptions, watch: &dyn Watch) -> Result<Report, BenchError> {
    options.check()?;
    lab::allow_many_files();
    let ground = Ground::prepare(options, watch).await?;
    let held = ground.hold(Jail::On).await?;
    let (count, mem_mib) = (u64::from(options.runs), ground.template.record().config.mem_mib);
    let mut report = begin(options, mem_mib);
    let before = memory::machine();
    let (mut forks, mut answered) = (Vec::new(), Vec::new());
    watch.begin("making idle forks", count);
    for _ in 0..options.runs {
        let start = Instant::now();
        let sandbox = held.fork().await?;
        lab::answer(&sandbox).await?;
        answered.push(since_us(start));
        forks.push(sandbox);
        watch.at(forks.len() as u64);
    }
    watch.end("");
    let after = memory::machine();
    let accounts: Vec<Account> =
        forks.iter().filter_map(Sandbox::monitor_pid).filter_map(|pid| memory::account(pid).ok()).collect();
    let mut again = Vec::new();
    watch.begin("asking all of them", count);
    for sandbox in &forks {
        let start = Instant::now();
        lab::answer(sandbox).await?;
        again.push(since_us(start));
        watch.at(again.len() as u64);
    }
    watch.end("");
    let traces: Vec<PathBuf> = forks.iter().flat_map(traces).collect();
    let mut gone = Vec::new();
    watch.begin("ending them", count);
    for sandbox in forks {
        let start = Instant::now();
        sandbox.kill().await;
        gone.push(since_us(start));
        watch.at(gone.len() as u64);
    }
    watch.end("");
    report.add(Series::new(WHO, "answered", Unit::Us, answered));
    report.add(Series::new(WHO, "answered_again", Unit::Us, again));
    report.add(Series::new(WHO, "gone", Unit::Us, gone));
    let account = |of: fn(&Account) -> u64| accounts.iter().map(of).map(Sample::from);
    report.add(Series::new(WHO, "private", Unit::Kib, account(|account| account.private)));
    report.add(Series::new(WHO, "proportional", Unit::Kib, account(|account| account.proportional)));
    report.add(Series::new(WHO, "page_tables", Unit::Kib, account(|account| account.page_tables)));
    let each = |before: u64, after: u64| [before.saturating_sub(after) / count];
    report.add(Series::new(MACHINE, "memory", Unit::Kib, each(before.available, after.available)));
    report.add(Series::new(MACHINE, "kernel_objects", Unit::Kib, each(after.slab, before.slab)));
    report.add(Series::new(WHO, "left", Unit::Count, [left(&traces).await]));
    report.aim(WHO, "private", Aim::AtMost(4.0));
    report.aim(WHO, "left", Aim::AtMost(0.0));
    Ok(report)
}

fn begin(options: &LabOptions, mem_mib: u64) -> Report {
    let title = format!("density: {} idle forks of one template of {mem_mib} MiB alive at once", options.runs);
    Report::begin("density", &title)
        .option("runs", options.runs)
        .option("mem_mib", mem_mib)
        .event("start", "the fork, the second command, the end is asked for")
        .event(
            "answered",
            "the exit status of /bin/true, the first command in it, has reached the host; one fork after the other",
        )
        .event("answered_again", "the same once more, when all of them are there")
        .event("gone", "until its process is gone")
        .event(
            "private",
            "pages of the fork's process that nobody else has, the guest's and the monitor's (smaps_rollup)",
        )
        .event("proportional", "the same with its part of what is shared (PSS)")
        .event("page_tables", "of the fork's process (VmPTE); those of the guest are kernel memory")
        .event(
            "memory",
            "what the whole machine has less of (MemAvailable), over the number of forks; this process is part of it",
        )
        .event("kernel_objects", "growth of the kernel's slabs, over the number of forks: KVM's are among them")
        .event("left", "processes and directories of forks that are still there after their end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_still_there_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(left(&[dir.path().join("gone")]).await, 0);
    }
}
