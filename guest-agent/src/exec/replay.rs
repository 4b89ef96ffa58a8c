// SPDX-License-Identifier: Apache-2.0
//! Output of one stream between the program and its client: what was sent and may be asked for again, and what was not
//! sent yet. Pure: no I/O, and bounded whatever the program writes.

use std::collections::VecDeque;

use midge_protocol::MAX_DATA_BYTES;

/// Unsent output that is held even when nothing is kept for a replay, in bytes.
pub(crate) const UNSENT_MIN_BYTES: usize = 64 * 1024;

/// The client wants bytes that are gone, or that do not exist yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("going on at byte {wanted} of the output: bytes {first} to {end} are kept")]
pub(crate) struct OutOfReach {
    pub(crate) wanted: u64,
    pub(crate) first: u64,
    pub(crate) end: u64,
}

/// Bytes `first..end` of a stream, of which those before `sent` are history.
#[derive(Debug)]
pub(crate) struct Replay {
    bytes: VecDeque<u8>,
    /// Offset of the byte after the last one.
    end: u64,
    /// Offset of the next byte to send.
    sent: u64,
    /// History that is kept, in bytes.
    keep: usize,
}

impl Replay {
    /// Keeps `keep` bytes of history and holds as many unsent (at least [`UNSENT_MIN_BYTES`]).
    pub(crate) const fn new(keep: usize) -> Self {
        Self { bytes: VecDeque::new(), end: 0, sent: 0, keep }
    }

    /// Length of the whole stream so far, in bytes.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    fn first(&self) -> u64 {
        self.end.saturating_sub(self.bytes.len() as u64)
    }

    fn unsent(&self) -> usize {
        usize::try_from(self.end.saturating_sub(self.sent)).unwrap_or(usize::MAX)
    }

    /// Whether everything was sent.
    pub(crate) fn is_drained(&self) -> bool {
        self.unsent() == 0
    }

    /// Bytes that can be added before a client takes some.
    pub(crate) fn room(&self) -> usize {
        self.keep.max(UNSENT_MIN_BYTES).saturating_sub(self.unsent())
    }

    /// Adds output. The caller has asked for [`Replay::room`].
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.end = self.end.saturating_add(bytes.len() as u64);
    }

    /// The next bytes to send with their offset: not empty, at most one message's.
    pub(crate) fn next_piece(&self) -> Option<(u64, &[u8])> {
        let history = self.bytes.len().saturating_sub(self.unsent());
        let (front, back) = self.bytes.as_slices();
        let rest = front.get(history..).filter(|rest| !rest.is_empty());
        let rest = rest.or_else(|| back.get(history.saturating_sub(front.len())..))?;
        let piece = &rest[..rest.len().min(MAX_DATA_BYTES)];
        (!piece.is_empty()).then_some((self.sent, piece))
    }

    /// `len` bytes of the piece were sent: they are history now.
    pub(crate) fn advance(&mut self, len: usize) {
        self.sent = self.sent.saturating_add(len as u64).min(self.end);
        let history = self.bytes.len().saturating_sub(self.unsent());
        self.bytes.drain(..history.saturating_sub(self.keep));
        if self.bytes.is_empty() {
            // A burst's memory is not held by a quiet stream.
            self.bytes.shrink_to(UNSENT_MIN_BYTES);
        }
    }

    /// Nobody will ask for anything: what is unsent is gone.
    pub(crate) fn discard(&mut self) {
        self.advance(self.unsent());
    }

    /// Sends again from `offset` on.
    ///
    /// # Errors
    /// [`OutOfReach`] when that byte is gone or beyond the end.
    pub(crate) fn seek(&mut self, offset: u64) -> Result<(), OutOfReach> {
        let (first, end) = (self.first(), self.end);
        if offset < first || offset > end {
            return Err(OutOfReach { wanted: offset, first, end });
        }
        self.sent = offset;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
