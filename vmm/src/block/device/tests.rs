// SPDX-License-Identifier: Apache-2.0
//! The whole device: registers, thread, overlay, with the fake driver as its guest.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::disk::DiskError;
use crate::disk::overlay::Overlay;
use crate::virtio::Transport;
use crate::virtio::fake::{FakeDriver, Offered, Part, bring_up, offered_features, ram_with_hole, read32, write32};

mod pause;

const VERSION_1: u64 = 1 << 32;
const SECTORS: usize = 256;
const LIMIT: Duration = Duration::from_secs(20);

/// A disk of plain bytes; reading sector 13 waits for the gate.
struct Plain {
    bytes: Vec<u8>,
    read_only: bool,
    gate: Option<Receiver<()>>,
    at_gate: Option<std::sync::mpsc::SyncSender<()>>,
}

impl Plain {
    fn new(read_only: bool) -> Self {
        let bytes = (0..SECTORS * 512).map(|i| u8::try_from(i % 251).unwrap()).collect();
        Self { bytes, read_only, gate: None, at_gate: None }
    }
}

impl Disk for Plain {
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        if let (13, Some(gate), Some(at_gate)) = (offset / 512, &self.gate, &self.at_gate) {
            at_gate.send(()).unwrap();
            gate.recv().unwrap();
        }
        let mut at = usize::try_from(offset).unwrap();
        for slice in into {
            slice.copy_from(&self.bytes[at..at + slice.len()]);
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

struct Guest {
    transport: Transport<Block>,
    driver: FakeDriver,
    irqfd: EventFd,
}

fn guest_with(disk: Box<dyn Disk>, enter: impl FnOnce() -> io::Result<()> + Send + 'static) -> Guest {
    let ram = ram_with_hole();
    guest_over(FakeDriver::new(&ram, 0x1000, 64), disk, enter)
}

/// A device in front of a driver that is there already.
fn guest_over(
    driver: FakeDriver,
    disk: Box<dyn Disk>,
    enter: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Guest {
    let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
    let block = Block::new(disk, 3, enter).unwrap();
    let transport = Transport::new(
        block,
        driver.ram.clone(),
        irqfd.try_clone().unwrap(),
        crate::machine::pages::ReadPage::unseen().unwrap(),
    )
    .unwrap();
    Guest { transport, driver, irqfd }
}

fn guest(disk: impl Disk + 'static) -> Guest {
    guest_with(Box::new(disk), || Ok(()))
}

/// le32 type, le32 reserved, le64 sector.
fn header(kind: u32, sector: usize) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &(sector as u64).to_le_bytes()].concat()
}

impl Guest {
    fn bring_up(&mut self) -> u32 {
        self.driver.clear();
        let features = offered_features(&mut self.transport);
        bring_up(&mut self.transport, features, &[&self.driver])
    }

    fn kick(&mut self) {
        write32(&mut self.transport, 0x50, 0);
    }

    /// Waits until `count` chains have been used.
    fn used(&mut self, count: usize) -> Vec<(u32, u32)> {
        let start = Instant::now();
        let mut used = Vec::new();
        while used.len() < count {
            assert!(start.elapsed() < LIMIT, "{} of {count} requests completed", used.len());
            used.extend(self.driver.used());
            std::thread::yield_now();
        }
        used
    }

    /// Waits for an interrupt: it comes behind what it is about, from another thread.
    fn interrupted(&self) {
        let start = Instant::now();
        while self.irqfd.read().is_err() {
            assert!(start.elapsed() < LIMIT, "no interrupt came");
            std::thread::yield_now();
        }
    }

    fn wait_status(&mut self, status: u32) {
        let start = Instant::now();
        while read32(&mut self.transport, 0x70) != status {
            assert!(start.elapsed() < LIMIT, "status {:#x}", read32(&mut self.transport, 0x70));
            std::thread::yield_now();
        }
    }

    fn offer_read(&mut self, sector: usize) -> Offered {
        let header = header(0, sector);
        self.driver.offer(&[Part::Give(&header), Part::Take(512), Part::Take(1)])
    }

