// SPDX-License-Identifier: Apache-2.0
//! Chains good and bad, offered by the fake driver over memory with a border and a hole.

use proptest::prelude::*;

use super::*;
use crate::virtio::fake::{BORDER, END, FakeDriver, HIGH, HOLE, Part, ram_with_hole};
use crate::virtio::spec::feature;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn driver(size: u16) -> FakeDriver {
    FakeDriver::new(&ram_with_hole(), 0x1000, size)
}

fn pop(driver: &FakeDriver) -> Result<Option<Chain>, GuestFault> {
    driver.queue(feature::INDIRECT_DESC).pop()
}

fn fault(driver: &FakeDriver) -> GuestFault {
    pop(driver).expect_err("the chain is broken")
}

fn content(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0; chain.readable_bytes()];
    chain.reader().read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn parts_come_in_order_and_lengths_add_up() {
    let mut driver = driver(8);
    let offered = driver.offer(&[Part::Give(b"head"), Part::Give(b"tail"), Part::Take(3), Part::Take(5)]);
    let chain = pop(&driver).unwrap().unwrap();
    assert_eq!(chain.head(), offered.head);
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (8, 8));
    assert_eq!(content(&chain), b"headtail");
    chain.writer().write_all(b"abcdefgh").unwrap();
    assert_eq!(driver.taken(&offered, 0), b"abc");
    assert_eq!(driver.taken(&offered, 1), b"defgh");
}

#[test]
fn head_at_queue_size_is_a_fault_and_one_below_is_not() {
    let mut driver = driver(8);
    driver.descriptor(7, HIGH, 16, 0, 0);
    driver.offer_head(7);
    assert!(pop(&driver).unwrap().is_some());
    driver.clear();
    driver.offer_head(8);
    assert_eq!(fault(&driver), GuestFault::Head { head: 8, size: 8 });
    driver.clear();
    driver.offer_head(u16::MAX);
    assert!(matches!(fault(&driver), GuestFault::Head { .. }));
}

#[test]
fn next_at_queue_size_is_a_fault_not_a_shorter_chain() {
    let mut driver = driver(8);
    driver.descriptor(0, HIGH, 16, NEXT, 8);
    driver.offer_head(0);
    assert_eq!(fault(&driver), GuestFault::Next { next: 8, size: 8 });
}

#[test]
fn loop_is_a_fault() {
    let mut driver = driver(4);
    driver.descriptor(0, HIGH, 16, NEXT, 1);
    driver.descriptor(1, HIGH, 16, NEXT, 0);
    driver.offer_head(0);
    assert_eq!(fault(&driver), GuestFault::ChainLength { limit: 4 });
    driver.clear();
    driver.descriptor(0, HIGH, 16, NEXT, 0);
    driver.offer_head(0);
    assert_eq!(fault(&driver), GuestFault::ChainLength { limit: 4 });
}

#[test]
fn chain_of_every_descriptor_is_the_longest() {
    let mut driver = driver(4);
    let part = Part::Give(b"x");
    driver.offer(&[part, part, part, part]);
    assert_eq!(content(&pop(&driver).unwrap().unwrap()), b"xxxx");
}

#[test]
fn readable_after_writable_is_a_fault_even_when_empty() {
    for len in [0, 16] {
        let mut driver = driver(8);
        driver.descriptor(0, HIGH, 16, WRITE | NEXT, 1);
        driver.descriptor(1, HIGH, len, 0, 0);
        driver.offer_head(0);
        assert_eq!(fault(&driver), GuestFault::Direction, "length {len}");
    }
}

#[test]
fn empty_buffers_take_no_memory_wherever_they_point() {
    let mut driver = driver(8);
    driver.descriptor(0, u64::MAX, 0, NEXT, 1);
    driver.descriptor(1, HOLE, 0, WRITE, 0);
    driver.offer_head(0);
    let chain = pop(&driver).unwrap().unwrap();
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (0, 0));
    assert!(chain.writer().write_all(b"x").is_err());
    assert_eq!(chain.written_bytes(), 0);
}

#[test]
fn buffer_across_a_region_border_is_whole() {
    let mut driver = driver(8);
    driver.write(BORDER - 3, b"abcdef");
    driver.descriptor(0, BORDER - 3, 6, NEXT, 1);
    driver.descriptor(1, BORDER - 2, 4, WRITE, 0);
    driver.offer_head(0);
    let chain = pop(&driver).unwrap().unwrap();
    assert_eq!(content(&chain), b"abcdef");
    assert_eq!(chain.reader().slices(6).len(), 2, "one slice a region");
    chain.writer().write_all(b"WXYZ").unwrap();
    assert_eq!(driver.read(BORDER - 3, 6), b"aWXYZf");
}

