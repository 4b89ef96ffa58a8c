// SPDX-License-Identifier: Apache-2.0
//! The door `peer`: messages and TCP tunnels between two sandboxes of one host process, where both policies name the other.
//!
//! Sandboxes never reach each other but through the [`Switchboard`]. Each message and tunnel is held against both policies as they
//! are now, against the sender's rate, and is in both transcripts before it happens. When either policy no longer allows a tunnel,
//! or either sandbox is gone, it is ended.

mod mailbox;
mod relay;
mod seat;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use midge_policy::Policy;
use midge_protocol::Door;
use midge_protocol::broker::{MESSAGE_MAX_BYTES, PeerEvent, PeerOpen, PeerSend};
use midge_record::{Entry, Recorder};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{Mutex, Semaphore, watch};

use crate::lines::{LineError, Lines, Pace, note_nonsense, unrecorded, write_line};
use crate::stream::{AnyStream, Later, Rewound, Stream};

use relay::relay;
pub use seat::{NameTaken, Switchboard};
use seat::{Seat, Wish};

/// Lines and connections a second; more wait.
const LINES_PER_SECOND: u32 = 50;
/// Of them, what may come at once.
const LINES_BURST: u32 = 200;
/// Connections at once, tunnels among them; more wait.
const CONNECTIONS_MAX: usize = 64;
/// How long the first line may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the other sandbox may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How the host reaches a port of a guest.
pub trait Inward: Send + Sync + 'static {
    /// Connects to `port` of the guest's loopback.
    ///
    /// # Errors
    /// Nobody listens there, or the guest is gone.
    fn dial(&self, port: u16) -> Later<'_, io::Result<AnyStream>>;
}

/// The door of one sandbox. Dropped, its sandbox is gone from the switchboard.
pub struct PeerDoor {
    board: Switchboard,
    seat: Arc<Seat>,
    pace: Mutex<Pace>,
    places: Semaphore,
}

impl std::fmt::Debug for PeerDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerDoor").field("name", &self.seat.name).finish_non_exhaustive()
    }
}

impl Drop for PeerDoor {
    fn drop(&mut self) {
        self.board.leave(&self.seat);
    }
}

impl PeerDoor {
    /// A door for the sandbox `name`, as policies call it.
    ///
    /// # Errors
    /// [`NameTaken`] when a sandbox of that name has a door already.
    pub fn new(
        board: &Switchboard,
        name: &str,
        policy: watch::Receiver<Arc<Policy>>,
        recorder: Recorder,
        inward: Arc<dyn Inward>,
    ) -> Result<Arc<Self>, NameTaken> {
        let seat = board.join(Seat::new(name, policy, recorder, inward))?;
        let pace = Mutex::new(Pace::new(LINES_PER_SECOND, Duration::from_secs(1), LINES_BURST));
        Ok(Arc::new(Self { board: board.clone(), seat, pace, places: Semaphore::new(CONNECTIONS_MAX) }))
    }

    /// Serves one connection of the guest to its end.
    ///
    /// # Errors
    /// The connection failed, something could not be recorded, or what came was not understood.
    pub async fn serve(&self, stream: impl Stream) -> io::Result<()> {
        let Ok(_place) = self.places.acquire().await else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let (read, out) = tokio::io::split(stream);
        let mut lines = Lines::new(read);
        let first = tokio::time::timeout(OPEN_TIMEOUT, lines.next()).await?;
        let Some(line) = self.line(first)? else { return Ok(()) };
        self.pace.lock().await.wait(1).await;
        match serde_json::from_slice(&line) {
            Ok(PeerOpen::Mailbox {}) => self.mailbox(lines, out).await,
            Ok(PeerOpen::Tunnel { to, port }) => self.tunnel(lines, out, &to, port).await,
            Err(error) => Err(self.nonsense(&line, &error.to_string())),
        }
    }

    async fn mailbox<S: Stream>(&self, mut lines: Lines<ReadHalf<S>>, mut out: WriteHalf<S>) -> io::Result<()> {
        let mut turn = self.seat.mailbox.take_over();
        write_line(&mut out, &PeerEvent::Opened).await?;
        loop {
            tokio::select! {
                line = lines.next() => {
                    let Some(line) = self.line(line)? else { return Ok(()) };
                    self.pace.lock().await.wait(1).await;
                    match serde_json::from_slice::<PeerSend>(&line) {
                        Ok(send) => write_line(&mut out, &self.send(send)?).await?,
                        Err(error) => return Err(self.nonsense(&line, &error.to_string())),
                    }
                }
                message = self.seat.mailbox.next(&mut turn) => match message {
                    Some((from, text)) => write_line(&mut out, &PeerEvent::Message { from, text }).await?,
                    None => {
                        let why = "a later connection has the mailbox".to_owned();
                        return write_line(&mut out, &PeerEvent::Refused { id: None, why }).await;
                    }
                },
            }
        }
    }