    fn read(&mut self, sector: usize) -> Vec<u8> {
        let offered = self.offer_read(sector);
        self.kick();
        self.used(1);
        assert_eq!(self.driver.taken(&offered, 1), [0]);
        self.driver.taken(&offered, 0)
    }
}

#[test]
fn features_and_configuration_space_as_the_standard_lays_them_out() {
    let common = VERSION_1 | 1 << 29 | 1 << 28 | 1 << 9 | 1 << 6 | 1 << 2;
    for (read_only, features) in [(true, common | 1 << 5), (false, common | 1 << 13 | 1 << 14)] {
        let mut guest = guest(Plain::new(read_only));
        assert_eq!(read32(&mut guest.transport, 0x08), 2);
        assert_eq!(offered_features(&mut guest.transport), features);
    }
    let mut guest = guest(Plain::new(false));
    let words = [(0, 256), (4, 0), (12, 254), (20, 512), (36, 1 << 22), (40, 16), (44, 8), (48, 1 << 22), (52, 16)];
    for (offset, value) in words {
        assert_eq!(read32(&mut guest.transport, 0x100 + offset), value, "offset {offset}");
    }
    let mut bytes = [0xaa; 8];
    crate::machine::bus::MmioDevice::read(&mut guest.transport, 0x138, &mut bytes);
    assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0], "write_zeroes_may_unmap and zeros to past the end");
}

#[test]
fn guest_reads_its_disk_after_each_of_many_resets() {
    let mut guest = guest(Plain::new(true));
    for round in 0..50 {
        assert_eq!(guest.bring_up(), 0xf);
        let expected: Vec<u8> = (0..512).map(|i| u8::try_from((round * 512 + i) % 251).unwrap()).collect();
        assert_eq!(guest.read(round), expected);
        guest.interrupted();
    }
}

#[test]
fn reset_waits_for_the_request_in_flight_and_nothing_is_written_after_it() {
    let (open, gate) = channel();
    let (at_gate, arrived) = sync_channel(0);
    let disk = Plain { gate: Some(gate), at_gate: Some(at_gate), ..Plain::new(true) };
    let mut guest = guest(disk);
    guest.bring_up();
    let slow = guest.offer_read(13);
    let waiting = guest.offer_read(14);
    guest.kick();
    arrived.recv_timeout(LIMIT).unwrap();
    let driver = guest.driver.clone();
    let (done, reset_done) = channel();
    let resetting = std::thread::spawn(move || {
        write32(&mut guest.transport, 0x70, 0);
        done.send(()).unwrap();
        guest
    });
    assert!(reset_done.recv_timeout(Duration::from_millis(100)).is_err(), "a request is in flight");
    assert_eq!(driver.taken(&slow, 0), [0xee; 512]);
    open.send(()).unwrap();
    reset_done.recv_timeout(LIMIT).expect("the reset ends with the request");
    let mut guest = resetting.join().unwrap();
    assert_eq!(driver.taken(&waiting, 0), [0xee; 512], "no request is begun after the reset");
    // Memory is the guest's own again: whatever it puts there stays.
    let (addr, len) = slow.takes[0];
    driver.write(addr, &vec![0x55; len as usize]);
    guest.driver.clear();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.read(addr, len), vec![0x55; len as usize]);
    assert!(guest.driver.used().is_empty());
    assert_eq!(guest.bring_up(), 0xf);
    assert_eq!(guest.read(0).len(), 512);
}

