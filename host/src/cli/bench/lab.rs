// SPDX-License-Identifier: Apache-2.0
//! `midge bench fork` and its kin, benches of whole sandboxes: their flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use midge::bench::{Contender, LabOptions, Report, density, exec, fork, live_fork, rate};
use midge::progress::Bar;

use super::{Failure, Output};
use crate::cli::run;

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

    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    mem: u64,

    /// Memory that a process of the guest has written to before it is forked; for live-fork
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    touched: u64,

    #[command(flatten)]
    output: Output,

    /// Longest a single run may take
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    limit: u64,
}

/// The program of the only one that has snapshots.
pub(super) fn firecracker(given: &str) -> Result<PathBuf, String> {
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
            mem_mib: self.mem,
            is_cold: self.cache == PageCache::Cold,
            touched_mib: self.touched,
            limit: Duration::from_secs(self.limit.max(1)),
        }
    }
}

/// Runs it and tells the result. An interrupt ends it, and nothing of it stays.
pub(super) fn main(which: Which, args: &LabArgs) -> Result<(), Failure> {
    let options = args.options(which);
    let bar = Bar::new();
    let work = async {
        match which {
            Which::Fork => fork(&options, &bar).await,
            Which::LiveFork => live_fork(&options, &bar).await,
            Which::Exec => exec(&options, &bar).await,
            Which::Rate => rate(&options, &bar).await,
            Which::Density => density(&options, &bar).await,
        }
    };
    let measured = run::until_interrupted(work);
    let report: Report = measured.map_err(|code| format!("interrupted ({code}); nothing of it is left"))??;
    args.output.deliver(&report)
}