    fn send(&self, send: PeerSend) -> io::Result<PeerEvent> {
        let PeerSend { id, to, text } = send;
        let allowed = if text.len() > MESSAGE_MAX_BYTES {
            Err(format!("a message has at most {MESSAGE_MAX_BYTES} bytes, and this one has {}", text.len()))
        } else {
            self.board.allowed(&self.seat, &to, Wish::Message).and_then(|other| {
                let slot = other
                    .mailbox
                    .reserve(text.len())
                    .ok_or_else(|| format!("the mailbox of {to} is full; try again later"))?;
                Ok((other, slot))
            })
        };
        let (other, slot) = match allowed {
            Ok(found) => found,
            Err(why) => {
                self.refusal(&to, &why)?;
                return Ok(PeerEvent::Refused { id: Some(id), why });
            }
        };
        let entry = |peer: &str, received| Entry::PeerMessage { peer: peer.to_owned(), received, text: text.clone() };
        self.seat.recorder.note(&entry(&to, false)).map_err(unrecorded)?;
        let from = self.seat.name.clone();
        if other.recorder.note(&entry(&from, true)).is_err() {
            other.mailbox.release(slot);
            let why = format!("{to} cannot be reached any more");
            self.refusal(&to, &why)?;
            return Ok(PeerEvent::Refused { id: Some(id), why });
        }
        other.mailbox.put(slot, from, text);
        Ok(PeerEvent::Sent { id })
    }

    async fn tunnel<S: Stream>(
        &self,
        lines: Lines<ReadHalf<S>>,
        mut out: WriteHalf<S>,
        to: &str,
        port: u16,
    ) -> io::Result<()> {
        let (other, far) = match self.reach(to, port).await {
            Ok(found) => found,
            Err(why) => {
                self.refusal(to, &why)?;
                return write_line(&mut out, &PeerEvent::Refused { id: None, why }).await;
            }
        };
        let (here, there) = (self.seat.number(), other.number());
        let opened =
            |tunnel, peer: &str, inward| Entry::PeerOpened { tunnel, peer: peer.to_owned(), port: Some(port), inward };
        other.recorder.note(&opened(there, &self.seat.name, true)).map_err(unrecorded)?;
        self.seat.recorder.note(&opened(here, to, false)).map_err(unrecorded)?;
        let ends = [(&self.seat.recorder, here, to.to_owned()), (&other.recorder, there, self.seat.name.clone())];
        let closing = relay::Closing::new(ends);
        write_line(&mut out, &PeerEvent::Opened).await?;
        let (ahead, read) = lines.into_parts();
        let near = Rewound::new(ahead, read.unsplit(out));
        tokio::select! {
            done = relay(near, far, closing.counters()) => done,
            () = self.board.revoked(&self.seat, &other, Wish::Tunnel(port)) => Err(io::ErrorKind::PermissionDenied.into()),
            error = other.recorder.failed() => Err(unrecorded(error)),
        }
    }

    async fn reach(&self, to: &str, port: u16) -> Result<(Arc<Seat>, AnyStream), String> {
        let other = self.board.allowed(&self.seat, to, Wish::Tunnel(port))?;
        match tokio::time::timeout(DIAL_TIMEOUT, other.inward.dial(port)).await {
            Ok(Ok(far)) => Ok((other, far)),
            Ok(Err(error)) => Err(format!("port {port} of {to} cannot be reached: {error}")),
            Err(_) => Err(format!("port {port} of {to} does not answer")),
        }
    }

    /// A line, or the end; what is no line ends the connection with an entry.
    fn line(&self, line: Result<Option<bytes::Bytes>, LineError>) -> io::Result<Option<bytes::Bytes>> {
        match line {
            Ok(line) => Ok(line),
            Err(LineError::Io(error)) => Err(error),
            Err(error) => Err(self.nonsense(b"", &error.to_string())),
        }
    }

    fn refusal(&self, to: &str, why: &str) -> io::Result<()> {
        let peer = to.chars().take(seat::NAME_MAX_CHARS).collect();
        let entry = Entry::PeerRefused { tunnel: self.seat.number(), peer, why: why.to_owned() };
        self.seat.recorder.note(&entry).map(drop).map_err(unrecorded)
    }

    fn nonsense(&self, line: &[u8], why: &str) -> io::Error {
        match note_nonsense(&self.seat.recorder, Door::Peer.name(), line, why) {
            Ok(()) => io::Error::new(io::ErrorKind::InvalidData, why.to_owned()),
            Err(error) => unrecorded(error),
        }
    }
}

#[cfg(test)]
mod tests;
