// SPDX-License-Identifier: Apache-2.0
//! A driver that keeps no rule, against both devices behind their real registers: what it gets is what the standard says or
//! a latched device; a reset mends that; and another device of the same machine never notices.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::fake::{
    BORDER, END, FakeDriver, HIGH, HOLE, Offered, Part, bring_up, negotiate, offered_features, place_queue,
    ram_with_hole, read32, write32,
};
use super::{Geometry, Transport};
use crate::block::Block;
use crate::disk::overlay::Overlay;
use crate::disk::{Disk, DiskError};
use crate::machine::bus::MmioDevice;
use crate::machine::pages::ReadPage;
use crate::memory::GuestRam;
use crate::vsock::{Vsock, doorman, pair};

const VERSION_1: u64 = 1 << 32;
const LIMIT: Duration = Duration::from_secs(20);
const SECTORS: u64 = 256;
/// Storage that an overlay may use in these tests, in bytes.
const CAP_BYTES: u64 = 8 * 4096;

/// Where the driver under attack has its rings, and where the one that behaves has them.
const ATTACKED: u64 = 0x1000;
const VICTIM: u64 = HIGH;

/// Numbers that look random, the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.roll() % list.len() as u64).unwrap()]
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.roll().is_multiple_of(count)
    }

    fn half(&mut self) -> u16 {
        u16::try_from(self.roll() >> 48).unwrap()
    }
}

/// A base whose every sector carries its number.
struct Numbered;

fn numbered(sector: u64) -> Vec<u8> {
    (sector + 1).to_le_bytes().repeat(64)
}

impl Disk for Numbered {
    fn len_bytes(&self) -> u64 {
        SECTORS * 512
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let all: Vec<u8> = (0..SECTORS).flat_map(numbered).collect();
        let mut at = usize::try_from(offset).unwrap();
        for slice in into {
            slice.copy_from(&all[at..at + slice.len()]);
            at += slice.len();
        }
        Ok(())
    }
    fn write_at(&mut self, _: u64, _: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
    fn discard(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
    fn write_zeroes(&mut self, _: u64, _: u64, _: bool) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
}

/// A block device and its driver.
struct Guest {
    transport: Transport<Block>,
    driver: FakeDriver,
    irqfd: EventFd,
}

impl Guest {
    fn new(ram: &GuestRam, base: u64, size: u16) -> Self {
        let disk = Overlay::in_memory(Box::new(Numbered), CAP_BYTES).unwrap();
        let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
        let block = Block::new(Box::new(disk), 0, || Ok(())).unwrap();
        let page = ReadPage::unseen().unwrap();
        let transport = Transport::new(block, ram.clone(), irqfd.try_clone().unwrap(), page).unwrap();
        Self { transport, driver: FakeDriver::new(ram, base, size), irqfd }
    }

    fn bring_up(&mut self) -> u32 {
        write32(&mut self.transport, 0x70, 0);
        self.driver.clear();
        // Without EVENT_IDX and without indirect descriptors unless a test asks for them.
        bring_up(&mut self.transport, VERSION_1, &[&self.driver])
    }

    fn kick(&mut self) {
        write32(&mut self.transport, 0x50, 0);
    }

    fn wait_used(&mut self) -> (u32, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.driver.used().pop() {
                return used;
            }
            assert!(start.elapsed() < LIMIT, "a request was never completed");
            std::thread::yield_now();
        }
    }

    /// Does one request: its status byte.
    fn request(&mut self, parts: &[Part<'_>]) -> (u8, Offered) {
        let offered = self.driver.offer(parts);
        self.kick();
        self.wait_used();
        (*self.driver.taken(&offered, offered.takes.len() - 1).last().unwrap(), offered)
    }

    fn read(&mut self, sector: u64) -> Vec<u8> {
        let (status, offered) = self.request(&[Part::Give(&header(0, sector)), Part::Take(512), Part::Take(1)]);
        assert_eq!(status, 0, "sector {sector} is read");
        self.driver.taken(&offered, 0)
    }

    /// The device works: it comes up, and reads what nobody has written.
    fn assert_usable(&mut self, context: &str) {
        assert_eq!(self.bring_up(), 0xf, "{context}");
        assert_eq!(self.read(SECTORS - 1), numbered(SECTORS - 1), "{context}");
    }

    fn faults(&self) -> u64 {
        self.transport.interrupt().faults().0
    }
}

/// le32 type, le32 reserved, le64 sector.
fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0xff; 4], &sector.to_le_bytes()].concat()
}

