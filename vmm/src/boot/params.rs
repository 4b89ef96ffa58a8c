// SPDX-License-Identifier: Apache-2.0
//! Linux' `struct boot_params` (the "zero page"): memory map, command line, initramfs, entropy.
//!
//! Offsets are those of Documentation/arch/x86/boot.rst and zero-page.rst. Built as bytes, so
//! nothing depends on the layout of a struct of ours.

use crate::memory;

use super::layout::{COMMAND_LINE, HIGH_RAM, MP_TABLE, RNG_SEED};

/// zero-page.rst: number of entries in the memory map.
const E820_ENTRIES: usize = 0x1e8;
/// zero-page.rst: the memory map, 20 bytes an entry.
const E820_TABLE: usize = 0x2d0;
/// boot.rst: start of the setup header, also in a bzImage.
pub const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const PAGE_BYTES: usize = 4096;

const BOOT_FLAG_VALUE: u16 = 0xaa55;
const HEADER_MAGIC_VALUE: &[u8; 4] = b"HdrS";
/// Protocol 2.12: the 64-bit entry and its flags.
const VERSION_VALUE: u16 = 0x020c;
/// "Undefined" boot loader.
const LOADER_OTHER: u8 = 0xff;
/// The kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;

/// Type of a RAM entry in the memory map.
const E820_RAM: u32 = 1;
/// Type of an entry that is not to be used.
const E820_RESERVED: u32 = 2;
/// boot.rst: `setup_data` record with entropy.
const SETUP_RNG_SEED: u32 = 9;

/// Bytes of host entropy handed over: what Linux' generator takes at once, twice.
pub const SEED_BYTES: usize = 64;

/// Where things were put, for the kernel to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'a> {
    /// Guest memory in bytes.
    pub mem_bytes: u64,
    /// Length of the command line in bytes.
    pub cmdline_len: u32,
    /// Address and length in bytes of the initramfs.
    pub initramfs: Option<(u32, u32)>,
    /// A bzImage's own setup header, from [`SETUP_HEADER`] on; a vmlinux has none.
    pub setup_header: Option<&'a [u8]>,
}

/// The bytes of `boot_params`.
pub fn boot_params(facts: &Facts<'_>) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    match facts.setup_header {
        Some(header) => put(&mut page, SETUP_HEADER, header),
        None => {
            put(&mut page, BOOT_FLAG, &BOOT_FLAG_VALUE.to_le_bytes());
            put(&mut page, HEADER_MAGIC, HEADER_MAGIC_VALUE);
            put(&mut page, VERSION, &VERSION_VALUE.to_le_bytes());
            put(&mut page, LOADFLAGS, &[LOADED_HIGH]);
            put(&mut page, KERNEL_ALIGNMENT, &0x100_0000_u32.to_le_bytes());
        }
    }
    put(&mut page, TYPE_OF_LOADER, &[LOADER_OTHER]);
    put(&mut page, CMD_LINE_PTR, &COMMAND_LINE.start.to_le_bytes()[..4]);
    put(&mut page, CMDLINE_SIZE, &facts.cmdline_len.to_le_bytes());
    put(&mut page, SETUP_DATA, &RNG_SEED.start.to_le_bytes());
    if let Some((start, len)) = facts.initramfs {
        put(&mut page, RAMDISK_IMAGE, &start.to_le_bytes());
        put(&mut page, RAMDISK_SIZE, &len.to_le_bytes());
    }
    put_memory_map(&mut page, facts.mem_bytes);
    page
}

fn put_memory_map(page: &mut [u8], mem_bytes: u64) {
    let mut at = E820_TABLE;
    let mut count = 0_u8;
    for (start, len, kind) in memory_map(mem_bytes) {
        put(page, at, &start.to_le_bytes());
        put(page, at + 8, &len.to_le_bytes());
        put(page, at + 16, &kind.to_le_bytes());
        at += 20;
        count += 1;
    }
    put(page, E820_ENTRIES, &[count]);
}

/// Start, length in bytes and type of each range.
fn memory_map(mem_bytes: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, MP_TABLE.start, E820_RAM), (MP_TABLE.start, MP_TABLE.len, E820_RESERVED)];
    for (start, len) in memory::ranges(mem_bytes) {
        let skip = HIGH_RAM.start.saturating_sub(start);
        if len > skip {
            map.push((start + skip, len - skip, E820_RAM));
        }
    }
    map
}

