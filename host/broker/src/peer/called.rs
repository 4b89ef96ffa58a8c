// SPDX-License-Identifier: Apache-2.0
//! What other sandboxes want of this one: the called end of a message or a tunnel.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use midge_protocol::Door;
use midge_protocol::broker::MESSAGE_MAX_BYTES;
use midge_record::Entry;
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;

use super::relay::{Closing, relay};
use super::seat::Wish;
use super::wire::{Answer, Call, Letter, Wire};
use super::{PeerDoor, words};
use crate::lines::unrecorded;
use crate::stream::AnyStream;

/// Calls at once, tunnels among them; more wait.
pub(super) const CALLS_MAX: usize = 96;
/// Tunnels that lead to this sandbox at once; more are refused.
pub(super) const TUNNELS_MAX: usize = 64;
/// How long the guest may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a call could not be accepted for want of descriptors.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// A call of another sandbox that waits for its answer.
#[derive(Debug)]
pub struct Called {
    stream: UnixStream,
    _counted: OwnedSemaphorePermit,
}

impl PeerDoor {
    /// The next call. Can be dropped and called again: nobody is lost.
    pub async fn called(&self) -> Called {
        // Never closed.
        let Ok(counted) = Arc::clone(&self.calls).acquire_owned().await else { return std::future::pending().await };
        loop {
            match self.claim.accept().await {
                Ok(stream) => return Called { stream, _counted: counted },
                Err(error) => {
                    tracing::debug!(%error, "a call of another sandbox");
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
            }
        }
    }

    /// Answers a call, and passes the bytes of its tunnel to their end.
    ///
    /// # Errors
    /// The connection failed, what came was not understood, or something could not be recorded.
    pub async fn answer(&self, called: Called) -> io::Result<()> {
        self.calls_pace.lock().await.wait(1).await;
        let mut wire = Wire::new(called.stream);
        match wire.hear().await.map_err(io::Error::other)? {
            Call::Message { from, bytes } => self.take_letter(wire, from, bytes).await,
            Call::Tunnel { from, port } => self.let_in(wire, &from, port).await,
        }
    }

    async fn take_letter(&self, mut wire: Wire, from: String, bytes: usize) -> io::Result<()> {
        if !self.seat.lets_in(&from, Wish::Message) {
            return wire.say(&Answer::Unnamed {}).await.map_err(io::Error::other);
        }
        let slot = self.seat.mailbox.reserve(bytes).filter(|_| bytes <= MESSAGE_MAX_BYTES);
        let Some(slot) = slot else { return wire.say(&Answer::Full {}).await.map_err(io::Error::other) };
        wire.say(&Answer::Agreed {}).await.map_err(io::Error::other)?;
        let Letter { text } = wire.hear().await.map_err(io::Error::other)?;
        if text.len() != bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "another message than was called for"));
        }
        // It may have changed since the call.
        if !self.seat.lets_in(&from, Wish::Message) {
            return wire.say(&Answer::Unnamed {}).await.map_err(io::Error::other);
        }
        let received = Entry::PeerMessage { peer: from.clone(), received: true, text: text.clone() };
        self.seat.recorder.note(&received).map_err(unrecorded)?;
        slot.fill(from, text);
        wire.say(&Answer::Delivered {}).await.map_err(io::Error::other)
    }

    async fn let_in(&self, mut wire: Wire, from: &str, port: u16) -> io::Result<()> {
        let (far, _counted) = match self.open_in(from, port).await {
            Ok(opened) => opened,
            Err(answer) => return wire.say(&answer).await.map_err(io::Error::other),
        };
        let tunnel = self.seat.number();
        let opened = Entry::PeerOpened { tunnel, peer: from.to_owned(), port: Some(port), inward: true };
        self.seat.recorder.note(&opened).map_err(unrecorded)?;
        let closing = Closing::new(&self.seat.recorder, tunnel, from);
        wire.say(&Answer::Agreed {}).await.map_err(io::Error::other)?;
        let (ahead, other): (BytesMut, UnixStream) = wire.into_parts();
        tokio::select! {
            done = relay(far, other, ahead, closing.counters()) => done,
            () = self.seat.shut_to(from, port) => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// The connection to the guest's port, among those that are counted.
    async fn open_in(&self, from: &str, port: u16) -> Result<(AnyStream, tokio::sync::SemaphorePermit<'_>), Answer> {
        let wish = Wish::Tunnel(port);
        if !self.seat.lets_in(from, wish) {
            return Err(Answer::Unnamed {});
        }
        // Who is behind one has what this sandbox has, not what the caller has.
        if Door::ALL.iter().any(|door| door.loopback() == Some(port)) {
            return Err(Answer::Unreachable { why: "it is a door to that sandbox's host".to_owned() });
        }
        let counted = self.tunnels.try_acquire().map_err(|_| Answer::Busy {})?;
        let far = match tokio::time::timeout(DIAL_TIMEOUT, self.seat.inward.dial(port)).await {
            Ok(Ok(far)) => far,
            Ok(Err(error)) => return Err(Answer::Unreachable { why: words(&error.to_string()) }),
            Err(_) => return Err(Answer::Unreachable { why: "it does not answer".to_owned() }),
        };
        // It may have changed meanwhile.
        if self.seat.lets_in(from, wish) { Ok((far, counted)) } else { Err(Answer::Unnamed {}) }
    }
}
