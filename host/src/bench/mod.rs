// SPDX-License-Identifier: Apache-2.0
//! `midge bench boot`: how long from the start of a monitor to the guest's first answer, beside other
//! monitors on the same machine with the same kernel and initramfs, in alternating runs.
//!
//! Beside the sandbox, not above it: a bench starts monitor processes itself and talks to the agent with
//! nothing in between, so that it times the monitor and the guest and not this crate.

mod contender;
mod greeting;
mod launch;
mod plot;
mod report;
mod stats;

use std::path::PathBuf;
use std::time::Duration;

pub use crate::machine::Machine;
pub use contender::{Contender, ParseError};
pub use plot::svg;
pub use report::{BootReport, Series};
pub use stats::{Percentiles, Spread};

/// Most runs of one bench.
pub const RUNS_MAX_COUNT: u32 = 100_000;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BootOptions {
    /// Runs of each contender; one more of each is made first and not counted.
    pub runs: u32,
    /// The monitor under test.
    pub vmm: PathBuf,
    /// Who it is compared with.
    pub against: Vec<Contender>,
    /// The guest kernel, the same for all.
    pub kernel: PathBuf,
    /// The initramfs with the agent, the same for all.
    pub initramfs: PathBuf,
    /// Guest memory, in MiB.
    pub mem_mib: u64,
    /// Longest a run may take.
    pub limit: Duration,
}

/// Why a bench stopped.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The number of runs makes no sense.
    #[error("-n is {runs}, must be 1 to {RUNS_MAX_COUNT}")]
    Runs {
        /// What was asked for.
        runs: u32,
    },
    /// A contender's program could not be started.
    #[error("starting {program} for {contender}")]
    Start {
        /// Who.
        contender: &'static str,
        /// Its program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Files of a run could not be made or read.
    #[error("preparing a run of {contender}")]
    Prepare {
        /// Who.
        contender: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The guest said something else than expected.
    #[error("talking to the agent in {contender}'s guest: {text}")]
    Guest {
        /// Who.
        contender: &'static str,
        /// What happened.
        text: String,
    },
    /// The guest never answered.
    #[error(
        "booting with {contender}: no answer of its guest within {limit:?}{said}; does this kernel run on this machine's KVM?"
    )]
    Late {
        /// Who.
        contender: &'static str,
        /// How long was waited.
        limit: Duration,
        /// What the program printed last.
        said: String,
    },
}

/// One boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// From just before the monitor's process was made to the first byte that its guest's first program sent.
    pub first_output_us: u64,
    /// To the answer to the host's first request, where the contender has a way to ask.
    pub first_reply_us: Option<u64>,
    /// The stages the monitor told of, from its own start.
    pub stages: Vec<(String, u64)>,
    /// Private memory of the monitor's process that is not the guest's, in KiB, at the first reply.
    pub own_memory_kib: Option<u64>,
}

/// Runs the bench; `progress` is told (runs done, runs in all).
///
/// # Errors
/// The first run that fails ends the bench.
pub fn boot(options: &BootOptions, progress: &mut dyn FnMut(u32, u32)) -> Result<BootReport, BenchError> {
    if options.runs == 0 || options.runs > RUNS_MAX_COUNT {
        return Err(BenchError::Runs { runs: options.runs });
    }
    let mut contenders = vec![Contender::Midge { program: options.vmm.clone() }];
    contenders.extend(options.against.iter().cloned());
    let mut series: Vec<Series> = contenders.iter().map(|contender| Series::new(contender.name())).collect();
    let all = u32::try_from(contenders.len()).unwrap_or(u32::MAX).saturating_mul(options.runs + 1);
    let mut done = 0;
    // Round 0 warms the page cache and shows early what does not run at all.
    for round in 0..=options.runs {
        for turn in 0..contenders.len() {
            // Another one begins each round, so that nobody always runs in the wake of the same one.
            let index = (turn + round as usize) % contenders.len();
            let run = launch::once(&contenders[index], options)?;
            if round > 0 {
                series[index].runs.push(run);
            }
            done += 1;
            progress(done, all);
        }
    }
    Ok(BootReport {
        machine: Machine::read(),
        runs: options.runs,
        mem_mib: options.mem_mib,
        kernel: options.kernel.clone(),
        series,
    })
}
