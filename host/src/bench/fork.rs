// SPDX-License-Identifier: Apache-2.0
//! `midge bench fork` and `rate`: from the wish for a sandbox to its first answered command, by every way to have one, in
//! turn; then by forks alone, many at once.

use std::path::PathBuf;
use std::sync::Arc;

use super::firecracker::Snapshot;
use super::lab::{self, Ground, LabOptions, Timed};
use super::{Aim, BenchError, Jail, Report, Series, Unit};
use crate::progress::Watch;
use crate::template::Held;

const ANSWERED: &str = "the exit status of /bin/true, the first command in it, has reached the host";
const GONE: &str =
    "from telling a sandbox to end until its process is gone, which the next user of it does not wait for";

/// A way to a sandbox that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Fork(Jail),
    Restore(Jail),
    ColdBoot(Jail),
    Firecracker,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Fork(Jail::On) => "midge fork",
            Self::Fork(Jail::Off) => "midge fork, no jail",
            Self::Restore(Jail::On) => "midge restore",
            Self::Restore(Jail::Off) => "midge restore, no jail",
            Self::ColdBoot(Jail::On) => "midge cold boot",
            Self::ColdBoot(Jail::Off) => "midge cold boot, no jail",
            Self::Firecracker => "firecracker",
        }
    }
}

/// What all runs stand on.
struct Bed<'a> {
    options: &'a LabOptions,
    ground: Ground,
    held: Arc<Held>,
    /// The same without its jail, if that is measured.
    unjailed: Option<Arc<Held>>,
    peer: Option<Snapshot>,
    /// What is forgotten before each run.
    files: Vec<PathBuf>,
}

impl<'a> Bed<'a> {
    async fn prepare(options: &'a LabOptions, watch: &dyn Watch) -> Result<Self, BenchError> {
        options.check()?;
        lab::allow_many_files();
        let ground = Ground::prepare(options, watch).await?;
        let config = &ground.template.record().config;
        let make = |program| tokio::task::block_in_place(|| Snapshot::make(program, config, options.limit));
        let peer = options.firecracker.as_deref().map(make).transpose()?;
        let mut files = Vec::new();
        if options.is_cold {
            files = ground.files()?;
            files.extend(peer.iter().flat_map(Snapshot::files));
        }
        let held = ground.hold(Jail::On).await?;
        let unjailed = match options.jail {
            Jail::On => None,
            Jail::Off => Some(ground.hold(Jail::Off).await?),
        };
        Ok(Self { options, ground, held, unjailed, peer, files })
    }

    /// The ways that are to be measured.
    fn ways(&self) -> Vec<Way> {
        let ours = |jail| [Way::Fork(jail), Way::Restore(jail), Way::ColdBoot(jail)];
        let bare = self.unjailed.iter().flat_map(|_| ours(Jail::Off));
        let peer = self.peer.as_ref().map(|_| Way::Firecracker);
        ours(Jail::On).into_iter().chain(bare).chain(peer).collect()
    }

    async fn once(&self, way: Way) -> Result<Timed, BenchError> {
        lab::forget(&self.files);
        match way {
            Way::Fork(jail) => {
                let held = self.unjailed.as_ref().filter(|_| jail == Jail::Off).unwrap_or(&self.held);
                lab::timed(held.fork().await?, "start").await
            }
            Way::Restore(jail) => lab::timed(lab::restored(&self.ground, jail).await?, "start").await,
            // What the library looks for before it starts a monitor is not the boot's.
            Way::ColdBoot(jail) => lab::timed(lab::cold_boot(self.options, jail).await?, "spawn").await,
            Way::Firecracker => match &self.peer {
                Some(peer) => tokio::task::block_in_place(|| peer.once()),
                None => Ok(Timed::default()),
            },
        }
    }

    /// A report with what is said of all of them.
    fn report(&self, bench: &str, what: &str) -> Report {
        let (options, record) = (self.options, self.ground.template.record());
        let cache = if options.is_cold { "cold" } else { "warm" };
        let title = format!(
            "{bench}: {what}, n = {}, {} MiB, {} vCPU, {}, page cache {cache}",
            options.runs, record.config.mem_mib, record.config.cpus, record.place
        );
        let kernel = record.config.kernel.as_ref().map(|path| path.display().to_string());
        Report::begin(bench, &title)
            .option("runs", options.runs)
            .option("concurrency", format!("{:?}", options.concurrency))
            .option("cache", cache)
            .option("mem_mib", record.config.mem_mib)
            .option("kernel", kernel.unwrap_or_default())
            .option("template", options.template.as_deref().unwrap_or("made for the bench"))
            .jail(options.jail)
            .event("answered", ANSWERED)
            .event("gone", GONE)
    }

