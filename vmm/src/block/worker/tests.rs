// SPDX-License-Identifier: Apache-2.0
//! The worker's steps on one thread, over a disk that records what it is asked.

use std::sync::Mutex;

use proptest::prelude::*;
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::disk::check_range;
use crate::virtio::fake::{BORDER, FakeDriver, HIGH, Offered, Part, ram_with_hole};
use crate::virtio::spec::feature;

const SECTORS: u64 = 256;

/// A plain array of bytes that keeps a diary.
#[derive(Default)]
struct Diary {
    bytes: Vec<u8>,
    asked: Vec<String>,
    fail: Option<fn() -> DiskError>,
}

#[derive(Clone)]
struct DiaryDisk(Arc<Mutex<Diary>>);

impl DiaryDisk {
    fn note(&self, what: String) -> Result<std::sync::MutexGuard<'_, Diary>, DiskError> {
        let mut diary = self.0.lock().unwrap();
        diary.asked.push(what);
        match diary.fail {
            Some(fail) => Err(fail()),
            None => Ok(diary),
        }
    }
}

impl Disk for DiaryDisk {
    fn len_bytes(&self) -> u64 {
        SECTORS * 512
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let diary = self.note(format!("read {offset}"))?;
        let mut at = usize::try_from(offset).unwrap();
        for slice in into {
            check_range(at as u64, slice.len() as u64, SECTORS * 512)?;
            slice.copy_from(&diary.bytes[at..at + slice.len()]);
            at += slice.len();
        }
        Ok(())
    }
    fn write_at(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let mut diary = self.note(format!("write {offset}"))?;
        let mut at = usize::try_from(offset).unwrap();
        for slice in from {
            check_range(at as u64, slice.len() as u64, SECTORS * 512)?;
            slice.copy_to(&mut diary.bytes[at..at + slice.len()]);
            at += slice.len();
        }
        Ok(())
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        self.note("flush".into()).map(|_| ())
    }
    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.note(format!("discard {offset}+{len}")).map(|_| ())
    }
    fn write_zeroes(&mut self, offset: u64, len: u64, may_free: bool) -> Result<(), DiskError> {
        self.note(format!("zero {offset}+{len} {may_free}")).map(|_| ())
    }
}

struct Rig {
    worker: Worker,
    serving: Serving,
    driver: FakeDriver,
    disk: DiaryDisk,
    irqfd: EventFd,
}

fn rig(features: u64) -> Rig {
    let bytes = (0..usize::try_from(SECTORS * 512).unwrap()).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let disk = DiaryDisk(Arc::new(Mutex::new(Diary { bytes, ..Diary::default() })));
    let driver = FakeDriver::new(&ram_with_hole(), 0x1000, 256);
    let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
    let worker = Worker {
        disk: Box::new(disk.clone()),
        id: *b"midge-test\0\0\0\0\0\0\0\0\0\0",
        counters: Arc::default(),
        stop: Arc::default(),
    };
    let serving = Serving {
        queue: driver.queue(features),
        kick: EventFd::new(0).unwrap(),
        interrupt: Interrupt::new(irqfd.try_clone().unwrap(), crate::machine::pages::ReadPage::unseen().unwrap()),
        limits: Limits { sectors: SECTORS, read_only: false, discard: true, write_zeroes: true },
        write_through: false,
    };
    Rig { worker, serving, driver, disk, irqfd }
}

/// le32 type, le32 reserved, le64 sector.
fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

impl Rig {
    /// Serves what is offered; the used lengths.
    fn drain(&mut self) -> Vec<u32> {
        self.worker.drain(&mut self.serving).unwrap();
        self.driver.used().into_iter().map(|(_, len)| len).collect()
    }

    /// Offers one request and serves it: used length and status, the last writable byte.
    fn request(&mut self, parts: &[Part<'_>]) -> (u32, u8) {
        let offered = self.driver.offer(parts);
        let len = self.drain()[0];
        (len, self.status(&offered))
    }

    fn status(&self, offered: &Offered) -> u8 {
        *self.driver.taken(offered, offered.takes.len() - 1).last().unwrap()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.disk.0.lock().unwrap().asked)
    }

