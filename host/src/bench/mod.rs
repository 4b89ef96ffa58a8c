// SPDX-License-Identifier: Apache-2.0
//! `midge bench boot`: how long from the start of a monitor to the guest's first answer, beside other
//! monitors on the same machine with the same kernel and initramfs, in alternating runs. [`boot`] measures on this
//! machine by its clock; [`boot_counted`] in an emulated host whose clock counts instructions ([`inside`] is its far end).
//!
//! Beside the sandbox, not above it: a bench starts monitor processes itself and talks to the agent with
//! nothing in between, so that it times the monitor and the guest and not this crate.

mod budget;
mod contender;
mod counted;
mod exits;
mod greeting;
pub mod inside;
mod launch;
mod plot;
mod report;
mod stats;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::machine::Machine;
pub use budget::{Budget, BudgetError};
pub use contender::{Contender, ParseError};
pub use counted::{CountedError, boot_counted};
pub use exits::Exits;
pub use plot::svg;
pub use report::{BootReport, Series};
pub use stats::{Percentiles, Spread};

/// Most runs of one bench.
pub const RUNS_MAX_COUNT: u32 = 100_000;

/// What moves a bench's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// Time.
    Real,
    /// Instructions of the emulated host's processor: 1,000 of them are what is called a microsecond.
    Instructions,
}

impl Clock {
    /// What a thousand of its microseconds are: milliseconds, or millions of instructions.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Real => "ms",
            Self::Instructions => "Mi",
        }
    }
}

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// From just before the monitor's process was made to the first byte that its guest's first program sent.
    pub first_output_us: u64,
    /// To the answer to the host's first request, where the contender has a way to ask.
    pub first_reply_us: Option<u64>,
    /// The stages the monitor told of, from its own start.
    pub stages: Vec<(String, u64)>,
    /// The stages the agent told of, by the guest's own clock, which starts with the VM.
    pub guest_stages: Vec<(String, u64)>,
    /// Private memory of the monitor's process that is not the guest's, in KiB, at the first reply.
    pub own_memory_kib: Option<u64>,
    /// Exits of the VM up to its last event, where the host's KVM shows them.
    pub exits: Exits,
}

/// Runs the bench on this machine; `progress` is told (runs done, runs in all).
///
/// # Errors
/// The first run that fails ends the bench.
pub fn boot(options: &BootOptions, progress: &mut dyn FnMut(u32, u32)) -> Result<BootReport, BenchError> {
    let runs = all_runs(options, progress)?;
    Ok(BootReport::new(options, Clock::Real, Machine::read(), runs))
}

/// Who takes part; we come first.
fn contenders(options: &BootOptions) -> Vec<Contender> {
    let ours = Contender::Midge { program: options.vmm.clone() };
    std::iter::once(ours).chain(options.against.iter().cloned()).collect()
}

/// The counted runs of each contender, in the order of [`contenders`].
fn all_runs(options: &BootOptions, progress: &mut dyn FnMut(u32, u32)) -> Result<Vec<Vec<Run>>, BenchError> {
    options.check()?;
    let contenders = contenders(options);
    let mut runs = vec![Vec::new(); contenders.len()];
    let all = options.boots();
    let mut done = 0;
    // Round 0 warms the page cache and shows early what does not run at all.
    for round in 0..=options.runs {
        for turn in 0..contenders.len() {
            // Another one begins each round, so that nobody always runs in the wake of the same one.
            let index = (turn + round as usize) % contenders.len();
            let run = launch::once(&contenders[index], options)?;
            if round > 0 {
                runs[index].push(run);
            }
            done += 1;
            progress(done, all);
        }
    }
    Ok(runs)
}

impl BootOptions {
    /// How many boots the bench makes, those that only warm up among them.
    #[must_use]
    pub fn boots(&self) -> u32 {
        let contenders = u32::try_from(self.against.len()).unwrap_or(u32::MAX).saturating_add(1);
        contenders.saturating_mul(self.runs.saturating_add(1))
    }

    fn check(&self) -> Result<(), BenchError> {
        let sensible = (1..=RUNS_MAX_COUNT).contains(&self.runs);
        if sensible { Ok(()) } else { Err(BenchError::Runs { runs: self.runs }) }
    }
}