#[test]
fn buffer_into_the_hole_or_past_the_end_is_a_fault() {
    for (addr, len, fits) in [
        (HOLE - 8, 8, true),
        (HOLE - 8, 9, false),
        (HOLE, 1, false),
        (HIGH - 1, 1, false),
        (HIGH - 1, 2, false),
        (HOLE - 8, 0x9_0000, false),
        (END - 1, 1, true),
        (END - 1, 2, false),
        (u64::MAX, 1, false),
        (u64::MAX - 7, 16, false),
        (BORDER - 1, u32::MAX, false),
    ] {
        let mut driver = driver(8);
        driver.descriptor(0, addr, len, 0, 0);
        driver.offer_head(0);
        let popped = pop(&driver);
        if fits {
            assert_eq!(popped.unwrap().unwrap().readable_bytes(), len as usize);
        } else {
            assert_eq!(popped.unwrap_err(), GuestFault::Buffer { addr, len });
        }
    }
}

/// Needs 4 GiB of address space, not of memory: untouched pages cost nothing.
#[test]
fn lengths_that_sum_past_32_bits_are_a_fault() {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000_0000)]).unwrap();
    let mut driver = FakeDriver::new(&ram, 0x1000, 8);
    driver.descriptor(0, 0, u32::MAX - 1, NEXT, 1);
    driver.descriptor(1, 0, 1, WRITE, 0);
    driver.offer_head(0);
    let chain = pop(&driver).unwrap().unwrap();
    assert_eq!(chain.readable_bytes() + chain.writable_bytes(), u32::MAX as usize);
    driver.clear();
    driver.descriptor(0, 0, u32::MAX - 1, NEXT, 1);
    driver.descriptor(1, 0, 2, WRITE, 0);
    driver.offer_head(0);
    assert_eq!(fault(&driver), GuestFault::TotalLength);
}

#[test]
fn indirect_chain_equals_the_direct_one() {
    let mut driver = driver(8);
    let parts = [Part::Give(b"abc"), Part::Give(b"de"), Part::Take(7)];
    driver.offer(&parts);
    driver.offer_indirect(&parts);
    let mut queue = driver.queue(feature::INDIRECT_DESC);
    for _ in 0..2 {
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!(content(&chain), b"abcde");
        assert_eq!(chain.writable_bytes(), 7);
    }
}

#[test]
fn indirect_may_end_a_direct_chain_and_its_write_flag_is_ignored() {
    let mut driver = driver(8);
    driver.write(HIGH, b"0123456789");
    let table = driver.alloc(32);
    driver.descriptor(0, HIGH, 4, NEXT, 1);
    driver.descriptor(1, table, 32, INDIRECT | WRITE, 0);
    driver.put_descriptor(table, 0, HIGH + 4, 6, NEXT, 1);
    driver.put_descriptor(table, 1, HIGH, 10, WRITE, 0);
    driver.offer_head(0);
    let chain = pop(&driver).unwrap().unwrap();
    assert_eq!(content(&chain), b"0123456789");
    assert_eq!(chain.writable_bytes(), 10);
}

#[test]
fn indirect_needs_negotiation() {
    let mut driver = driver(8);
    driver.offer_indirect(&[Part::Give(b"x")]);
    let refused = driver.queue(0).pop().unwrap_err();
    assert_eq!(refused, GuestFault::IndirectNotNegotiated);
}

#[test]
fn indirect_with_next_is_a_fault() {
    let mut driver = driver(8);
    driver.descriptor(0, HIGH, 16, INDIRECT | NEXT, 1);
    driver.offer_head(0);
    assert_eq!(fault(&driver), GuestFault::IndirectWithNext);
}

#[test]
fn indirect_inside_a_table_is_a_fault() {
    for flags in [INDIRECT, INDIRECT | NEXT] {
        let mut driver = driver(8);
        driver.descriptor(0, HIGH, 32, INDIRECT, 0);
        driver.put_descriptor(HIGH, 0, HIGH, 16, NEXT, 1);
        driver.put_descriptor(HIGH, 1, HIGH, 16, flags, 0);
        driver.offer_head(0);
        assert_eq!(fault(&driver), GuestFault::IndirectNested);
    }
}

#[test]
fn indirect_table_is_a_whole_number_of_descriptors() {
    for len in [0, 1, 15, 17, 31, 16 * 65536, u32::MAX] {
        let mut driver = driver(8);
        driver.descriptor(0, HIGH, len, INDIRECT, 0);
        driver.offer_head(0);
        assert_eq!(fault(&driver), GuestFault::IndirectLength { len });
    }
}

