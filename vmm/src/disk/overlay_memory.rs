// SPDX-License-Identifier: Apache-2.0
//! The overlay of a sandbox that leaves nothing behind: changed pages in anonymous memory, up to
//! a cap.
//!
//! The whole disk is reserved as address space and only touched where pages change, so a page is
//! found by its offset, a long run is one copy, and a `fork(2)` of the monitor shares it
//! copy-on-write. It dies with the monitor: a flush has nothing to do.
#![expect(unsafe_code, reason = "madvise(2) has no safe form: it frees pages and forbids huge ones")]

use std::io;

use vm_memory::mmap::MmapRegion;
use vm_memory::{VolatileMemory, VolatileSlice};

use super::overlay::{Overlay, Store};
use super::page_map::{PAGE_BYTES, PageMap};
use super::{Disk, DiskError, OpenError};

/// Largest disk: address space is 128 TiB in all.
const DISK_BYTES_MAX: u64 = 1 << 44;

/// Pages in memory, each at the offset it has on the disk.
#[derive(Debug)]
pub struct MemoryStore {
    region: MmapRegion,
}

impl Overlay<MemoryStore> {
    /// An empty overlay in memory; `cap_bytes` bounds what it may use.
    ///
    /// # Errors
    /// [`OpenError::TooLarge`]; [`OpenError::Io`] when the address space cannot be had.
    pub fn in_memory(base: Box<dyn Disk>, cap_bytes: u64) -> Result<Self, OpenError> {
        let len = base.len_bytes();
        let too_large = OpenError::TooLarge { len, max: DISK_BYTES_MAX };
        if len > DISK_BYTES_MAX {
            return Err(too_large);
        }
        let pages = len.div_ceil(PAGE_BYTES);
        let size = usize::try_from(pages * PAGE_BYTES).map_err(|_| too_large)?;
        // Private, anonymous, not reserved: see `MmapRegion::new`.
        let region = MmapRegion::new(size).map_err(|error| OpenError::Io {
            what: "reserving address space for an overlay in memory",
            source: io::Error::other(error),
        })?;
        let store = MemoryStore { region };
        // A huge page would bring in 2 MiB for each page that changes, past any cap. Kernels
        // without huge pages refuse the advice, which is as good.
        let _ = store.advise(0, size, libc::MADV_NOHUGEPAGE);
        Ok(Self::new(base, PageMap::new(pages), cap_bytes, store))
    }
}

impl MemoryStore {
    fn slice(&self, offset: u64, len: usize) -> Result<VolatileSlice<'_>, DiskError> {
        usize::try_from(offset)
            .ok()
            .and_then(|offset| self.region.get_slice(offset, len).ok())
            .ok_or(DiskError::Range { offset, len: len as u64, disk_len: self.region.size() as u64 })
    }

    fn advise(&self, offset: u64, len: usize, advice: libc::c_int) -> Result<(), DiskError> {
        let slice = self.slice(offset, len)?;
        // SAFETY: the range lies in this store's own anonymous mapping, which nobody holds a
        // reference into; pages that are freed read as zeros afterwards.
        let result = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), advice) };
        if result == 0 {
            return Ok(());
        }
        Err(DiskError::Io { what: "advising on the memory of an overlay", offset, source: io::Error::last_os_error() })
    }
}

impl Store for MemoryStore {
    fn read(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let mut at = offset;
        for slice in into {
            self.slice(at, slice.len())?.copy_to_volatile_slice(*slice);
            at += slice.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let mut at = offset;
        for slice in from {
            slice.copy_to_volatile_slice(self.slice(at, slice.len())?);
            at += slice.len() as u64;
        }
        Ok(())
    }

    fn release(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.advise(offset, len, libc::MADV_DONTNEED)
    }

    fn sync(&mut self, _map: &mut PageMap) -> Result<(), DiskError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
