// SPDX-License-Identifier: Apache-2.0
//! Rings that lie: places that are no memory, chains that keep no rule, memory that changes while it is read.

use super::*;

/// Where a driver can claim a queue's area to be, memory or not.
const PLACES: [u64; 14] = [
    0,
    0x1000,
    BORDER - 0x40,
    BORDER,
    HOLE - 0x100,
    HOLE - 0x10,
    HOLE,
    HIGH - 0x10,
    END - 0x100,
    END - 4,
    END,
    0xd000_0000,
    1 << 63,
    u64::MAX - 0xf,
];

/// Whether memory has all of these bytes, by the list of regions in [`super::fake`].
fn in_memory(at: u64, len: u64) -> bool {
    at.checked_add(len).is_some_and(|end| end <= HOLE || (at >= HIGH && end <= END))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// §2.7: sizes and alignments of the three areas, and that memory is there; else the device needs a reset.
    #[test]
    fn any_geometry_is_taken_exactly_when_it_keeps_the_rules(
        size in prop_oneof![Just(0_u32), Just(3), Just(512), Just(u32::MAX), (0_u32..=8).prop_map(|bit| 1 << bit)],
        places in prop::array::uniform3((prop::sample::select(&PLACES[..]), 0_u64..0x21)),
    ) {
        let [descriptors, avail, used] = places.map(|(place, more)| place.wrapping_add(more));
        let ram = ram_with_hole();
        let mut guest = Guest::new(&ram, ATTACKED, 16);
        negotiate(&mut guest.transport, VERSION_1);
        let mut claim = guest.driver.clone();
        (claim.desc, claim.avail, claim.used) = (descriptors, avail, used);
        place_queue(&mut guest.transport, 0, &claim);
        write32(&mut guest.transport, 0x38, size);
        write32(&mut guest.transport, 0x44, 1);
        write32(&mut guest.transport, 0x70, 0xf);
        let entries = u64::from(size);
        let sound = (1..=256).contains(&size)
            && size.is_power_of_two()
            && descriptors % 16 == 0
            && avail % 2 == 0
            && used % 4 == 0
            && in_memory(descriptors, 16 * entries)
            && in_memory(avail, 6 + 2 * entries)
            && in_memory(used, 6 + 8 * entries);
        let geometry = Geometry { size, descriptors, avail, used };
        prop_assert_eq!(read32(&mut guest.transport, 0x70), if sound { 0xf } else { 0x4f }, "{:?}", geometry);
        prop_assert_eq!(guest.faults(), u64::from(!sound));
        guest.assert_usable("afterwards");
    }
}

/// Fills the rings of `driver` with what looks like work and is none; true when avail.idx alone cannot be.
fn lie(driver: &FakeDriver, dice: &mut Dice) -> bool {
    let places =
        [0x4000, 0x1_0000, BORDER - 300, BORDER, HOLE - 0x800, HOLE - 1, HOLE, HIGH - 16, END, 1 << 32, u64::MAX - 8];
    let lengths = [0, 1, 15, 16, 512, 513, 4096, 0x1_0000, 1 << 31, u32::MAX];
    for index in 0..driver.size {
        let flags = if dice.one_in(8) { dice.half() } else { dice.pick(&[0, 1, 1, 1, 2, 3, 3, 4, 5]) };
        let next = if dice.one_in(16) { dice.half() } else { dice.half() % driver.size };
        driver.descriptor(index, dice.pick(&places), dice.pick(&lengths), flags, next);
        let head = if dice.one_in(16) { dice.half() } else { dice.half() % driver.size };
        driver.write(driver.avail + 4 + 2 * u64::from(index), &head.to_le_bytes());
    }
    // Some requests that could be meant.
    for place in [0x4000, 0x1_0000] {
        driver.write(
            place,
            &header(dice.pick(&[0, 1, 4, 8, 11, 13, 99]), dice.pick(&[0, 1, SECTORS, 1 << 63, u64::MAX])),
        );
    }
    driver.write(driver.avail, &dice.half().to_le_bytes());
    let offered = dice.pick(&[1, driver.size, driver.size + 1, 0x8000, 0xffff]);
    driver.write(driver.avail + 2, &offered.to_le_bytes());
    offered > driver.size
}

