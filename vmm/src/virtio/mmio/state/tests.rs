// SPDX-License-Identifier: Apache-2.0
//! Registers out of one machine and into another: a driver finds what it had, and what no driver
//! could have had is refused.

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::super::tests::{BRING_UP, Rig, VERSION_1, any_write, rig, rig_over};
use super::*;
use crate::virtio::fake::{HOLE, Part, copy_of, read32, write32};

impl Rig {
    /// Takes the state as a machine does: the device has let go of its queues.
    fn pause(&mut self) -> TransportState {
        let activation = self.seen.lock().unwrap().activation.take();
        let queues = activation.iter().flat_map(|activation| &activation.queues);
        let serving = queues.map(|queue| queue.state().expect("nothing is in flight")).collect();
        self.transport.state(serving)
    }

    /// The state, with the device going on.
    fn state(&mut self) -> TransportState {
        let state = self.pause();
        self.transport.resume(&state.serving).unwrap();
        state
    }

    /// Fresh registers over a copy of the memory.
    fn fresh(&self) -> Rig {
        let ram = copy_of(&self.drivers[0].ram);
        let drivers = [0, 1].map(|index: usize| self.drivers[index].moved_to(&ram));
        rig_over(&ram, drivers)
    }

    /// Another machine that goes on where this one is.
    fn twin(&mut self) -> Rig {
        let state = self.state();
        let mut twin = self.fresh();
        twin.transport.restore(&state).unwrap();
        twin
    }

    /// Serves one chain of queue 0: what it gave.
    fn serve(&mut self) -> Option<Vec<u8>> {
        let mut seen = self.seen.lock().unwrap();
        let queue = &mut seen.activation.as_mut()?.queues[0];
        let chain = queue.pop().unwrap()?;
        let mut bytes = vec![0; chain.readable_bytes()];
        chain.reader().read_exact(&mut bytes).unwrap();
        queue.push_used(chain).unwrap();
        Some(bytes)
    }

    fn serve_all(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.serve()).collect()
    }

    fn features(&self) -> Option<u64> {
        self.seen.lock().unwrap().activation.as_ref().map(|activation| activation.features)
    }
}

/// Every register reads alike, in the page too.
fn assert_alike(one: &mut Rig, other: &mut Rig) {
    for offset in (0..0x200).step_by(4) {
        assert_eq!(read32(&mut one.transport, offset), read32(&mut other.transport, offset), "{offset:#x}");
    }
    one.assert_shown();
    other.assert_shown();
}

#[test]
fn untouched_registers_have_the_state_of_a_reset() {
    let state = rig().state();
    assert_eq!(state, TransportState { queues: vec![QueueRegisters::default(); 2], ..Default::default() });
}

#[test]
fn a_bring_up_that_is_cut_anywhere_goes_on_in_the_twin_and_at_home() {
    for cut in 0..=BRING_UP.len() {
        let (before, after) = BRING_UP.split_at(cut);
        let mut home = rig();
        before.iter().for_each(|(offset, value)| write32(&mut home.transport, *offset, *value));
        let mut twin = home.twin();
        assert_alike(&mut home, &mut twin);
        assert_eq!(home.is_active(), twin.is_active(), "{cut}");
        for (offset, value) in after {
            write32(&mut home.transport, *offset, *value);
            write32(&mut twin.transport, *offset, *value);
            assert_alike(&mut home, &mut twin);
        }
        assert_eq!(twin.status(), 0xf, "{cut}");
        assert_eq!((home.features(), twin.features()), (Some(VERSION_1), Some(VERSION_1)), "{cut}");
        assert_eq!(twin.seen.lock().unwrap().activations, 1, "{cut}");
    }
}

#[test]
fn a_driver_that_gave_up_has_given_up_in_the_twin() {
    let mut home = rig();
    for (offset, value) in BRING_UP.into_iter().take(7) {
        write32(&mut home.transport, offset, value);
    }
    write32(&mut home.transport, 0x70, 0x80);
    let mut twin = home.twin();
    assert_eq!(twin.status(), 0x8b);
    write32(&mut twin.transport, 0x70, 0xf);
    assert_eq!((twin.status(), twin.is_active()), (0x8b, false), "FAILED bars activation");
    assert_eq!(twin.bring_up(VERSION_1), 0xf, "until a reset");
}

