// SPDX-License-Identifier: Apache-2.0
//! An uncompressed `vmlinux`: ELF-64, x86-64, loaded at its segments' physical addresses.
//!
//! System V ABI, chapters 4 (header) and 5 (program headers). Claims become checks here; whether
//! the places can be had is the parent's to check.

use super::{KernelError, KernelImage, Segment, Source, check_inside, number, read};

pub(super) const MAGIC: &[u8; 4] = b"\x7fELF";

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// A kernel has about five; more than this is no kernel.
const PROGRAM_HEADERS_MAX: u64 = 64;

const CLASS_64: u64 = 2;
const LITTLE_ENDIAN: u64 = 1;
const TYPE_EXEC: u64 = 2;
const MACHINE_X86_64: u64 = 62;
const PT_LOAD: u64 = 1;

pub(super) fn parse(source: &dyn Source) -> Result<KernelImage, KernelError> {
    let mut header = [0; HEADER_BYTES];
    read(source, "the ELF header", 0, &mut header)?;
    for (what, at, len, expected, needed) in [
        ("ELF class", 4, 1, CLASS_64, "2 (64 bits)"),
        ("byte order", 5, 1, LITTLE_ENDIAN, "1 (little endian)"),
        ("ELF type", 16, 2, TYPE_EXEC, "2 (an executable)"),
        ("machine", 18, 2, MACHINE_X86_64, "0x3e (x86-64)"),
        ("program header size", 54, 2, PROGRAM_HEADER_BYTES as u64, "0x38"),
    ] {
        let found = number(&header, at, len);
        if found != expected {
            return Err(KernelError::Unsuitable { what, found, needed });
        }
    }
    let count = number(&header, 56, 2);
    if count == 0 || count > PROGRAM_HEADERS_MAX {
        let what = "number of program headers";
        return Err(KernelError::Unsuitable { what, found: count, needed: "1 to 64" });
    }
    let segments = segments(source, number(&header, 32, 8), count)?;
    Ok(KernelImage {
        entry: number(&header, 24, 8),
        end: segments.last().map_or(0, Segment::end),
        segments,
        cmdline_max: crate::boot::cmdline::MAX_BYTES,
        initramfs_last: u64::from(u32::MAX),
        setup_header: None,
    })
}

/// The loadable segments, ascending by address.
fn segments(source: &dyn Source, table: u64, count: u64) -> Result<Vec<Segment>, KernelError> {
    check_inside(source, "the program header table", table, count * PROGRAM_HEADER_BYTES as u64)?;
    let mut segments = Vec::new();
    for index in 0..count {
        let mut entry = [0; PROGRAM_HEADER_BYTES];
        let at = table + index * PROGRAM_HEADER_BYTES as u64;
        read(source, "a program header", at, &mut entry)?;
        if number(&entry, 0, 4) == PT_LOAD {
            segments.extend(segment(source, &entry)?);
        }
    }
    segments.sort_by_key(|segment| segment.start);
    Ok(segments)
}

/// One loadable segment; one without memory is left out.
fn segment(source: &dyn Source, entry: &[u8]) -> Result<Option<Segment>, KernelError> {
    let segment = Segment {
        start: number(entry, 24, 8),
        file_offset: number(entry, 8, 8),
        file_len: number(entry, 32, 8),
        mem_len: number(entry, 40, 8),
    };
    if segment.file_len > segment.mem_len {
        return Err(KernelError::Unsuitable {
            what: "segment length in the file",
            found: segment.file_len,
            needed: "at most its length in memory",
        });
    }
    check_inside(source, "a segment", segment.file_offset, segment.file_len)?;
    Ok((segment.mem_len > 0).then_some(segment))
}
