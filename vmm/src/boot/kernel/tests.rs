// SPDX-License-Identifier: Apache-2.0
//! Hostile kernels: the builders here follow the two formats' documents, not the parsers.

use super::*;
use proptest::prelude::*;

const RAM_END: u64 = 128 << 20;

impl Source for Vec<u8> {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A segment as a test asks for it: (physical address, bytes in the file, bytes in memory).
type Wanted = (u64, u64, u64);

/// ELF-64 for x86-64 with these loadable segments, contents one after the other.
fn elf(entry: u64, wanted: &[Wanted]) -> Vec<u8> {
    let mut file = vec![0; 64 + 56 * wanted.len()];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &2_u16.to_le_bytes());
    put(&mut file, 18, &62_u16.to_le_bytes());
    put(&mut file, 24, &entry.to_le_bytes());
    put(&mut file, 32, &64_u64.to_le_bytes());
    put(&mut file, 54, &56_u16.to_le_bytes());
    put(&mut file, 56, &u16::try_from(wanted.len()).unwrap().to_le_bytes());
    for (index, &(start, file_len, mem_len)) in wanted.iter().enumerate() {
        let (at, offset) = (64 + 56 * index, file.len() as u64);
        put(&mut file, at, &1_u32.to_le_bytes());
        put(&mut file, at + 8, &offset.to_le_bytes());
        put(&mut file, at + 16, &0xffff_ffff_8000_0000_u64.wrapping_add(start).to_le_bytes());
        put(&mut file, at + 24, &start.to_le_bytes());
        put(&mut file, at + 32, &file_len.to_le_bytes());
        put(&mut file, at + 40, &mem_len.to_le_bytes());
        file.resize(file.len() + usize::try_from(file_len).unwrap(), 0x90);
    }
    file
}

const START: u64 = 0x100_0000;

fn good_elf() -> Vec<u8> {
    elf(START + 0x23, &[(START, 0x1000, 0x1000), (START + 0x1000, 0x800, 0x3000)])
}

/// A bzImage with `payload` bytes of protected-mode code.
fn bzimage(payload: usize) -> Vec<u8> {
    let mut file = vec![0; 5 * 512 + payload];
    file[0x1f1] = 4;
    put(&mut file, 0x1f4, &u32::try_from(payload.div_ceil(16)).unwrap().to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa]);
    file[0x201] = 0x6a;
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x020f_u16.to_le_bytes());
    file[0x211] = 1;
    put(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut file, 0x236, &0x3f_u16.to_le_bytes());
    put(&mut file, 0x238, &2047_u32.to_le_bytes());
    put(&mut file, 0x258, &START.to_le_bytes());
    put(&mut file, 0x260, &0x20_0000_u32.to_le_bytes());
    file
}

fn parse_in(file: &Vec<u8>, ram_end: u64) -> Result<KernelImage, KernelError> {
    parse(file, ram_end)
}

fn refused(file: &Vec<u8>) -> KernelError {
    parse_in(file, RAM_END).unwrap_err()
}

#[test]
fn a_vmlinux_is_taken_at_its_physical_addresses() {
    let image = parse_in(&good_elf(), RAM_END).unwrap();
    assert_eq!(image.entry, START + 0x23);
    assert_eq!(image.end, START + 0x4000);
    assert_eq!(image.segments.len(), 2);
    let second = image.segments[1];
    assert_eq!((second.start, second.file_len, second.mem_len), (START + 0x1000, 0x800, 0x3000));
    assert_eq!(second.file_offset, 64 + 2 * 56 + 0x1000);
    assert!(image.setup_header.is_none());
}

#[test]
fn segments_in_any_order_come_out_ascending() {
    let file = elf(START, &[(START + 0x5000, 0x10, 0x10), (START, 0x10, 0x10)]);
    let image = parse_in(&file, RAM_END).unwrap();
    assert_eq!(image.segments[0].start, START);
    assert_eq!(image.end, START + 0x5010);
}

#[test]
fn a_vmlinux_cut_anywhere_is_an_error_and_never_a_panic() {
    let whole = good_elf();
    for len in 0..whole.len() {
        let cut = whole[..len].to_vec();
        let error = refused(&cut);
        assert!(matches!(error, KernelError::Truncated { .. }), "{len}: {error}");
    }
}

