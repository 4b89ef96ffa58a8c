// SPDX-License-Identifier: Apache-2.0
//! A compressed `bzImage`: its setup header says where the decompressor runs.
//!
//! Documentation/arch/x86/boot.rst, protocol 2.12 or later (Linux 3.8): that has the 64-bit
//! entry at 0x200. Claims become checks here; the guest itself decompresses.

use super::super::params::SETUP_HEADER;
use super::{KernelError, KernelImage, Segment, Source, check_inside, number, read};

/// Bytes that hold every field of the header that is used or handed back.
const HEAD_BYTES: usize = 0x290;
const SETUP_SECTORS: usize = 0x1f1;
const SYSTEM_SIZE: usize = 0x1f4;
const HEADER_LEN: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_LAST: usize = 0x22c;
const LOAD_FLAGS_64: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

const SECTOR_BYTES: u64 = 512;
/// boot.rst: "for backwards compatibility, if the setup_sects field contains 0, the real value is 4".
const SETUP_SECTORS_OLD: u64 = 4;
/// `syssize` counts 16-byte paragraphs.
const PARAGRAPH_BYTES: u64 = 16;
const VERSION_NEEDED: u64 = 0x020c;
/// XLF_KERNEL_64.
const HAS_64_BIT_ENTRY: u64 = 1;
const LOADED_HIGH: u64 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;

pub(super) fn parse(source: &dyn Source, ram_end: u64) -> Result<KernelImage, KernelError> {
    let mut head = [0; HEAD_BYTES];
    let available = usize::try_from(source.len_bytes()).unwrap_or(usize::MAX).min(HEAD_BYTES);
    let head_part = head.get_mut(..available).unwrap_or_default();
    read(source, "the setup header", 0, head_part)?;
    if head.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err(KernelError::UnknownFormat);
    }
    check_inside(source, "the setup header", 0, HEAD_BYTES as u64)?;
    check_kind(&head)?;
    let segment = segment(source, &head)?;
    if segment.start > ram_end {
        let (start, len) = (segment.start, segment.mem_len);
        return Err(KernelError::OutsideRam { start, len, limit: ram_end });
    }
    let header_end = (MAGIC + usize::from(head[HEADER_LEN])).min(HEAD_BYTES);
    let cmdline_max = usize::try_from(number(&head, CMDLINE_SIZE, 4)).unwrap_or(usize::MAX);
    Ok(KernelImage {
        segments: vec![segment],
        entry: segment.start.saturating_add(ENTRY_64_OFFSET),
        end: segment.end(),
        cmdline_max,
        initramfs_last: number(&head, INITRD_LAST, 4),
        setup_header: head.get(SETUP_HEADER..header_end).map(<[u8]>::to_vec),
    })
}

fn check_kind(head: &[u8]) -> Result<(), KernelError> {
    let refuse = |what, found, needed| Err(KernelError::Unsuitable { what, found, needed });
    let version = number(head, VERSION, 2);
    if version < VERSION_NEEDED {
        return refuse("boot protocol", version, "0x20c (2.12) or later");
    }
    let flags = number(head, LOADFLAGS, 1);
    if flags & LOADED_HIGH == 0 {
        return refuse("loadflags field", flags, "bit 0 set (a bzImage, not a zImage)");
    }
    let flags = number(head, LOAD_FLAGS_64, 2);
    if flags & HAS_64_BIT_ENTRY == 0 {
        return refuse("xloadflags field", flags, "bit 0 set (a 64-bit kernel)");
    }
    Ok(())
}

/// Everything behind the real-mode part, where the kernel prefers to be, with room to unpack.
fn segment(source: &dyn Source, head: &[u8]) -> Result<Segment, KernelError> {
    let sectors = match number(head, SETUP_SECTORS, 1) {
        0 => SETUP_SECTORS_OLD,
        sectors => sectors,
    };
    let file_offset = (sectors + 1) * SECTOR_BYTES;
    let file_len = number(head, SYSTEM_SIZE, 4) * PARAGRAPH_BYTES;
    if file_len == 0 {
        return Err(KernelError::Unsuitable { what: "system size", found: 0, needed: "more than 0" });
    }
    // The last paragraph may be cut short in the file.
    let present = source.len_bytes().saturating_sub(file_offset);
    if present.saturating_add(PARAGRAPH_BYTES) <= file_len {
        check_inside(source, "the compressed kernel", file_offset, file_len)?;
    }
    let file_len = file_len.min(present);
    let mem_len = number(head, INIT_SIZE, 4).max(file_len);
    Ok(Segment { start: number(head, PREFERRED_ADDRESS, 8), file_offset, file_len, mem_len })
}
