// SPDX-License-Identifier: Apache-2.0
//! Moves a running command's bytes between its conversation and the caller's streams, until it ends.
//!
//! Two loops side by side, so that input never waits for output: one takes messages from the agent, one
//! sends input, within its window, and signals.

use midge_protocol::{Exited, MAX_DATA_BYTES, Message, Output, STDIN_WINDOW_BYTES, ToAgent, ToHost};
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::status::ExitStatus;
use super::streams::{Sink, WrongOffset};
use super::{LATE, STARTING as DURING};
use crate::error::Error;
use crate::link::{Conversation, Receiver, Sender};

/// One command's conversation after its start, with the pump's ends of its streams.
pub(super) struct Pump {
    pub(super) conversation: Conversation,
    /// `None` when the command has no input.
    pub(super) input: Option<DuplexStream>,
    pub(super) stdin_offset: u64,
    pub(super) outbox: mpsc::UnboundedReceiver<ToAgent>,
    pub(super) sinks: [Sink; 2],
    /// From when on every message is waited for no longer than [`LATE`]: its agent should have ended the command before.
    pub(super) deadline: Option<Instant>,
}

impl Pump {
    /// Runs to the command's end. Closes the output streams when it returns.
    pub(super) async fn run(self) -> Result<ExitStatus, Error> {
        let Self { conversation, input, stdin_offset, outbox, sinks, deadline } = self;
        let Conversation { sender, receiver } = conversation;
        let (taken, window) = watch::channel(stdin_offset);
        let sending = Feed { sender, input, sent: stdin_offset, window, outbox }.run();
        let receiving = receive(receiver, sinks, &taken, deadline);
        tokio::pin!(sending, receiving);
        tokio::select! {
            ended = &mut receiving => ended,
            // Input that cannot be sent any more does not matter by itself: the receiving half tells why.
            _ = &mut sending => receiving.await,
        }
    }
}

/// The agent's next message; beyond the deadline it is not waited for longer than [`LATE`]. Not before: a caller that reads
/// slowly holds its command up.
pub(super) async fn next(receiver: &mut Receiver, deadline: Option<Instant>) -> Result<ToHost, Error> {
    let Some(deadline) = deadline else { return receiver.next().await };
    let asked = Instant::now();
    let limit = deadline.max(asked + LATE);
    let late = |_| {
        let silent_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        Err(Error::Silent { during: DURING, silent_ms })
    };
    tokio::time::timeout_at(limit, receiver.next()).await.unwrap_or_else(late)
}

/// Takes messages until the last one.
async fn receive(
    mut receiver: Receiver,
    [mut stdout, mut stderr]: [Sink; 2],
    taken: &watch::Sender<u64>,
    deadline: Option<Instant>,
) -> Result<ExitStatus, Error> {
    loop {
        match next(&mut receiver, deadline).await? {
            ToHost::Stdout(Output { offset, data }) => stdout.take(offset, &data).await.map_err(|e| gap(offset, &e))?,
            ToHost::Stderr(Output { offset, data }) => stderr.take(offset, &data).await.map_err(|e| gap(offset, &e))?,
            ToHost::StdinTaken(offset) => {
                taken.send_if_modified(|known| {
                    let grows = offset > *known;
                    *known = offset.max(*known);
                    grows
                });
            }
            ToHost::Exited(exited) => return finish(&exited, stdout.offset(), stderr.offset()),
            other => return Err(receiver.unexpected(other, "output or Exited")),
        }
    }
}

fn gap(offset: u64, WrongOffset { due }: &WrongOffset) -> Error {
    let got = format!("output from offset {offset} (due: {due})");
    Error::Unexpected { during: DURING, got, expected: "the next output" }
}

fn finish(exited: &Exited, stdout_bytes: u64, stderr_bytes: u64) -> Result<ExitStatus, Error> {
    if (exited.stdout_bytes, exited.stderr_bytes) != (stdout_bytes, stderr_bytes) {
        let got = format!(
            "the end of {}+{} bytes of output after {stdout_bytes}+{stderr_bytes}",
            exited.stdout_bytes, exited.stderr_bytes
        );
        return Err(Error::Unexpected { during: DURING, got, expected: "all of the output" });
    }
    let broken = || Error::Unexpected {
        during: DURING,
        got: format!("{:?} {}", exited.outcome, exited.number),
        expected: "an exit code or a signal",
    };
    ExitStatus::from_wire(exited).ok_or_else(broken)
}

/// The sending half.
struct Feed {
    sender: Sender,
    input: Option<DuplexStream>,
    sent: u64,
    window: watch::Receiver<u64>,
    outbox: mpsc::UnboundedReceiver<ToAgent>,
}

impl Feed {
    /// Sends until the conversation breaks; with nothing left to send, for ever.
    async fn run(mut self) -> Result<(), Error> {
        let mut buffer = vec![0; MAX_DATA_BYTES];
        let mut caller_may_speak = true;
        loop {
            let taken = *self.window.borrow_and_update();
            let room = taken.saturating_add(STDIN_WINDOW_BYTES).saturating_sub(self.sent);
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(buffer.len());
            let reads = self.input.is_some() && room > 0;
            let waits = self.input.is_some() && room == 0;
            tokio::select! {
                biased;
                message = self.outbox.recv(), if caller_may_speak => match message {
                    Some(message) => self.send(&message).await?,
                    None => caller_may_speak = false,
                },
                got = read(&mut self.input, &mut buffer[..room]), if reads => match got {
                    0 => {
                        self.input = None;
                        self.send(&ToAgent::StdinEof).await?;
                    }
                    got => {
                        self.sent += got as u64;
                        self.send(&ToAgent::Stdin(buffer[..got].to_vec())).await?;
                    }
                },
                changed = self.window.changed(), if waits => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                else => return std::future::pending().await,
            }
        }
    }

    async fn send(&mut self, message: &ToAgent) -> Result<(), Error> {
        tracing::trace!(message = message.name(), "to the command");
        self.sender.send(message).await
    }
}

/// Reads input; 0 when it has ended or its writer is gone.
async fn read(input: &mut Option<DuplexStream>, buffer: &mut [u8]) -> usize {
    match input {
        Some(input) => input.read(buffer).await.unwrap_or(0),
        None => 0,
    }
}
