// SPDX-License-Identifier: Apache-2.0
//! The overlay of a sandbox that leaves nothing behind: changed pages in anonymous memory, up to
//! a cap.
//!
//! The whole disk is reserved as address space and only touched where pages change, so a page is
//! found by its offset, a long run is one copy, and a `fork(2)` of the monitor shares it
//! copy-on-write. It dies with the monitor: a flush has nothing to do.
#![expect(unsafe_code, reason = "madvise(2) has no safe form: it frees pages and forbids huge ones")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{FileOffset, VolatileMemory, VolatileSlice};

use super::overlay::{Overlay, Store};
use super::page_map::{PAGE_BYTES, PageMap};
use super::{Disk, DiskError, OpenError, Pages};

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
        let (pages, size) = size_of_disk(base.len_bytes())?;
        // Private, anonymous, not reserved: see `MmapRegion::new`.
        let region = MmapRegion::new(size).map_err(no_address_space)?;
        Ok(Self::new(base, PageMap::new(pages), cap_bytes, MemoryStore::new(region)))
    }

    /// An overlay that starts with the pages of `layer`, which has each page that `map` calls
    /// [`PageState::Data`](super::page_map::PageState) at the offset it has on the disk. The file
    /// is mapped copy-on-write and never written.
    ///
    /// # Errors
    /// [`OpenError::TooLarge`]; [`OpenError::Format`] when map, file and base do not fit each
    /// other; [`OpenError::Io`].
    pub fn over_layer(base: Box<dyn Disk>, cap_bytes: u64, layer: File, map: PageMap) -> Result<Self, OpenError> {
        let (pages, size) = size_of_disk(base.len_bytes())?;
        let len = layer.metadata().map_err(|source| OpenError::Io { what: "examining a layer", source })?.len();
        if map.pages() != pages || len != pages * PAGE_BYTES {
            return Err(OpenError::Format { what: "the layer is not as long as its disk" });
        }
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(layer, 0))
            .build()
            .map_err(no_address_space)?;
        Ok(Self::new(base, map, cap_bytes, MemoryStore::new(region)))
    }
}

/// Pages and bytes of address space for a disk of `len` bytes.
fn size_of_disk(len: u64) -> Result<(u64, usize), OpenError> {
    let pages = len.div_ceil(PAGE_BYTES);
    let size = usize::try_from(pages.saturating_mul(PAGE_BYTES)).ok().filter(|_| len <= DISK_BYTES_MAX);
    Ok((pages, size.ok_or(OpenError::TooLarge { len, max: DISK_BYTES_MAX })?))
}

fn no_address_space(error: impl std::error::Error + Send + Sync + 'static) -> OpenError {
    OpenError::Io { what: "reserving address space for an overlay in memory", source: io::Error::other(error) }
}

impl MemoryStore {
    fn new(region: MmapRegion) -> Self {
        let store = Self { region };
        // A huge page would bring in 2 MiB for each page that changes, past any cap. Kernels
        // without huge pages refuse the advice, which is as good.
        let _ = store.advise(0, store.region.size(), libc::MADV_NOHUGEPAGE);
        store
    }

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

    fn pages(&self) -> Option<&dyn Pages> {
        Some(self)
    }
}

impl Pages for MemoryStore {
    fn read_page(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.slice(offset, into.len())?.copy_to(into);
        Ok(())
    }

    fn descriptor(&self) -> Option<RawFd> {
        self.region.file_offset().map(|place| place.file().as_raw_fd())
    }
}

#[cfg(test)]
mod tests;
