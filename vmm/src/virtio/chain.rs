// SPDX-License-Identifier: Apache-2.0
//! A descriptor chain, walked once.
//!
//! Second file on the way of a request, after [`super::ring`]. The walk copies each descriptor
//! once and checks, in this order:
//!
//! 1. the index is below the size of its table (§2.7.5, §2.7.6);
//! 2. there are no more descriptors than the table has, so no loop (§2.7.5.2);
//! 3. an indirect descriptor was negotiated, is last, is not inside a table, and names a whole,
//!    non-zero number of descriptors (§2.7.5.3);
//! 4. nothing readable comes after something writable (§2.7.4.2);
//! 5. every byte lies in guest memory, across borders of regions too;
//! 6. all lengths together fit 32 bits (§2.7.5.2).
//!
//! What is left is a [`Chain`] whose buffers can be used without another check. A broken rule is
//! a [`GuestFault`], never a shorter chain. Memory contents are not looked at here.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::cell::Cell;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::cursor::{Reader, Segment, Writer, Written};
use super::fault::GuestFault;
use super::ring::{Descriptor, Ring, read_descriptor};
use super::spec::ring as spec;
use crate::memory::GuestRam;

/// Most descriptors of a chain in an indirect table. The standard's bound is the queue size
/// (§2.7.5.3.1), but Linux keeps to the device's segment limit instead when it had to allocate a
/// smaller queue; this is the larger of the two for every queue we offer.
pub const INDIRECT_CHAIN_MAX: u16 = 256;

/// A checked chain, held by value from [`super::Queue::pop`] to [`super::Queue::push_used`], so
/// that it is completed exactly once.
///
/// Holding it proves: every segment lies in guest memory, readable ones come first, and all
/// lengths together fit a `u32`.
#[derive(Debug)]
#[must_use = "a chain that is dropped is lost to the guest: give it to push_used or give_back"]
pub struct Chain {
    head: u16,
    ram: Arc<GuestRam>,
    segments: Vec<Segment>,
    /// How many of the segments are device-readable.
    readable_segments: usize,
    readable_bytes: u32,
    writable_bytes: u32,
    written: Cell<Written>,
}

impl Chain {
    /// Index of the first descriptor: the chain's name towards the guest.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the guest gave.
    #[must_use]
    pub fn readable_bytes(&self) -> usize {
        self.readable_bytes as usize
    }

    /// Bytes the guest wants filled.
    #[must_use]
    pub fn writable_bytes(&self) -> usize {
        self.writable_bytes as usize
    }

