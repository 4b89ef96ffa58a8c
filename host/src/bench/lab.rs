// SPDX-License-Identifier: Apache-2.0
//! What the benches of whole sandboxes share: the template they stand on, when one counts as answering, and many at once.
//! They stand on the library as its users do.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{BenchError, Exits, Jail, Sample, check_runs, exits};
use crate::cache::Cache;
use crate::error::{Error, Fault};
use crate::exec::Exec;
use crate::progress::Watch;
use crate::run_dir::new_id;
use crate::sandbox::{Builder, Sandbox, Where};
use crate::template::{Held, Plan, Store, Template};
use crate::timeline::{Source, Timeline};

/// Most sandboxes at once.
pub(super) const CONCURRENCY_MAX_COUNT: u32 = 10_000;
/// The command whose end is the answer; by path, so that nothing is looked up.
pub(super) const TRUE: &str = "/bin/true";
/// The stage that ends a measurement.
const ANSWERED: &str = "answered";
/// The stage at which a sandbox is told to end.
const END_ASKED: &str = "end_asked";

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabOptions {
    /// Runs of each who takes part, at each level of concurrency; as many as the level at least.
    pub runs: u32,
    /// How many are asked for at once, level by level.
    pub concurrency: Vec<u32>,
    /// The template to stand on; without one it is made for the bench, and removed.
    pub template: Option<String>,
    /// The Firecracker to compare with.
    pub firecracker: Option<PathBuf>,
    /// The guest kernel, for those who boot one; else what the library takes.
    pub kernel: Option<PathBuf>,
    /// The root file system, as for a sandbox; else the base image.
    pub image: Option<String>,
    /// Guest memory, in MiB.
    pub mem_mib: u64,
    /// Size of a guest's writable disk, in MiB.
    pub disk_mib: u64,
    /// Whether forks, restores and boots are made without the jail as well, for what that costs.
    pub jail: Jail,
    /// Whether files are dropped from the host's page cache before each run.
    pub is_cold: bool,
    /// Guest memory that is written to before a running sandbox is forked, in MiB.
    pub touched_mib: u64,
    /// Longest a single run may take.
    pub limit: Duration,
}

impl LabOptions {
    pub(super) fn check(&self) -> Result<(), BenchError> {
        check_runs(self.runs)?;
        let bad = self.concurrency.iter().find(|level| !(1..=CONCURRENCY_MAX_COUNT).contains(*level));
        bad.map_or(Ok(()), |level| Err(BenchError::Concurrency { level: *level }))
    }

    /// A sandbox like those of the bench.
    pub(super) fn builder(&self) -> Builder {
        let mut builder = Sandbox::builder().mem_mib(self.mem_mib).disk_mib(self.disk_mib);
        if let Some(image) = &self.image {
            builder = builder.image(image);
        }
        match &self.kernel {
            Some(kernel) => builder.kernel(kernel),
            None => builder,
        }
    }
}

/// The template of a bench.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) template: Template,
    is_ours: bool,
}

impl Drop for Ground {
    fn drop(&mut self) {
        let name = &self.template.record().name;
        if self.is_ours
            && let Err(error) = Template::remove(name)
        {
            tracing::warn!(name, %error, "a bench's template is left behind");
        }
    }
}

impl Ground {
    pub(super) async fn prepare(options: &LabOptions, watch: &dyn Watch) -> Result<Self, BenchError> {
        if let Some(name) = &options.template {
            return Ok(Self { template: Template::open(name)?, is_ours: false });
        }
        watch.begin("making a template for the bench", 0);
        let made = Template::create(&format!("bench-{}", new_id()), options.builder(), Plan::default()).await;
        watch.end("");
        Ok(Self { template: made?, is_ours: true })
    }

    pub(super) async fn hold(&self, jail: Jail) -> Result<Arc<Held>, BenchError> {
        Ok(Arc::new(self.template.clone().jail(jail).hold().await?))
    }

    /// Everything on disk that its sandboxes, or a boot of the same machine, read.
    pub(super) fn files(&self) -> Result<Vec<PathBuf>, BenchError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::prepare("template", Fault::Host, error);
        let store = Cache::open().map_err(Into::into).and_then(|cache| Store::open(&cache).map_err(Into::into));
        let record = self.template.record();
        let config = store.and_then(|store| store.config(record, false).map_err(Into::into)).map_err(failed)?;
        let restore = config.restore.into_iter().flat_map(|restore| {
            [restore.state, restore.memory].into_iter().chain(restore.layers.into_iter().flatten())
        });
        let booted = record.config.kernel.iter().chain(&record.config.initramfs).cloned();
        let disks = record.config.disks.iter().map(|disk| disk.path.clone());
        Ok(restore.chain(booted).chain(disks).collect())
    }
}

