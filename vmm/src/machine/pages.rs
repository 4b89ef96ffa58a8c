// SPDX-License-Identifier: Apache-2.0
//! What the guest reads in the windows of the bus, as memory: a read of a register is no exit.
//!
//! KVM maps these pages read-only where the windows are ([`super::kvm`]), so that a load finds its
//! word by itself and only a store leaves the guest. An interrupt of virtio-mmio begins with a read
//! of its cause, and a boot with some fifty reads a device; each would cost a trip to the monitor.
//! Whoever owns the registers keeps its page up to date. Words are little-endian, like the guest's.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{MmapRegion, VolatileMemory};

use super::bus::WINDOW_BYTES;

/// The page of every window, in one mapping.
#[derive(Debug, Clone)]
pub struct ReadPages {
    mapping: Arc<MmapRegion<()>>,
}

impl ReadPages {
    /// Zeroed pages for `windows` windows; `None` for none.
    ///
    /// # Errors
    /// When the host has no memory for them.
    pub fn new(windows: usize) -> io::Result<Option<Self>> {
        let len = windows.saturating_mul(page_bytes());
        if len == 0 {
            return Ok(None);
        }
        let mapping = MmapRegion::new(len).map_err(io::Error::other)?;
        Ok(Some(Self { mapping: Arc::new(mapping) }))
    }

    /// The page of window `index`.
    ///
    /// # Panics
    /// When there is none: the caller asked for fewer.
    pub fn page(&self, index: usize) -> ReadPage {
        let start = index.saturating_mul(page_bytes());
        assert!(start < self.mapping.size(), "a page for every window");
        ReadPage { mapping: Arc::clone(&self.mapping), start }
    }

    /// Where the pages are in the monitor.
    pub(super) fn host_address(&self) -> u64 {
        self.mapping.as_ptr().addr() as u64
    }

    /// Their length in bytes.
    pub(super) fn len_bytes(&self) -> u64 {
        self.mapping.size() as u64
    }
}

/// The page of one window. Clones are the same page; words change atomically.
#[derive(Debug, Clone)]
pub struct ReadPage {
    mapping: Arc<MmapRegion<()>>,
    start: usize,
}

impl ReadPage {
    /// A page that no guest sees, for a device without a machine.
    ///
    /// # Errors
    /// When the host has no memory for it.
    pub fn unseen() -> io::Result<Self> {
        let mapping = MmapRegion::new(page_bytes()).map_err(io::Error::other)?;
        Ok(Self { mapping: Arc::new(mapping), start: 0 })
    }

    /// The word at `offset`.
    pub fn get(&self, offset: u64) -> u32 {
        u32::from_le(self.word(offset).load(Ordering::SeqCst))
    }

    /// Lets the guest read `value` at `offset`.
    pub fn set(&self, offset: u64, value: u32) {
        self.word(offset).store(value.to_le(), Ordering::SeqCst);
    }

    /// Sets `bits` of the word at `offset`.
    pub fn set_bits(&self, offset: u64, bits: u32) {
        self.word(offset).fetch_or(bits.to_le(), Ordering::SeqCst);
    }

    /// Clears `bits` of the word at `offset`.
    pub fn clear_bits(&self, offset: u64, bits: u32) {
        self.word(offset).fetch_and(!bits.to_le(), Ordering::SeqCst);
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        let offset = usize::try_from(offset).ok().filter(|offset| *offset < page_bytes());
        let word = offset.and_then(|offset| self.mapping.get_atomic_ref(self.start.saturating_add(offset)).ok());
        word.unwrap_or_else(|| unreachable!("register offsets are constants: aligned, and inside a window"))
    }
}

fn page_bytes() -> usize {
    usize::try_from(WINDOW_BYTES).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_apart_zeroed_and_shared_by_their_clones() {
        let pages = ReadPages::new(2).unwrap().unwrap();
        assert_eq!(pages.len_bytes(), 0x2000);
        assert_eq!(pages.host_address() % 0x1000, 0);
        let (first, second) = (pages.page(0), pages.page(1));
        assert_eq!((first.get(0xffc), second.get(0)), (0, 0));
        first.set(0xffc, 0x1122_3344);
        assert_eq!((pages.page(0).get(0xffc), second.get(0)), (0x1122_3344, 0));
        second.set_bits(0x60, 0b11);
        second.clear_bits(0x60, 0b01);
        assert_eq!(second.clone().get(0x60), 0b10);
        assert!(ReadPages::new(0).unwrap().is_none());
    }

    #[test]
    #[should_panic(expected = "a page for every window")]
    fn page_beyond_the_last_is_our_mistake() {
        ReadPages::new(2).unwrap().unwrap().page(2);
    }
}
