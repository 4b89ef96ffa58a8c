// SPDX-License-Identifier: Apache-2.0
//! Cursors over chains of many small buffers.

use proptest::prelude::*;

use super::*;
use crate::virtio::Chain;
use crate::virtio::fake::{FakeDriver, Part, ram_with_hole};

fn chain(parts: &[Part<'_>]) -> (FakeDriver, Chain) {
    let mut driver = FakeDriver::new(&ram_with_hole(), 0x1000, 256);
    driver.offer(parts);
    let chain = driver.queue(0).pop().unwrap().unwrap();
    (driver, chain)
}

#[test]
fn short_read_takes_nothing() {
    let (_driver, chain) = chain(&[Part::Give(b"abc"), Part::Give(b"d")]);
    let mut reader = chain.reader();
    let short = reader.read_array::<5>().unwrap_err();
    assert_eq!(short, ShortChain { wanted: 5, left: 4 });
    assert_eq!(reader.read_array::<4>().unwrap(), *b"abcd");
    assert_eq!(reader.left_bytes(), 0);
    assert_eq!(reader.read_array::<0>().unwrap(), [0; 0]);
}

#[test]
fn short_write_writes_nothing() {
    let (driver, chain) = chain(&[Part::Take(2), Part::Take(1)]);
    let mut writer = chain.writer();
    assert!(writer.write_all(b"wxyz").is_err());
    assert_eq!(chain.written_bytes(), 0);
    assert_eq!(driver.read(0x3000, 2), [0xee; 2]);
}

#[test]
fn lists_longer_than_one_call_are_lent_in_pieces() {
    let part = Part::Give(b"x");
    let (_driver, chain) = chain(&[part; 100]);
    let mut reader = chain.reader();
    let first = reader.slices(usize::MAX);
    assert_eq!(first.len(), super::super::vectored::SLICES_MAX);
    reader.advance(first.len_bytes());
    assert_eq!(reader.slices(usize::MAX).len_bytes(), 36);
    assert_eq!(chain.reader().read_array::<100>().unwrap(), [b'x'; 100]);
}

#[test]
fn payload_written_before_its_header_counts_once_the_header_is_there() {
    let (_driver, chain) = chain(&[Part::Take(100)]);
    let (mut header, mut payload) = chain.writer().split_at(44).unwrap();
    payload.write_all(b"0123").unwrap();
    payload.write_all(b"45").unwrap();
    assert_eq!(chain.written_bytes(), 0, "nothing is there from the first byte on");
    header.write_all(&[1; 44]).unwrap();
    assert_eq!(chain.written_bytes(), 50);
}

#[test]
fn last_byte_alone_does_not_count() {
    let (_driver, chain) = chain(&[Part::Take(512), Part::Take(1)]);
    let (mut data, mut status) = chain.writer().split_at(512).unwrap();
    data.write_all(&[3; 100]).unwrap();
    status.write_all(&[1]).unwrap();
    assert_eq!(chain.written_bytes(), 100);
}

#[test]
fn same_bytes_through_two_writers_count_once() {
    let (_driver, chain) = chain(&[Part::Take(8)]);
    chain.writer().write_all(&[1; 8]).unwrap();
    chain.writer().write_all(&[2; 4]).unwrap();
    assert_eq!(chain.written_bytes(), 8);
}

#[test]
fn split_beyond_the_end_is_short() {
    let (_driver, chain) = chain(&[Part::Give(b"abc"), Part::Take(3)]);
    assert!(chain.reader().split_at(4).is_err());
    assert!(chain.writer().split_at(4).is_err());
    let (head, tail) = chain.reader().split_at(3).unwrap();
    assert_eq!((head.left_bytes(), tail.left_bytes()), (3, 0));
}

proptest! {
    /// Any way of cutting the same bytes into buffers and reads gives the same bytes.
    #[test]
    fn reads_do_not_depend_on_how_buffers_are_cut(
        buffers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..100),
        reads in prop::collection::vec(0_usize..40, 0..60),
    ) {
        let parts: Vec<_> = buffers.iter().map(|b| Part::Give(b)).collect();
        let (_driver, chain) = chain(&parts);
        let all: Vec<u8> = buffers.concat();
        let mut reader = chain.reader();
        let mut taken = 0;
        for len in reads {
            let mut bytes = vec![0; len];
            let enough = taken + len <= all.len();
            prop_assert_eq!(reader.read_exact(&mut bytes).is_ok(), enough);
            if enough {
                prop_assert_eq!(&bytes[..], &all[taken..taken + len]);
                taken += len;
            }
            prop_assert_eq!(reader.left_bytes(), all.len() - taken);
        }
    }

    /// The count is the gapless prefix, against a plain map of bytes.
    #[test]
    fn written_length_is_the_gapless_prefix(
        cut in 0_usize..=64, head in 0_usize..=64, tail in 0_usize..=64, tail_first in any::<bool>(),
    ) {
        let (driver, chain) = chain(&[Part::Take(30), Part::Take(34)]);
        let (mut first, mut second) = chain.writer().split_at(cut).unwrap();
        let (head, tail) = (head.min(cut), tail.min(64 - cut));
        if tail_first {
            second.write_all(&vec![1; tail]).unwrap();
            first.write_all(&vec![1; head]).unwrap();
        } else {
            first.write_all(&vec![1; head]).unwrap();
            second.write_all(&vec![1; tail]).unwrap();
        }
        let mut memory = driver.read(0x3000, 30);
        memory.extend(driver.read(0x3020, 34));
        let prefix = memory.iter().take_while(|byte| **byte == 1).count();
        prop_assert_eq!(chain.written_bytes() as usize, prefix);
    }
}
