// SPDX-License-Identifier: Apache-2.0
//! What `midge bench boot` and `fork` have in common: counting instead of timing, budgets, and the jail.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use midge::bench::{Budget, Counting, Jail, Report};
use midge::cache::Cache;
use midge::emulated::counted::CPU;
use midge::progress::Watch;

use super::{Failure, print};

/// Runs of each that are counted where nobody says otherwise: they hardly differ.
pub(super) const COUNTED_RUNS: u32 = 5;

#[derive(Debug, Args)]
pub(super) struct CountedArgs {
    /// Count instructions in an emulated host instead of timing on this machine's KVM
    #[arg(long)]
    pub(super) emulated: bool,

    /// The emulated host's processor, in QEMU's words. The default hides that it copies quickly byte by byte, as each
    /// byte would count as an instruction
    #[arg(long, value_name = "CPU", requires = "emulated", conflicts_with_all = ["budget", "write_budget"],
        default_value = CPU)]
    emulated_cpu: String,

    /// Fail when Midge takes more instructions or exits than this file allows
    #[arg(long, value_name = "FILE", requires = "emulated")]
    budget: Option<PathBuf>,

    /// Write such a file from what was measured
    #[arg(long, value_name = "FILE", requires = "emulated", conflicts_with = "budget")]
    write_budget: Option<PathBuf>,
}

impl CountedArgs {
    /// Refuses what budgets do not know.
    pub(super) fn check(&self, jail: &JailArgs) -> Result<(), Failure> {
        let has_budget = self.budget.is_some() || self.write_budget.is_some();
        if has_budget && jail.jail() == Jail::Off {
            return Err(
                "a budget is for what users run: --jail off cannot be held to one, leave one of them out".into()
            );
        }
        Ok(())
    }

    pub(super) fn counting<'a>(&'a self, cache: &'a Cache, midge: &'a Path, watch: &'a dyn Watch) -> Counting<'a> {
        Counting { cpu: &self.emulated_cpu, cache, midge, watch }
    }

    /// Writes the budget, or holds the report against it, as far as that was asked for.
    pub(super) fn hold(&self, report: &Report) -> Result<(), Failure> {
        if let Some(path) = &self.write_budget {
            Budget::of(report)?.write(path)?;
        }
        match &self.budget {
            Some(path) => print(&format!("\n{}\n", Budget::hold(path, report)?)),
            None => Ok(()),
        }
    }
}

/// Whether Midge takes part without its jail too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    On,
    Off,
}

#[derive(Debug, Args)]
pub(super) struct JailArgs {
    /// With `off` Midge takes part twice, once without its monitor's jail, to see what that costs. Nothing but
    /// these benches can turn it off
    #[arg(long, value_enum, default_value = "on")]
    jail: Choice,
}

impl JailArgs {
    pub(super) fn jail(&self) -> Jail {
        match self.jail {
            Choice::On => Jail::On,
            Choice::Off => Jail::Off,
        }
    }
}
