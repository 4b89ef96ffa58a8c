// SPDX-License-Identifier: Apache-2.0
//! The bytes of a tunnel between a guest and the process of the other one, both ways with half-close, and the entry at its end.
//! Decides nothing.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use midge_record::{Entry, Recorder};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::stream::{Rewound, Stream, pass_on};

/// Bytes that are under way in one direction at most.
const BUFFER_BYTES: usize = 64 << 10;

/// Bytes to the other sandbox and from it.
pub(super) type Counters = [AtomicU64; 2];

/// Writes the end of a tunnel into the transcript when it is dropped, however it ended.
pub(super) struct Closing<'a> {
    recorder: &'a Recorder,
    tunnel: u64,
    peer: String,
    counters: Counters,
}

impl<'a> Closing<'a> {
    /// Of the tunnel that has this number in the transcript.
    pub(super) fn new(recorder: &'a Recorder, tunnel: u64, peer: &str) -> Self {
        Self { recorder, tunnel, peer: peer.to_owned(), counters: Counters::default() }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let [sent_bytes, received_bytes] = self.counters.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        let closed = Entry::PeerClosed { tunnel: self.tunnel, peer: self.peer.clone(), sent_bytes, received_bytes };
        // A failure latches, and ends the run.
        let _ = self.recorder.note(&closed);
    }
}

/// Passes bytes on until both directions are at their end, or the other process has left and what it said before is passed on. `ahead`
/// was read from it already.
pub(super) async fn relay(
    guest: impl Stream,
    other: UnixStream,
    ahead: BytesMut,
    counters: &Counters,
) -> io::Result<()> {
    let probe = StdUnixStream::from(other.as_fd().try_clone_to_owned()?);
    let ((guest_read, guest_write), (read, write)) =
        (tokio::io::split(guest), tokio::io::split(Rewound::new(ahead, other)));
    let out = pass_on(guest_read, write, BUFFER_BYTES, &counters[0], |_| Ok(()));
    let back = pass_on(read, guest_write, BUFFER_BYTES, &counters[1], |_| Ok(()));
    tokio::pin!(out, back);
    tokio::select! {
        done = &mut out => {
            done?;
            back.await
        }
        done = &mut back => {
            done?;
            tokio::select! {
                done = &mut out => done,
                left = hang_up(probe) => left,
            }
        }
    }
}

/// Waits until the other end has closed both directions: of a socket that has ended already reading cannot tell whether it has.
async fn hang_up(probe: StdUnixStream) -> io::Result<()> {
    // A descriptor of its own: what it is told of is not missed by the socket's other user.
    let probe = UnixStream::from_std(probe)?;
    while !probe.ready(Interest::WRITABLE).await?.is_write_closed() {
        // Tells the next change, and not again that there is room.
        let _ = probe.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    Ok(())
}
