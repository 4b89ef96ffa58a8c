// SPDX-License-Identifier: Apache-2.0
//! How a command ended, in plain data.

use std::fmt;

use midge_protocol::Exited;
use serde::Serialize;

use crate::monitor::end::SignalName;

/// What ended a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It returned this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

/// How a command ended and what it used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitStatus {
    /// What ended it.
    pub outcome: Outcome,
    /// It was killed because its time was over.
    pub timed_out: bool,
    /// What it and its children used.
    pub usage: Usage,
}

/// Resources that a command used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Time from its start to its end, in microseconds.
    pub wall_us: u64,
    /// Time in programs, in microseconds.
    pub user_us: u64,
    /// Time in the kernel, in microseconds.
    pub system_us: u64,
    /// Largest resident set of one process, in KiB.
    pub max_rss_kib: u64,
}

impl ExitStatus {
    /// Whether it returned 0 in time.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.outcome == Outcome::Code(0) && !self.timed_out
    }

    /// What a shell would report: the code, 128 + the signal's number, or 124 for a time-out.
    #[must_use]
    pub fn shell_code(&self) -> u8 {
        match self.outcome {
            _ if self.timed_out => 124,
            Outcome::Code(code) => code,
            Outcome::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }

    /// `None` when the numbers are none that Linux gives.
    pub(super) fn from_wire(exited: &Exited) -> Option<Self> {
        let outcome = match exited.outcome {
            midge_protocol::Outcome::Code => Outcome::Code(u8::try_from(exited.number).ok()?),
            midge_protocol::Outcome::Signal => {
                Outcome::Signal(u8::try_from(exited.number).ok().filter(|signal| (1..=64).contains(signal))?)
            }
        };
        let midge_protocol::Usage { wall_us, user_us, system_us, max_rss_kib } = exited.usage;
        Some(Self { outcome, timed_out: exited.timed_out, usage: Usage { wall_us, user_us, system_us, max_rss_kib } })
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome {
            _ if self.timed_out => f.write_str("killed after its time was over"),
            Outcome::Code(code) => write!(f, "exit code {code}"),
            Outcome::Signal(signal) => write!(f, "killed by {}", SignalName(i32::from(signal))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(outcome: midge_protocol::Outcome, number: i32, timed_out: bool) -> Option<ExitStatus> {
        let usage = midge_protocol::Usage { wall_us: 1, user_us: 2, system_us: 3, max_rss_kib: 4 };
        ExitStatus::from_wire(&Exited { outcome, number, timed_out, stdout_bytes: 0, stderr_bytes: 0, usage })
    }

    #[test]
    fn shell_codes_follow_the_shells_rules() {
        use midge_protocol::Outcome::{Code, Signal};
        let code = |outcome, number, timed_out| exited(outcome, number, timed_out).unwrap().shell_code();
        assert_eq!(code(Code, 0, false), 0);
        assert_eq!(code(Code, 255, false), 255);
        assert_eq!(code(Signal, 9, false), 137);
        assert_eq!(code(Signal, 64, false), 192);
        assert_eq!(code(Signal, 9, true), 124);
        assert!(exited(Code, 0, false).unwrap().is_success());
        assert!(!exited(Code, 0, true).unwrap().is_success());
    }

    #[test]
    fn impossible_numbers_are_refused() {
        use midge_protocol::Outcome::{Code, Signal};
        for (outcome, number) in [(Code, -1), (Code, 256), (Signal, 0), (Signal, 65), (Signal, i32::MIN)] {
            assert_eq!(exited(outcome, number, false), None, "{number}");
        }
    }
}
