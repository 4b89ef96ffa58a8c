// SPDX-License-Identifier: Apache-2.0
//! Any accesses to a window of registers, of every width, at every offset, in any order: the
//! registers are those of the standard, as a model written from §2.1, §3.1 and §4.2.2 has them,
//! and the page that a guest reads instead says the same.
//!
//! `./dev fuzz 60 mmio`. Input: whether the device comes up (1 byte); then accesses of 8 bytes: what
//! (1), where (2), width (1), value (4).
#![no_main]

use std::cell::OnceCell;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use midge_vmm::machine::bus::MmioDevice;
use midge_vmm::machine::pages::ReadPage;
use midge_vmm::memory::GuestRam;
use midge_vmm::virtio::{ActivateError, Activation, Device, GuestFault, Transport};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM_BYTES: u64 = 0x8000;
const MAXIMA: [u16; 2] = [16, 8];
const OFFERED: u64 = 0x1_1000_000a;

thread_local! {
    static RAM: OnceCell<GuestRam> = const { OnceCell::new() };
}

fn ram() -> GuestRam {
    let make =
        || GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).expect("a small region can be mapped");
    RAM.with(|cell| cell.get_or_init(make).clone())
}

fn config_byte(at: u64) -> u8 {
    (at % 251) as u8
}

struct Probe {
    fails: bool,
    given: Arc<Mutex<Option<Activation>>>,
}

impl Device for Probe {
    fn device_id(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        OFFERED & !(1 << 32)
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &MAXIMA
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = config_byte(at);
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut given = self.given.lock().expect("one thread");
        assert!(given.is_none(), "activated twice without a reset between");
        if self.fails {
            return Err(ActivateError::Host { what: "testing", source: std::io::ErrorKind::Other.into() });
        }
        *given = Some(activation);
        Ok(())
    }
    fn reset(&mut self) {
        *self.given.lock().expect("one thread") = None;
    }
}

#[derive(Clone, Copy, Default)]
struct ModelQueue {
    size: u32,
    /// Descriptor table, available ring, used ring.
    at: [u64; 3],
    ready: bool,
}

impl ModelQueue {
    /// §2.7: a power of two, aligned, in memory.
    fn is_sound(&self, max: u16) -> bool {
        let n = u64::from(self.size);
        let areas = [(16, 16 * n), (2, 6 + 2 * n), (4, 6 + 8 * n)];
        let in_memory = |(at, (align, len)): (&u64, (u64, u64))| {
            at % align == 0 && at.checked_add(len).is_some_and(|end| end <= RAM_BYTES)
        };
        self.ready && n.is_power_of_two() && n <= u64::from(max) && self.at.iter().zip(areas).all(in_memory)
    }
}

/// What a driver should find.
#[derive(Default)]
struct Model {
    fails: bool,
    status: u32,
    needs_reset: bool,
    interrupt: u32,
    selects: [u32; 3],
    features: u64,
    queues: [ModelQueue; 2],
    serves: bool,
    kicks: [u64; 2],
}

