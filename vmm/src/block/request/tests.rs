// SPDX-License-Identifier: Apache-2.0
//! Headers at both sides of every limit.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { sectors: 100, read_only: false, discard: true, write_zeroes: true };
const READ_ONLY: Limits = Limits { read_only: true, discard: false, write_zeroes: false, ..LIMITS };

/// le32 type, le32 reserved, le64 sector.
fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0xff; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// le64 sector, le32 num_sectors, le32 flags.
fn range(sector: u64, count: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

#[test]
fn reads_and_writes_lie_on_the_disk() {
    for (sector, len, offset) in [
        (0, 512, Some(0)),
        (99, 512, Some(99 * 512)),
        (100, 512, None),
        (99, 1024, None),
        (0, 51_200, Some(0)),
        (0, 51_712, None),
        (0, 0, Some(0)),
        (100, 0, Some(51_200)),
        (101, 0, None),
        (1 << 63, 512, None),
        (1 << 63, 0, None),
        (u64::MAX, 512, None),
        (u64::MAX, 0, None),
        ((1 << 55) + 1, 512, None),
        (0, 511, None),
        (0, 513, None),
        (0, 1, None),
    ] {
        let read = parse(header(0, sector), 0, len, &LIMITS);
        assert_eq!(read, offset.map(|offset| Request::Read { offset }).ok_or(Status::IoError), "{len} at {sector}");
        let write = parse(header(1, sector), len, 0, &LIMITS);
        assert_eq!(write, offset.map(|offset| Request::Write { offset }).ok_or(Status::IoError));
    }
}

#[test]
fn read_only_disk_refuses_writes_and_knows_no_discard() {
    assert_eq!(parse(header(1, 0), 512, 0, &READ_ONLY), Err(Status::IoError));
    assert_eq!(parse(header(11, 0), 16, 0, &READ_ONLY), Err(Status::Unsupported));
    assert_eq!(parse(header(13, 0), 16, 0, &READ_ONLY), Err(Status::Unsupported));
    assert!(parse(header(0, 0), 0, 512, &READ_ONLY).is_ok());
    assert_eq!(parse(header(4, 0), 0, 0, &READ_ONLY), Ok(Request::Flush));
}

#[test]
fn unknown_types_are_unsupported() {
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 16, 26, 0x8000_0000, u32::MAX] {
        assert_eq!(parse(header(kind, 0), 512, 512, &LIMITS), Err(Status::Unsupported), "type {kind}");
    }
}

#[test]
fn name_needs_its_twenty_bytes() {
    assert_eq!(parse(header(8, 0), 0, 19, &LIMITS), Err(Status::IoError));
    assert_eq!(parse(header(8, 0), 0, 20, &LIMITS), Ok(Request::GetId));
}

#[test]
fn ranges_are_whole_and_bounded_in_number() {
    for kind in [11, 13] {
        for (bytes, fits) in [(0, true), (16, true), (15, false), (17, false), (256, true), (272, false)] {
            assert_eq!(parse(header(kind, 0), bytes, 0, &LIMITS).is_ok(), fits, "{bytes} bytes");
        }
    }
}

#[test]
fn ranges_lie_on_the_disk_and_know_their_flags() {
    let good = Range { offset: 512, len: 99 * 512, may_free: true };
    assert_eq!(parse_range(range(1, 99, 0), true, &LIMITS), Ok(good));
    assert_eq!(parse_range(range(1, 99, 1), false, &LIMITS), Ok(good));
    assert_eq!(parse_range(range(1, 99, 0), false, &LIMITS), Ok(Range { may_free: false, ..good }));
    assert_eq!(parse_range(range(1, 0, 0), true, &LIMITS), Ok(Range { len: 0, ..good }));
    assert_eq!(parse_range(range(1, 99, 1), true, &LIMITS), Err(Status::Unsupported), "UNMAP in a discard");
    for flags in [2, 3, 0x8000_0000] {
        assert_eq!(parse_range(range(1, 99, flags), false, &LIMITS), Err(Status::Unsupported));
    }
    for (sector, count) in [(1, 100), (101, 0), (100, 1), (u64::MAX, 1), (1 << 63, 1), (0, u32::MAX)] {
        assert_eq!(parse_range(range(sector, count, 0), true, &LIMITS), Err(Status::IoError), "{count} at {sector}");
    }
}

#[test]
fn one_range_is_bounded_on_any_disk() {
    let huge = Limits { sectors: u64::MAX / 512, ..LIMITS };
    assert!(parse_range(range(0, 1 << 22, 0), true, &huge).is_ok());
    assert_eq!(parse_range(range(0, (1 << 22) + 1, 0), true, &huge), Err(Status::IoError));
}

proptest! {
    /// No header makes an accepted request leave the disk.
    #[test]
    fn accepted_requests_lie_on_the_disk(
        kind in prop_oneof![0_u32..16, any::<u32>()],
        sector in prop_oneof![0_u64..200, any::<u64>()],
        given in 0_usize..200_000, wanted in 0_usize..200_000, read_only in any::<bool>(),
    ) {
        let limits = if read_only { READ_ONLY } else { LIMITS };
        match parse(header(kind, sector), given, wanted, &limits) {
            Ok(Request::Read { offset }) => prop_assert!(offset + wanted as u64 <= 51_200),
            Ok(Request::Write { offset }) => prop_assert!(!read_only && offset + given as u64 <= 51_200),
            Ok(Request::Discard | Request::WriteZeroes) => prop_assert!(!read_only && given <= 256),
            Ok(Request::Flush | Request::GetId) | Err(_) => {}
        }
    }
}

/// Numbers at both ends of 64 bits, and around what wraps when it is made bytes.
fn corners() -> Vec<u64> {
    let around = |middle: u64| (0..5).map(move |step| middle.wrapping_add(step).wrapping_sub(2));
    [0, 100, u64::from(RANGE_SECTORS_MAX), 1 << 31, 1 << 32, 1 << 54, 1 << 55, 1 << 63, u64::MAX / 512]
        .into_iter()
        .flat_map(around)
        .collect()
}

/// Every pair of such numbers on disks of such sizes: what is taken ends on the disk, counted without a limit.
#[test]
fn every_corner_of_a_range_lies_on_the_disk_or_is_refused() {
    for sectors in corners().into_iter().filter(|sectors| *sectors < 1 << 54) {
        let limits = Limits { sectors, ..LIMITS };
        for sector in corners() {
            for count in corners() {
                let ends_on_disk = u128::from(sector) + u128::from(count) <= u128::from(sectors);
                let expected = ends_on_disk.then(|| sector * 512);
                assert_eq!(on_disk(sector, count, &limits).ok(), expected, "{count} from {sector} of {sectors}");
                let bytes = usize::try_from(count).unwrap().checked_mul(512);
                let offset = bytes.and_then(|bytes| offset_of(sector, bytes, &limits).ok());
                assert_eq!(offset, expected.filter(|_| bytes.is_some()));
                let Ok(count) = u32::try_from(count) else { continue };
                let found = parse_range(range(sector, count, 0), true, &limits).ok();
                let expected = expected.filter(|_| count <= RANGE_SECTORS_MAX);
                assert_eq!(
                    found.map(|range| (range.offset, range.len)),
                    expected.map(|at| (at, u64::from(count) * 512))
                );
            }
        }
    }
}