#[test]
fn guest_that_lies_needs_a_reset_and_gets_one() {
    type Lie = fn(&mut FakeDriver);
    let lies: [Lie; 4] = [
        |driver| driver.set_avail_idx(0x8000),
        |driver| driver.offer_head(64),
        |driver| {
            driver.descriptor(0, 0, 16, 1, 0);
            driver.offer_head(0);
        },
        |driver| drop(driver.offer(&[Part::Give(&[0; 16])])),
    ];
    let mut guest = guest(Plain::new(true));
    for (count, lie) in (1..).zip(lies) {
        assert_eq!(guest.bring_up(), 0xf);
        let _ = guest.irqfd.read();
        lie(&mut guest.driver);
        guest.kick();
        guest.wait_status(0x4f);
        assert_eq!(read32(&mut guest.transport, 0x60) & 2, 2, "told by a configuration change");
        assert_eq!(guest.transport.interrupt().faults().0, count);
        // The latch holds: kicks of a broken queue are nothing.
        for _ in 0..10 {
            guest.kick();
        }
        assert_eq!(guest.transport.interrupt().faults().0, count);
    }
    assert_eq!(guest.bring_up(), 0xf);
    assert_eq!(guest.read(1).len(), 512);
}

#[test]
fn thread_confines_itself_before_it_serves() {
    let (send, entered) = channel();
    let mut guest = guest_with(Box::new(Plain::new(true)), move || {
        send.send(std::thread::current().name().map(str::to_owned)).map_err(io::Error::other)
    });
    assert_eq!(entered.recv_timeout(LIMIT).unwrap().as_deref(), Some("block 3"));
    guest.bring_up();
    assert_eq!(guest.read(0).len(), 512);
}

#[test]
fn thread_that_cannot_confine_itself_never_serves() {
    let mut guest = guest_with(Box::new(Plain::new(true)), || Err(io::Error::other("no filter")));
    for _ in 0..2 {
        assert_eq!(guest.bring_up(), 0x4f);
        guest.offer_read(0);
        guest.kick();
        assert!(guest.driver.used().is_empty());
    }
    assert_eq!(guest.transport.interrupt().faults().0, 0, "not the guest's fault");
}

#[test]
fn dropping_the_device_ends_its_thread() {
    for active in [false, true] {
        let mut guest = guest(Plain::new(true));
        if active {
            guest.bring_up();
            guest.offer_read(0);
            guest.kick();
        }
        drop(guest.transport);
        // The thread owned the disk and its half of the channels; `drop` has joined it.
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Batches of requests through registers, ring and thread onto an overlay, against an array.
    #[test]
    fn disk_agrees_with_an_array(
        batches in prop::collection::vec(
            prop::collection::vec((0_u32..4, 0..SECTORS, 1_usize..9, any::<u8>(), any::<bool>()), 1..16), 1..12),
    ) {
        let base = Plain::new(true);
        let mut model = base.bytes.clone();
        let overlay = Overlay::in_memory(Box::new(base), 1 << 20).unwrap();
        let mut guest = guest(overlay);
        guest.bring_up();
        for batch in batches {
            let mut expected = Vec::new();
            for (kind, sector, count, fill, indirect) in &batch {
                let count = (*count).min(SECTORS - sector);
                let span = sector * 512..(sector + count) * 512;
                let range = [&(*sector as u64).to_le_bytes()[..], &u32::try_from(count).unwrap().to_le_bytes(), &[0; 4]];
                let (kind, data, wanted) = match kind {
                    0 => (1, vec![*fill; span.len()], 0),
                    1 => (13, range.concat(), 0),
                    2 => (4, Vec::new(), 0),
                    _ => (0, Vec::new(), u32::try_from(span.len()).unwrap()),
                };
                match kind {
                    1 => model[span.clone()].fill(*fill),
                    13 => model[span.clone()].fill(0),
                    _ => {}
                }
                let header = header(kind, *sector);
                let parts = [Part::Give(&header), Part::Give(&data), Part::Take(wanted), Part::Take(1)];
                let offered =
                    if *indirect { guest.driver.offer_indirect(&parts) } else { guest.driver.offer(&parts) };
                guest.kick();
                let read = if kind == 0 { model[span].to_vec() } else { Vec::new() };
                expected.push((offered, read));
            }
            guest.used(batch.len());
            for (offered, read) in expected {
                prop_assert_eq!(guest.driver.taken(&offered, 1), [0]);
                prop_assert_eq!(guest.driver.taken(&offered, 0), read);
            }
        }
    }
}