/// Runs a vsock device whose worker has a thread of its own; `test` has the registers.
fn with_vsock(ram: &GuestRam, test: impl FnOnce(&mut Transport<Vsock>)) {
    let dir = tempfile::tempdir().unwrap();
    let uds = dir.path().join("v.sock");
    let (device, mut worker) = pair(3, UnixListener::bind(&uds).unwrap(), doorman::line().unwrap().0, &uds).unwrap();
    let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut transport = Transport::new(device, ram.clone(), irqfd, ReadPage::unseen().unwrap()).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                worker.turn();
                std::thread::yield_now();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&mut transport)));
        is_over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    });
}

/// Brings a vsock device up and has it answer a packet of no connection: rx, tx.
fn assert_vsock_usable(transport: &mut Transport<Vsock>, ram: &GuestRam, context: &str) {
    let [mut rx, mut tx, event] = [0x1000, 0x2_0000, 0x6_0000].map(|base| FakeDriver::new(ram, base, 16));
    assert_eq!(bring_up(transport, VERSION_1, &[&rx, &tx, &event]), 0xf, "{context}");
    let offered = rx.offer(&[Part::Take(100)]);
    // CIDs 3 and 2, ports 7 and 8, no length, stream, RW.
    let packet =
        [&3_u64.to_le_bytes()[..], &2_u64.to_le_bytes(), &[7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 5, 0], &[0; 12]];
    tx.offer(&[Part::Give(&packet.concat())]);
    write32(transport, 0x50, 0);
    write32(transport, 0x50, 1);
    let start = Instant::now();
    while rx.used().is_empty() {
        assert!(start.elapsed() < LIMIT, "{context}: no answer");
        std::thread::yield_now();
    }
    assert_eq!(rx.taken(&offered, 0)[28..32], [1, 0, 3, 0], "{context}: a reset");
}

/// §3.1.1 to FEATURES_OK, or to its end, or not at all.
fn reach(device: &mut dyn MmioDevice, stage: usize, drivers: &[&FakeDriver]) {
    match stage {
        0 => write32(device, 0x70, 0),
        1 => drop(negotiate(device, VERSION_1)),
        _ => drop(bring_up(device, VERSION_1, drivers)),
    }
}

/// Reads and writes everything a window has, in each width; control registers answer only to aligned words.
fn access_everything(device: &mut dyn MmioDevice, context: &str) {
    let config = |device: &mut dyn MmioDevice| {
        let mut bytes = [0; 64];
        (0..64).for_each(|at| device.read(0x100 + at, std::slice::from_mut(&mut bytes[usize::try_from(at).unwrap()])));
        bytes
    };
    let before = config(device);
    for width in [1_u64, 2, 4, 8] {
        for offset in 0..=0x1000 - width {
            let mut data = vec![0xaa; usize::try_from(width).unwrap()];
            device.read(offset, &mut data);
            let is_register = width == 4 && offset % 4 == 0;
            assert!(offset >= 0x100 || is_register || data.iter().all(|byte| *byte == 0), "{context}: {offset:#x}");
            for fill in [0xff_u8, 0x01, 0x80, 0x00] {
                // No reset by way of a word: that is another stage.
                if !(is_register && offset == 0x70 && fill == 0) {
                    device.write(offset, &vec![fill; data.len()]);
                    device.write(offset, &[&[fill][..], &vec![0; data.len() - 1]].concat());
                }
            }
        }
    }
    assert_eq!(config(device), before, "{context}: the configuration space cannot be written");
}

