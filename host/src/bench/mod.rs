// SPDX-License-Identifier: Apache-2.0
//! `midge bench`: measuring, so that it can be believed and repeated. Every bench gives a [`Report`] with each of its samples.
//!
//! [`boot`], and what is below it, stands beside the sandbox, not above it: it starts monitor processes itself and talks to
//! the agent with nothing in between, so that it times the monitor and the guest and not this crate. [`fork`] and the others of
//! whole sandboxes ([`LabOptions`]) stand on the library as its users do. [`boot_counted`] and [`fork_counted`] run them in an
//! emulated host whose clock counts instructions ([`inside`] is its far end). [`vsock`] and [`block`] boot a guest whose only
//! program is [`guest`].

mod boot;
mod budget;
mod contender;
mod counted;
mod density;
mod devices;
mod exec;
mod exits;
mod firecracker;
mod fork;
mod greeting;
pub mod guest;
pub mod inside;
mod lab;
mod launch;
mod live_fork;
mod memory;
mod page;
mod plot;
mod programs;
mod report;
mod stats;
mod table;
mod talk;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::machine::Machine;
pub use crate::monitor::Jail;
pub use boot::{BootOptions, Run, boot};
pub use budget::{Budget, BudgetError};
pub use contender::{Contender, ParseError};
pub use counted::{CountedError, Counting, boot_counted, fork_counted};
pub use density::density;
pub use devices::{block, device_initramfs, vsock};
pub use exec::exec;
pub use exits::Exits;
pub use fork::{fork, rate};
pub use lab::LabOptions;
pub use live_fork::live_fork;
pub use page::html;
pub use plot::svg;
pub use report::{Aim, Finding, Report, Sample, Series, Unit};
pub use stats::{Percentiles, Spread};

/// Most runs of one bench.
pub const RUNS_MAX_COUNT: u32 = 100_000;

/// What moves a bench's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// Time.
    Real,
    /// Instructions of the emulated host's processor: 1,000 of them are what is called a microsecond.
    Instructions,
}

impl Clock {
    /// The clock of the machine that this process runs on.
    #[must_use]
    pub fn here() -> Self {
        if inside::is_called() { Self::Instructions } else { Self::Real }
    }

    /// What a thousand of its microseconds are: milliseconds, or millions of instructions.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Real => "ms",
            Self::Instructions => "Mi",
        }
    }
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
    /// So many at once make no sense.
    #[error("--concurrency has {level}, must be 1 to {}", lab::CONCURRENCY_MAX_COUNT)]
    Concurrency {
        /// What was asked for.
        level: u32,
    },
    /// A sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] crate::error::Error),
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

/// Refuses numbers of runs that make no sense.
fn check_runs(runs: u32) -> Result<(), BenchError> {
    if (1..=RUNS_MAX_COUNT).contains(&runs) { Ok(()) } else { Err(BenchError::Runs { runs }) }
}