/// Waits for DEVICE_NEEDS_RESET: for long if it must come, else for a moment.
fn wait_latched(device: &mut dyn MmioDevice, must_come: bool) -> bool {
    let start = Instant::now();
    let limit = if must_come { LIMIT } else { Duration::from_millis(1) };
    while read32(device, 0x70) != 0x4f && start.elapsed() < limit {
        std::thread::yield_now();
    }
    read32(device, 0x70) == 0x4f
}

#[test]
fn rings_full_of_lies_latch_their_device_once_and_no_other() {
    let ram = ram_with_hole();
    let (mut guest, mut other) = (Guest::new(&ram, ATTACKED, 16), Guest::new(&ram, VICTIM, 16));
    assert_eq!(other.bring_up(), 0xf);
    let mut latched = 0;
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let features = VERSION_1 | dice.pick(&[0, 1 << 28]);
        // Before its rings are cleared: an index that goes back is a fault of its own.
        write32(&mut guest.transport, 0x70, 0);
        guest.driver.clear();
        let before = guest.faults();
        assert_eq!(bring_up(&mut guest.transport, features, &[&guest.driver]), 0xf, "seed {seed}");
        let must_latch = lie(&guest.driver, &mut dice);
        (0..3).for_each(|_| guest.kick());
        let sector = seed % SECTORS;
        assert_eq!(other.read(sector), numbered(sector), "seed {seed}: the other disk");
        let needs_reset = wait_latched(&mut guest.transport, must_latch);
        assert!(needs_reset || !must_latch, "seed {seed}: an index that cannot be is found out");
        write32(&mut guest.transport, 0x70, 0);
        let faults = guest.faults() - before;
        assert!(faults <= 1 && u64::from(needs_reset) <= faults, "seed {seed}: counted once: {faults}");
        latched += u64::from(must_latch);
        if seed % 20 == 0 {
            guest.assert_usable(&format!("after seed {seed}"));
        }
    }
    assert!(latched > 250, "most of the indices cannot be: {latched} of 500");
    assert_eq!(other.faults(), 0);
}

#[test]
fn memory_that_changes_under_a_device_that_is_kicked_and_reset_harms_nobody_else() {
    let ram = ram_with_hole();
    let (mut guest, mut other) = (Guest::new(&ram, ATTACKED, 16), Guest::new(&ram, VICTIM, 16));
    assert_eq!(other.bring_up(), 0xf);
    let kick = guest.transport.kicks()[0].try_clone().unwrap();
    let liar = guest.driver.clone();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice(1);
            while !is_over.load(Ordering::Relaxed) {
                lie(&liar, &mut dice);
                kick.write(1).unwrap();
            }
        });
        for round in 0..300 {
            // It is latched at once, or a little later.
            assert_eq!(bring_up(&mut guest.transport, VERSION_1 | 1 << 28, &[&liar]) & !0x40, 0xf, "round {round}");
            guest.kick();
            assert_eq!(other.read(round % SECTORS), numbered(round % SECTORS), "round {round}");
            write32(&mut guest.transport, 0x70, 0);
            assert_eq!(read32(&mut guest.transport, 0x70), 0, "round {round}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(guest.faults() <= 300, "each is counted once: {}", guest.faults());
    guest.assert_usable("afterwards");
}

#[test]
fn vsock_rings_full_of_lies_need_a_reset_and_get_one() {
    let ram = ram_with_hole();
    with_vsock(&ram, |transport| {
        for seed in 0..200 {
            let mut dice = Dice(seed);
            let drivers = [0x1000, 0x2_0000, 0x6_0000].map(|base| FakeDriver::new(&ram, base, 16));
            let features = VERSION_1 | dice.pick(&[0, 1 << 28, 1 << 29]);
            assert_eq!(bring_up(transport, features, &[&drivers[0], &drivers[1], &drivers[2]]), 0xf, "seed {seed}");
            let before = transport.interrupt().faults().0;
            let lies = [0, 1, 2].map(|queue| lie(&drivers[queue], &mut dice));
            (0..3).for_each(|queue| write32(transport, 0x50, queue));
            // The queue that the guest sends by is looked at when it is kicked.
            assert!(wait_latched(transport, lies[1]) || !lies[1], "seed {seed}");
            if seed % 10 == 0 {
                assert_vsock_usable(transport, &ram, &format!("after seed {seed}"));
            }
            assert!(transport.interrupt().faults().0 - before <= 3, "one for each queue");
        }
    });
}
