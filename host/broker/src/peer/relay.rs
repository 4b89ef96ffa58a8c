// SPDX-License-Identifier: Apache-2.0
//! The bytes of a tunnel, both ways with half-close, and the entries at its end. Decides nothing.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use midge_record::{Entry, Recorder};

use crate::stream::{Stream, pass_on};

/// Bytes that are under way in one direction at most.
const BUFFER_BYTES: usize = 64 << 10;

/// Bytes there and back.
pub(super) type Counters = [AtomicU64; 2];

/// Writes the ends of a tunnel into both transcripts when it is dropped, however it ended.
pub(super) struct Closing<'a> {
    /// Who opened it first; with the tunnel's number there.
    ends: [(&'a Recorder, u64, String); 2],
    counters: Counters,
}

impl<'a> Closing<'a> {
    pub(super) fn new(ends: [(&'a Recorder, u64, String); 2]) -> Self {
        Self { ends, counters: Counters::default() }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let [there, back] = self.counters.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        let bytes = [(there, back), (back, there)];
        for ((recorder, tunnel, peer), (sent_bytes, received_bytes)) in self.ends.iter().zip(bytes) {
            // A failure latches, and ends the run.
            let _ =
                recorder.note(&Entry::PeerClosed { tunnel: *tunnel, peer: peer.clone(), sent_bytes, received_bytes });
        }
    }
}

/// Passes bytes on until both directions are at their end.
pub(super) async fn relay(near: impl Stream, far: impl Stream, counters: &Counters) -> io::Result<()> {
    let ((near_read, near_write), (far_read, far_write)) = (tokio::io::split(near), tokio::io::split(far));
    let there = pass_on(near_read, far_write, BUFFER_BYTES, &counters[0], |_| Ok(()));
    let back = pass_on(far_read, near_write, BUFFER_BYTES, &counters[1], |_| Ok(()));
    tokio::try_join!(there, back).map(|_| ())
}