    /// A cursor over what the guest gave, from its first byte.
    #[must_use]
    pub fn reader(&self) -> Reader<'_> {
        let (readable, _) = self.parts();
        Reader::new(&self.ram, readable, self.readable_bytes)
    }

    /// A cursor over what the guest wants filled, from its first byte. Bytes are counted by
    /// position, so writing the same bytes through a second writer does not count them twice.
    #[must_use]
    pub fn writer(&self) -> Writer<'_> {
        let (_, writable) = self.parts();
        Writer::new(&self.ram, writable, self.writable_bytes, &self.written)
    }

    /// Bytes written so far, from the first writable one without a gap: the used length.
    #[must_use]
    pub fn written_bytes(&self) -> u32 {
        self.written.get().prefix()
    }

    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    fn parts(&self) -> (&[Segment], &[Segment]) {
        self.segments.split_at_checked(self.readable_segments).unwrap_or((&[], &[]))
    }

    /// Walks the chain that starts at `head`; `storage` is an old list to reuse.
    pub(super) fn walk(
        ring: &Ring,
        head: u16,
        indirect_allowed: bool,
        storage: Vec<Segment>,
    ) -> Result<Self, GuestFault> {
        if head >= ring.size() {
            return Err(GuestFault::Head { head, size: ring.size() });
        }
        let mut chain = Self {
            head,
            ram: Arc::clone(ring.ram()),
            segments: storage,
            readable_segments: 0,
            readable_bytes: 0,
            writable_bytes: 0,
            written: Cell::default(),
        };
        chain.segments.clear();
        let last = chain.walk_table(ring.size(), ring.size(), head, |i| ring.descriptor(i))?;
        if last.flags & spec::DESC_F_INDIRECT != 0 {
            chain.walk_indirect(last, indirect_allowed)?;
        }
        Ok(chain)
    }

    /// Adds buffers from `first` on until the chain ends or an indirect descriptor is met, and
    /// returns that last descriptor. `size` bounds the indices, `limit` the steps.
    fn walk_table(
        &mut self,
        size: u16,
        limit: u16,
        first: u16,
        read: impl Fn(u16) -> Result<Descriptor, GuestFault>,
    ) -> Result<Descriptor, GuestFault> {
        let mut index = first;
        for _ in 0..limit {
            let descriptor = read(index)?;
            if descriptor.flags & spec::DESC_F_INDIRECT != 0 {
                return Ok(descriptor);
            }
            self.add(descriptor)?;
            if descriptor.flags & spec::DESC_F_NEXT == 0 {
                return Ok(descriptor);
            }
            index = descriptor.next;
            if index >= size {
                return Err(GuestFault::Next { next: index, size });
            }
        }
        Err(GuestFault::ChainLength { limit })
    }

    /// Adds the buffers of the table that `descriptor` names. Its WRITE flag is ignored
    /// (§2.7.5.3.2).
    fn walk_indirect(&mut self, descriptor: Descriptor, allowed: bool) -> Result<(), GuestFault> {
        if !allowed {
            return Err(GuestFault::IndirectNotNegotiated);
        }
        if descriptor.flags & spec::DESC_F_NEXT != 0 {
            return Err(GuestFault::IndirectWithNext);
        }
        let len = descriptor.len;
        let entry = u32::from(spec::DESCRIPTOR_BYTES);
        let entries = len.checked_div(entry).unwrap_or(0);
        let size = u16::try_from(entries)
            .ok()
            .filter(|size| *size != 0 && len.is_multiple_of(entry))
            .ok_or(GuestFault::IndirectLength { len })?;
        let limit = size.min(INDIRECT_CHAIN_MAX);
        let ram = Arc::clone(&self.ram);
        let last = self.walk_table(size, limit, 0, |index| read_descriptor(&ram, descriptor.addr, index))?;
        if last.flags & spec::DESC_F_INDIRECT != 0 {
            return Err(GuestFault::IndirectNested);
        }
        Ok(())
    }

    /// Adds one buffer. An empty one obeys the order and takes no memory.
    fn add(&mut self, descriptor: Descriptor) -> Result<(), GuestFault> {
        let Descriptor { addr, len, .. } = descriptor;
        let writable = descriptor.flags & spec::DESC_F_WRITE != 0;
        let seen_writable = self.segments.len() > self.readable_segments;
        if !writable && seen_writable {
            return Err(GuestFault::Direction);
        }
        // One sum for both directions: neither part can then exceed 32 bits.
        self.readable_bytes
            .checked_add(self.writable_bytes)
            .and_then(|sum| sum.checked_add(len))
            .ok_or(GuestFault::TotalLength)?;
        // An address that wraps leaves guest memory on the way: no region reaches the top.
        let mut next = addr;
        for slice in GuestMemoryBackend::get_slices(&*self.ram, GuestAddress(addr), len as usize) {
            let here =
                slice.ok().and_then(|slice| u32::try_from(slice.len()).ok()).ok_or(GuestFault::Buffer { addr, len })?;
            self.segments.push(Segment { addr: GuestAddress(next), len: here });
            next = next.saturating_add(u64::from(here));
        }
        if writable {
            self.writable_bytes = self.writable_bytes.saturating_add(len);
        } else {
            self.readable_bytes = self.readable_bytes.saturating_add(len);
            self.readable_segments = self.segments.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
