// SPDX-License-Identifier: Apache-2.0
//! Body of the fuzz target `block_queue`: the worker's steps over a real overlay, with a driver that
//! mostly asks for something, against a disk that is a plain array of bytes.

use std::cell::OnceCell;

use vm_memory::VolatileSlice;

use super::*;
use crate::disk::fake::FakeBase;
use crate::disk::overlay::Overlay;
use crate::machine::pages::ReadPage;
use crate::memory::GuestRam;
use crate::virtio::fake::{FakeDriver, Offered, Part, ram_with_hole};

const SECTORS: u64 = 67;
const LEN: usize = 512 * SECTORS as usize;
const SIZE: u16 = 64;
const ID: [u8; 20] = *b"midge-fuzz\0\0\0\0\0\0\0\0\0\0";

thread_local! {
    static RAM: OnceCell<GuestRam> = const { OnceCell::new() };
}

/// One request of the input.
struct Ask {
    kind: u32,
    sector: u64,
    given: Vec<u8>,
    wanted: usize,
    /// Bytes in a buffer.
    cut: usize,
    indirect: bool,
    /// Whether there is a byte for the status.
    has_status: bool,
}

fn sector(claim: u16) -> u64 {
    match claim >> 12 {
        15 => u64::MAX - u64::from(claim & 0xfff),
        14 => (1 << 55) - u64::from(claim & 0xfff) % 64,
        _ => u64::from(claim) % (SECTORS + 4),
    }
}

impl Ask {
    fn new([kind, s0, s1, n0, n1, cut, odd, fill]: [u8; 8]) -> Self {
        let kind = [0, 1, 4, 8, 11, 13, 5, 1][usize::from(kind) % 8];
        let count = u16::from_le_bytes([n0, n1]);
        let bytes = usize::from(count) % 8193;
        // Most are whole sectors.
        let bytes = if odd & 3 == 0 { bytes } else { bytes / 512 * 512 };
        let given = match kind {
            1 => (0..bytes).map(|at| fill ^ at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect(),
            11 | 13 => ranges(usize::from(count) % 18, u16::from_le_bytes([s0, s1]), fill, odd),
            _ => vec![fill; usize::from(odd >> 6)],
        };
        let wanted = match kind {
            0 => bytes,
            8 => usize::from(count) % 32,
            _ => usize::from(odd >> 5 & 1),
        };
        let cut = [usize::MAX, 1 << 12, 512, 17, 1000, 16, 700, 300][usize::from(cut) % 8];
        let (indirect, has_status) = (odd & 4 != 0, odd & 0x18 != 0x18);
        Self { kind, sector: sector(u16::from_le_bytes([s0, s1])), given, wanted, cut, indirect, has_status }
    }
}

/// Segments of a discard: le64 sector, le32 number, le32 flags.
fn ranges(count: usize, first: u16, fill: u8, odd: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..count {
        let step = u16::try_from(index).unwrap_or(0);
        let number = if fill & 0x80 == 0 { u32::from(fill) % 17 } else { u32::MAX - u32::from(fill) };
        bytes.extend(sector(first.wrapping_add(step.wrapping_mul(u16::from(fill & 15)))).to_le_bytes());
        bytes.extend(number.to_le_bytes());
        bytes.extend(u32::from(odd >> 5 & if index == 0 { 3 } else { 1 }).to_le_bytes());
    }
    bytes.extend(vec![0; usize::from(odd & 3 == 0)]);
    bytes
}

struct World {
    worker: Worker,
    serving: Serving,
    driver: FakeDriver,
    model: Vec<u8>,
    cap_is_small: bool,
}

impl World {
    fn new(flags: u8) -> Self {
        let ram = RAM.with(|cell| cell.get_or_init(ram_with_hole).clone());
        let driver = FakeDriver::new(&ram, 0x1000, SIZE);
        let cap_is_small = flags & 0x40 != 0;
        let cap_bytes = if cap_is_small { 3 * 4096 } else { 1 << 20 };
        let disk =
            Overlay::in_memory(Box::new(FakeBase { len_bytes: LEN as u64, fill: |_, _: &mut [u8]| {} }), cap_bytes)
                .expect("address space");
        let eventfd = || EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).expect("an eventfd");
        let worker = Worker { disk: Box::new(disk), id: ID, counters: Arc::default(), stop: Arc::default() };
        let serving = Serving {
            queue: driver.queue(u64::from(flags & 3) << 28),
            kick: eventfd(),
            interrupt: Interrupt::new(eventfd(), ReadPage::unseen().expect("a page")),
            limits: Limits {
                sectors: SECTORS,
                read_only: flags & 4 != 0,
                discard: flags & 8 != 0,
                write_zeroes: flags & 16 != 0,
            },
            write_through: flags & 32 != 0,
        };
        Self { worker, serving, driver, model: vec![0; LEN], cap_is_small }
    }

