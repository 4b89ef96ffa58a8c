// SPDX-License-Identifier: Apache-2.0
//! Backends of block devices: an array of bytes behind the contract [`Disk`].
//!
//! [`base`] is a file that is only read; [`overlay`] keeps what one sandbox changed over it, in
//! memory ([`overlay_memory`]) or in a sparse file that survives ([`overlay_file`]); which page
//! lives where is [`page_map`]'s. Nothing here knows virtio requests, sectors or queues.
//!
//! Formats are raw and named by the configuration, never guessed from content.

use std::io;
use std::os::fd::RawFd;

use vm_memory::VolatileSlice;

pub mod page_map;

pub mod base;

pub mod overlay;

pub mod overlay_memory;

pub mod overlay_file;

#[cfg(any(test, fuzzing))]
pub mod fake;
#[cfg(test)]
pub(crate) mod model;

pub use base::Base;
pub use page_map::PageMap;

/// A disk of [`len_bytes`](Disk::len_bytes) bytes, used by one thread.
///
/// **Who validates.** The caller passes ranges inside the disk; an implementation checks again and
/// answers [`DiskError::Range`], so that a mistake above is an error below and never an access
/// outside. Any byte alignment works; pages and sectors are a matter of speed only.
///
/// **What may fail.** Everything, with the host's reason. A failed request may have been done in
/// part inside its own range, and has changed nothing outside it. A disk goes on serving after an
/// error, except that a flush that failed once fails for ever: the host may have dropped what it
/// could not write, so nothing may be called durable any more.
///
/// **What a crash may lose.** What was written since the last successful flush, byte by byte in
/// any combination; never what that flush covered.
pub trait Disk: Send {
    /// Length in bytes; never changes.
    fn len_bytes(&self) -> u64;

    /// True when everything but reading and flushing answers [`DiskError::ReadOnly`].
    fn is_read_only(&self) -> bool;

    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// [`DiskError::Range`], [`DiskError::Shrunk`], [`DiskError::Io`].
    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError>;

    /// Writes `from` at `offset`. Memory that changes meanwhile is written in either version.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] before anything is changed; [`DiskError::Range`],
    /// [`DiskError::ReadOnly`], [`DiskError::Io`].
    fn write_at(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError>;

    /// Makes every completed write durable, on a disk that outlives the monitor.
    ///
    /// # Errors
    /// [`DiskError::Io`]; then every later flush fails too.
    fn flush(&mut self) -> Result<(), DiskError>;

    /// Gives storage back where it can: afterwards each byte of the range reads as before or as
    /// zero.
    ///
    /// # Errors
    /// [`DiskError::Range`], [`DiskError::ReadOnly`], [`DiskError::Io`].
    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Makes the range read as zeros; gives storage back only when `may_free`.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    fn write_zeroes(&mut self, offset: u64, len: u64, may_free: bool) -> Result<(), DiskError>;

    /// What a twin of this disk needs beside its base, for a fork of the process or a snapshot;
    /// `None` when it cannot have one.
    fn layer(&self) -> Option<Layer<'_>> {
        None
    }
}

/// What a disk consists of.
#[derive(Debug)]
pub struct Layer<'a> {
    /// The descriptors that a forked process must keep.
    pub descriptors: Vec<RawFd>,
    /// Which pages changed, and where they are: nothing for a disk that is only read.
    pub changed: Option<(&'a PageMap, &'a dyn Pages)>,
}

/// Changed pages that can be read without changing anything.
pub trait Pages: std::fmt::Debug {
    /// Fills `into` with the page at `offset`, which must be one of those that changed.
    ///
    /// # Errors
    /// [`DiskError::Range`].
    fn read_page(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError>;

    /// The file that they came from, if it has to stay open.
    fn descriptor(&self) -> Option<RawFd>;
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Not inside the disk.
    #[error("accessing a disk: {len} bytes at {offset} are not inside its {disk_len} bytes")]
    Range {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Length of the disk.
        disk_len: u64,
    },
    /// Not for writing.
    #[error("changing a disk: it is read-only")]
    ReadOnly,
    /// The overlay is full; the guest sees an I/O error, everything written before stays.
    #[error(
        "writing to an overlay: {needed_bytes} bytes more than the {used_bytes} in use exceed its cap of {cap_bytes}"
    )]
    NoSpace {
        /// New storage the request needs.
        needed_bytes: u64,
        /// Storage in use.
        used_bytes: u64,
        /// The configured cap.
        cap_bytes: u64,
    },
    /// A file ended before its length at opening: somebody truncated it under us.
    #[error("reading a disk file at {offset}: it has become shorter than it was when opened")]
    Shrunk {
        /// Where the file ended.
        offset: u64,
    },
    /// The host refused.
    #[error("{what} at {offset}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Where.
        offset: u64,
        /// Why not.
        source: io::Error,
    },
}

/// Why a disk could not be opened: the user's fault unless it is [`OpenError::Io`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Empty or not a whole number of sectors.
    #[error(
        "opening a disk image: its length of {len} bytes is not a positive multiple of 512; pad it, e.g. truncate -s %4096 IMAGE"
    )]
    Length {
        /// Length of the file.
        len: u64,
    },
    /// More than can be mapped or addressed.
    #[error("opening an overlay: a disk of {len} bytes is beyond the {max} bytes it can cover")]
    TooLarge {
        /// Length of the disk.
        len: u64,
        /// What is possible.
        max: u64,
    },
    /// Not one of our files, or damaged.
    #[error(
        "opening an overlay file: {what}; it was not written by this version for this base: use another path or remove it"
    )]
    Format {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The overlay belongs to another base image.
    #[error("opening an overlay file: it was made over another base image; use that one, or another overlay path")]
    OtherBase,
    /// Another process has it.
    #[error("opening an overlay file: another monitor is using it; stop that sandbox or use another path")]
    InUse,
    /// The base could not be read.
    #[error("opening an overlay: reading its base")]
    Base(#[source] DiskError),
    /// The host refused.
    #[error("opening a disk: {what}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Checks that `len` bytes from `offset` lie inside a disk of `disk_len`; returns their end.
pub(crate) fn check_range(offset: u64, len: u64, disk_len: u64) -> Result<u64, DiskError> {
    offset.checked_add(len).filter(|end| *end <= disk_len).ok_or(DiskError::Range { offset, len, disk_len })
}
