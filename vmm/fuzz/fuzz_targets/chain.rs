// SPDX-License-Identifier: Apache-2.0
//! Any rings, descriptor tables and buffers: every chain that comes out can be used to its last
//! byte, a fault stays, and nothing panics.
//!
//! `./dev fuzz 60 chain`. Input: features (1 byte), log2 of the queue size
//! (1), avail.idx (2), eight heads (8), then descriptors of 8 bytes: where (1), distance from
//! there (2), length (2), its high byte (1), flags (1), next (1). Memory is two adjacent regions, a
//! hole, and a third region.
#![no_main]

use std::cell::OnceCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use midge_vmm::memory::GuestRam;
use midge_vmm::virtio::spec::feature;
use midge_vmm::virtio::{Chain, Geometry, Queue};
use vm_memory::{Bytes, GuestAddress};

const REGIONS: [(GuestAddress, usize); 3] =
    [(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000), (GuestAddress(0x8000), 0x1000)];

thread_local! {
    static RAM: OnceCell<Arc<GuestRam>> = const { OnceCell::new() };
}

fn ram() -> Arc<GuestRam> {
    RAM.with(|cell| {
        let make = || Arc::new(GuestRam::from_ranges(&REGIONS).expect("three small regions can be mapped"));
        Arc::clone(cell.get_or_init(make))
    })
}

fn use_up(chain: &Chain) {
    let mut reader = chain.reader();
    let mut sum = 0_u64;
    while reader.left_bytes() != 0 {
        let slices = reader.slices(100);
        assert!(slices.len_bytes() != 0);
        let mut bytes = vec![0; slices.len_bytes()];
        reader.read_exact(&mut bytes).expect("as many bytes as were lent");
        sum += bytes.len() as u64;
    }
    assert_eq!(sum, chain.readable_bytes() as u64);
    let mut writer = chain.writer();
    while writer.left_bytes() != 0 {
        let slices = writer.slices(4096);
        slices.iter().for_each(|slice| slice.copy_from(&vec![0x5a_u8; slice.len()]));
        writer.advance_written(slices.len_bytes());
    }
    assert_eq!(chain.written_bytes() as usize, chain.writable_bytes());
}

/// Addresses worth pointing at: the rings, an indirect table, every border.
const PLACES: [u64; 8] = [0, 0x1000, 0x2000, 0x3000, 0x8000, 0x9000, u64::MAX, 1 << 40];
const AVAIL: u64 = 0x800;
const USED: u64 = 0xa00;
/// A copy of the descriptors, for indirect ones to name.
const TABLE: u64 = 0x8000;

fn descriptor(record: &[u8; 8]) -> [u8; 16] {
    let [place, d0, d1, l0, l1, high, flags, next] = *record;
    let distance = i64::from(i16::from_le_bytes([d0, d1])) / 64;
    let addr = PLACES[usize::from(place) % PLACES.len()].wrapping_add_signed(distance);
    let high = if high < 240 { 0 } else { high };
    let len = u32::from_le_bytes([l0, l1, 0, high]);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12] = flags % 8;
    bytes[14] = next;
    bytes
}

fn lay_out(ram: &GuestRam, avail_index: u16, heads: &[u8; 8], records: &[u8]) {
    for (start, len) in REGIONS {
        ram.write_slice(&vec![0; len], start).expect("a region is memory");
    }
    for (i, record) in (0..128).zip(records.as_chunks::<8>().0) {
        for table in [0, TABLE] {
            ram.write_slice(&descriptor(record), GuestAddress(table + 16 * i)).expect("tables are memory");
        }
    }
    ram.write_obj(avail_index, GuestAddress(AVAIL + 2)).expect("the ring is memory");
    for (i, head) in (0..).zip(heads) {
        ram.write_obj(u16::from(*head), GuestAddress(AVAIL + 4 + 2 * i)).expect("the ring is memory");
    }
}

fuzz_target!(|data: &[u8]| {
    let [features, size_log2, i0, i1, data @ ..] = data else { return };
    let Some((heads, records)) = data.split_first_chunk::<8>() else { return };
    let ram = ram();
    lay_out(&ram, u16::from_le_bytes([*i0, *i1]), heads, records);
    let event_idx = if features & 1 != 0 { feature::EVENT_IDX } else { 0 };
    let indirect = if features & 2 != 0 { feature::INDIRECT_DESC } else { 0 };
    let claim = Geometry { size: 1 << (size_log2 % 8), descriptors: 0, avail: AVAIL, used: USED };
    let Ok(mut queue) = Queue::new(ram, claim, 128, event_idx | indirect) else { return };
    // Writable buffers may lie over the rings, so a guest can go on for ever; we need not.
    for _ in 0..200 {
        match queue.pop() {
            // A long chain over and over the same memory is slow and tells nothing new.
            Ok(Some(chain)) if chain.readable_bytes() + chain.writable_bytes() > 1 << 20 => return,
            Ok(Some(chain)) => {
                use_up(&chain);
                let _ = queue.push_used(chain);
                let _ = queue.needs_notification();
            }
            Ok(None) => {
                let _ = queue.enable_kicks();
                return;
            }
            Err(fault) => {
                assert_eq!(queue.fault(), Some(fault));
                assert_eq!(queue.pop().err(), Some(fault));
                return;
            }
        }
    }
});