#[test]
fn indirect_next_is_bounded_by_its_table() {
    let mut driver = driver(8);
    driver.descriptor(0, HIGH, 32, INDIRECT, 0);
    driver.put_descriptor(HIGH, 0, HIGH, 16, NEXT, 2);
    driver.offer_head(0);
    assert_eq!(fault(&driver), GuestFault::Next { next: 2, size: 2 });
}

#[test]
fn indirect_loop_and_overlong_table_are_faults() {
    let mut driver = driver(8);
    driver.descriptor(0, HIGH, 32, INDIRECT, 0);
    driver.put_descriptor(HIGH, 0, HIGH, 16, NEXT, 0);
    driver.offer_head(0);
    assert_eq!(fault(&driver), GuestFault::ChainLength { limit: 2 });
    driver.clear();
    for (count, fits) in [(256, true), (257, false)] {
        driver.clear();
        driver.descriptor(0, HIGH, 16 * count, INDIRECT, 0);
        for i in 0..u16::try_from(count).unwrap() {
            let more = u16::from(u32::from(i) + 1 < count);
            driver.put_descriptor(HIGH, i, HIGH, 1, more, i + 1);
        }
        driver.offer_head(0);
        assert_eq!(pop(&driver).is_ok(), fits, "{count} descriptors");
    }
}

#[test]
fn indirect_table_across_a_border_is_read_and_one_in_the_hole_is_a_fault() {
    let mut driver = driver(8);
    driver.descriptor(0, BORDER - 8, 16, INDIRECT, 0);
    driver.put_descriptor(BORDER - 8, 0, HIGH, 5, WRITE, 0);
    driver.offer_head(0);
    assert_eq!(pop(&driver).unwrap().unwrap().writable_bytes(), 5);
    for table in [HOLE - 8, HOLE, u64::MAX - 15] {
        driver.clear();
        driver.descriptor(0, table, 16, INDIRECT, 0);
        driver.offer_head(0);
        assert_eq!(fault(&driver), GuestFault::Ring { addr: table });
    }
}

proptest! {
    /// Whatever the tables hold, a walk ends in a chain whose every byte can be used, or a fault.
    #[test]
    fn any_table_ends_in_a_sound_chain_or_a_fault(
        descriptors in prop::collection::vec(
            (any_address(), prop_oneof![0_u32..64, any::<u32>()], 0_u16..8, 0_u16..10), 8),
        head in 0_u16..10,
    ) {
        let mut driver = driver(8);
        // The third region holds an indirect table for descriptors that point at its start.
        for (i, (addr, len, flags, next)) in (0..).zip(descriptors) {
            driver.descriptor(i, addr, len, flags, next);
            driver.put_descriptor(HIGH, i, addr, len, flags, next);
        }
        driver.offer_head(head);
        let mut queue = driver.queue(feature::INDIRECT_DESC);
        match queue.pop() {
            Ok(chain) => {
                let chain = chain.expect("one was offered");
                prop_assert!(head < 8);
                let (readable, writable) = (chain.readable_bytes(), chain.writable_bytes());
                prop_assert_eq!(content(&chain).len(), readable);
                chain.writer().write_all(&vec![7; writable]).unwrap();
                prop_assert_eq!(chain.written_bytes() as usize, writable);
                prop_assert!(chain.writer().split_at(writable + 1).is_err());
                queue.push_used(chain).unwrap();
            }
            Err(fault) => {
                prop_assert_eq!(queue.pop().unwrap_err(), fault, "latched");
                prop_assert!(driver.used().is_empty());
            }
        }
    }

    /// A buffer anywhere near a border is accepted exactly when memory is there for all of it.
    #[test]
    fn buffers_near_borders_match_a_byte_by_byte_model(addr in any_address(), len in 1_u32..96) {
        let mut driver = driver(8);
        driver.descriptor(0, addr, len, 0, 0);
        driver.offer_head(0);
        let exists = |a: u64| a < HOLE || (HIGH..END).contains(&a);
        let fits = (0..u64::from(len)).all(|i| addr.checked_add(i).is_some_and(exists));
        prop_assert_eq!(pop(&driver).is_ok(), fits);
    }
}

fn any_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(HIGH),
        (BORDER - 64..BORDER + 64),
        (HOLE - 64..HOLE + 64),
        (HIGH - 64..HIGH + 64),
        (END - 64..END + 64),
        (u64::MAX - 64..=u64::MAX),
        any::<u64>(),
    ]
}
