// SPDX-License-Identifier: Apache-2.0
//! A first look at a kernel that the user named: is it one at all, for this kind of CPU, whole, and small enough?
//!
//! The monitor looks again, more closely, and behind its seccomp filter; here the point is a clear word before
//! anything is started. Reads headers only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::Error;

/// Most program headers that are looked at; real kernels have a handful.
const HEADERS_MAX: u16 = 64;
const ELF_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const MACHINE_X86_64: u16 = 62;
const LOAD: u32 = 1;
/// Offset of `HdrS` in a bzImage, and of the boot protocol's version behind it.
const SETUP_MAGIC_AT: u64 = 0x202;

/// Checks the kernel at `path` for a guest of `mem_mib`.
///
/// # Errors
/// [`Error::Setting`] that says what is wrong with it.
pub(super) fn check(path: &Path, mem_mib: u64) -> Result<(), Error> {
    examine(path, mem_mib).map_err(|problem| Error::Setting {
        what: "the kernel (--kernel, MIDGE_KERNEL)",
        value: format!("{}, {problem}", path.display()),
        accepted: "an uncompressed vmlinux (ELF) or a bzImage for x86-64".to_owned(),
    })
}

fn examine(path: &Path, mem_mib: u64) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("which cannot be opened: {error}"))?;
    let meta = file.metadata().map_err(|error| format!("which cannot be examined: {error}"))?;
    if !meta.is_file() {
        return Err("which is no regular file".to_owned());
    }
    let unreadable = |error: io::Error| format!("which cannot be read: {error}");
    let mut magic = [0; 4];
    let least =
        |bytes: u64| if meta.len() < bytes { Err(format!("which has only {} bytes", meta.len())) } else { Ok(()) };
    least(ELF_HEADER_BYTES as u64)?;
    file.read_exact_at(&mut magic, 0).map_err(unreadable)?;
    if magic == *b"\x7fELF" {
        return examine_elf(&file, meta.len(), mem_mib);
    }
    least(SETUP_MAGIC_AT + 4)?;
    file.read_exact_at(&mut magic, SETUP_MAGIC_AT).map_err(unreadable)?;
    if magic != *b"HdrS" {
        return Err("which is neither an ELF file nor a bzImage".to_owned());
    }
    fits(meta.len(), mem_mib)
}

fn examine_elf(file: &File, len: u64, mem_mib: u64) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("which cannot be read: {error}");
    let mut header = [0; ELF_HEADER_BYTES];
    file.read_exact_at(&mut header, 0).map_err(unreadable)?;
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let machine = u16_at(18);
    if header[4] != 2 || header[5] != 1 || machine != MACHINE_X86_64 {
        return Err(format!("which is an ELF file for another machine ({machine}), not 64-bit x86 (62)"));
    }
    let (table, size, count) = (u64_at(&header, 32), u16_at(54), u16_at(56));
    if usize::from(size) != PROGRAM_HEADER_BYTES || count == 0 || count > HEADERS_MAX {
        return Err(format!("whose ELF header announces {count} program headers of {size} bytes"));
    }
    let mut loaded_bytes = 0_u64;
    for index in 0..u64::from(count) {
        let mut entry = [0; PROGRAM_HEADER_BYTES];
        let at = table.checked_add(index * PROGRAM_HEADER_BYTES as u64).ok_or("whose program headers lie nowhere")?;
        file.read_exact_at(&mut entry, at).map_err(|_| format!("which is cut short: it has only {len} bytes"))?;
        if u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) != LOAD {
            continue;
        }
        let (offset, file_bytes, memory_bytes) = (u64_at(&entry, 8), u64_at(&entry, 32), u64_at(&entry, 40));
        if offset.checked_add(file_bytes).is_none_or(|end| end > len) {
            return Err(format!("which is cut short: segment {index} ends beyond its {len} bytes"));
        }
        loaded_bytes = loaded_bytes.saturating_add(memory_bytes.max(file_bytes));
    }
    if loaded_bytes == 0 {
        return Err("which has nothing to load".to_owned());
    }
    fits(loaded_bytes, mem_mib)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn fits(bytes: u64, mem_mib: u64) -> Result<(), String> {
    let mib = bytes >> 20;
    if mib < mem_mib { Ok(()) } else { Err(format!("which takes {mib} MiB where the guest has {mem_mib} (--mem)")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one segment, from the specification's offsets.
    fn elf(machine: u16, file_bytes: u64, memory_bytes: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&1_u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&1024_u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&file_bytes.to_le_bytes());
        bytes[104..112].copy_from_slice(&memory_bytes.to_le_bytes());
        bytes
    }

    fn verdict(bytes: &[u8]) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        std::fs::write(&path, bytes).unwrap();
        check(&path, 64).map_err(|error| error.to_string())
    }

    #[test]
    fn whole_kernels_pass() {
        assert_eq!(verdict(&elf(62, 1024, 4096, 2048)), Ok(()));
        let mut image = vec![0; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(verdict(&image), Ok(()));
    }

    #[test]
    fn segment_may_end_with_the_file_but_not_beyond() {
        assert_eq!(verdict(&elf(62, 1024, 1024, 2048)), Ok(()));
        assert!(verdict(&elf(62, 1025, 1025, 2048)).unwrap_err().contains("cut short"));
        assert!(verdict(&elf(62, u64::MAX, 0, 2048)).unwrap_err().contains("cut short"));
    }

    #[test]
    fn other_machines_and_other_files_are_named() {
        assert!(verdict(&elf(183, 1024, 1024, 2048)).unwrap_err().contains("x86"));
        for bytes in [&b""[..], b"\x7fELF", &[0; 4096]] {
            let text = verdict(bytes).unwrap_err();
            assert!(text.contains("kernel") && text.contains("bzImage"), "{text}");
        }
    }

    #[test]
    fn kernel_larger_than_the_guest_is_refused() {
        assert_eq!(verdict(&elf(62, 1024, 63 << 20, 2048)), Ok(()));
        assert!(verdict(&elf(62, 1024, 64 << 20, 2048)).unwrap_err().contains("--mem"));
        assert!(verdict(&elf(62, 1024, u64::MAX, 2048)).is_err());
    }

    #[test]
    fn directories_and_absent_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(dir.path(), 64).unwrap_err().to_string().contains("no regular file"));
        assert!(check(&dir.path().join("absent"), 64).unwrap_err().to_string().contains("absent"));
    }
}
