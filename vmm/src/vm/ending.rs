// SPDX-License-Identifier: Apache-2.0
//! What a VM's end was, told from what is left of it.
//!
//! Pure but for reading guest memory: everything has stopped by then.

use crate::control::Cause;
use crate::machine::console::Output;
use crate::machine::vcpu::Stop;
use crate::memory::GuestRam;
use crate::postmortem;
use crate::trace::{Ending, ExitCounts, Reason};

/// Lines of console output in an exit report.
const TAIL_LINES: usize = 20;
/// What Linux prints first when it gives up.
const PANIC_MARK: &str = "Kernel panic - not syncing";

/// What is known once every vCPU has stopped.
pub(super) struct Evidence {
    /// Why the event loop was left.
    cause: Cause,
    /// Why the first vCPU ended.
    stop: Stop,
    /// Whether the kernel marked its reset as that of a panic.
    panicked: bool,
    /// Console lines or, without a console, the kernel's log.
    lines: Vec<String>,
}

impl Evidence {
    /// `is_silent`: the guest talks to nobody.
    pub(super) fn collect(
        cause: Cause,
        stop: Stop,
        is_silent: bool,
        output: &Output,
        ram: &GuestRam,
        kernel: (u64, u64),
    ) -> Self {
        let panicked = postmortem::panicked(ram);
        let mut lines = output.tail(TAIL_LINES);
        // An orderly end needs no inquest, which reads through a kernel's memory.
        let is_orderly = match stop {
            Stop::Reset => true,
            Stop::Asked | Stop::Paused => !is_silent,
            Stop::Shutdown | Stop::Failed(_) => false,
        };
        if lines.is_empty() && (panicked || !is_orderly) {
            lines = postmortem::kernel_log(ram, kernel.0, kernel.1);
        }
        Self { cause, stop, panicked, lines }
    }

    /// What the end of the VM was: the guest's doing if it did anything, else the host's wish.
    pub(super) fn ending(self, exits: ExitCounts) -> Ending {
        let panic = self.lines.iter().find_map(|line| line.get(line.find(PANIC_MARK)?..)).map(str::to_owned);
        let panicked = self.panicked || panic.is_some();
        let (reason, detail) = match self.stop {
            Stop::Reset | Stop::Shutdown if panicked => {
                (Reason::Panic, panic.unwrap_or_else(|| "the guest's kernel panicked".to_owned()))
            }
            Stop::Reset => (Reason::Reset, "the guest asked for a reset".to_owned()),
            Stop::Shutdown => (Reason::TripleFault, "the guest's CPU shut down (triple fault)".to_owned()),
            Stop::Failed(text) => (Reason::HostError, text),
            Stop::Asked | Stop::Paused => (Reason::Stopped, self.cause.describe().to_owned()),
        };
        let skip = self.lines.len().saturating_sub(TAIL_LINES);
        let console_tail = self.lines.into_iter().skip(skip).collect();
        Ending { reason, detail, console_tail, exits, written: Vec::new() }
    }
}

#[cfg(test)]
mod tests;
