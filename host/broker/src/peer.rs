// SPDX-License-Identifier: Apache-2.0
//! The door `peer`: messages and TCP tunnels between two sandboxes of one user, where both policies name the other.
//!
//! Each sandbox has a door, a policy and a transcript of its own, in whichever process it is, and they meet at a [`Place`]: one calls,
//! the other is called. Each end holds what is wished against its own policy, as it is then, and notes it in its own transcript before
//! it happens; so nothing happens that both do not allow. When either policy no longer allows a tunnel, or either sandbox is gone, it
//! is ended. Processes of one user believe each other's names, and nothing else.

mod called;
mod mailbox;
mod place;
mod relay;
mod seat;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use midge_policy::{Name, Policy};
use midge_protocol::Door;
use midge_protocol::broker::{MESSAGE_MAX_BYTES, PeerEvent, PeerOpen, PeerSend};
use midge_record::{Entry, Recorder};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{Mutex, Semaphore, watch};

use crate::lines::{LineError, Lines, Pace, note_nonsense, unrecorded, write_line};
use crate::stream::{AnyStream, Later, Rewound, Stream};

pub use called::Called;
use place::Claim;
pub use place::{ClaimError, Place};
use relay::{Closing, relay};
use seat::{Seat, Wish};
use wire::{Answer, Call, Letter, Wire, WireError, words};

/// Lines and connections a second; more wait.
const LINES_PER_SECOND: u32 = 50;
/// Of them, what may come at once.
const LINES_BURST: u32 = 200;
/// Connections at once, tunnels among them; more wait.
const CONNECTIONS_MAX: usize = 64;
/// How long the first line may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How the host reaches a port of a guest.
pub trait Inward: Send + Sync + 'static {
    /// Connects to `port` of the guest's loopback.
    ///
    /// # Errors
    /// Nobody listens there, or the guest is gone.
    fn dial(&self, port: u16) -> Later<'_, io::Result<AnyStream>>;
}

/// The door of one sandbox. Dropped, nobody can call its sandbox any more.
pub struct PeerDoor {
    place: Place,
    claim: Claim,
    seat: Seat,
    pace: Mutex<Pace>,
    places: Semaphore,
    /// What others want of this sandbox: the pace of their calls, how many at once, and how many tunnels of them.
    calls_pace: Mutex<Pace>,
    calls: Arc<Semaphore>,
    tunnels: Semaphore,
}

impl std::fmt::Debug for PeerDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerDoor").field("name", &self.seat.name).finish_non_exhaustive()
    }
}

