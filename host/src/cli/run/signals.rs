// SPDX-License-Identifier: Apache-2.0
//! Signals to `midge run`: which ones the command gets, and which ones end the run.
//!
//! They are taken by a thread of their own, so that nothing that a run waits for (a reader that does not read, a step that
//! does not return) keeps them waiting. The end that was asked for comes: after [`WAY_OUT`] without ceremony.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use midge::exec::Controls;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::terminal;
use crate::cli::fail::say;

/// How long the way out may take: ending the machine, removing its directory, restoring the terminal.
const WAY_OUT: Duration = Duration::from_secs(10);
/// When to say that a command goes on though it was interrupted. A shell that is just starting forgets an interrupt.
const GOES_ON: Duration = Duration::from_secs(3);

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Pass it on to the command.
    PassOn(u8),
    /// End the sandbox and exit with 128 and this number.
    End(u8),
}

/// The wish for an end, once there is one.
#[derive(Debug)]
pub(in crate::cli) struct Signals {
    end: oneshot::Receiver<u8>,
}

impl Signals {
    /// From here on signals are noticed instead of killing us. `target` gets those that are the command's.
    pub(in crate::cli) fn listen(target: Arc<Target>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let streams = {
            let _in_it = runtime.enter();
            Streams::install()?
        };
        let (asked, end) = oneshot::channel();
        let follow = move || runtime.block_on(follow(streams, &target, asked));
        std::thread::Builder::new().name("signals".into()).spawn(follow)?;
        Ok(Self { end })
    }

    /// Resolves when the run is to end, to the signal's number. Whoever sees it has [`WAY_OUT`].
    pub(in crate::cli) async fn end(self) -> u8 {
        match self.end.await {
            Ok(number) => number,
            // Without its thread no signal can be noticed; the run goes on.
            Err(_) => std::future::pending().await,
        }
    }
}

/// The signals that mean something to a run.
struct Streams {
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Streams {
    fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.quit.recv() => libc::SIGQUIT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hangup.recv() => libc::SIGHUP,
        }
    }
}

/// Passes signals on until one asks for the end; sees to it that the end comes.
async fn follow(mut streams: Streams, target: &Target, asked: oneshot::Sender<u8>) {
    let mut decision = Decision::default();
    let mut reminder = None;
    let number = loop {
        let number = tokio::select! {
            number = streams.next() => number,
            () = sleep_until(reminder.unwrap_or_else(Instant::now)), if reminder.is_some() => {
                reminder = None;
                if target.get().is_some() && terminal::is_as_it_was() {
                    say_at_once("the command was interrupted and goes on; another Ctrl-C ends the sandbox");
                }
                continue;
            }
        };
        let controls = target.get();
        match decision.decide(number, controls.is_some()) {
            Asked::End(number) => break number,
            Asked::PassOn(number) => {
                if let Some(controls) = controls {
                    controls.signal(number);
                }
                reminder = Some(Instant::now() + GOES_ON);
            }
        }
    };
    // Nobody takes it when the run is over and its last words are being printed.
    let _ = asked.send(number);
    tokio::time::sleep(WAY_OUT).await;
    leave(number);
}

/// Ends this process, whatever it waits for: the monitor's lifeline breaks with it, and the next run removes what is left
/// in the run directory.
#[expect(clippy::exit, reason = "the thread that should return from `main` cannot be reached")]
fn leave(number: u8) -> ! {
    terminal::restore();
    say_at_once(&format!(
        "the end was asked for {} s ago and does not come; leaving without cleaning up",
        WAY_OUT.as_secs()
    ));
    std::process::exit(i32::from(128 + number))
}

/// Says it unless that would have to wait.
fn say_at_once(line: &str) {
    let stderr = rustix::stdio::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    if matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..)) {
        say(line);
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

/// The running command's controls, while there is one.
#[derive(Debug, Default)]
pub(in crate::cli) struct Target {
    controls: Mutex<Option<Controls>>,
}

impl Target {
    pub(in crate::cli) fn set(&self, controls: Option<Controls>) {
        *self.controls.lock().unwrap_or_else(PoisonError::into_inner) = controls;
    }

    fn get(&self) -> Option<Controls> {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