    fn offer(&mut self, ask: &Ask, may_be_indirect: bool) -> Offered {
        let header = [&ask.kind.to_le_bytes()[..], &[0; 4], &ask.sector.to_le_bytes()].concat();
        let given = [header, ask.given.clone()].concat();
        let wanted = vec![(); ask.wanted + usize::from(ask.has_status)];
        // No more buffers than a third of the descriptors.
        let cut = |len: usize| ask.cut.max(len.div_ceil(usize::from(SIZE) / 6 - 1)).max(1);
        let gives = given.chunks(cut(given.len())).map(Part::Give);
        let takes = wanted.chunks(cut(wanted.len())).map(|part| Part::Take(u32::try_from(part.len()).unwrap_or(0)));
        let parts: Vec<_> = gives.chain(takes).collect();
        if may_be_indirect && ask.indirect { self.driver.offer_indirect(&parts) } else { self.driver.offer(&parts) }
    }

    /// Checks a completed request, and does it to the model.
    fn check(&mut self, ask: &Ask, offered: &Offered, used_bytes: u32) {
        let taken: Vec<u8> = (0..offered.takes.len()).flat_map(|index| self.driver.taken(offered, index)).collect();
        let (status, data) = taken.split_last().expect("there was a status byte");
        let limits = self.serving.limits;
        let first = usize::try_from(ask.sector).ok().and_then(|sector| sector.checked_mul(512));
        let span = |len: usize| {
            let end = first.and_then(|first| first.checked_add(len)).filter(|end| *end <= LEN && len % 512 == 0);
            end.map(|end| end - len..end)
        };
        let mut used = u32::from(ask.wanted == 0);
        let expected = match ask.kind {
            0 => span(ask.wanted).map_or(1, |span| {
                assert!(data == &self.model[span], "read other bytes than were written");
                used = u32::try_from(taken.len()).unwrap_or(0);
                0
            }),
            1 if limits.read_only => 1,
            1 => match span(ask.given.len()) {
                Some(_) if *status == 1 && self.cap_is_small => 1,
                Some(span) => {
                    self.model[span].copy_from_slice(&ask.given);
                    0
                }
                None => 1,
            },
            4 => 0,
            8 if ask.wanted < 20 => 1,
            8 => {
                assert_eq!(data[..20], ID);
                used = if ask.wanted == 20 { 21 } else { 20 };
                0
            }
            11 if limits.discard => self.free(ask, true, *status),
            13 if limits.write_zeroes => self.free(ask, false, *status),
            _ => 2,
        };
        assert_eq!(*status, expected, "kind {} sector {} wanted {}", ask.kind, ask.sector, ask.wanted);
        assert_eq!(used_bytes, used, "the used length of kind {}", ask.kind);
    }