/// The `setup_data` record at [`RNG_SEED`].
pub fn rng_seed(seed: &[u8; SEED_BYTES]) -> Vec<u8> {
    let mut record = Vec::with_capacity(16 + SEED_BYTES);
    record.extend(0_u64.to_le_bytes());
    record.extend(SETUP_RNG_SEED.to_le_bytes());
    record.extend(u32::try_from(SEED_BYTES).unwrap_or(0).to_le_bytes());
    record.extend(seed);
    record
}

/// Copies `bytes` to `at`; what does not fit the page is left out.
fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in page.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MMIO_GAP_END, MMIO_GAP_START};

    const FACTS: Facts<'static> = Facts { mem_bytes: 128 << 20, cmdline_len: 11, initramfs: None, setup_header: None };

    fn u32_at(page: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    }

    fn u64_at(page: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(page[at..at + 8].try_into().unwrap())
    }

    fn map(mem_bytes: u64) -> Vec<(u64, u64, u32)> {
        let page = boot_params(&Facts { mem_bytes, ..FACTS });
        (0..usize::from(page[0x1e8]))
            .map(|i| 0x2d0 + 20 * i)
            .map(|at| (u64_at(&page, at), u64_at(&page, at + 8), u32_at(&page, at + 16)))
            .collect()
    }

    #[test]
    fn the_map_has_all_memory_but_the_legacy_hole() {
        assert_eq!(map(128 << 20), [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0x10_0000, 127 << 20, 1)]);
    }

    #[test]
    fn memory_beyond_the_gap_is_listed_above_four_gib() {
        let map = map(MMIO_GAP_START + (1 << 30));
        assert_eq!(map[2], (0x10_0000, MMIO_GAP_START - 0x10_0000, 1));
        assert_eq!(map[3], (MMIO_GAP_END, 1 << 30, 1));
        assert_eq!(map.len(), 4);
    }

    #[test]
    fn the_map_is_ascending_and_disjoint_for_any_size() {
        for mib in [1, 32, 3071, 3072, 3073, 65_536] {
            let map = map(mib << 20);
            assert!(map.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{mib} MiB");
        }
    }

    #[test]
    fn a_vmlinux_gets_a_header_that_the_kernel_accepts() {
        let page = boot_params(&FACTS);
        assert_eq!(page.len(), 4096);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(page[0x210], 0xff);
        assert_eq!(u32_at(&page, 0x228), 0x2_0000);
        assert_eq!(u32_at(&page, 0x238), 11);
        assert_eq!(u64_at(&page, 0x250), 0x3_0000);
        assert_eq!((u32_at(&page, 0x218), u32_at(&page, 0x21c)), (0, 0));
    }

    #[test]
    fn a_bzimage_keeps_its_own_header_but_for_what_the_loader_fills_in() {
        let header = vec![0xab; 0x7b];
        let facts = Facts { setup_header: Some(&header), initramfs: Some((0x200_0000, 77)), ..FACTS };
        let page = boot_params(&facts);
        assert_eq!(page[0x1f1], 0xab);
        assert_eq!(page[0x26b], 0xab);
        assert_eq!(page[0x26c], 0);
        assert_eq!(page[0x210], 0xff);
        assert_eq!((u32_at(&page, 0x218), u32_at(&page, 0x21c)), (0x200_0000, 77));
    }

    #[test]
    fn a_header_that_claims_to_be_endless_stays_in_the_page() {
        let header = vec![0xcd; 100_000];
        assert_eq!(boot_params(&Facts { setup_header: Some(&header), ..FACTS }).len(), 4096);
    }

    #[test]
    fn the_seed_record_is_typed_and_carries_all_bytes() {
        let record = rng_seed(&[7; SEED_BYTES]);
        assert_eq!(u64_at(&record, 0), 0, "last record");
        assert_eq!(u32_at(&record, 8), 9);
        assert_eq!(u32_at(&record, 12), 64);
        assert_eq!(record[16..], [7; 64]);
    }
}