    /// Forks at each level of concurrency.
    async fn crowds(&self, report: &mut Report, levels: &[u32], watch: &dyn Watch) -> Result<(), BenchError> {
        for level in levels {
            let runs = self.options.runs.max(*level);
            let who = format!("midge fork, {level} at once");
            watch.begin(&who, u64::from(runs));
            let crowd = lab::crowd(&self.held, *level, runs, watch).await;
            watch.end("");
            let (all, took) = crowd?;
            let per_s = u128::from(runs) * 1_000_000 / took.as_micros().max(1);
            add(report, &who, all);
            report.add(Series::new(&who, "cycles", Unit::PerS, [u64::try_from(per_s).unwrap_or(u64::MAX)]));
        }
        Ok(())
    }
}

fn add(report: &mut Report, who: &str, all: Vec<Timed>) {
    let gone: Vec<u64> = all.iter().filter_map(|timed| timed.gone_us).collect();
    report.count(who, all.iter().map(|timed| &timed.exits));
    report.add(Series::new(who, "answered", Unit::Us, all.into_iter().map(|timed| timed.answered)));
    report.add(Series::new(who, "gone", Unit::Us, gone));
}

/// What follows from the medians.
fn find(report: &mut Report) {
    let of = |way: Way| (way.name(), "answered");
    let ours = of(Way::Fork(Jail::On));
    report.aim(ours.0, ours.1, Aim::AtMost(2.5));
    report.ratio(ours, of(Way::ColdBoot(Jail::On)), Some(Aim::AtMost(0.1)));
    report.ratio(ours, of(Way::Firecracker), Some(Aim::AtMost(0.2)));
    report.ratio(ours, of(Way::Restore(Jail::On)), None);
    for way in [Way::Fork, Way::Restore, Way::ColdBoot] {
        report.ratio(of(way(Jail::On)), of(way(Jail::Off)), None);
    }
}

/// Runs the bench of all ways to a sandbox.
///
/// # Errors
/// The first run that fails ends the bench.
pub async fn fork(options: &LabOptions, watch: &dyn Watch) -> Result<Report, BenchError> {
    let bed = Bed::prepare(options, watch).await?;
    let mut report = bed
        .report("fork", "to the first answered command, each way in turn")
        .event(
            "start",
            "a fork and a restore are asked for; a cold boot's and Firecracker's process is about to be made",
        )
        .event("fork", "of what a resident process holds")
        .event("restore", "a process of its own over the template's files")
        .event("cold_boot", "the same machine from its kernel, with the same root, to the same event")
        .event(
            "firecracker",
            "a process of its own that loads a snapshot with the same kernel, agent and root, made at the same stand; no jailer",
        );
    let ways = bed.ways();
    let mut all = vec![Vec::new(); ways.len()];
    let rounds = options.runs + 1;
    watch.begin("forking and booting in turn", u64::from(rounds));
    // Round 0 warms up and shows early what does not run at all.
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let index = (turn + round as usize) % ways.len();
            let timed = bed.once(ways[index]).await?;
            if round > 0 {
                all[index].push(timed);
            }
        }
        watch.at(u64::from(round + 1));
    }
    watch.end("");
    for (way, runs) in ways.iter().zip(all) {
        add(&mut report, way.name(), runs);
    }
    find(&mut report);
    let levels: Vec<u32> = options.concurrency.iter().copied().filter(|level| *level > 1).collect();
    bed.crowds(&mut report, &levels, watch).await?;
    Ok(report.event("cycles", "forks that were made, answered and gone again, per second"))
}

/// Runs the bench of forks per second.
///
/// # Errors
/// The first fork that fails ends the bench.
pub async fn rate(options: &LabOptions, watch: &dyn Watch) -> Result<Report, BenchError> {
    let bed = Bed::prepare(options, watch).await?;
    let mut report = bed
        .report("rate", "forks that answer and go, many at once")
        .event("start", "a fork is asked for; those before it in line are part of its time")
        .event("cycles", "forks that were made, answered and gone again, per second");
    bed.crowds(&mut report, &options.concurrency, watch).await?;
    Ok(report)
}
