// SPDX-License-Identifier: Apache-2.0
//! The register file against a driver that follows §3.1.1, and one that does not.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::virtio::Geometry;
use crate::virtio::fake::{
    FakeDriver, HOLE, Part, bring_up, negotiate, offered_features, place_queue, ram_with_hole, read32, write32,
};

pub(super) const VERSION_1: u64 = 1 << 32;
const MAXIMA: [u16; 2] = [16, 8];

/// What a test sees of the device behind the registers.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) activation: Option<Activation>,
    pub(super) activations: u32,
    resets: u32,
}

pub(super) struct Probe(Arc<Mutex<Seen>>);

impl Device for Probe {
    fn device_id(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        0b1010 | feature::INDIRECT_DESC
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &MAXIMA
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in (offset..).zip(data) {
            *byte = u8::try_from(i % 251).unwrap();
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut seen = self.0.lock().unwrap();
        assert!(seen.activation.is_none(), "activated once between resets");
        seen.activation = Some(activation);
        seen.activations += 1;
        Ok(())
    }
    fn reset(&mut self) {
        let mut seen = self.0.lock().unwrap();
        seen.activation = None;
        seen.resets += 1;
    }
}

pub(super) struct Rig {
    pub(super) transport: Transport<Probe>,
    pub(super) seen: Arc<Mutex<Seen>>,
    pub(super) irqfd: EventFd,
    pub(super) drivers: [FakeDriver; 2],
}

pub(super) fn rig() -> Rig {
    let ram = ram_with_hole();
    let drivers = [FakeDriver::new(&ram, 0x1000, 16), FakeDriver::new(&ram, 0x2_0000, 4)];
    rig_over(&ram, drivers)
}

/// Fresh registers over memory that is there already.
pub(super) fn rig_over(ram: &GuestRam, drivers: [FakeDriver; 2]) -> Rig {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
    let line = irqfd.try_clone().unwrap();
    let page = ReadPage::unseen().unwrap();
    let transport = Transport::new(Probe(Arc::clone(&seen)), ram.clone(), line, page).unwrap();
    Rig { transport, seen, irqfd, drivers }
}

impl Rig {
    pub(super) fn bring_up(&mut self, features: u64) -> u32 {
        let [first, second] = &self.drivers;
        bring_up(&mut self.transport, features, &[first, second])
    }
    pub(super) fn status(&mut self) -> u32 {
        read32(&mut self.transport, 0x70)
    }
    pub(super) fn is_active(&self) -> bool {
        self.seen.lock().unwrap().activation.is_some()
    }
}

#[test]
fn identification_registers_read_as_the_standard_says() {
    let mut rig = rig();
    let expected = [(0x00, 0x7472_6976), (0x04, 2), (0x08, 42), (0x0c, VENDOR_ID), (0xfc, 0), (0x70, 0)];
    for (offset, value) in expected {
        assert_eq!(read32(&mut rig.transport, offset), value, "{offset:#x}");
    }
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(read32(&mut rig.transport, offset), u32::MAX, "no shared memory");
    }
    assert_eq!(offered_features(&mut rig.transport), VERSION_1 | 1 << 28 | 0b1010);
    write32(&mut rig.transport, 0x14, 2);
    assert_eq!(read32(&mut rig.transport, 0x10), 0);
}

#[test]
fn driver_that_follows_the_standard_gets_its_queues() {
    let mut rig = rig();
    assert_eq!(rig.bring_up(VERSION_1 | 0b1000), 0xf);
    let seen = rig.seen.lock().unwrap();
    let activation = seen.activation.as_ref().unwrap();
    assert_eq!(activation.features, VERSION_1 | 0b1000);
    let sizes: Vec<_> = activation.queues.iter().map(Queue::size).collect();
    assert_eq!(sizes, [16, 4]);
    assert_eq!(activation.kicks.len(), 2);
}

#[test]
fn features_need_version_1_and_nothing_that_was_not_offered() {
    for (features, accepted) in [
        (VERSION_1, true),
        (VERSION_1 | 0b1010 | 1 << 28, true),
        (0, false),
        (0b1010, false),
        (VERSION_1 | 1, false),
        (VERSION_1 | 1 << 63, false),
        (VERSION_1 | 1 << 29, false),
    ] {
        let mut rig = rig();
        let status = negotiate(&mut rig.transport, features);
        assert_eq!(status, if accepted { 0xb } else { 0x3 }, "{features:#x}");
    }
}

