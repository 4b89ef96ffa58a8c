// SPDX-License-Identifier: Apache-2.0
//! Requests of every kind, place and length, storms of them, and what they may write to.

use super::*;

/// §5.2.6: which requests may be done, by kind, sector and length of the data, apart from the code under test.
fn may_be_done(kind: u32, sector: u64, len: u64) -> Option<u8> {
    let whole = len.is_multiple_of(512);
    let on_disk = sector.checked_add(len / 512).is_some_and(|end| end <= SECTORS);
    match kind {
        0 | 1 if whole && on_disk => Some(0),
        0 | 1 => Some(1),
        4 => Some(0),
        // GET_ID wants 20 bytes to fill.
        8 => Some(u8::from(len < 20)),
        _ => Some(2),
    }
}

#[test]
fn every_kind_at_every_sector_and_length_gets_its_status_and_moves_only_what_it_may() {
    let ram = ram_with_hole();
    let mut guest = Guest::new(&ram, ATTACKED, 16);
    assert_eq!(guest.bring_up(), 0xf);
    for kind in [0, 1, 2, 3, 4, 5, 8, 11, 13, 14, 15, 1 << 31, u32::MAX] {
        for sector in [0, 1, SECTORS - 1, SECTORS, SECTORS + 1, 1 << 54, 1 << 55, 1 << 63, u64::MAX - 1, u64::MAX] {
            for len in [0_u32, 1, 19, 20, 511, 512, 513, 1024, 8192] {
                let mut parts = vec![];
                let (head, data) = (header(kind, sector), vec![0x5a; usize::try_from(len).unwrap()]);
                parts.push(Part::Give(&head));
                // A write reads from the guest, all else writes to it.
                parts.push(if kind == 1 { Part::Give(&data) } else { Part::Take(len) });
                parts.push(Part::Take(1));
                let (status, _) = guest.request(&parts);
                let expected = may_be_done(kind, sector, u64::from(len));
                assert_eq!(Some(status), expected, "kind {kind}, sector {sector:#x}, {len} bytes");
            }
        }
    }
    // What was written is what may have been: sectors 0 to 15 and the last two, of one byte; nothing else has moved.
    for sector in 0..SECTORS {
        let found = guest.read(sector);
        let may_be_written = sector < 17 || sector == SECTORS - 1;
        assert!(found == numbered(sector) || (may_be_written && found == vec![0x5a; 512]), "sector {sector}");
    }
    assert_eq!(guest.faults(), 0, "none of these is a fault of the queue");
}

#[test]
fn storms_of_flushes_discards_and_zeroes_end_and_leave_the_overlay_below_its_cap() {
    let ram = ram_with_hole();
    let (mut guest, mut other) = (Guest::new(&ram, ATTACKED, 16), Guest::new(&ram, VICTIM, 16));
    let features = offered_features(&mut guest.transport);
    guest.driver.clear();
    assert_eq!(bring_up(&mut guest.transport, features & !(1 << 29), &[&guest.driver]), 0xf);
    assert_eq!(other.bring_up(), 0xf);
    let range = |sector: u64, count: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let mut full = 0;
    for round in 0..2_000_u64 {
        let (kind, data) = match round % 4 {
            0 => (4, Vec::new()),
            1 => (11, range(0, 256, 0).repeat(16)),
            2 => (13, range(round % 200, 56, u32::from(round % 8 == 2)).repeat(16)),
            _ => (1, vec![1; 4096 * 9]),
        };
        // The cap is 8 pages: a write of 9 does not fit, and is refused as a whole.
        let (status, _) = guest.request(&[Part::Give(&header(kind, 0)), Part::Give(&data), Part::Take(1)]);
        assert_eq!(status, u8::from(round % 4 == 3), "round {round}");
        full += u32::from(status == 1);
        if round % 50 == 0 {
            assert_eq!(other.read(round % SECTORS), numbered(round % SECTORS));
        }
    }
    assert_eq!(full, 500);
    assert_eq!(guest.faults(), 0);
}

/// §2.7.5.1, §2.7.8.2: a device writes to device-writable buffers and to the used ring.
#[test]
fn nothing_but_writable_buffers_and_the_used_ring_changes() {
    let ram = ram_with_hole();
    let mut guest = Guest::new(&ram, ATTACKED, 16);
    assert_eq!(guest.bring_up(), 0xf);
    let whole = |ram: &GuestRam| {
        let mut bytes = vec![0; usize::try_from(HOLE).unwrap()];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    };
    let mut dice = Dice(7);
    for round in 0..400 {
        let given = vec![0x77; usize::try_from(dice.pick(&[0_u64, 16, 512, 1024, 600])).unwrap()];
        let kind = dice.pick(&[0, 1, 4, 8, 11, 13, 77]);
        let wanted = dice.pick(&[0, 20, 512, 1024, 700]);
        let head = header(kind, dice.pick(&[0, 7, SECTORS - 1, SECTORS, 1 << 62]));
        let parts = [Part::Give(&head), Part::Give(&given), Part::Take(wanted), Part::Take(1)];
        let offered = guest.driver.offer(&parts);
        let before = whole(&ram);
        guest.kick();
        let (_, len) = guest.wait_used();
        let after = whole(&ram);
        assert!(len <= wanted + 1, "round {round}: {len} bytes of {wanted} and a status");
        let used = guest.driver.used..guest.driver.used + 6 + 8 * 16;
        let is_writable = |at: u64| {
            let in_buffer = |(start, len): &(u64, u32)| (*start..*start + u64::from(*len)).contains(&at);
            used.contains(&at) || offered.takes.iter().any(in_buffer)
        };
        for (at, _) in (0_u64..).zip(before.iter().zip(&after)).filter(|(_, (before, after))| before != after) {
            assert!(is_writable(at), "round {round}: a byte at {at:#x} was written");
        }
    }
}

/// §2.7.7.2: used_event is no part of the queue without EVENT_IDX.
#[test]
fn without_event_idx_used_event_means_nothing() {
    let ram = ram_with_hole();
    let mut guest = Guest::new(&ram, ATTACKED, 16);
    assert_eq!(guest.bring_up(), 0xf);
    guest.driver.set_used_event(0x7fff);
    guest.read(1);
    let start = Instant::now();
    while guest.irqfd.read().is_err() {
        assert!(start.elapsed() < LIMIT, "flags are 0: the driver is told");
        std::thread::yield_now();
    }
    guest.driver.set_avail_flags(1);
    guest.read(2);
    // The next request is taken only when the interrupt for the one before is decided.
    guest.read(3);
    write32(&mut guest.transport, 0x70, 0);
    assert!(guest.irqfd.read().is_err(), "flags are 1: it is not");
}