#[test]
fn every_access_at_every_offset_in_every_width_leaves_usable_devices() {
    let ram = ram_with_hole();
    let (mut guest, mut other) = (Guest::new(&ram, ATTACKED, 16), Guest::new(&ram, VICTIM, 16));
    assert_eq!(other.bring_up(), 0xf);
    for stage in 0..3 {
        let context = format!("block, stage {stage}");
        guest.driver.clear();
        reach(&mut guest.transport, stage, &[&guest.driver]);
        access_everything(&mut guest.transport, &context);
        assert_eq!(other.read(3), numbered(3), "{context}");
        guest.assert_usable(&context);
    }
    let ram = ram_with_hole();
    with_vsock(&ram, |transport| {
        for stage in 0..3 {
            let context = format!("vsock, stage {stage}");
            let drivers = [0x1000, 0x2_0000, 0x6_0000].map(|base| FakeDriver::new(&ram, base, 16));
            reach(transport, stage, &[&drivers[0], &drivers[1], &drivers[2]]);
            access_everything(transport, &context);
            assert_vsock_usable(transport, &ram, &context);
        }
    });
}

#[test]
fn every_subset_of_the_offered_features_is_accepted_again_and_again() {
    let ram = ram_with_hole();
    let mut guest = Guest::new(&ram, ATTACKED, 16);
    let offered = offered_features(&mut guest.transport);
    let bits: Vec<u64> = (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit != 0 && *bit != VERSION_1).collect();
    for _ in 0..2 {
        for chosen in 0..1_u64 << bits.len() {
            let subset = bits.iter().enumerate().filter(|(i, _)| chosen >> i & 1 == 1).map(|(_, bit)| bit).sum::<u64>();
            assert_eq!(negotiate(&mut guest.transport, VERSION_1 | subset), 0xb, "{subset:#x}");
            assert_eq!(negotiate(&mut guest.transport, subset), 0x3, "{subset:#x} without VERSION_1");
        }
    }
}

#[test]
fn kicks_before_the_driver_is_ready_move_nothing_and_are_not_needed_afterwards() {
    let ram = ram_with_hole();
    let mut guest = Guest::new(&ram, ATTACKED, 16);
    for stage in 0..2 {
        reach(&mut guest.transport, stage, &[]);
        guest.driver.clear();
        guest.driver.offer(&[Part::Give(&header(0, 5)), Part::Take(512), Part::Take(1)]);
        // Through the register, and as KVM does it, past the register.
        guest.kick();
        guest.transport.kicks()[0].write(1).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert!(guest.driver.used().is_empty(), "stage {stage}");
        assert!(guest.irqfd.read().is_err(), "stage {stage}: nothing is told");
    }
    place_queue(&mut guest.transport, 0, &guest.driver);
    write32(&mut guest.transport, 0x44, 1);
    write32(&mut guest.transport, 0x70, 0xf);
    guest.kick();
    guest.wait_used();
}

#[test]
fn kicks_without_reason_are_nothing_to_the_driver_and_nobody_waits_for_them() {
    let ram = ram_with_hole();
    let (mut guest, mut other) = (Guest::new(&ram, ATTACKED, 16), Guest::new(&ram, VICTIM, 16));
    assert_eq!((guest.bring_up(), other.bring_up()), (0xf, 0xf));
    for round in 0..2_000_u64 {
        guest.kick();
        guest.transport.kicks()[0].write(u64::from(u32::MAX)).unwrap();
        if round % 100 == 0 {
            assert_eq!(other.read(round % SECTORS), numbered(round % SECTORS));
        }
    }
    assert!(guest.irqfd.read().is_err(), "no interrupt without a used buffer");
    assert_eq!(guest.read(9), numbered(9));
    assert_eq!(guest.faults(), 0);
}

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