#[test]
fn cause_and_latch_go_along_and_nothing_is_raised_for_them() {
    let mut home = rig();
    home.bring_up(VERSION_1);
    home.transport.interrupt().signal_used();
    home.transport.interrupt().report_fault(GuestFault::Direction);
    let mut twin = home.twin();
    assert_alike(&mut home, &mut twin);
    assert_eq!(read32(&mut twin.transport, 0x60), 3);
    assert_eq!(twin.status(), 0x4f, "DEVICE_NEEDS_RESET");
    assert!(!twin.is_active(), "a latched queue is not served");
    assert!(twin.irqfd.read().is_err(), "the driver was told at home");
    write32(&mut twin.transport, 0x64, 3);
    assert_eq!(read32(&mut twin.transport, 0x60), 0);
    assert_eq!(twin.bring_up(VERSION_1), 0xf, "the reset clears the latch");
    assert!(twin.is_active());
    assert_eq!(twin.transport.interrupt().faults().0, 0, "the fault was counted where it happened");
}

#[test]
fn causes_that_do_not_exist_are_not_shown() {
    let mut home = rig();
    home.bring_up(VERSION_1);
    let state = TransportState { interrupt_status: u32::MAX, ..home.state() };
    let mut twin = home.fresh();
    twin.transport.restore(&state).unwrap();
    assert_eq!(read32(&mut twin.transport, 0x60), 3);
}

/// Requests that were offered before the pause and after it, with running indices anywhere.
#[test]
fn every_request_is_served_once_on_either_side() {
    for start in [0, 1, 65_520, 65_534, 65_535] {
        let mut home = rig();
        home.bring_up(VERSION_1);
        let mut state = home.pause();
        (state.serving[0].next_avail, state.serving[0].next_used) = (start, start);
        home.drivers[0].start_at(start);
        home.transport.resume(&state.serving).unwrap();
        let offer = |rig: &mut Rig, text: &[u8]| drop(rig.drivers[0].offer(&[Part::Give(text)]));
        offer(&mut home, b"served before");
        assert_eq!(home.serve(), Some(b"served before".to_vec()), "{start}");
        offer(&mut home, b"waits");
        offer(&mut home, b"waits too");
        let mut twin = home.twin();
        offer(&mut home, b"at home");
        offer(&mut twin, b"in the twin");
        assert_eq!(home.serve_all(), [&b"waits"[..], b"waits too", b"at home"], "{start}");
        assert_eq!(twin.serve_all(), [&b"waits"[..], b"waits too", b"in the twin"], "{start}");
        for rig in [&mut home, &mut twin] {
            assert_eq!(rig.drivers[0].used().len(), 4, "{start}: every one is used once");
            assert_eq!(rig.serve(), None);
        }
    }
}

#[test]
fn a_kick_that_may_have_been_on_its_way_is_given_to_every_queue() {
    let mut home = rig();
    home.bring_up(VERSION_1);
    let twin = home.twin();
    for rig in [&home, &twin] {
        let seen = rig.seen.lock().unwrap();
        let waiting = |kick: &EventFd| kick.read().is_ok();
        assert!(seen.activation.as_ref().unwrap().kicks.iter().all(waiting));
    }
}

#[test]
fn a_completion_is_told_again_as_its_interrupt_may_have_been_on_its_way() {
    let mut home = rig();
    home.bring_up(VERSION_1);
    home.drivers[0].offer(&[Part::Give(b"x")]);
    home.serve();
    let told = |rig: &Rig| {
        let mut seen = rig.seen.lock().unwrap();
        seen.activation.as_mut().unwrap().queues[0].needs_notification().unwrap()
    };
    assert!(told(&home));
    assert!(!told(&home), "once");
    assert!(told(&home.twin()));
    home.drivers[0].set_avail_flags(1);
    assert!(!told(&home.twin()), "a driver that polls is left alone");
}