#[test]
fn features_are_frozen_by_features_ok() {
    let mut rig = rig();
    negotiate(&mut rig.transport, VERSION_1);
    write32(&mut rig.transport, 0x24, 0);
    write32(&mut rig.transport, 0x20, u32::MAX);
    let [first, second] = &rig.drivers;
    for (index, driver) in (0..).zip([first, second]) {
        place_queue(&mut rig.transport, index, driver);
        write32(&mut rig.transport, 0x44, 1);
    }
    write32(&mut rig.transport, 0x70, 0xf);
    assert_eq!(rig.seen.lock().unwrap().activation.as_ref().unwrap().features, VERSION_1);
}

#[test]
fn steps_out_of_order_do_not_happen() {
    for (write, expected) in [(2, 0), (4, 0), (8, 0), (0xc, 0), (0x4, 0), (5, 1), (9, 1), (0x40, 0)] {
        let mut rig = rig();
        write32(&mut rig.transport, 0x70, write);
        assert_eq!(rig.status(), expected, "status written {write:#x}");
    }
    let mut rig = rig();
    negotiate(&mut rig.transport, VERSION_1);
    write32(&mut rig.transport, 0x70, 1);
    assert_eq!(rig.status(), 0xb, "bits are cleared by a reset only");
}

#[test]
fn failed_stays_until_reset_and_bars_activation() {
    let mut rig = rig();
    negotiate(&mut rig.transport, VERSION_1);
    write32(&mut rig.transport, 0x70, 0x8b);
    assert_eq!(rig.status(), 0x8b);
    write32(&mut rig.transport, 0x70, 0xf);
    assert_eq!(rig.status(), 0x8b);
    assert!(!rig.is_active());
    assert_eq!(rig.bring_up(VERSION_1), 0xf);
    assert!(rig.is_active());
}

#[test]
fn queue_size_cannot_change_after_activation() {
    let mut rig = rig();
    rig.bring_up(VERSION_1);
    write32(&mut rig.transport, 0x30, 1);
    for offset in [0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        write32(&mut rig.transport, offset, 0x8000);
    }
    write32(&mut rig.transport, 0x44, 0);
    assert_eq!(read32(&mut rig.transport, 0x44), 1);
    let registers = rig.transport.queues[1];
    assert_eq!(registers.geometry, rig.drivers[1].geometry());
    let seen = rig.seen.lock().unwrap();
    assert_eq!(seen.activation.as_ref().unwrap().queues[1].size(), 4);
    assert_eq!(seen.activations, 1);
}

#[test]
fn geometry_of_a_ready_queue_is_frozen_and_of_an_unready_one_is_not() {
    let mut rig = rig();
    negotiate(&mut rig.transport, VERSION_1);
    place_queue(&mut rig.transport, 0, &rig.drivers[0]);
    write32(&mut rig.transport, 0x44, 1);
    write32(&mut rig.transport, 0x38, 2);
    assert_eq!(rig.transport.queues[0].geometry.size, 16);
    write32(&mut rig.transport, 0x44, 0);
    write32(&mut rig.transport, 0x38, 2);
    assert_eq!(rig.transport.queues[0].geometry.size, 2);
}

#[test]
fn queue_registers_before_features_ok_change_nothing() {
    let mut rig = rig();
    place_queue(&mut rig.transport, 0, &rig.drivers[0]);
    write32(&mut rig.transport, 0x44, 1);
    assert_eq!(read32(&mut rig.transport, 0x44), 0);
    assert_eq!(rig.transport.queues[0].geometry, Geometry::default());
}

#[test]
fn queues_that_do_not_exist_read_as_absent_and_take_no_writes() {
    let mut rig = rig();
    negotiate(&mut rig.transport, VERSION_1);
    for index in [2, 3, 0xffff, u32::MAX] {
        place_queue(&mut rig.transport, index, &rig.drivers[0]);
        write32(&mut rig.transport, 0x44, 1);
        assert_eq!(read32(&mut rig.transport, 0x34), 0);
        assert_eq!(read32(&mut rig.transport, 0x44), 0);
    }
    for (index, max) in (0..).zip(MAXIMA) {
        write32(&mut rig.transport, 0x30, index);
        assert_eq!(read32(&mut rig.transport, 0x34), u32::from(max));
    }
}

