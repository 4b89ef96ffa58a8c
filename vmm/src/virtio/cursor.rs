// SPDX-License-Identifier: Apache-2.0
//! Two cursors over a checked chain: [`Reader`] over what the guest gave, [`Writer`] over what it
//! wants filled.
//!
//! They copy small things (headers) and lend slices of guest memory for large ones; bytes go to
//! files and sockets by [`super::vectored`]. A request for more than is there is [`ShortChain`],
//! moves nothing, and is not a fault of the ring: what it means is the device's decision.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::cell::Cell;

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::vectored::Slices;
use crate::memory::GuestRam;

/// A piece of a checked buffer: not empty, inside one region of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) addr: GuestAddress,
    pub(super) len: u32,
}

/// A chain holds less than was asked for; nothing was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("taking {wanted} bytes of a descriptor chain: only {left} are left")]
pub struct ShortChain {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes there are.
    pub left: usize,
}

/// A position in a list of segments and an end; shared by both cursors.
#[derive(Debug, Clone)]
struct Cursor<'a> {
    ram: &'a GuestRam,
    /// From the current segment on.
    segments: &'a [Segment],
    /// Bytes of the current segment already passed.
    passed: u32,
    /// Bytes to the end of this cursor, which may lie before the end of the segments.
    left: u32,
}

impl<'a> Cursor<'a> {
    fn require(&self, wanted: usize) -> Result<u32, ShortChain> {
        u32::try_from(wanted)
            .ok()
            .filter(|wanted| *wanted <= self.left)
            .ok_or(ShortChain { wanted, left: self.left as usize })
    }

    /// The memory from here on, at most `limit_bytes` and what a list of slices can hold.
    fn slices(&self, limit_bytes: usize) -> Slices<'a> {
        let mut list = Slices::new();
        let mut left = u32::try_from(limit_bytes).unwrap_or(u32::MAX).min(self.left);
        let mut passed = self.passed;
        for segment in self.segments {
            if left == 0 {
                break;
            }
            let len = segment.len.saturating_sub(passed).min(left);
            if !list.push(resolve(self.ram, *segment, passed, len)) {
                break;
            }
            left = left.saturating_sub(len);
            passed = 0;
        }
        list
    }

    /// The memory from here to the end of the current segment, at most `limit_bytes`; `None` at
    /// the end.
    fn first_slice(&self, limit_bytes: usize) -> Option<VolatileSlice<'a>> {
        let limit = u32::try_from(limit_bytes).unwrap_or(u32::MAX).min(self.left);
        let segment = self.segments.first().filter(|_| limit != 0)?;
        let len = segment.len.saturating_sub(self.passed).min(limit);
        Some(resolve(self.ram, *segment, self.passed, len))
    }

    /// Moves on by `count`, at most to the end.
    fn advance(&mut self, count: u32) {
        let count = count.min(self.left);
        self.left = self.left.saturating_sub(count);
        let mut to_pass = count;
        while let Some((segment, rest)) = self.segments.split_first() {
            let here = segment.len.saturating_sub(self.passed);
            if to_pass < here {
                self.passed = self.passed.saturating_add(to_pass);
                return;
            }
            to_pass = to_pass.saturating_sub(here);
            self.segments = rest;
            self.passed = 0;
        }
    }

    fn split_at(self, count: usize) -> Result<(Self, Self), ShortChain> {
        let count = self.require(count)?;
        let mut tail = self.clone();
        tail.advance(count);
        let head = Self { left: count, ..self };
        Ok((head, tail))
    }
}

/// The memory of `len` bytes from `passed` in `segment`.
fn resolve(ram: &GuestRam, segment: Segment, passed: u32, len: u32) -> VolatileSlice<'_> {
    let addr = GuestAddress(segment.addr.0.saturating_add(u64::from(passed)));
    let Ok(slice) = ram.get_slice(addr, len as usize) else {
        unreachable!("a segment is checked when its chain is walked; guest memory stays mapped")
    };
    slice
}