    fn disk_bytes(&self) -> Vec<u8> {
        self.disk.0.lock().unwrap().bytes.clone()
    }
}

#[test]
fn header_and_data_may_be_cut_in_any_way() {
    let data = vec![7; 1024];
    let whole = [header(1, 3), data.clone()].concat();
    let layouts: [Vec<Part<'_>>; 5] = [
        vec![Part::Give(&whole[..16]), Part::Give(&whole[16..]), Part::Take(1)],
        vec![Part::Give(&whole), Part::Take(1)],
        vec![Part::Give(&whole[..5]), Part::Give(&whole[5..17]), Part::Give(&whole[17..]), Part::Take(1)],
        vec![Part::Give(&whole[..16]), Part::Give(&whole[16..528]), Part::Give(&whole[528..]), Part::Take(1)],
        whole.chunks(7).map(Part::Give).chain([Part::Take(0), Part::Take(1)]).collect(),
    ];
    for parts in layouts {
        let mut rig = rig(0);
        assert_eq!(rig.request(&parts), (1, 0));
        assert_eq!(rig.disk_bytes()[1536..2560], data);
        assert_eq!(rig.disk_bytes()[1535], u8::try_from(1535 % 251).unwrap());
        assert_eq!(rig.disk_bytes()[2560], u8::try_from(2560 % 251).unwrap());
    }
}

#[test]
fn read_fills_any_cut_and_reports_what_was_written() {
    let header = header(0, 1);
    let layouts: [&[u32]; 4] = [&[1024, 1], &[1025], &[512, 512, 1], &[1, 1022, 2]];
    for takes in layouts {
        let mut rig = rig(0);
        let parts: Vec<_> = [Part::Give(&header)].into_iter().chain(takes.iter().map(|len| Part::Take(*len))).collect();
        let offered = rig.driver.offer(&parts);
        assert_eq!(rig.drain(), [1025]);
        let read: Vec<u8> = (0..takes.len()).flat_map(|i| rig.driver.taken(&offered, i)).collect();
        assert_eq!(read[..1024], rig.disk_bytes()[512..1536]);
        assert_eq!(read[1024], 0);
    }
}

#[test]
fn data_across_a_region_border_is_whole() {
    let mut rig = rig(0);
    rig.driver.write(HIGH, &header(0, 0));
    rig.driver.descriptor(0, HIGH, 16, 1, 1);
    rig.driver.descriptor(1, BORDER - 300, 512, 3, 2);
    rig.driver.descriptor(2, HIGH + 64, 1, 2, 0);
    rig.driver.offer_head(0);
    assert_eq!(rig.drain(), [513]);
    assert_eq!(rig.driver.read(BORDER - 300, 512), rig.disk_bytes()[..512]);
}

#[test]
fn longest_request_is_served_in_pieces() {
    let mut rig = rig(0);
    let header = header(0, 0);
    let takes = vec![Part::Take(128); 252];
    let parts: Vec<_> = [Part::Give(&header)].into_iter().chain(takes).chain([Part::Take(1)]).collect();
    assert_eq!(rig.request(&parts), (252 * 128 + 1, 0));
    assert_eq!(rig.asked(), ["read 0", "read 8192", "read 16384", "read 24576"]);
}

#[test]
fn impossible_requests_reach_no_disk_and_get_a_status() {
    let cases: [(u32, u64, &[u8], u32, u8); 10] = [
        (0, SECTORS, &[], 512, 1),
        (0, 0, &[], 511, 1),
        (1, SECTORS - 1, &[1; 1024], 0, 1),
        (1, 1 << 63, &[1; 512], 0, 1),
        (1, 0, &[1; 100], 0, 1),
        (2, 0, &[], 0, 2),
        (8, 0, &[], 19, 1),
        (11, 0, &[0; 15], 0, 1),
        (11, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], 0, 2),
        (13, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0], 0, 2),
    ];
    for (kind, sector, data, wanted, status) in cases {
        let mut rig = rig(0);
        let header = header(kind, sector);
        let (_, found) = rig.request(&[Part::Give(&header), Part::Give(data), Part::Take(wanted), Part::Take(1)]);
        assert_eq!(found, status, "type {kind}, sector {sector}");
        assert!(rig.asked().is_empty());
        assert_eq!(rig.worker.counters.get(Event::Refused), 1);
    }
}