#[test]
fn a_device_that_was_paused_goes_on_with_the_same_queues() {
    let mut home = rig();
    home.bring_up(VERSION_1 | 0b10);
    for round in 1..4 {
        let state = home.pause();
        assert!(!home.is_active());
        home.transport.resume(&state.serving).unwrap();
        let seen = home.seen.lock().unwrap();
        assert_eq!(seen.activations, round + 1);
        assert_eq!(seen.activation.as_ref().unwrap().features, VERSION_1 | 0b10);
        let sizes: Vec<_> = seen.activation.as_ref().unwrap().queues.iter().map(Queue::size).collect();
        assert_eq!(sizes, [16, 4]);
    }
}

#[test]
fn resuming_what_served_nothing_does_nothing() {
    let mut home = rig();
    home.transport.resume(&[]).unwrap();
    assert!(!home.is_active());
    home.bring_up(VERSION_1);
    let state = home.pause();
    let error = home.transport.resume(&state.serving[..1]).unwrap_err();
    assert!(matches!(error, ActivateError::Guest(GuestFault::Device { .. })), "{error}");
    assert!(!home.is_active());
}

/// A change to the state of a device in use.
type Change = fn(&mut TransportState);

fn refused(changes: &[(&str, Change)]) {
    for (what, change) in changes {
        let mut home = rig();
        home.bring_up(VERSION_1);
        let mut state = home.state();
        change(&mut state);
        let mut twin = home.fresh();
        let result = twin.transport.restore(&state);
        assert!(matches!(result, Err(ActivateError::Guest(_))), "{what}: {result:?}");
        assert!(!twin.is_active(), "{what}");
    }
}

#[test]
fn a_status_that_no_driver_could_have_reached_is_refused() {
    refused(&[
        ("a bit that means nothing", |state| state.status |= 0x10),
        ("the device's own bit", |state| state.status |= 0x40),
        ("a high bit", |state| state.status |= 1 << 31),
        ("DRIVER_OK alone", |state| state.status = 4),
        ("no ACKNOWLEDGE", |state| state.status = 0xe),
        ("no DRIVER", |state| state.status = 0xd),
        ("no FEATURES_OK", |state| state.status = 7),
        ("FAILED and a gap", |state| state.status = 0x84),
    ]);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    refused(&[
        ("one of the device's", |state| state.driver_features |= 1),
        ("one of the queue's", |state| state.driver_features |= feature::EVENT_IDX),
        ("no VERSION_1", |state| state.driver_features = 0b1000),
    ]);
}

#[test]
fn features_are_free_as_long_as_they_are_not_agreed() {
    let mut home = rig();
    write32(&mut home.transport, 0x70, 3);
    write32(&mut home.transport, 0x20, u32::MAX);
    let mut twin = home.twin();
    write32(&mut twin.transport, 0x70, 0xb);
    assert_eq!(twin.status(), 3, "refused where it always was: at FEATURES_OK");
}

#[test]
fn queues_that_the_device_has_not_are_refused() {
    refused(&[
        ("one register set less", |state| state.queues.truncate(1)),
        ("one register set more", |state| state.queues.push(QueueRegisters::default())),
        ("none at all", |state| state.queues.clear()),
        ("one served less", |state| state.serving.truncate(1)),
        ("one served more", |state| state.serving.push(state.serving[0])),
        ("none served", |state| state.serving.clear()),
        ("served before DRIVER_OK", |state| state.status = 0xb),
        ("served after a reset", |state| state.status = 0),
        ("served where it is not", |state| state.serving[0].geometry.avail += 2),
        ("served but not ready", |state| state.queues[1].ready = false),
    ]);
}

/// Both halves of the state agree, so what they say of the place is looked at.
fn place(state: &mut TransportState, change: fn(&mut Geometry)) {
    change(&mut state.queues[0].geometry);
    change(&mut state.serving[0].geometry);
}

#[test]
fn a_queue_outside_memory_or_of_no_size_is_refused() {
    refused(&[
        ("a table in the hole", |state| place(state, |geometry| geometry.descriptors = HOLE)),
        ("a ring that reaches into it", |state| place(state, |geometry| geometry.used = HOLE - 4)),
        ("the end of the address space", |state| place(state, |geometry| geometry.avail = u64::MAX - 1)),
        ("a table off its alignment", |state| place(state, |geometry| geometry.descriptors += 8)),
        ("no descriptors", |state| place(state, |geometry| geometry.size = 0)),
        ("no power of two", |state| place(state, |geometry| geometry.size = 12)),
        ("more than was offered", |state| place(state, |geometry| geometry.size = 32)),
    ]);
}