#[test]
fn other_machines_classes_and_types_are_refused_by_name() {
    for (at, value, word) in [(4, 1, "class"), (5, 2, "order"), (16, 3, "type"), (18, 40, "machine"), (54, 64, "size")]
    {
        let mut file = good_elf();
        file[at] = value;
        let error = refused(&file);
        assert!(matches!(error, KernelError::Unsuitable { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn an_elf_without_or_with_absurdly_many_headers_is_refused() {
    for count in [0_u16, 65, u16::MAX] {
        let mut file = good_elf();
        put(&mut file, 56, &count.to_le_bytes());
        assert!(matches!(refused(&file), KernelError::Unsuitable { .. }), "{count}");
    }
}

#[test]
fn a_header_table_beyond_the_file_or_the_number_range_is_truncated() {
    for at in [u64::MAX, u64::MAX - 60, 1 << 40] {
        let mut file = good_elf();
        put(&mut file, 32, &at.to_le_bytes());
        assert!(matches!(refused(&file), KernelError::Truncated { .. }), "{at:#x}");
    }
}

#[test]
fn a_segment_outside_ram_is_refused_at_both_ends() {
    let at = |start, len| elf(start, &[(start, 0x10, len)]);
    let high = HIGH_RAM.start;
    assert!(parse_in(&at(high, RAM_END - high), RAM_END).is_ok());
    for (start, len) in [
        (high - 1, 0x20),
        (0, 0x1000),
        (high, RAM_END - high + 1),
        (RAM_END, 0x10),
        (u64::MAX - 8, 0x10),
        (high, u64::MAX),
        (high, 3 << 30),
    ] {
        let error = refused(&at(start, len));
        assert!(matches!(error, KernelError::OutsideRam { .. }), "{start:#x} {len:#x}: {error}");
    }
}

#[test]
fn nothing_lies_behind_the_identity_map_however_much_memory_there_is() {
    let file = elf(START, &[(START, 0x10, IDENTITY_MAPPED_END)]);
    assert!(matches!(parse_in(&file, 3 << 30), Err(KernelError::OutsideRam { .. })));
}

#[test]
fn overlapping_segments_are_refused_and_adjacent_ones_are_not() {
    let file = elf(START, &[(START, 0x10, 0x1001), (START + 0x1000, 0x10, 0x10)]);
    assert!(matches!(refused(&file), KernelError::Overlap { at } if at == START + 0x1000));
    let file = elf(START, &[(START, 0x10, 0x1000), (START + 0x1000, 0x10, 0x10)]);
    assert!(parse_in(&file, RAM_END).is_ok());
}

#[test]
fn more_file_than_memory_in_a_segment_is_refused() {
    let file = elf(START, &[(START, 0x11, 0x10)]);
    assert!(matches!(refused(&file), KernelError::Unsuitable { found: 0x11, .. }));
}

#[test]
fn an_entry_outside_every_segment_is_refused() {
    for entry in [0, START - 1, START + 0x10, u64::MAX] {
        let file = elf(entry, &[(START, 0x10, 0x20)]);
        assert!(matches!(refused(&file), KernelError::Unsuitable { what: "entry point", .. }), "{entry:#x}");
    }
    assert!(matches!(refused(&elf(0, &[])), KernelError::Unsuitable { .. }));
}

#[test]
fn neither_format_is_said_so() {
    for junk in [vec![0; 4096], b"#!/bin/sh\n".to_vec(), vec![0xff; 70_000]] {
        assert!(matches!(refused(&junk), KernelError::UnknownFormat));
    }
}

#[test]
fn a_bzimage_runs_at_its_preferred_address() {
    let image = parse_in(&bzimage(100_000), RAM_END).unwrap();
    assert_eq!(image.entry, START + 0x200);
    assert_eq!(image.end, START + 0x20_0000);
    let segment = image.segments[0];
    assert_eq!((segment.file_offset, segment.file_len), (5 * 512, 100_000));
    assert_eq!(image.initramfs_last, 0x7fff_ffff);
    assert_eq!(image.cmdline_max, 2047);
    let header = image.setup_header.unwrap();
    assert_eq!(header.len(), 0x202 + 0x6a - 0x1f1);
    assert_eq!(header[0x202 - 0x1f1..][..4], *b"HdrS");
}

#[test]
fn zero_setup_sectors_mean_four() {
    let mut file = bzimage(1000);
    file[0x1f1] = 0;
    assert_eq!(parse_in(&file, RAM_END).unwrap().segments[0].file_offset, 5 * 512);
}

#[test]
fn the_last_paragraph_of_a_bzimage_may_be_short_but_no_more() {
    let whole = bzimage(1000);
    assert_eq!(parse_in(&whole, RAM_END).unwrap().segments[0].file_len, 1000);
    let cut = whole[..whole.len() - 16].to_vec();
    assert!(matches!(refused(&cut), KernelError::Truncated { .. }));
}

#[test]
fn a_bzimage_cut_anywhere_is_an_error_and_never_a_panic() {
    let whole = bzimage(4096);
    for len in 0..whole.len() - 16 {
        let cut = whole[..len].to_vec();
        let error = refused(&cut);
        assert!(matches!(error, KernelError::Truncated { .. } | KernelError::UnknownFormat), "{len}: {error}");
    }
}

#[test]
fn old_32_bit_and_low_loaded_bzimages_are_refused_by_name() {
    for (at, value, word) in [(0x206, 0x0b, "protocol"), (0x211, 0, "loadflags"), (0x236, 0, "xloadflags")] {
        let mut file = bzimage(1000);
        file[at] = value;
        let error = refused(&file);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_bzimage_whose_sizes_lie_is_refused() {
    let mut file = bzimage(1000);
    put(&mut file, 0x1f4, &u32::MAX.to_le_bytes());
    assert!(matches!(refused(&file), KernelError::Truncated { .. }));
    let mut file = bzimage(1000);
    put(&mut file, 0x1f4, &0_u32.to_le_bytes());
    assert!(matches!(refused(&file), KernelError::Unsuitable { .. }));
    for (at, value) in [(0x258, 0), (0x258, RAM_END), (0x258, u64::MAX)] {
        let mut file = bzimage(1000);
        put(&mut file, at, &u64::to_le_bytes(value));
        assert!(matches!(refused(&file), KernelError::OutsideRam { .. }), "{value:#x}");
    }
    let mut file = bzimage(1000);
    put(&mut file, 0x260, &u32::MAX.to_le_bytes());
    assert!(matches!(refused(&file), KernelError::OutsideRam { .. }));
}

#[test]
fn a_setup_header_never_reaches_beyond_what_was_read() {
    let mut file = bzimage(1000);
    file[0x201] = 0xff;
    let header = parse_in(&file, RAM_END).unwrap().setup_header.unwrap();
    assert_eq!(header.len(), 0x290 - 0x1f1);
}

#[test]
fn a_failing_read_is_not_called_truncation() {
    struct Failing;
    impl Source for Failing {
        fn len_bytes(&self) -> u64 {
            1 << 20
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
    assert!(matches!(parse(&Failing, RAM_END), Err(KernelError::Read(_))));
}

/// What holding a [`KernelImage`] promises.
fn promises_hold(image: &KernelImage, file_len: u64, ram_end: u64) {
    let mut from = HIGH_RAM.start;
    for segment in &image.segments {
        assert!(segment.start >= from);
        from = segment.start + segment.mem_len;
        assert!(segment.file_offset + segment.file_len <= file_len);
        assert!(segment.file_len <= segment.mem_len);
    }
    assert!(from <= ram_end.min(IDENTITY_MAPPED_END));
    assert!(image.segments.iter().any(|s| (s.start..s.start + s.mem_len).contains(&image.entry)));
}

proptest! {
    #[test]
    fn whatever_is_flipped_in_a_vmlinux_header_the_promises_hold(
        flips in proptest::collection::vec((0..64 + 2 * 56_usize, any::<u8>()), 1..8),
        ram_mib in 1..4096_u64,
    ) {
        let mut file = good_elf();
        for (at, value) in flips {
            file[at] = value;
        }
        if let Ok(image) = parse_in(&file, ram_mib << 20) {
            promises_hold(&image, file.len() as u64, ram_mib << 20);
        }
    }

    #[test]
    fn whatever_is_flipped_in_a_bzimage_header_the_promises_hold(
        flips in proptest::collection::vec((0x1f1..0x290_usize, any::<u8>()), 1..8),
        ram_mib in 1..4096_u64,
    ) {
        let mut file = bzimage(3000);
        for (at, value) in flips {
            file[at] = value;
        }
        if let Ok(image) = parse_in(&file, ram_mib << 20) {
            promises_hold(&image, file.len() as u64, ram_mib << 20);
        }
    }

    #[test]
    fn any_segments_are_refused_or_keep_the_promises(
        wanted in proptest::collection::vec((0..0x200_0000_u64, 0..64_u64, 0..0x10_0000_u64), 1..5),
        entry in 0..0x200_0000_u64,
    ) {
        let file = elf(entry, &wanted);
        if let Ok(image) = parse_in(&file, RAM_END) {
            promises_hold(&image, file.len() as u64, RAM_END);
        }
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = parse_in(&bytes, RAM_END);
        let mut elf = bytes.clone();
        elf.splice(0..elf.len().min(4), *b"\x7fELF");
        let _ = parse_in(&elf, RAM_END);
    }
}