    /// The status that a discard or write-zeroes should have.
    fn free(&mut self, ask: &Ask, discard: bool, status: u8) -> u8 {
        if ask.given.len() % 16 != 0 || ask.given.len() > 256 {
            return 1;
        }
        let mut spans = Vec::new();
        for range in ask.given.as_chunks::<16>().0 {
            let number = |at: usize| u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]]);
            let first = u64::from(number(0)) | u64::from(number(4)) << 32;
            if number(12) & !u32::from(!discard) != 0 {
                return 2;
            }
            match first.checked_add(u64::from(number(8))).filter(|end| *end <= SECTORS) {
                Some(end) => {
                    spans.push(512 * usize::try_from(first).unwrap_or(LEN)..512 * usize::try_from(end).unwrap_or(0))
                }
                None => return 1,
            }
        }
        let is_full = self.cap_is_small && !discard && status == 1;
        let now = self.content();
        for span in spans {
            for at in span {
                // A discard, or a request that was stopped by the cap, may have left what was there.
                let as_before = (discard || is_full) && now[at] == self.model[at];
                assert!(now[at] == 0 || as_before, "neither zero nor as before at {at}");
                self.model[at] = now[at];
            }
        }
        u8::from(is_full)
    }

    fn content(&mut self) -> Vec<u8> {
        let mut bytes = vec![0xcc; LEN];
        self.worker.disk.read_at(0, &[VolatileSlice::from(&mut bytes[..])]).expect("all of it");
        bytes
    }

    /// Descriptors and indices as they come: the worker ends it with a fault, or serves it.
    fn raw(mut self, records: &[[u8; 8]]) {
        for (index, [a0, a1, l0, l1, flags, next, head, more]) in (0..SIZE).zip(records) {
            let addr = [0, 0x4_0000, 0x8_0000, u64::MAX][usize::from(more & 3)];
            let addr = addr.wrapping_add_signed(i64::from(i16::from_le_bytes([*a0, *a1])));
            let len = u32::from(u16::from_le_bytes([*l0, *l1])) << (more >> 6 << 3);
            self.driver.descriptor(index, addr, len, u16::from(flags & 7), u16::from(*next));
            self.driver.offer_head(u16::from(*head) % 80);
        }
        let served = self.worker.drain(&mut self.serving);
        assert_eq!(served.err(), self.serving.queue.fault());
        assert_eq!(self.worker.disk.len_bytes(), LEN as u64);
    }
}

/// Input: what was negotiated, 8 bits (1 byte); then requests of 8 bytes: what (1), first sector (2),
/// bytes or ranges (2), how it is cut (1), what is odd about it (1), value (1). After a 255, descriptors
/// of 8 bytes.
pub fn block_queue(data: &[u8]) {
    let Some((flags, data)) = data.split_first() else { return };
    let mut world = World::new(*flags);
    let mut waiting: Vec<(Ask, Offered)> = Vec::new();
    let (records, _) = data.as_chunks::<8>();
    for (index, record) in records.iter().take(64).enumerate() {
        if record[0] == 255 {
            return world.raw(&records[index + 1..]);
        }
        let ask = Ask::new(*record);
        let has_status = ask.has_status || ask.wanted != 0;
        let offered = world.offer(&ask, flags & 1 != 0);
        if !ask.has_status && ask.wanted != 0 {
            // The last byte of the data is where the status goes.
            waiting.push((Ask { wanted: ask.wanted - 1, has_status: true, ..ask }, offered));
        } else {
            waiting.push((ask, offered));
        }
        // Several are waiting when the worker wakes, or one. What was freed is looked at before more is done.
        let is_free = matches!(record[0] % 8, 4 | 5);
        let is_last = index + 1 >= records.len().min(64);
        if record[0] & 0x40 != 0 && waiting.len() < 3 && has_status && !is_free && !is_last {
            continue;
        }
        let served = world.worker.drain(&mut world.serving);
        let used = world.driver.used();
        assert!(served.is_ok() == has_status, "{served:?}");
        assert_eq!(used.len(), waiting.len() - usize::from(!has_status));
        for ((ask, offered), (head, len)) in waiting.drain(..).zip(used) {
            assert_eq!(head, u32::from(offered.head));
            world.check(&ask, &offered, len);
        }
        if !has_status {
            return;
        }
    }
    assert!(world.content() == world.model, "other bytes than were written");
}
