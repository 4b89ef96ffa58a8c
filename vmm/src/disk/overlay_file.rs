// SPDX-License-Identifier: Apache-2.0
//! The overlay that survives: changed pages and the map of them in one sparse file.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | "MIDGEOVL" |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | page size, 4096 |
//! | 16 | 8 | length of the disk in bytes |
//! | 24 | 8 | fingerprint of the base: FNV-1a of its first 64 KiB |
//! | 32 | 8 | FNV-1a of the 32 bytes before |
//! | 4096 | n x 4096 | the map, two bits a page ([`super::page_map`]) |
//! | then | disk | each page at the offset it has on the disk |
//!
//! All numbers are little endian. A flush makes the data durable before it writes the map that
//! points at it, and the map before it returns; a page that the durable map does not call Data is
//! never read from the file. So a crash at any point leaves the state of the last flush, or later
//! writes over it, and never garbage. The file is locked while it is open.
//!
//! A new file gets its length before its header, so a crash while it is made leaves it empty, or
//! of exactly that length with zeros where header and map belong: both are made anew. Only sectors
//! of 512 bytes are relied upon to arrive whole or not at all.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsFd;

use vm_memory::VolatileSlice;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::base::transfer;
use super::overlay::{Overlay, Store};
use super::page_map::{BLOCK_BYTES, PAGE_BYTES, PageMap};
use super::{Disk, DiskError, OpenError};
use crate::virtio::vectored;

const MAGIC: [u8; 8] = *b"MIDGEOVL";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 40;
/// What the header says of the page size.
const PAGE_SIZE_FIELD: u32 = 4096;
const _: () = assert!(PAGE_SIZE_FIELD as u64 == PAGE_BYTES);
/// Bytes of the base that its fingerprint covers: superblocks with their UUIDs.
const FINGERPRINT_BYTES: u64 = 64 * 1024;
/// Largest disk: its file stays below the limits of common file systems.
const DISK_BYTES_MAX: u64 = 1 << 43;

