// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a sandbox, whose fault it is, and what to do next.
//!
//! One enum for all of the layers above the monitor, because every one of them can meet a dead guest.

use std::fmt;
use std::io;
use std::sync::Arc;

use midge_protocol::{DecodeError, EncodeError, ErrorCode, Failure, VersionMismatch};

use crate::monitor::end::{Cause, End};
use crate::monitor::{MonitorError, events::printable};
use crate::run_dir::RunDirError;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A setting or a request: the user, or the program that embeds Midge.
    User,
    /// This machine: its memory, its files, its KVM.
    Host,
    /// What runs in the guest.
    Guest,
    /// Midge itself.
    Midge,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "request",
            Self::Host => "host",
            Self::Guest => "guest",
            Self::Midge => "midge",
        })
    }
}

/// Why an operation on a sandbox failed. Display starts with what was attempted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting lies outside its range.
    #[error("{what} is {value}; accepted: {accepted}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Its value, as given.
        value: String,
        /// What would have been accepted.
        accepted: String,
    },
    /// Something a sandbox needs could not be made ready.
    #[error("preparing the {what}")]
    Prepare {
        /// What: the kernel, the image, the workspace.
        what: &'static str,
        /// Whose fault.
        fault: Fault,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The sandbox's directory could not be made.
    #[error("making the sandbox's run directory")]
    RunDir(#[from] RunDirError),
    /// The monitor could not be started or reached.
    #[error("running the monitor")]
    Monitor(#[from] MonitorError),
    /// The agent did not report in time.
    #[error("starting the guest: its agent has not reported within {limit_ms} ms")]
    BootTimeout {
        /// The limit.
        limit_ms: u64,
        /// The console's last lines: the guest's words.
        console_tail: Vec<String>,
    },
    /// The agent could not set the guest up.
    #[error("setting the guest up: {} failed: {}", printable(step), printable(text))]
    GuestSetup {
        /// The step that failed.
        step: String,
        /// Why.
        text: String,
    },
    /// The VM ended under the operation.
    #[error("{during}: {end}")]
    VmEnded {
        /// What was going on.
        during: &'static str,
        /// How it ended.
        end: Arc<End>,
    },
    /// The agent does not answer any more.
    #[error("{during}: the guest's agent has not answered for {silent_ms} ms")]
    Silent {
        /// What was going on.
        during: &'static str,
        /// For how long.
        silent_ms: u64,
    },
    /// The stream to the agent broke off while the VM went on.
    #[error("{during}: the conversation with the guest's agent broke off")]
    Lost {
        /// What was going on.
        during: &'static str,
        /// What the stream says.
        source: io::Error,
    },
    /// The agent sent what is not the protocol.
    #[error("{during}: the guest broke the protocol")]
    Broken {
        /// What was going on.
        during: &'static str,
        /// How.
        source: DecodeError,
    },
    /// The agent sent a message out of turn, or one that contradicts an earlier one.
    #[error("{during}: the guest sent {got} where {expected} was due")]
    Unexpected {
        /// What was going on.
        during: &'static str,
        /// What came.
        got: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// A command of a template's plan did not do its part.
    #[error("making the template: its {step} command {problem}")]
    Template {
        /// `setup` or `warm`.
        step: &'static str,
        /// What happened.
        problem: String,
    },
    /// Host and agent have no protocol version in common.
    #[error(transparent)]
    Version(#[from] VersionMismatch),
    /// A request is too long for the protocol.
    #[error("sending the request to the guest")]
    TooLong(#[from] EncodeError),
    /// The command could not be started.
    #[error("starting the command: {}", printable(text))]
    NotStarted {
        /// What a shell would exit with: 127 not found, 126 not executable, 125 everything else.
        exit_code: u8,
        /// The guest kernel's error number, or 0.
        errno: i32,
        /// Why.
        text: String,
    },
    /// The agent could not do what it was asked.
    #[error("{during}: {}", printable(&failure.text))]
    Failed {
        /// What was going on.
        during: &'static str,
        /// The agent's answer.
        failure: Failure,
    },
    /// A stream that the caller gave failed.
    #[error("{during}")]
    Local {
        /// What was going on.
        during: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What goes on while a monitor reads the files of a template: what it refuses then is the template.
pub(crate) const STARTING: &str = "starting a sandbox of a template";
pub(crate) const HOLDING: &str = "bringing a template into memory";
const OF_A_TEMPLATE: [&str; 2] = [STARTING, HOLDING];

impl Error {
    /// Wraps what went wrong while something was being prepared.
    pub fn prepare(
        what: &'static str,
        fault: Fault,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Prepare { what, fault, source: source.into() }
    }

    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Setting { .. }
            | Self::TooLong(_)
            | Self::NotStarted { .. }
            | Self::Failed { .. }
            | Self::Template { .. } => Fault::User,
            Self::Prepare { fault, .. } => *fault,
            Self::RunDir(_) | Self::Local { .. } => Fault::Host,
            Self::Monitor(_) => Fault::Host,
            Self::VmEnded { during, end } => match end.cause {
                _ if end.is_guests_doing() => Fault::Guest,
                Cause::Stopped => Fault::User,
                Cause::Config if OF_A_TEMPLATE.contains(during) => Fault::User,
                Cause::Config => Fault::Midge,
                _ => Fault::Host,
            },
            Self::BootTimeout { .. }
            | Self::GuestSetup { .. }
            | Self::Silent { .. }
            | Self::Lost { .. }
            | Self::Broken { .. }
            | Self::Unexpected { .. }
            | Self::Version(_) => Fault::Guest,
        }
    }

    /// What to do about it, where there is something to do that the message does not say.
    #[must_use]
    pub fn next_step(&self) -> Option<&'static str> {
        match self {
            Self::BootTimeout { .. } => {
                Some("see the guest's console with --console; give a slow machine more time with --boot-timeout")
            }
            Self::VmEnded { during, end } => match end.cause {
                Cause::Config if OF_A_TEMPLATE.contains(during) => {
                    Some("remove the template with `midge template remove`, and make it anew")
                }
                Cause::GuestPanic | Cause::TripleFault => Some(
                    "see the guest's console with --console; more memory (--mem) helps against out-of-memory panics",
                ),
                Cause::HostError => Some("run `midge doctor` to see what this host lacks"),
                Cause::Signal(libc::SIGKILL) => {
                    Some("if nobody killed it, the host ran out of memory: look at the kernel's log, and lower --mem")
                }
                Cause::Signal(_) | Cause::Code(_) => Some("please report this with the output of --log-level debug"),
                _ => None,
            },
            Self::Monitor(MonitorError::Spawn { .. }) => Some("run `midge doctor` to see what this host lacks"),
            Self::Failed { failure, .. } if failure.code == ErrorCode::NoSpace => {
                Some("the sandbox's disk is full: give it more with --disk")
            }
            _ => None,
        }
    }

    /// The console's last lines, where the guest's death is the reason.
    #[must_use]
    pub fn console_tail(&self) -> &[String] {
        match self {
            Self::BootTimeout { console_tail, .. } => console_tail,
            Self::VmEnded { end, .. } => &end.console_tail,
            _ => &[],
        }
    }
}

/// An error and all its sources in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_follows_the_cause_of_the_end() {
        let ended = |cause| Error::VmEnded { during: "x", end: Arc::new(End { cause, ..End::lost("") }) };
        assert_eq!(ended(Cause::GuestPanic).fault(), Fault::Guest);
        assert_eq!(ended(Cause::Signal(9)).fault(), Fault::Host);
        assert_eq!(ended(Cause::Config).fault(), Fault::Midge);
        assert_eq!(ended(Cause::Stopped).fault(), Fault::User);
        assert!(ended(Cause::Signal(9)).next_step().unwrap().contains("memory"));
        let end = Arc::new(End { cause: Cause::Config, ..End::lost("") });
        let of_a_template = Error::VmEnded { during: HOLDING, end };
        assert_eq!(of_a_template.fault(), Fault::User);
        assert!(of_a_template.next_step().unwrap().contains("anew") && ended(Cause::Config).next_step().is_none());
    }

    #[test]
    fn chain_names_every_cause_once() {
        let source = io::Error::other("disk on fire");
        let error = Error::Monitor(MonitorError::Spawn { path: "/x".into(), source });
        assert_eq!(chain(&error), "running the monitor: starting /x: disk on fire");
    }

    #[test]
    fn guests_words_cannot_steer_a_terminal() {
        let failure = Failure { code: ErrorCode::Other, errno: 0, text: "\u{1b}[2Jx".into() };
        assert!(!Error::Failed { during: "reading a file", failure }.to_string().contains('\u{1b}'));
    }
}
