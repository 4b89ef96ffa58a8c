// SPDX-License-Identifier: Apache-2.0
//! Signals to `midge run`: which ones the command gets, and which ones end the run.

use std::io;
use std::sync::{Mutex, PoisonError};

use midge::exec::Controls;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Pass it on to the command.
    PassOn(u8),
    /// End the sandbox and exit with 128 and this number.
    End(u8),
}

/// The signals that mean something to a run.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    hangup: Signal,
    decision: Decision,
}

impl Signals {
    /// From here on signals are noticed instead of killing us.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            decision: Decision::default(),
        })
    }

    /// The next thing that is asked; `running` says whether there is a command to pass signals on to.
    pub(super) async fn next(&mut self, running: &Target) -> Asked {
        let number = tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.quit.recv() => libc::SIGQUIT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hangup.recv() => libc::SIGHUP,
        };
        self.decision.decide(number, running.is_set())
    }
}

/// What has been asked before.
#[derive(Debug, Default)]
struct Decision {
    interrupted: bool,
}

impl Decision {
    fn decide(&mut self, number: i32, has_command: bool) -> Asked {
        let number_u8 = u8::try_from(number).unwrap_or(0);
        let again = self.interrupted;
        self.interrupted |= number == libc::SIGINT;
        match number {
            libc::SIGINT if has_command && !again => Asked::PassOn(number_u8),
            libc::SIGQUIT if has_command => Asked::PassOn(number_u8),
            _ => Asked::End(number_u8),
        }
    }
}

/// The running command's controls, once there is one.
#[derive(Debug, Default)]
pub(super) struct Target {
    controls: Mutex<Option<Controls>>,
}

impl Target {
    pub(super) fn set(&self, controls: Option<Controls>) {
        *self.controls.lock().unwrap_or_else(PoisonError::into_inner) = controls;
    }

    pub(super) fn get(&self) -> Option<Controls> {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_set(&self) -> bool {
        self.get().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_interrupt_is_the_commands_and_the_second_ends() {
        let mut decision = Decision::default();
        assert_eq!(decision.decide(libc::SIGINT, true), Asked::PassOn(2));
        assert_eq!(decision.decide(libc::SIGQUIT, true), Asked::PassOn(3));
        assert_eq!(decision.decide(libc::SIGINT, true), Asked::End(2));
    }

    #[test]
    fn without_a_command_every_signal_ends() {
        for number in [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP] {
            assert_eq!(Decision::default().decide(number, false), Asked::End(u8::try_from(number).unwrap()));
        }
        assert_eq!(Decision::default().decide(libc::SIGTERM, true), Asked::End(15));
    }
}