/// The file operations an overlay needs, so that a test can crash between any two of them.
pub trait Backing: Send {
    /// As `preadv(2)`.
    ///
    /// # Errors
    /// Whatever the host reports.
    fn read_at(&self, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize>;
    /// As `pwritev(2)`.
    ///
    /// # Errors
    /// Whatever the host reports.
    fn write_at(&mut self, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize>;
    /// Frees a range, which reads as zeros afterwards or as before.
    ///
    /// # Errors
    /// Whatever the host reports.
    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()>;
    /// As `fdatasync(2)`.
    ///
    /// # Errors
    /// Whatever the host reports.
    fn sync(&mut self) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// Whatever the host reports.
    fn len_bytes(&self) -> io::Result<u64>;
    /// As `ftruncate(2)`, to a larger length.
    ///
    /// # Errors
    /// Whatever the host reports.
    fn grow(&mut self, len_bytes: u64) -> io::Result<()>;
}

impl Backing for File {
    fn read_at(&self, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
        vectored::read_at(self.as_fd(), into, offset)
    }

    fn write_at(&mut self, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
        vectored::write_at(self.as_fd(), from, offset)
    }

    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        match fallocate(self, FallocateMode::PunchHole, true, offset, len) {
            Ok(()) => Ok(()),
            // A file system without holes keeps the space; the map says what the pages read as.
            Err(error) if error.errno() == libc::EOPNOTSUPP => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn grow(&mut self, len_bytes: u64) -> io::Result<()> {
        self.set_len(len_bytes)
    }
}

/// Pages in a file, behind the header and the map.
#[derive(Debug)]
pub struct FileStore<B> {
    file: B,
    /// Offset of the disk's first page.
    data_start: u64,
    /// Set once a flush has failed: the host may have dropped what it could not write.
    sync_failed: bool,
}

impl Overlay<FileStore<File>> {
    /// The overlay in `file`, which was opened for reading and writing: a new one when it is
    /// empty. `cap_bytes` bounds what it may use.
    ///
    /// # Errors
    /// [`OpenError::InUse`], [`OpenError::Format`], [`OpenError::OtherBase`] and the others.
    pub fn in_file(base: Box<dyn Disk>, file: File, cap_bytes: u64) -> Result<Self, OpenError> {
        match file.try_lock() {
            Ok(()) => Self::in_backing(base, file, cap_bytes),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse),
            Err(TryLockError::Error(source)) => Err(OpenError::Io { what: "locking an overlay file", source }),
        }
    }
}

impl<B: Backing> Overlay<FileStore<B>> {
    /// As [`Overlay::in_file`], without a lock.
    ///
    /// # Errors
    /// As [`Overlay::in_file`].
    pub fn in_backing(mut base: Box<dyn Disk>, mut file: B, cap_bytes: u64) -> Result<Self, OpenError> {
        let len = base.len_bytes();
        if len > DISK_BYTES_MAX {
            return Err(OpenError::TooLarge { len, max: DISK_BYTES_MAX });
        }
        let pages = len.div_ceil(PAGE_BYTES);
        let map_blocks = PageMap::block_count(pages);
        let data_start = (1 + map_blocks as u64) * BLOCK_BYTES as u64;
        let header = header(len, fingerprint(base.as_mut())?);
        let io_error = |what| move |source| OpenError::Io { what, source };
        let mut map = PageMap::new(pages);
        let file_len = file.len_bytes().map_err(io_error("finding the length of an overlay file"))?;
        let whole_len = data_start + pages * PAGE_BYTES;
        if file_len == 0 || file_len == whole_len && is_blank(&file, map_blocks)? {
            file.grow(whole_len).map_err(io_error("sizing an overlay file"))?;
            create(&mut file, &header, map_blocks).map_err(io_error("writing the head of an overlay file"))?;
            file.sync().map_err(io_error("syncing a new overlay file"))?;
        } else {
            if file_len < whole_len {
                return Err(OpenError::Format { what: "it is too short" });
            }
            check_header(&file, &header)?;
            load_map(&file, &mut map, map_blocks)?;
        }
        let store = FileStore { file, data_start, sync_failed: false };
        Ok(Self::new(base, map, cap_bytes, store))
    }
}

impl<B: Backing> Store for FileStore<B> {
    fn read(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let file = &self.file;
        transfer(into, self.data_start + offset, "reading an overlay file", |slices, at| file.read_at(slices, at))
    }

    fn write(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let file = &mut self.file;
        transfer(from, self.data_start + offset, "writing an overlay file", |slices, at| file.write_at(slices, at))
    }

    fn release(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.file.punch(self.data_start + offset, len).map_err(|source| DiskError::Io {
            what: "freeing space of an overlay file",
            offset,
            source,
        })
    }

    fn sync(&mut self, map: &mut PageMap) -> Result<(), DiskError> {
        if self.sync_failed {
            let source = io::Error::other("an earlier flush failed");
            return Err(DiskError::Io { what: "flushing an overlay file", offset: 0, source });
        }
        let synced = self.sync_in_order(map);
        self.sync_failed = synced.is_err();
        synced
    }
}

impl<B: Backing> FileStore<B> {
    /// Data, then the map that points at it, each durable before the next.
    fn sync_in_order(&mut self, map: &mut PageMap) -> Result<(), DiskError> {
        let failed = |source| DiskError::Io { what: "flushing an overlay file", offset: 0, source };
        self.file.sync().map_err(failed)?;
        let dirty = map.take_dirty();
        for block in &dirty {
            let mut bytes = map.block(*block);
            let file = &mut self.file;
            let at = map_offset(*block);
            transfer(
                &[VolatileSlice::from(&mut bytes[..])],
                at,
                "writing the map of an overlay file",
                |slices, at| file.write_at(slices, at),
            )?;
        }
        if dirty.is_empty() {
            return Ok(());
        }
        self.file.sync().map_err(failed)
    }
}

fn map_offset(block: usize) -> u64 {
    (1 + block as u64) * BLOCK_BYTES as u64
}

fn header(disk_len: u64, fingerprint: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&PAGE_SIZE_FIELD.to_le_bytes());
    header[16..24].copy_from_slice(&disk_len.to_le_bytes());
    header[24..32].copy_from_slice(&fingerprint.to_le_bytes());
    let sum = fnv1a(&header[..32]);
    header[32..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// The header and a map of zeros, written out so that a full disk is found now.
fn create(file: &mut impl Backing, header: &[u8; HEADER_BYTES], map_blocks: usize) -> io::Result<()> {
    let mut block = [0; BLOCK_BYTES];
    block[..HEADER_BYTES].copy_from_slice(header);
    for index in 0..=map_blocks {
        let slices = [VolatileSlice::from(&mut block[..])];
        let mut at = 0;
        while at < BLOCK_BYTES {
            let mut rest = vectored::Rest::new(&slices);
            rest.skip(at);
            let count = file.write_at(&rest.take(BLOCK_BYTES), (index * BLOCK_BYTES + at) as u64)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += count;
        }
        block.fill(0);
    }
    Ok(())
}

fn read_block(file: &impl Backing, offset: u64) -> Result<[u8; BLOCK_BYTES], OpenError> {
    let mut block = [0; BLOCK_BYTES];
    let slices = [VolatileSlice::from(&mut block[..])];
    transfer(&slices, offset, "reading an overlay file", |slices, at| file.read_at(slices, at)).map_err(|error| {
        match error {
            DiskError::Io { what, source, .. } => OpenError::Io { what, source },
            _ => OpenError::Format { what: "it is too short" },
        }
    })?;
    Ok(block)
}

/// Whether header and map are all zeros: what a crash may leave of a file that was being made.
fn is_blank(file: &impl Backing, map_blocks: usize) -> Result<bool, OpenError> {
    for index in 0..=map_blocks {
        if read_block(file, (index * BLOCK_BYTES) as u64)?.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn check_header(file: &impl Backing, expected: &[u8; HEADER_BYTES]) -> Result<(), OpenError> {
    let block = read_block(file, 0)?;
    let found = &block[..HEADER_BYTES];
    if found[..8] != MAGIC {
        return Err(OpenError::Format { what: "it does not begin with MIDGEOVL" });
    }
    if found[32..] != fnv1a(&found[..32]).to_le_bytes() {
        return Err(OpenError::Format { what: "the checksum of its header is wrong" });
    }
    if found[8..16] != expected[8..16] {
        return Err(OpenError::Format { what: "its version or page size is not ours" });
    }
    if found != expected {
        return Err(OpenError::OtherBase);
    }
    Ok(())
}

fn load_map(file: &impl Backing, map: &mut PageMap, blocks: usize) -> Result<(), OpenError> {
    for block in 0..blocks {
        if !map.load_block(block, &read_block(file, map_offset(block))?) {
            return Err(OpenError::Format { what: "its map names a state or a page that does not exist" });
        }
    }
    Ok(())
}

/// Tells one base from another without reading all of it. Not a defence: whoever can write the
/// overlay file can change its content anyway.
fn fingerprint(base: &mut dyn Disk) -> Result<u64, OpenError> {
    let len = base.len_bytes().min(FINGERPRINT_BYTES);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    base.read_at(0, &[VolatileSlice::from(&mut bytes[..])]).map_err(OpenError::Base)?;
    Ok(fnv1a(&bytes))
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod tests;