#[test]
fn short_header_gets_a_status() {
    for len in [0, 1, 15] {
        let mut rig = rig(0);
        assert_eq!(rig.request(&[Part::Give(&vec![0; len]), Part::Take(1)]), (1, 1));
        assert!(rig.asked().is_empty());
    }
}

#[test]
fn request_without_a_status_byte_is_a_fault() {
    for parts in [vec![Part::Give(&[0; 16][..])], vec![Part::Give(&[0; 16][..]), Part::Take(0)]] {
        let mut rig = rig(0);
        rig.driver.offer(&parts);
        let fault = rig.worker.drain(&mut rig.serving).unwrap_err();
        assert!(matches!(fault, GuestFault::Device { device: "block", .. }));
        assert_eq!(rig.serving.queue.fault(), Some(fault), "latched");
        assert!(rig.driver.used().is_empty());
        assert!(rig.asked().is_empty());
    }
}

#[test]
fn failed_read_reports_no_data_as_written() {
    let mut rig = rig(0);
    rig.disk.0.lock().unwrap().fail = Some(|| DiskError::Shrunk { offset: 0 });
    let header = header(0, 0);
    assert_eq!(rig.request(&[Part::Give(&header), Part::Take(512), Part::Take(1)]), (0, 1));
    assert_eq!(rig.worker.counters.get(Event::Failed), 1);
    rig.disk.0.lock().unwrap().fail = None;
    assert_eq!(rig.request(&[Part::Give(&header), Part::Take(512), Part::Take(1)]), (513, 0), "and goes on");
}

#[test]
fn full_overlay_is_an_error_of_its_own_to_us_only() {
    let mut rig = rig(0);
    rig.disk.0.lock().unwrap().fail =
        Some(|| DiskError::NoSpace { needed_bytes: 4096, used_bytes: 8192, cap_bytes: 8192 });
    let header = header(1, 0);
    assert_eq!(rig.request(&[Part::Give(&header), Part::Give(&[1; 512]), Part::Take(1)]), (1, 1));
    assert_eq!((rig.worker.counters.get(Event::Full), rig.worker.counters.get(Event::Failed)), (1, 0));
}

#[test]
fn flush_reaches_the_disk_and_its_failure_the_guest() {
    let mut rig = rig(0);
    let header = header(4, 0);
    assert_eq!(rig.request(&[Part::Give(&header), Part::Take(1)]), (1, 0));
    assert_eq!(rig.asked(), ["flush"]);
    rig.disk.0.lock().unwrap().fail =
        Some(|| DiskError::Io { what: "flushing", offset: 0, source: std::io::Error::other("test") });
    assert_eq!(rig.request(&[Part::Give(&header), Part::Take(1)]), (1, 1));
}

#[test]
fn driver_without_flush_gets_every_write_durable() {
    let mut rig = rig(0);
    rig.serving.write_through = true;
    let (write, zero) = (header(1, 2), header(13, 0));
    let range = [&1_u64.to_le_bytes()[..], &2_u32.to_le_bytes(), &0_u32.to_le_bytes()].concat();
    assert_eq!(rig.request(&[Part::Give(&write), Part::Give(&[1; 512]), Part::Take(1)]).1, 0);
    assert_eq!(rig.request(&[Part::Give(&zero), Part::Give(&range), Part::Take(1)]).1, 0);
    assert_eq!(rig.asked(), ["write 1024", "flush", "zero 512+1024 false", "flush"]);
}