#[test]
fn a_latched_device_is_taken_as_it_is_whether_its_queues_are_known_or_not() {
    for keeps_queues in [true, false] {
        let mut home = rig();
        home.bring_up(VERSION_1);
        home.transport.interrupt().report_fault(GuestFault::Direction);
        let mut state = home.pause();
        assert_eq!((state.needs_reset, state.serving.len()), (true, 2));
        if !keeps_queues {
            state.serving.clear();
        }
        let mut twin = home.fresh();
        twin.transport.restore(&state).unwrap();
        assert_eq!((twin.status(), twin.is_active()), (0x4f, false));
    }
}

/// Something that happens to a device.
#[derive(Debug, Clone, Copy)]
enum Event {
    Write(u64, u32),
    Used,
    Config,
    Fault,
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => any_write().prop_map(|(offset, value)| Event::Write(offset, value)),
        1 => (0_u32..4).prop_map(|value| Event::Write(0x64, value)),
        1 => (0_u32..3).prop_map(|value| Event::Write(0x14, value)),
        1 => Just(Event::Used),
        1 => Just(Event::Config),
        1 => Just(Event::Fault),
    ]
}

fn happen(rig: &mut Rig, event: Event) {
    match event {
        Event::Write(offset, value) => write32(&mut rig.transport, offset, value),
        Event::Used => rig.transport.interrupt().signal_used(),
        Event::Config => rig.transport.interrupt().signal_config(),
        // Only who has queues can find them broken.
        Event::Fault if rig.is_active() => rig.transport.interrupt().report_fault(GuestFault::Direction),
        Event::Fault => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a driver has done, its twin cannot be told from it, then and afterwards.
    #[test]
    fn a_twin_cannot_be_told_from_its_home(
        steps in 0..=BRING_UP.len(),
        before in prop::collection::vec(any_event(), 0..40),
        after in prop::collection::vec(any_event(), 0..40),
    ) {
        let mut home = rig();
        for (offset, value) in BRING_UP.into_iter().take(steps) {
            write32(&mut home.transport, offset, value);
        }
        before.into_iter().for_each(|event| happen(&mut home, event));
        let mut twin = home.twin();
        assert_alike(&mut home, &mut twin);
        prop_assert_eq!(home.is_active(), twin.is_active());
        for event in after {
            happen(&mut home, event);
            happen(&mut twin, event);
            assert_alike(&mut home, &mut twin);
            prop_assert_eq!(home.is_active(), twin.is_active());
        }
        prop_assert_eq!(home.state(), twin.state());
    }

    /// A state of anything is taken or refused, and what was taken can be written down again.
    #[test]
    fn any_state_is_taken_or_refused(
        status in prop_oneof![prop::sample::select(vec![0_u32, 1, 3, 0xb, 0xf, 0x8f]), any::<u32>()],
        features in prop_oneof![Just(VERSION_1), any::<u64>()],
        selectors in any::<[u32; 3]>(),
        latch in any::<bool>(),
        sizes in prop::collection::vec(prop_oneof![Just(8_u32), 0_u32..40], 0..4),
        base in prop_oneof![Just(0x1000_u64), any::<u64>()],
        indices in any::<[u16; 2]>(),
        served in 0_usize..4,
    ) {
        let at = |size: u32| Geometry { size, descriptors: base, avail: base.wrapping_add(0x800), used: base };
        let [next_avail, next_used] = indices;
        let state = TransportState {
            status,
            device_features_sel: selectors[0],
            driver_features_sel: selectors[1],
            driver_features: features,
            queue_sel: selectors[2],
            interrupt_status: selectors[0],
            needs_reset: latch,
            queues: sizes.iter().map(|size| QueueRegisters { geometry: at(*size), ready: true }).collect(),
            serving: sizes.iter().take(served).map(|size| QueueState { geometry: at(*size), next_avail, next_used }).collect(),
        };
        let mut twin = rig();
        if twin.transport.restore(&state).is_ok() {
            twin.assert_shown();
            prop_assert_eq!(twin.state().queues, state.queues);
            write32(&mut twin.transport, 0x70, 0);
            prop_assert_eq!(twin.bring_up(VERSION_1), 0xf);
        }
    }
}
