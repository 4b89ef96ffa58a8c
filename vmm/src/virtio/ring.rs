// SPDX-License-Identifier: Apache-2.0
//! The memory of a split virtqueue: where its three areas are and how each word is accessed.
//!
//! First file on the way of a request. Every access is one volatile load or store of checked
//! memory with the ordering it needs; no decision is taken here and nothing is remembered.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::fault::GuestFault;
use super::spec::ring as spec;
use crate::memory::GuestRam;

/// Where a driver says its queue is: a claim until `Ring::new` accepts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Geometry {
    /// Number of descriptors.
    pub size: u32,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring (driver area).
    pub avail: u64,
    /// Guest-physical address of the used ring (device area).
    pub used: u64,
}

/// One descriptor, copied out of the guest's table exactly once (§2.7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Guest-physical address of the buffer.
    pub(super) addr: u64,
    /// Its length in bytes.
    pub(super) len: u32,
    /// `DESC_F_*`.
    pub(super) flags: u16,
    /// Index of the next descriptor, with `DESC_F_NEXT`.
    pub(super) next: u16,
}

impl Descriptor {
    fn from_le_bytes(bytes: [u8; spec::DESCRIPTOR_BYTES as usize]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// The areas of one queue. Holding it proves: the size is a power of two within the offer, every
/// area is aligned as §2.7 asks and lies in guest memory.
#[derive(Debug, Clone)]
pub(super) struct Ring {
    ram: Arc<GuestRam>,
    size: u16,
    descriptors: u64,
    avail: u64,
    used: u64,
}

impl Ring {
    /// Checks `claim` against the standard and `ram`.
    ///
    /// # Errors
    /// [`GuestFault::QueueSize`], [`GuestFault::QueueAlignment`], [`GuestFault::QueueRange`].
    pub(super) fn new(ram: Arc<GuestRam>, claim: Geometry, max: u16) -> Result<Self, GuestFault> {
        let max = max.min(spec::SIZE_MAX);
        let size = u16::try_from(claim.size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max)
            .ok_or(GuestFault::QueueSize { size: claim.size, max })?;
        let entries = u64::from(size);
        let around_entries = spec::ENTRIES_OFFSET.saturating_add(spec::EVENT_BYTES);
        let areas = [
            (
                "descriptor table",
                claim.descriptors,
                spec::DESCRIPTORS_ALIGN,
                entries.saturating_mul(u64::from(spec::DESCRIPTOR_BYTES)),
            ),
            (
                "available ring",
                claim.avail,
                spec::AVAIL_ALIGN,
                entries.saturating_mul(spec::AVAIL_ENTRY_BYTES).saturating_add(around_entries),
            ),
            (
                "used ring",
                claim.used,
                spec::USED_ALIGN,
                entries.saturating_mul(spec::USED_ENTRY_BYTES).saturating_add(around_entries),
            ),
        ];
        for (part, addr, align, len) in areas {
            if !addr.is_multiple_of(align) {
                return Err(GuestFault::QueueAlignment { part, addr, align });
            }
            let inside = usize::try_from(len).is_ok_and(|count| ram.check_range(GuestAddress(addr), count));
            if !inside {
                return Err(GuestFault::QueueRange { part, addr, len });
            }
        }
        Ok(Self { ram, size, descriptors: claim.descriptors, avail: claim.avail, used: claim.used })
    }

    pub(super) fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry { size: u32::from(self.size), descriptors: self.descriptors, avail: self.avail, used: self.used }
    }

    /// Copies descriptor `index` of the queue's own table; `index` is below the size.
    pub(super) fn descriptor(&self, index: u16) -> Result<Descriptor, GuestFault> {
        read_descriptor(&self.ram, self.descriptors, index)
    }

    /// avail.idx. Acquire: entries and descriptors written before it are seen after it (§2.7.13).
    pub(super) fn avail_index(&self) -> Result<u16, GuestFault> {
        self.load(offset(self.avail, spec::INDEX_OFFSET), Ordering::Acquire)
    }

    /// avail.flags.
    pub(super) fn avail_flags(&self) -> Result<u16, GuestFault> {
        self.load(self.avail, Ordering::Relaxed)
    }

    /// The head that the available ring holds for the running index `index`.
    pub(super) fn avail_entry(&self, index: u16) -> Result<u16, GuestFault> {
        let slot = u64::from(self.slot(index)).saturating_mul(spec::AVAIL_ENTRY_BYTES);
        let addr = offset(self.avail, spec::ENTRIES_OFFSET.saturating_add(slot));
        self.load(addr, Ordering::Relaxed)
    }

    /// used_event: the driver wants an interrupt once the used index passes it (§2.7.7).
    pub(super) fn used_event(&self) -> Result<u16, GuestFault> {
        let entries = u64::from(self.size).saturating_mul(spec::AVAIL_ENTRY_BYTES);
        let addr = offset(self.avail, spec::ENTRIES_OFFSET.saturating_add(entries));
        self.load(addr, Ordering::Relaxed)
    }

    /// Writes the used entry for the running index `index`; not visible before the index is.
    pub(super) fn set_used_entry(&self, index: u16, head: u16, len: u32) -> Result<(), GuestFault> {
        let slot = u64::from(self.slot(index)).saturating_mul(spec::USED_ENTRY_BYTES);
        let id_addr = offset(self.used, spec::ENTRIES_OFFSET.saturating_add(slot));
        let len_addr = offset(id_addr, 4);
        self.store_u32(id_addr, u32::from(head))?;
        self.store_u32(len_addr, len)
    }

    /// used.idx. Release: entries and buffers written before it are seen with it (§2.7.8.2).
    pub(super) fn set_used_index(&self, index: u16) -> Result<(), GuestFault> {
        let addr = offset(self.used, spec::INDEX_OFFSET);
        self.store(addr, index, Ordering::Release)
    }

    /// used.flags.
    pub(super) fn set_used_flags(&self, flags: u16) -> Result<(), GuestFault> {
        self.store(self.used, flags, Ordering::Relaxed)
    }

    /// avail_event: we want a kick once avail.idx passes it (§2.7.10).
    pub(super) fn set_avail_event(&self, index: u16) -> Result<(), GuestFault> {
        let entries = u64::from(self.size).saturating_mul(spec::USED_ENTRY_BYTES);
        let addr = offset(self.used, spec::ENTRIES_OFFSET.saturating_add(entries));
        self.store(addr, index, Ordering::Relaxed)
    }

    /// Running indices wrap at 2^16; the size is a power of two, so a mask finds the slot.
    fn slot(&self, index: u16) -> u16 {
        index & self.size.wrapping_sub(1)
    }

    fn load(&self, addr: u64, order: Ordering) -> Result<u16, GuestFault> {
        self.ram
            .get_slice(GuestAddress(addr), size_of::<u16>())
            .ok()
            .and_then(|word| word.load::<u16>(0, order).ok())
            .map(u16::from_le)
            .ok_or(GuestFault::Ring { addr })
    }

    fn store(&self, addr: u64, value: u16, order: Ordering) -> Result<(), GuestFault> {
        self.ram
            .get_slice(GuestAddress(addr), size_of::<u16>())
            .ok()
            .and_then(|word| word.store(value.to_le(), 0, order).ok())
            .ok_or(GuestFault::Ring { addr })
    }

    fn store_u32(&self, addr: u64, value: u32) -> Result<(), GuestFault> {
        self.ram
            .get_slice(GuestAddress(addr), size_of::<u32>())
            .ok()
            .and_then(|word| word.store(value.to_le(), 0, Ordering::Relaxed).ok())
            .ok_or(GuestFault::Ring { addr })
    }
}

/// Copies descriptor `index` of the table at `table`, which may be an indirect one and so may lie
/// anywhere, across a border of regions included.
pub(super) fn read_descriptor(ram: &GuestRam, table: u64, index: u16) -> Result<Descriptor, GuestFault> {
    let within = u64::from(index).saturating_mul(u64::from(spec::DESCRIPTOR_BYTES));
    let addr = offset(table, within);
    let mut bytes = [0; spec::DESCRIPTOR_BYTES as usize];
    ram.read_slice(&mut bytes, GuestAddress(addr)).map_err(|_| GuestFault::Ring { addr })?;
    Ok(Descriptor::from_le_bytes(bytes))
}

/// An address behind `base`. Saturating: the top of the address space is never RAM, so a claim
/// that would wrap is refused by the access itself.
fn offset(base: u64, bytes: u64) -> u64 {
    base.saturating_add(bytes)
}
