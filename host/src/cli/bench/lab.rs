// SPDX-License-Identifier: Apache-2.0
//! `midge bench fork` and its kin, benches of whole sandboxes: their flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use midge::bench::{Contender, Jail, LabOptions, Report, density, exec, fork, fork_counted, live_fork, rate};
use midge::cache::Cache;
use midge::progress::Bar;
use midge::sandbox::binaries;

use super::counted::{COUNTED_RUNS, CountedArgs, JailArgs};
use super::{Failure, Output};
use crate::cli::run;

/// Size of the writable disk of a bench's sandboxes.
const DISK_MIB: u64 = 256;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Fork,
    LiveFork,
    Exec,
    Rate,
    Density,
}

/// What is in the host's page cache when a run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PageCache {
    Warm,
    Cold,
}

#[derive(Debug, Args)]
pub(super) struct LabArgs {
    /// Runs of each who takes part, and at each level of concurrency at least as many as that; for density the number of
    /// forks [default: 100]
    #[arg(short = 'n', long = "runs", value_name = "N")]
    runs: Option<u32>,

    /// How many are asked for at once, level by level [default: 1; for rate 1,10,100,1000]
    #[arg(long, value_name = "C[,C...]", value_delimiter = ',')]
    concurrency: Vec<u32>,

    /// Stand on this template [default: one that is made for the bench and removed]
    #[arg(long, value_name = "NAME")]
    template: Option<String>,

    /// Who to compare with, for fork and exec: firecracker=PATH
    #[arg(long, value_name = "WHO", value_parser = firecracker)]
    vs: Option<PathBuf>,

    /// Whether the files of each run are in the host's page cache
    #[arg(long, value_enum, default_value = "warm")]
    cache: PageCache,

    /// Kernel [default: built once from the distribution's source]
    #[arg(long, value_name = "FILE", env = "MIDGE_KERNEL", hide_env_values = true)]
    kernel: Option<PathBuf>,

    /// Image of the guest, as for midge run [default: base]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,

    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    mem: u64,

    /// Memory that a process of the guest has written to before it is forked; for live-fork
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    touched: u64,

    #[command(flatten)]
    output: Output,

    /// Longest a run of who is compared may take; what Midge waits for has limits of its own
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    limit: u64,
}

const FORK_NOTES: &str = "A template is made once and held in memory. Then, in turn: a fork of it, a start from its files, a cold boot of \
the same machine, and with --vs Firecracker's snapshot load; each from being asked for to the exit status of /bin/true.\n\n\
With --emulated all of it happens in an emulated host whose clock counts instructions: slow, but the figures come out the \
same on every run however busy the machine is, and can be held against a budget. The guest's root then is /bin/true with \
its libraries, of this machine, and nothing else. What hardware spends on entering and leaving a guest is not in the figures, \
so KVM's counts of exits are printed beside.";

#[derive(Debug, Args)]
#[command(after_long_help = FORK_NOTES)]
pub(super) struct ForkArgs {
    #[command(flatten)]
    lab: LabArgs,

    #[command(flatten)]
    counted: CountedArgs,

    #[command(flatten)]
    jail: JailArgs,
}

/// The program of the only one that has snapshots.
fn firecracker(given: &str) -> Result<PathBuf, String> {
    match given.parse() {
        Ok(Contender::Firecracker { program }) => Ok(program),
        _ => Err("must be firecracker=PATH".to_owned()),
    }
}

impl LabArgs {
    fn options(&self, which: Which) -> LabOptions {
        let levels: &[u32] = if which == Which::Rate { &[1, 10, 100, 1000] } else { &[1] };
        LabOptions {
            runs: self.runs.unwrap_or(100),
            concurrency: if self.concurrency.is_empty() { levels.to_vec() } else { self.concurrency.clone() },
            template: self.template.clone(),
            firecracker: self.vs.clone(),
            kernel: self.kernel.clone(),
            image: self.image.clone(),
            mem_mib: self.mem,
            disk_mib: DISK_MIB,
            jail: Jail::On,
            is_cold: self.cache == PageCache::Cold,
            touched_mib: self.touched,
            limit: Duration::from_secs(self.limit.max(1)),
        }
    }
}

/// Times or counts forks, and tells the result.
pub(super) fn fork_main(args: &ForkArgs) -> Result<(), Failure> {
    args.counted.check(&args.jail)?;
    let mut options = LabOptions { jail: args.jail.jail(), ..args.lab.options(Which::Fork) };
    if !args.counted.emulated {
        return measure(Which::Fork, &args.lab, &options);
    }
    options.runs = args.lab.runs.unwrap_or(COUNTED_RUNS);
    let unknown = [
        ("--template", options.template.is_some()),
        ("--image", options.image.is_some()),
        ("--cache cold", options.is_cold),
    ];
    if let Some((flag, _)) = unknown.iter().find(|(_, is_given)| *is_given) {
        return Err(format!("{flag} makes no sense with --emulated: everything is made there, in memory").into());
    }
    let cache = Cache::open()?;
    let (midge, vmm, agent) = (binaries::midge()?, binaries::vmm()?, binaries::agent()?);
    let bar = Bar::new();
    let report = fork_counted(&options, &vmm, &agent, &args.counted.counting(&cache, &midge, &bar))?;
    args.lab.output.deliver(&report)?;
    args.counted.hold(&report)
}

/// Runs it and tells the result. An interrupt ends it, and nothing of it stays.
pub(super) fn main(which: Which, args: &LabArgs) -> Result<(), Failure> {
    measure(which, args, &args.options(which))
}

fn measure(which: Which, args: &LabArgs, options: &LabOptions) -> Result<(), Failure> {
    let bar = Bar::new();
    let work = async {
        match which {
            Which::Fork => fork(options, &bar).await,
            Which::LiveFork => live_fork(options, &bar).await,
            Which::Exec => exec(options, &bar).await,
            Which::Rate => rate(options, &bar).await,
            Which::Density => density(options, &bar).await,
        }
    };
    let measured = run::until_interrupted(work);
    let report: Report = measured.map_err(|code| format!("interrupted ({code}); nothing of it is left"))??;
    args.output.deliver(&report)
}