#[test]
fn bad_geometry_needs_reset_and_the_monitor_lives() {
    type Spoil = fn(&mut FakeDriver);
    let spoils: [Spoil; 5] = [|d| d.size = 0, |d| d.size = 12, |d| d.size = 32, |d| d.desc += 8, |d| d.used = HOLE];
    for spoil in spoils {
        let mut rig = rig();
        spoil(&mut rig.drivers[0]);
        assert_eq!(rig.bring_up(VERSION_1), 0x4f, "DEVICE_NEEDS_RESET");
        assert!(!rig.is_active());
        assert_eq!(read32(&mut rig.transport, 0x60), 2, "a configuration change");
        assert_eq!(rig.irqfd.read().unwrap(), 1);
        assert_eq!(rig.transport.interrupt().faults().0, 1);
        rig.drivers =
            [FakeDriver::new(&rig.drivers[0].ram, 0x1000, 16), FakeDriver::new(&rig.drivers[0].ram, 0x2_0000, 4)];
        assert_eq!(rig.bring_up(VERSION_1), 0xf, "a reset mends it");
    }
}

#[test]
fn queue_that_is_not_ready_bars_activation() {
    let mut rig = rig();
    negotiate(&mut rig.transport, VERSION_1);
    place_queue(&mut rig.transport, 0, &rig.drivers[0]);
    write32(&mut rig.transport, 0x44, 1);
    write32(&mut rig.transport, 0x70, 0xf);
    assert_eq!(rig.status(), 0x4f);
    assert_eq!(rig.transport.interrupt().faults().1, Some(GuestFault::QueueNotReady { index: 1 }));
}

#[test]
fn fault_of_a_queue_latches_needs_reset_and_interrupts_once() {
    let mut rig = rig();
    rig.bring_up(VERSION_1);
    let interrupt = rig.transport.interrupt().clone();
    interrupt.report_fault(GuestFault::Direction);
    interrupt.report_fault(GuestFault::TotalLength);
    assert_eq!(rig.status(), 0x4f);
    assert_eq!(rig.irqfd.read().unwrap(), 1);
    assert_eq!(interrupt.faults(), (2, Some(GuestFault::Direction)));
    write32(&mut rig.transport, 0x70, 0);
    assert_eq!((rig.status(), read32(&mut rig.transport, 0x60)), (0, 0));
    assert_eq!(interrupt.faults().0, 2, "counted for ever");
}

#[test]
fn interrupt_causes_add_up_and_are_acknowledged_one_by_one() {
    let mut rig = rig();
    rig.bring_up(VERSION_1);
    let interrupt = rig.transport.interrupt().clone();
    interrupt.signal_used();
    interrupt.signal_config();
    assert_eq!(read32(&mut rig.transport, 0x60), 3);
    write32(&mut rig.transport, 0x64, 1);
    assert_eq!(read32(&mut rig.transport, 0x60), 2);
    write32(&mut rig.transport, 0x64, u32::MAX);
    assert_eq!(read32(&mut rig.transport, 0x60), 0);
    assert_eq!(rig.irqfd.read().unwrap(), 2);
}

#[test]
fn kick_register_wakes_its_queue_only_when_active() {
    let mut rig = rig();
    write32(&mut rig.transport, 0x50, 0);
    assert!(rig.transport.kicks()[0].read().is_err(), "would block");
    rig.bring_up(VERSION_1);
    for index in [1, 2, 0xffff_ffff] {
        write32(&mut rig.transport, 0x50, index);
    }
    assert!(rig.transport.kicks()[0].read().is_err());
    assert_eq!(rig.transport.kicks()[1].read().unwrap(), 1);
}

#[test]
fn reset_lets_go_of_everything() {
    let mut rig = rig();
    rig.bring_up(VERSION_1);
    rig.drivers[0].offer(&[Part::Give(b"x")]);
    write32(&mut rig.transport, 0x70, 0);
    assert!(!rig.is_active());
    assert_eq!(rig.seen.lock().unwrap().resets, 2, "bring-up begins with one");
    assert_eq!(rig.transport.driver_features, 0);
    assert!(rig.transport.queues.iter().all(|queue| !queue.ready && queue.geometry == Geometry::default()));
    assert_eq!(rig.bring_up(VERSION_1), 0xf);
}