#[test]
fn ranges_are_all_checked_before_the_first_is_touched() {
    let mut rig = rig(0);
    let range = |sector: u64, count: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let good = [range(0, 8, 0), range(16, 8, 0)].concat();
    let bad = [range(0, 8, 0), range(SECTORS, 8, 0)].concat();
    let (discard, zero) = (header(11, 0), header(13, 0));
    assert_eq!(rig.request(&[Part::Give(&discard), Part::Give(&bad), Part::Take(1)]), (1, 1));
    assert!(rig.asked().is_empty());
    assert_eq!(rig.request(&[Part::Give(&discard), Part::Give(&good), Part::Take(1)]), (1, 0));
    assert_eq!(rig.asked(), ["discard 0+4096", "discard 8192+4096"]);
    assert_eq!(rig.request(&[Part::Give(&zero), Part::Give(&range(0, 1, 1)), Part::Take(1)]), (1, 0));
    assert_eq!(rig.asked(), ["zero 0+512 true"]);
}

#[test]
fn name_is_twenty_bytes_and_no_more() {
    let mut rig = rig(0);
    let header = header(8, 0);
    let offered = rig.driver.offer(&[Part::Give(&header), Part::Take(24), Part::Take(1)]);
    assert_eq!(rig.drain(), [20], "nothing behind the gap is counted");
    assert_eq!(rig.driver.taken(&offered, 0), *b"midge-test\0\0\0\0\0\0\0\0\0\0\xee\xee\xee\xee");
    assert_eq!(rig.status(&offered), 0);
}

#[test]
fn one_interrupt_serves_a_batch() {
    for features in [0, feature::EVENT_IDX] {
        let mut rig = rig(features);
        let header = header(4, 0);
        for _ in 0..BATCH_MAX - 1 {
            rig.driver.offer(&[Part::Give(&header), Part::Take(1)]);
        }
        assert_eq!(rig.drain().len(), BATCH_MAX as usize - 1);
        assert_eq!(rig.irqfd.read().unwrap(), 1);
        for _ in 0..2 * BATCH_MAX {
            rig.driver.offer(&[Part::Give(&header), Part::Take(1)]);
        }
        rig.driver.set_used_event(u16::try_from(BATCH_MAX).unwrap());
        assert_eq!(rig.drain().len(), 2 * BATCH_MAX as usize);
        let interrupts = if features == 0 { 2 } else { 1 };
        assert_eq!(rig.irqfd.read().unwrap(), interrupts, "one a batch, or one for the index passed");
    }
}

#[test]
fn stop_is_seen_between_requests() {
    let mut rig = rig(0);
    let header = header(4, 0);
    rig.driver.offer(&[Part::Give(&header), Part::Take(1)]);
    rig.worker.stop.store(true, Ordering::Release);
    assert!(rig.drain().is_empty());
    assert_eq!(rig.serving.queue.in_flight(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any bytes as a request, in any layout: completed with a known status or a fault, and
    /// nothing outside the writable part changes.
    #[test]
    fn any_request_is_answered_or_a_fault(
        kind in prop_oneof![0_u8..16, any::<u8>()],
        sector in prop_oneof![0_u64..300, any::<u64>()],
        tail in prop::collection::vec(any::<u8>(), 0..1200),
        keep in 0_usize..1216,
        gives in 1_usize..600,
        takes in prop::collection::vec(prop_oneof![Just(0), Just(1), Just(512), 0_u32..600], 0..4),
        indirect in any::<bool>(),
    ) {
        let mut rig = rig(feature::INDIRECT_DESC);
        let mut given = [header(u32::from(kind), sector), tail].concat();
        given.truncate(keep);
        let parts: Vec<_> =
            given.chunks(gives).map(Part::Give).chain(takes.iter().map(|len| Part::Take(*len))).collect();
        prop_assume!(!parts.is_empty() && parts.len() <= 256);
        let offered = if indirect { rig.driver.offer_indirect(&parts) } else { rig.driver.offer(&parts) };
        let writable: u32 = takes.iter().sum();
        match rig.worker.drain(&mut rig.serving) {
            Ok(()) => {
                let used = rig.driver.used();
                prop_assert_eq!(used.len(), 1);
                prop_assert!(used[0].1 <= writable);
                let bytes: Vec<u8> = (0..takes.len()).flat_map(|i| rig.driver.taken(&offered, i)).collect();
                prop_assert!(*bytes.last().unwrap() <= 2);
            }
            Err(fault) => {
                prop_assert_eq!(writable, 0);
                let expected = matches!(fault, GuestFault::Device { .. });
                prop_assert!(expected);
            }
        }
    }
}