/// Takes the device-readable bytes of a chain in order.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(ram: &'a GuestRam, segments: &'a [Segment], left: u32) -> Self {
        Self { cursor: Cursor { ram, segments, passed: 0, left } }
    }

    /// Bytes not yet taken.
    #[must_use]
    pub fn left_bytes(&self) -> usize {
        self.cursor.left as usize
    }

    /// Copies the next bytes out of the guest, once, and fills `into` with them.
    ///
    /// # Errors
    /// [`ShortChain`]; then nothing is taken.
    pub fn read_exact(&mut self, into: &mut [u8]) -> Result<(), ShortChain> {
        self.cursor.require(into.len())?;
        let mut rest = into;
        while let Some(slice) = self.cursor.first_slice(rest.len()) {
            let copied = slice.copy_to(rest);
            self.advance(copied);
            rest = rest.get_mut(copied..).unwrap_or_default();
        }
        assert!(rest.is_empty(), "bytes that are left have memory behind them");
        Ok(())
    }

    /// Copies the next `N` bytes out of the guest, once.
    ///
    /// # Errors
    /// [`ShortChain`]; then nothing is taken.
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], ShortChain> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Lends the memory of the next bytes, at most `limit_bytes`, without taking them; call
    /// [`Self::advance`] with what was used. May hold less than is left (long lists): loop.
    #[must_use]
    pub fn slices(&self, limit_bytes: usize) -> Slices<'a> {
        self.cursor.slices(limit_bytes)
    }

    /// Takes the next `count` bytes unread, at most to the end.
    pub fn advance(&mut self, count: usize) {
        self.cursor.advance(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Two readers: over the next `count` bytes and over what follows them.
    ///
    /// # Errors
    /// [`ShortChain`].
    pub fn split_at(self, count: usize) -> Result<(Self, Self), ShortChain> {
        let (head, tail) = self.cursor.split_at(count)?;
        Ok((Self { cursor: head }, Self { cursor: tail }))
    }
}

/// How much of the writable part has been written, counted from its first byte without a gap:
/// the only length the device may report (§2.7.8.2). One stretch beyond a gap is remembered, so
/// that a payload may be written before the header in front of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    prefix: u32,
    ahead_start: u32,
    ahead_end: u32,
}

impl Written {
    pub(super) fn prefix(self) -> u32 {
        self.prefix
    }

    fn add(&mut self, start: u32, count: u32) {
        let end = start.saturating_add(count);
        if start <= self.prefix {
            self.prefix = self.prefix.max(end);
        } else if self.ahead_start < self.ahead_end && start == self.ahead_end {
            self.ahead_end = end;
        } else {
            (self.ahead_start, self.ahead_end) = (start, end);
        }
        if self.ahead_start <= self.prefix {
            self.prefix = self.prefix.max(self.ahead_end);
        }
    }
}

/// Fills the device-writable bytes of a chain in order, and counts what was really written.
#[derive(Debug)]
pub struct Writer<'a> {
    cursor: Cursor<'a>,
    /// Distance from the first writable byte of the chain.
    position: u32,
    written: &'a Cell<Written>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(ram: &'a GuestRam, segments: &'a [Segment], left: u32, written: &'a Cell<Written>) -> Self {
        Self { cursor: Cursor { ram, segments, passed: 0, left }, position: 0, written }
    }

    /// Bytes not yet filled.
    #[must_use]
    pub fn left_bytes(&self) -> usize {
        self.cursor.left as usize
    }

    /// Copies `from` into the guest.
    ///
    /// # Errors
    /// [`ShortChain`]; then nothing is written.
    pub fn write_all(&mut self, from: &[u8]) -> Result<(), ShortChain> {
        self.cursor.require(from.len())?;
        let mut rest = from;
        while let Some(slice) = self.cursor.first_slice(rest.len()) {
            slice.copy_from(rest);
            self.advance_written(slice.len());
            rest = rest.get(slice.len()..).unwrap_or_default();
        }
        assert!(rest.is_empty(), "bytes that are left have memory behind them");
        Ok(())
    }

    /// Lends the memory to fill next, at most `limit_bytes`; call [`Self::advance_written`] with
    /// what was really filled. May hold less than is left (long lists): loop.
    #[must_use]
    pub fn slices(&self, limit_bytes: usize) -> Slices<'a> {
        self.cursor.slices(limit_bytes)
    }

    /// Moves on by the `count` bytes that have just been written, at most to the end.
    pub fn advance_written(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(self.cursor.left);
        let mut written = self.written.get();
        written.add(self.position, count);
        self.written.set(written);
        self.position = self.position.saturating_add(count);
        self.cursor.advance(count);
    }

    /// Two writers: over the next `count` bytes and over what follows them.
    ///
    /// # Errors
    /// [`ShortChain`].
    pub fn split_at(self, count: usize) -> Result<(Self, Self), ShortChain> {
        let (position, written) = (self.position, self.written);
        let (head, tail) = self.cursor.split_at(count)?;
        let tail_position = position.saturating_add(head.left);
        Ok((Self { cursor: head, position, written }, Self { cursor: tail, position: tail_position, written }))
    }
}

#[cfg(test)]
mod tests;