impl Model {
    fn read(&self, offset: u64) -> u32 {
        let [device_select, _, queue_select] = self.selects;
        let queue = self.queues.get(queue_select as usize);
        match offset {
            0 => 0x7472_6976,
            4 => 2,
            8 => 42,
            0xc => 0x4744_494d,
            0x10 if device_select > 1 => 0,
            0x10 => (OFFERED >> (32 * device_select)) as u32,
            0x34 => MAXIMA.get(queue_select as usize).map_or(0, |max| u32::from(*max)),
            0x44 => queue.map_or(0, |queue| u32::from(queue.ready)),
            0x60 => self.interrupt,
            0x70 => self.status | if self.needs_reset && self.status & 4 != 0 { 64 } else { 0 },
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn fault(&mut self) {
        if !std::mem::replace(&mut self.needs_reset, true) {
            self.interrupt |= 2;
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            *self = Self { fails: self.fails, kicks: self.kicks, ..Self::default() };
            return;
        }
        self.status |= value & 128;
        let mut before = 0;
        for step in [1, 2, 8, 4] {
            let is_new = value & step != 0 && self.status & step == 0;
            let features_fit = self.features & !OFFERED == 0 && self.features >> 32 & 1 == 1;
            if self.status & 128 != 0 || is_new && (self.status & before != before || step == 8 && !features_fit) {
                return;
            }
            before |= step;
            if !is_new {
                continue;
            }
            self.status |= step;
            if step == 4 {
                let are_sound = self.queues.iter().zip(MAXIMA).all(|(queue, max)| queue.is_sound(max));
                self.serves = are_sound && !self.fails;
                if !self.serves {
                    self.fault();
                }
            }
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let [_, driver_select, queue_select] = self.selects;
        let in_setup = self.status & (8 | 4 | 128) == 8;
        match offset {
            0x14 => self.selects[0] = value,
            0x24 => self.selects[1] = value,
            0x30 => self.selects[2] = value,
            0x20 if self.status & (2 | 8) == 2 && driver_select < 2 => {
                let shift = 32 * driver_select;
                self.features = self.features & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            0x50 if self.status & 4 != 0 && value < 2 => self.kicks[value as usize] += 1,
            0x64 => self.interrupt &= !value,
            0x70 => self.write_status(value),
            _ => {}
        }
        let Some(queue) = self.queues.get_mut(queue_select as usize).filter(|_| in_setup) else { return };
        match offset {
            0x44 => queue.ready = value & 1 == 1,
            _ if queue.ready => {}
            0x38 => queue.size = value,
            0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 => {
                let shift = 8 * (offset & 4);
                let place = &mut queue.at[(offset as usize >> 4) - 8];
                *place = *place & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => {}
        }
    }
}

/// The registers that mean something, and some that do not.
const OFFSETS: [u16; 32] = [
    0x70, 0x70, 0x70, 0x70, 0x14, 0x24, 0x20, 0x20, 0x30, 0x30, 0x38, 0x38, 0x44, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0,
    0xa4, 0x50, 0x64, 0x60, 0x10, 0x34, 0x00, 0x0c, 0xb0, 0xfc, 0x100, 0x71, 0x40,
];
/// Values that lead somewhere.
const VALUES: [u32; 16] = [1, 3, 11, 15, 0, 8, 16, 2, 0x1000, 0x2000, 0x3000, 0x7ff0, 0x8000, 4, 128, 0x1000_0002];
/// What a driver that follows the standard writes.
const BRING_UP: [(u64, u32); 20] = [
    (0x70, 1),
    (0x70, 3),
    (0x24, 1),
    (0x20, 1),
    (0x70, 11),
    (0x30, 0),
    (0x38, 16),
    (0x80, 0x1000),
    (0x90, 0x1100),
    (0xa0, 0x1200),
    (0x44, 1),
    (0x30, 1),
    (0x38, 8),
    (0x80, 0x2000),
    (0x90, 0x2100),
    (0xa0, 0x2200),
    (0x44, 1),
    (0x14, 1),
    (0x24, 0),
    (0x70, 15),
];

struct Rig {
    transport: Transport<Probe>,
    page: ReadPage,
    given: Arc<Mutex<Option<Activation>>>,
    model: Model,
}

impl Rig {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.transport.write(offset, bytes);
        if let (Ok(word), true) = (<[u8; 4]>::try_from(bytes), offset % 4 == 0 && offset < 0x100) {
            self.model.write(offset, u32::from_le_bytes(word));
        }
    }

    fn check_read(&mut self, offset: u64, width: usize) {
        let mut found = vec![0xaa; width];
        self.transport.read(offset, &mut found);
        let mut expected = vec![0; width];
        if offset >= 0x100 {
            expected.iter_mut().zip(offset - 0x100..).for_each(|(byte, at)| *byte = config_byte(at));
        } else if width == 4 && offset % 4 == 0 {
            expected.copy_from_slice(&self.model.read(offset).to_le_bytes());
        }
        assert_eq!(found, expected, "{width} bytes at {offset:#x}");
    }

    /// Nothing differs from the model, and the guest's page says what a read would.
    fn check(&mut self) {
        for offset in (0..0x100).step_by(4) {
            let expected = self.model.read(offset);
            self.check_read(offset, 4);
            assert_eq!(self.page.get(offset), expected, "the page at {offset:#x}");
        }
        assert_eq!(self.transport.is_active(), self.model.status & 4 != 0);
        let given = self.given.lock().expect("one thread");
        assert_eq!(given.is_some(), self.model.serves);
        if let Some(activation) = &*given {
            assert_eq!(activation.features, self.model.features);
            let sizes = activation.queues.iter().map(|queue| u32::from(queue.size()));
            assert!(sizes.eq(self.model.queues.iter().map(|queue| queue.size)));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((flags, accesses)) = data.split_first() else { return };
    let given = Arc::new(Mutex::new(None));
    let fails = flags & 1 != 0;
    let probe = Probe { fails, given: Arc::clone(&given) };
    let irq = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let page = ReadPage::unseen().expect("a page");
    let transport = Transport::new(probe, ram(), irq, page.clone()).expect("eventfds");
    let mut rig = Rig { transport, page, given, model: Model { fails, ..Model::default() } };
    rig.check();
    for [what, o0, o1, width, value @ ..] in accesses.as_chunks::<8>().0.iter().take(256) {
        let any = u16::from_le_bytes([*o0, *o1]) & 0xfff;
        let offset = u64::from(if what & 0x80 == 0 { OFFSETS[usize::from(*o0) % OFFSETS.len()] } else { any });
        let width = [4, 4, 4, 4, 1, 2, 4, 8][usize::from(*width) % 8];
        let number = match what & 0x40 {
            0 => VALUES[usize::from(value[0]) % VALUES.len()],
            _ => u32::from_le_bytes(*value),
        };
        match what % 16 {
            0..=9 => rig.write(offset, &[number.to_le_bytes(), number.to_le_bytes()].concat()[..width]),
            10 => rig.check_read(offset, width),
            11 => {
                rig.transport.interrupt().signal_used();
                rig.model.interrupt |= 1;
            }
            12 => {
                rig.transport.interrupt().signal_config();
                rig.model.interrupt |= 2;
            }
            13 if rig.model.serves => {
                rig.transport.interrupt().report_fault(GuestFault::QueueNotReady { index: 0 });
                rig.model.fault();
            }
            // The way to a served device, as far as this number goes.
            14 => BRING_UP[..usize::from(*o0) % 21].iter().for_each(|(at, word)| rig.write(*at, &word.to_le_bytes())),
            _ => {}
        }
        rig.check();
    }
    for (kick, expected) in rig.transport.kicks().iter().zip(rig.model.kicks) {
        assert_eq!(kick.read().unwrap_or(0), expected);
    }
});
