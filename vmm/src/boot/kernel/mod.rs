// SPDX-License-Identifier: Apache-2.0
//! What a kernel file asks for: which bytes of it go where, and where the CPU starts.
//!
//! The file is the user's, but it is parsed like any hostile input: every number in it is a
//! claim, checked against the file's length and the guest's RAM before it becomes a
//! [`KernelImage`]. Holding one proves that its segments are ascending, disjoint, inside the file
//! and inside [`HIGH_RAM`], and that the entry lies in one of them.
//! Only headers are read here; contents are copied when the plan is loaded.

mod bzimage;
mod elf;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout::{HIGH_RAM, IDENTITY_MAPPED_END};

/// A file as the parsers see it.
pub trait Source {
    /// Its length in bytes.
    fn len_bytes(&self) -> u64;
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The read's error; reading past the end is one.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// An opened kernel file with its length as it was when it was opened.
#[derive(Debug)]
pub struct KernelFile<'a> {
    /// The file.
    pub file: &'a File,
    /// Its length in bytes.
    pub len: u64,
}

impl Source for KernelFile<'_> {
    fn len_bytes(&self) -> u64 {
        self.len
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// Bytes of the file that go to guest memory. What `mem_len` has more than `file_len` is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First guest-physical address.
    pub start: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// Bytes taken from the file.
    pub file_len: u64,
    /// Bytes taken in memory.
    pub mem_len: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.mem_len)
    }
}

/// A checked kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelImage {
    /// What goes where, ascending.
    pub segments: Vec<Segment>,
    /// Where the CPU starts.
    pub entry: u64,
    /// First address behind the kernel.
    pub end: u64,
    /// Longest command line it takes, in bytes.
    pub cmdline_max: usize,
    /// Last address at which it can use an initramfs.
    pub initramfs_last: u64,
    /// A bzImage's setup header, to be handed back to it.
    pub setup_header: Option<Vec<u8>>,
}

/// Why a file is not a kernel that can be booted here.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file could not be read.
    #[error("reading the kernel's header failed")]
    Read(#[source] io::Error),
    /// Neither format.
    #[error("the kernel is neither an ELF file nor a bzImage; give an x86-64 vmlinux or bzImage")]
    UnknownFormat,
    /// The file ends before what its header announces.
    #[error("the kernel is truncated: {what} ends at byte {needed}, the file has {len}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it would end.
        needed: u64,
        /// Where the file ends.
        len: u64,
    },
    /// Right format, wrong kind.
    #[error("the kernel's {what} is {found:#x}; needed: {needed}")]
    Unsuitable {
        /// The field.
        what: &'static str,
        /// Its value.
        found: u64,
        /// What would be accepted.
        needed: &'static str,
    },
    /// A part would not lie in guest RAM.
    #[error(
        "the kernel wants {len:#x} bytes at guest address {start:#x}; this guest has RAM for it from {:#x} to \
         {limit:#x}; give the VM more memory or a smaller kernel",
        HIGH_RAM.start
    )]
    OutsideRam {
        /// First address wanted.
        start: u64,
        /// Bytes wanted.
        len: u64,
        /// First address that cannot be had.
        limit: u64,
    },
    /// Two parts would lie in the same place.
    #[error("the kernel's parts overlap at guest address {at:#x}")]
    Overlap {
        /// Where.
        at: u64,
    },
}

/// Parses a kernel for a guest whose low RAM ends at `ram_end`.
///
/// # Errors
/// [`KernelError`] names the claim that does not hold.
pub fn parse(source: &dyn Source, ram_end: u64) -> Result<KernelImage, KernelError> {
    let mut magic = [0; 4];
    read(source, "the first four bytes", 0, &mut magic)?;
    let image = if &magic == elf::MAGIC { elf::parse(source)? } else { bzimage::parse(source, ram_end)? };
    check_places(&image, ram_end)?;
    Ok(image)
}

/// Reads a part of the header, telling a short file from a failing one.
fn read(source: &dyn Source, what: &'static str, offset: u64, buf: &mut [u8]) -> Result<(), KernelError> {
    check_inside(source, what, offset, buf.len() as u64)?;
    source.read_at(offset, buf).map_err(KernelError::Read)
}

fn check_inside(source: &dyn Source, what: &'static str, offset: u64, len: u64) -> Result<(), KernelError> {
    let needed = offset.saturating_add(len);
    if needed > source.len_bytes() || offset.checked_add(len).is_none() {
        return Err(KernelError::Truncated { what, needed, len: source.len_bytes() });
    }
    Ok(())
}

/// Segments in RAM that the entry can reach, ascending and disjoint; the entry inside one.
fn check_places(image: &KernelImage, ram_end: u64) -> Result<(), KernelError> {
    let limit = ram_end.min(IDENTITY_MAPPED_END);
    let mut free_from = HIGH_RAM.start;
    for segment in &image.segments {
        let outside = KernelError::OutsideRam { start: segment.start, len: segment.mem_len, limit };
        let end = segment.start.checked_add(segment.mem_len);
        if segment.start < HIGH_RAM.start || end.is_none_or(|end| end > limit) {
            return Err(outside);
        }
        if segment.start < free_from {
            return Err(KernelError::Overlap { at: segment.start });
        }
        free_from = segment.end();
    }
    let holds_entry = |s: &Segment| (s.start..s.start.saturating_add(s.file_len)).contains(&image.entry);
    if image.segments.iter().any(holds_entry) {
        return Ok(());
    }
    Err(KernelError::Unsuitable {
        what: "entry point",
        found: image.entry,
        needed: "an address inside one of its parts",
    })
}

/// A little-endian number of a header that was read whole; absent bytes count as zero.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let taken = bytes.iter().skip(at).take(len);
    taken.rev().fold(0, |value, &byte| (value << 8) | u64::from(byte))
}

#[cfg(test)]
mod tests;
