// SPDX-License-Identifier: Apache-2.0
//! A driver that keeps no rule, against both devices behind their real registers: what it gets is what the standard says or
//! a latched device; a reset mends that; and another device of the same machine never notices.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::fake::{
    BORDER, END, FakeDriver, HIGH, HOLE, Offered, Part, bring_up, negotiate, offered_features, place_queue,
    ram_with_hole, read32, write32,
};
use super::{Geometry, Transport};
use crate::block::Block;
use crate::dice::Dice;
use crate::disk::model::base_of;
use crate::disk::overlay::Overlay;
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

impl Dice {
    fn half(&mut self) -> u16 {
        u16::try_from(self.roll() >> 48).unwrap()
    }
}

/// Content of a sector of the base: its number.
fn numbered(sector: u64) -> Vec<u8> {
    (sector + 1).to_le_bytes().repeat(64)
}

/// A block device and its driver.
struct Guest {
    transport: Transport<Block>,
    driver: FakeDriver,
    irqfd: EventFd,
}

impl Guest {
    fn new(ram: &GuestRam, base: u64, size: u16) -> Self {
        let content: Vec<u8> = (0..SECTORS).flat_map(numbered).collect();
        let disk = Overlay::in_memory(Box::new(base_of(content)), CAP_BYTES).unwrap();
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

mod requests;
mod rings;