impl PeerDoor {
    /// A door for the sandbox that others call `name` at that place. Only in a runtime of tokio.
    ///
    /// # Errors
    /// [`ClaimError::Taken`] when a sandbox of that name is alive there.
    pub fn open(
        place: &Place,
        name: &Name,
        policy: watch::Receiver<Arc<Policy>>,
        recorder: Recorder,
        inward: Arc<dyn Inward>,
    ) -> Result<Arc<Self>, ClaimError> {
        let pace = || Mutex::new(Pace::new(LINES_PER_SECOND, Duration::from_secs(1), LINES_BURST));
        Ok(Arc::new(Self {
            claim: place.claim(name)?,
            place: place.clone(),
            seat: Seat::new(name, policy, recorder, inward),
            pace: pace(),
            places: Semaphore::new(CONNECTIONS_MAX),
            calls_pace: pace(),
            calls: Arc::new(Semaphore::new(called::CALLS_MAX)),
            tunnels: Semaphore::new(called::TUNNELS_MAX),
        }))
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
                        Ok(send) => write_line(&mut out, &self.send(send).await?).await?,
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

    async fn send(&self, send: PeerSend) -> io::Result<PeerEvent> {
        let PeerSend { id, to, text } = send;
        match self.deliver(&to, text).await? {
            Ok(()) => Ok(PeerEvent::Sent { id }),
            Err(why) => {
                self.refusal(&to, &why)?;
                Ok(PeerEvent::Refused { id: Some(id), why })
            }
        }
    }

    /// Brings a message to the other's mailbox, or says why not.
    async fn deliver(&self, to: &str, text: String) -> io::Result<Result<(), String>> {
        let mut wire = match self.call_for_letter(to, text.len()).await {
            Ok(wire) => wire,
            Err(why) => return Ok(Err(why)),
        };
        let sent = Entry::PeerMessage { peer: to.to_owned(), received: false, text: text.clone() };
        self.seat.recorder.note(&sent).map_err(unrecorded)?;
        let delivered = async {
            wire.say(&Letter { text }).await?;
            wire.hear().await
        };
        Ok(match delivered.await {
            Ok(Answer::Delivered {}) => Ok(()),
            Ok(other) => Err(self.refused(to, other)),
            Err(error) => Err(unreached(to, &error)),
        })
    }

    async fn call_for_letter(&self, to: &str, bytes: usize) -> Result<Wire, String> {
        if bytes > MESSAGE_MAX_BYTES {
            return Err(format!("a message has at most {MESSAGE_MAX_BYTES} bytes, and this one has {bytes}"));
        }
        let to = self.seat.may(to, Wish::Message)?;
        self.call(&to, &Call::Message { from: self.seat.name.to_string(), bytes }).await
    }

    /// Calls the other sandbox, which agrees; else why not, for the guest.
    async fn call(&self, to: &Name, call: &Call) -> Result<Wire, String> {
        let mut wire = match self.place.call(to).await {
            Ok(stream) => Wire::new(stream),
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => self.absent(to.as_str()),
                    io::ErrorKind::WouldBlock => format!("{to} is busy; try again later"),
                    _ => unreached(to.as_str(), &error),
                });
            }
        };
        let answered = async {
            wire.say(call).await?;
            wire.hear().await
        };
        match answered.await {
            Ok(Answer::Agreed {}) => Ok(wire),
            Ok(other) => Err(self.refused(to.as_str(), other)),
            Err(error) => Err(unreached(to.as_str(), &error)),
        }
    }

    /// Whether there is a sandbox of a name, those learn whom it names.
    fn absent(&self, to: &str) -> String {
        format!("{to} is not there, or its policy does not name {}", self.seat.name)
    }

    fn refused(&self, to: &str, answer: Answer) -> String {
        match answer {
            Answer::Unnamed {} => self.absent(to),
            Answer::Full {} => format!("the mailbox of {to} is full; try again later"),
            Answer::Busy {} => format!("as many tunnels lead to {to} as may; try again later"),
            Answer::Unreachable { why } => format!("that port of {to} cannot be reached: {}", words(&why)),
            Answer::Agreed {} | Answer::Delivered {} => unreached(to, &WireError::Odd),
        }
    }

    async fn tunnel<S: Stream>(
        &self,
        lines: Lines<ReadHalf<S>>,
        mut out: WriteHalf<S>,
        to: &str,
        port: u16,
    ) -> io::Result<()> {
        let (to, wire) = match self.reach(to, port).await {
            Ok(found) => found,
            Err(why) => {
                self.refusal(to, &why)?;
                return write_line(&mut out, &PeerEvent::Refused { id: None, why }).await;
            }
        };
        let tunnel = self.seat.number();
        let opened = Entry::PeerOpened { tunnel, peer: to.to_string(), port: Some(port), inward: false };
        self.seat.recorder.note(&opened).map_err(unrecorded)?;
        let closing = Closing::new(&self.seat.recorder, tunnel, to.as_str());
        write_line(&mut out, &PeerEvent::Opened).await?;
        let (ahead, read) = lines.into_parts();
        let guest = Rewound::new(ahead, read.unsplit(out));
        let (ahead, other) = wire.into_parts();
        tokio::select! {
            done = relay(guest, other, ahead, closing.counters()) => done,
            () = self.seat.revoked(&to, port) => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    async fn reach(&self, to: &str, port: u16) -> Result<(Name, Wire), String> {
        let to = self.seat.may(to, Wish::Tunnel(port))?;
        let wire = self.call(&to, &Call::Tunnel { from: self.seat.name.to_string(), port }).await?;
        Ok((to, wire))
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

fn unreached(to: &str, error: &dyn std::error::Error) -> String {
    format!("{to} cannot be reached: {error}")
}

/// Serves a connection of the guest where there is nobody to talk to, and says so.
///
/// # Errors
/// The connection failed.
pub(crate) async fn closed(mut stream: impl Stream) -> io::Result<()> {
    let why = "this sandbox has no peers: its policy names none, or it has no name that they could call".to_owned();
    write_line(&mut stream, &PeerEvent::Refused { id: None, why }).await
}

#[cfg(test)]
mod tests;