#[test]
fn config_space_is_read_at_any_width_and_never_written() {
    let mut rig = rig();
    for len in [1, 2, 4, 8] {
        let mut data = vec![0xaa; len];
        rig.transport.read(0x105, &mut data);
        assert_eq!(data, (5..5 + u8::try_from(len).unwrap()).collect::<Vec<_>>());
        rig.transport.write(0x105, &data);
    }
}

#[test]
fn registers_answer_zeros_to_wrong_widths_and_offsets() {
    let mut rig = rig();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0xff, 4), (0xfe, 2), (0x10, 8)] {
        let mut data = vec![0xaa; len];
        rig.transport.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x}, {len} bytes");
        rig.transport.write(offset, &vec![0xff; len]);
    }
    rig.transport.write(0x70, &[1]);
    rig.transport.write(0x70, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.status(), 0);
}

/// The status machine as a table of §3.1.1, apart from the code under test.
#[derive(Debug, Default, Clone, PartialEq)]
struct Model {
    status: u32,
    features: u64,
    selector: u32,
    queue: u32,
    /// (size, ready) of both queues; addresses are always sound in this test.
    queues: [(u32, bool); 2],
    needs_reset: bool,
}

impl Model {
    fn write(&mut self, offset: u64, value: u32) {
        let setup = self.status & 0x8c == 8;
        let queue = self.queues.get_mut(self.queue as usize).filter(|_| setup);
        match (offset, queue) {
            (0x24, _) => self.selector = value,
            (0x30, _) => self.queue = value,
            (0x20, _) if self.status & 0xa == 2 && self.selector < 2 => {
                let shift = 32 * self.selector;
                self.features = self.features & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            (0x38, Some(queue)) if !queue.1 => queue.0 = value,
            (0x44, Some(queue)) => queue.1 = value % 2 == 1,
            (0x70, _) => self.write_status(value),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            *self = Self::default();
            return;
        }
        self.status |= value & 0x80;
        if self.status & 0x80 != 0 {
            return;
        }
        let good = self.features >> 32 == 1 && self.features & 0xffff_ffff & !(0b1010 | 1 << 28) == 0;
        for (bit, needs) in [(1, 0), (2, 1), (8, 3), (4, 11)] {
            if value & bit == 0 || self.status & bit != 0 {
                continue;
            }
            if self.status & needs != needs || (bit == 8 && !good) {
                return;
            }
            self.status |= bit;
            if bit == 4 {
                let sound = |(size, ready): (u32, bool), max| ready && size.is_power_of_two() && size <= max;
                self.needs_reset = !(sound(self.queues[0], 16) && sound(self.queues[1], 8));
            }
        }
    }
}

/// §3.1.1 for both queues, register by register.
pub(super) const BRING_UP: [(u64, u32); 13] = [
    (0x70, 1),
    (0x70, 3),
    (0x24, 1),
    (0x20, 1),
    (0x70, 0xb),
    (0x30, 0),
    (0x38, 16),
    (0x44, 1),
    (0x30, 1),
    (0x38, 8),
    (0x44, 1),
    (0x70, 0xf),
    (0x50, 0),
];

#[test]
fn the_models_bring_up_activates() {
    let mut model = Model::default();
    for (offset, value) in BRING_UP {
        model.write(offset, value);
    }
    assert_eq!((model.status, model.needs_reset), (0xf, false));
}

pub(super) fn any_write() -> impl Strategy<Value = (u64, u32)> {
    let status = prop_oneof![
        4 => prop::sample::select(vec![1_u32, 3, 0xb, 0xf, 0xf]),
        1 => prop::sample::select(vec![0_u32, 0x80, 0x40, 0x8, 0x4, 0xc]),
    ];
    prop_oneof![
        4 => (Just(0x70), status),
        2 => (Just(0x24), 0_u32..3),
        2 => (Just(0x20), prop::sample::select(vec![1_u32, 1, 0b1000, 0, u32::MAX])),
        2 => (Just(0x30), 0_u32..3),
        2 => (Just(0x38), prop::sample::select(vec![4_u32, 8, 16, 0, 3, 32])),
        3 => (Just(0x44), 0_u32..2),
        1 => (0_u64..0x40, any::<u32>()).prop_map(|(word, value)| (0x80 + word, value))
            .prop_filter("addresses stay sound", |(offset, _)| *offset >= 0xa8),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A bring-up cut short, then random writes: the machine agrees with the table after each.
    #[test]
    fn random_writes_agree_with_the_model(
        steps in 0..=BRING_UP.len(),
        writes in prop::collection::vec(any_write(), 1..120),
    ) {
        let mut rig = rig();
        let mut model = Model::default();
        for (offset, value) in BRING_UP.into_iter().take(steps).chain(writes) {
            write32(&mut rig.transport, offset, value);
            model.write(offset, value);
            let needs_reset = if model.needs_reset { 0x40 } else { 0 };
            prop_assert_eq!(rig.status(), model.status | needs_reset);
            let active = model.status & 4 != 0 && !model.needs_reset;
            prop_assert_eq!(rig.is_active(), active);
            for (registers, (size, ready)) in rig.transport.queues.iter().zip(model.queues) {
                prop_assert_eq!((registers.geometry.size, registers.ready), (size, ready));
            }
            if let Some(activation) = &rig.seen.lock().unwrap().activation {
                for (queue, (size, _)) in activation.queues.iter().zip(model.queues) {
                    prop_assert_eq!(u32::from(queue.size()), size, "geometry is frozen");
                }
            }
        }
    }

    /// Any access at all: answered, no panic, and only whole aligned words have an effect.
    #[test]
    fn any_access_is_answered(
        accesses in prop::collection::vec((any::<bool>(), 0_u64..0x1000, 0_usize..9, any::<[u8; 8]>()), 0..60),
    ) {
        let mut rig = rig();
        for (write, offset, len, bytes) in accesses {
            if write {
                rig.transport.write(offset, &bytes[..len]);
            } else {
                let mut data = bytes;
                rig.transport.read(offset, &mut data[..len]);
            }
        }
    }
}

impl Rig {
    /// What the guest reads in the page is what the registers would answer.
    pub(super) fn assert_shown(&mut self) {
        for offset in (0..0x200).step_by(4) {
            let register = read32(&mut self.transport, offset);
            assert_eq!(self.transport.page.get(offset), register, "{offset:#x}");
        }
    }
}

#[test]
fn page_shows_the_registers_at_every_step() {
    let mut rig = rig();
    rig.assert_shown();
    assert_eq!(rig.transport.page.get(0), 0x7472_6976);
    for (offset, value) in [(0x14, 1), (0x14, 0), (0x30, 1), (0x30, 7), (0x70, 1), (0x70, 3)] {
        write32(&mut rig.transport, offset, value);
        rig.assert_shown();
    }
    rig.bring_up(VERSION_1);
    rig.assert_shown();
    let interrupt = rig.transport.interrupt().clone();
    interrupt.signal_used();
    rig.assert_shown();
    assert_eq!(rig.transport.page.get(0x60), 1);
    interrupt.report_fault(GuestFault::Direction);
    rig.assert_shown();
    assert_eq!(rig.transport.page.get(0x60), 3);
    assert_eq!(rig.transport.page.get(0x70), 0x4f, "DEVICE_NEEDS_RESET");
    write32(&mut rig.transport, 0x64, 3);
    rig.assert_shown();
    assert_eq!(rig.transport.page.get(0x60), 0);
    write32(&mut rig.transport, 0x70, 0);
    rig.assert_shown();
    assert_eq!(rig.transport.page.get(0x70), 0);
}

proptest! {
    /// Whatever a driver writes, at whatever width and place.
    #[test]
    fn page_shows_the_registers_whatever_is_written(writes in prop::collection::vec((0u64..0x30, any::<u32>(), 1usize..9), 0..60)) {
        let mut rig = rig();
        for (word, value, width) in writes {
            let bytes = u64::from(value).to_le_bytes();
            rig.transport.write(word * 4, &bytes[..width]);
            let low = value & 0xf;
            write32(&mut rig.transport, [0x70, 0x30, 0x14, 0x44][width % 4], low);
            rig.assert_shown();
        }
    }
}