/// Has the host forget what it keeps of these files in memory, as far as nobody maps it.
pub(super) fn forget(files: &[PathBuf]) {
    for path in files {
        // What cannot be opened will be complained about by whoever needs it.
        if let Ok(file) = std::fs::File::open(path) {
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
}

/// One sandbox from being asked for to its end.
#[derive(Debug, Clone, Default)]
pub(super) struct Timed {
    /// Until its first command had been run.
    pub(super) answered: Sample,
    /// From being told to end until its process was gone.
    pub(super) gone_us: Option<u64>,
    /// Exits of its VM up to the answer, where the host's KVM shows them.
    pub(super) exits: Exits,
}

/// Runs a command to its end.
pub(super) async fn answer(sandbox: &Sandbox) -> Result<(), BenchError> {
    let status = sandbox.exec(Exec::new([TRUE])).await?.wait().await?;
    if status.is_success() {
        return Ok(());
    }
    Err(BenchError::Guest { contender: "midge", text: format!("{TRUE} ended with {}", status.shell_code()) })
}

/// Has the sandbox answer, and ends it. The clock starts at the stage `start`.
pub(super) async fn timed(sandbox: Sandbox, start: &str) -> Result<Timed, BenchError> {
    let recorder = sandbox.recorder();
    answer(&sandbox).await?;
    recorder.note(ANSWERED);
    let exits = sandbox.monitor_pid().map(exits::of).unwrap_or_default();
    recorder.note(END_ASKED);
    sandbox.kill().await;
    Ok(Timed { exits, ..read(&recorder.timeline(), start) })
}

fn read(timeline: &Timeline, start: &str) -> Timed {
    let at = |name: &str| timeline.stage(Source::Host, name).map(|stage| stage.at_us);
    let (Some(from_us), Some(to_us)) = (at(start), at(ANSWERED)) else { return Timed::default() };
    let since = |us: i64| u64::try_from(us - from_us).unwrap_or(0);
    let inside = timeline.stages.iter().filter(|stage| (from_us..=to_us).contains(&stage.at_us));
    let named = inside.filter(|stage| stage.name != END_ASKED);
    let stages = named.map(|stage| (format!("{} {}", stage.source, stage.name), since(stage.at_us))).collect();
    let gone = at(END_ASKED).zip(at("reaped")).and_then(|(asked, gone)| u64::try_from(gone - asked).ok());
    Timed { answered: Sample { value: since(to_us), stages }, gone_us: gone, exits: Exits::new() }
}

/// Many forks of one template: `level` at once, until `runs` have answered and are gone. Gives the time of all of it too.
pub(super) async fn crowd(
    held: &Arc<Held>,
    level: u32,
    runs: u32,
    watch: &dyn Watch,
) -> Result<(Vec<Timed>, Duration), BenchError> {
    let left = Arc::new(AtomicU32::new(runs));
    let done = Arc::new(AtomicU32::new(0));
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..level.min(runs) {
        let (held, left, done) = (Arc::clone(held), Arc::clone(&left), Arc::clone(&done));
        workers.spawn(async move {
            let mut all = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                all.push(timed(held.fork().await?, "start").await?);
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, BenchError>(all)
        });
    }
    let mut all = Vec::new();
    while !workers.is_empty() {
        tokio::select! {
            Some(worker) = workers.join_next() => {
                let lost = |_| BenchError::Guest { contender: "midge", text: "a worker of the bench was lost".to_owned() };
                all.extend(worker.map_err(lost)??);
            }
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
        watch.at(u64::from(done.load(Ordering::Relaxed)));
    }
    Ok((all, start.elapsed()))
}

/// Lets this process have as many descriptors as it may: a sandbox takes about eight.
pub(super) fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, opening the one too many will be, by name.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// The sandbox of a cold boot.
pub(super) async fn cold_boot(options: &LabOptions, jail: Jail) -> Result<Sandbox, BenchError> {
    Ok(options.builder().jail(jail).start().await?)
}

/// A sandbox of a template in a process of its own, started over the template's files.
pub(super) async fn restored(ground: &Ground, jail: Jail) -> Result<Sandbox, BenchError> {
    Ok(ground.template.clone().jail(jail).start(Where::Auto, false).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Recorder;

    #[test]
    fn stages_are_those_between_start_and_answer() {
        let recorder = Recorder::new();
        let note = |source, name: &str, us: u64| recorder.note_at(source, name, us * 1000);
        note(Source::Host, "prepared", 500);
        note(Source::Host, "start", 1_000);
        note(Source::Monitor, "first_run", 1_400);
        note(Source::Host, ANSWERED, 2_500);
        note(Source::Host, END_ASKED, 2_500);
        note(Source::Host, "reaped", 9_500);
        recorder.set_origin(1_200_000);
        let timed = read(&recorder.timeline(), "start");
        assert_eq!((timed.answered.value, timed.gone_us), (1_500, Some(7_000)));
        let expected = [("host start", 0), ("monitor first_run", 400), ("host answered", 1_500)];
        assert_eq!(timed.answered.stages, expected.map(|(name, us)| (name.to_owned(), us)));
        assert_eq!(read(&recorder.timeline(), "no such stage").answered, Sample::default());
    }

    #[test]
    fn levels_that_make_no_sense_are_refused() {
        let options = |runs, level| LabOptions {
            runs,
            concurrency: vec![1, level],
            template: None,
            firecracker: None,
            kernel: None,
            image: None,
            mem_mib: 128,
            disk_mib: 256,
            jail: Jail::On,
            is_cold: false,
            touched_mib: 0,
            limit: Duration::from_secs(1),
        };
        assert!(options(1, 1).check().is_ok() && options(1, CONCURRENCY_MAX_COUNT).check().is_ok());
        assert!(options(0, 1).check().is_err());
        for level in [0, CONCURRENCY_MAX_COUNT + 1] {
            assert!(options(1, level).check().unwrap_err().to_string().contains(&level.to_string()));
        }
    }

    #[test]
    fn forgetting_what_is_not_there_is_harmless() {
        forget(&["/nonexistent".into()]);
    }
}
