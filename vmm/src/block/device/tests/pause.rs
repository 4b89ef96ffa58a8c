// SPDX-License-Identifier: Apache-2.0
//! A device that stands still, goes on, and goes on in another machine.

use super::*;
use crate::virtio::fake::copy_of;
use crate::virtio::{QueueState, TransportState};

const EVENT_IDX: u64 = 1 << 29;
/// Flushes, and zeros to be written.
const FLUSH_AND_ZEROES: u64 = 1 << 9 | 1 << 14;

impl Guest {
    /// As a machine does it: everything that a twin needs to know.
    fn pause(&mut self) -> TransportState {
        let queue = self.transport.device_mut().pause().and_then(|queue| queue.state());
        self.transport.state(queue.into_iter().collect())
    }

    fn resume(&mut self, state: &TransportState) {
        self.transport.resume(&state.serving).unwrap();
    }

    fn bring_up_with(&mut self, features: u64) {
        self.driver.clear();
        assert_eq!(bring_up(&mut self.transport, VERSION_1 | features, &[&self.driver]), 0xf);
    }

    /// Another machine with a copy of the memory and the disk of this one, which is at its end.
    fn twin(mut self) -> Guest {
        let state = self.pause();
        let disk = self.transport.device_mut().take_disk().unwrap();
        let driver = self.driver.moved_to(&copy_of(&self.driver.ram));
        let mut twin = guest_over(driver, disk, || Ok(()));
        twin.transport.restore(&state).unwrap();
        twin
    }

    /// Waits until the device has told the driver, or has had every chance to.
    fn is_told(&self) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            if self.irqfd.read().is_ok() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }
}

fn sector_bytes(sector: usize) -> Vec<u8> {
    Plain::new(true).bytes[sector * 512..(sector + 1) * 512].to_vec()
}

#[test]
fn the_request_in_flight_is_finished_and_the_next_one_waits_for_the_end_of_the_pause() {
    let (open, gate) = channel();
    let (at_gate, arrived) = sync_channel(0);
    let mut guest = guest(Plain { gate: Some(gate), at_gate: Some(at_gate), ..Plain::new(true) });
    guest.bring_up();
    let (slow, waiting) = (guest.offer_read(13), guest.offer_read(14));
    guest.kick();
    arrived.recv_timeout(LIMIT).unwrap();
    let (done, paused) = channel();
    let pausing = std::thread::spawn(move || {
        let state = guest.pause();
        done.send(()).unwrap();
        (guest, state)
    });
    assert!(paused.recv_timeout(Duration::from_millis(100)).is_err(), "a request is in flight");
    open.send(()).unwrap();
    let (mut guest, state) = pausing.join().unwrap();
    assert_eq!((state.serving[0].next_avail, state.serving[0].next_used), (1, 1));
    assert_eq!(guest.driver.used(), [(u32::from(slow.head), 513)]);
    assert_eq!(guest.driver.taken(&slow, 0), sector_bytes(13));
    assert_eq!(guest.driver.taken(&waiting, 0), [0xee; 512], "nothing is begun while it stands still");
    guest.kick();
    std::thread::sleep(Duration::from_millis(20));
    assert!(guest.driver.used().is_empty());
    guest.resume(&state);
    assert_eq!(guest.used(1), [(u32::from(waiting.head), 513)]);
    assert_eq!(guest.driver.taken(&waiting, 0), sector_bytes(14));
}

#[test]
fn what_was_offered_before_the_pause_needs_no_kick_afterwards() {
    let mut guest = guest(Plain::new(true));
    guest.bring_up();
    let state = guest.pause();
    let offered = guest.offer_read(7);
    guest.resume(&state);
    guest.used(1);
    assert_eq!(guest.driver.taken(&offered, 0), sector_bytes(7));
}

#[test]
fn a_second_pause_finds_nothing_to_stop() {
    let mut guest = guest(Plain::new(true));
    guest.bring_up();
    let first = guest.pause();
    assert_eq!(first.serving.len(), 1);
    assert!(guest.transport.device_mut().pause().is_none());
    assert!(guest.transport.device_mut().disk().is_some());
    guest.resume(&first);
    assert_eq!(guest.read(5), sector_bytes(5));
}

#[test]
fn a_device_without_a_driver_has_a_disk_and_no_queue() {
    let mut guest = guest(Plain::new(true));
    assert_eq!(guest.pause(), TransportState { queues: vec![Default::default()], ..Default::default() });
    assert_eq!(guest.transport.device_mut().disk().unwrap().len_bytes(), SECTORS as u64 * 512);
    assert_eq!(guest.bring_up(), 0xf);
    assert!(guest.transport.device_mut().disk().is_none(), "its thread has it");
    assert_eq!(guest.read(5), sector_bytes(5));
}

#[test]
fn a_reset_in_the_pause_forgets_the_queue_and_the_driver_may_begin_anew() {
    let mut guest = guest(Plain::new(true));
    guest.bring_up();
    guest.offer_read(5);
    let state = guest.pause();
    write32(&mut guest.transport, 0x70, 0);
    assert_eq!(read32(&mut guest.transport, 0x70), 0);
    guest.transport.resume(&state.serving).unwrap();
    assert!(guest.transport.device_mut().disk().is_some(), "nothing is served before DRIVER_OK");
    assert_eq!(guest.bring_up(), 0xf);
    assert_eq!(guest.read(9), sector_bytes(9));
}

#[test]
fn many_pauses_lose_and_repeat_nothing() {
    let mut guest = guest(Plain::new(true));
    guest.bring_up();
    for round in 0..300 {
        let offered = guest.offer_read(round % SECTORS);
        guest.kick();
        let state = guest.pause();
        guest.resume(&state);
        assert_eq!(guest.used(1), [(u32::from(offered.head), 513)], "{round}");
        assert_eq!(guest.driver.taken(&offered, 0), sector_bytes(round % SECTORS));
    }
}

#[test]
fn a_latched_queue_stays_latched_through_a_pause_and_in_the_twin_until_a_reset() {
    let mut guest = guest(Plain::new(true));
    guest.bring_up();
    guest.driver.set_avail_idx(0x8000);
    guest.kick();
    guest.wait_status(0x4f);
    let state = guest.pause();
    assert!(state.needs_reset);
    guest.resume(&state);
    assert!(guest.transport.device_mut().disk().is_some(), "nobody serves a latched queue");
    let mut twin = guest.twin();
    assert_eq!(read32(&mut twin.transport, 0x70), 0x4f);
    twin.kick();
    assert!(twin.driver.used().is_empty());
    assert_eq!(twin.bring_up(), 0xf);
    assert_eq!(twin.read(3), sector_bytes(3));
}

#[test]
fn a_device_whose_disk_was_taken_serves_no_more() {
    let mut guest = guest(Plain::new(true));
    guest.bring_up();
    guest.pause();
    assert!(guest.transport.device_mut().take_disk().is_some());
    assert!(guest.transport.device_mut().take_disk().is_none());
    assert!(guest.transport.device_mut().disk().is_none());
    assert_eq!(guest.bring_up(), 0x4f, "not the guest's fault, but it is told");
    assert_eq!(guest.transport.interrupt().faults().0, 0);
}

#[test]
fn the_twin_serves_what_waited_with_indices_about_to_wrap() {
    for start in [0, 65_533, 65_535] {
        let mut guest = guest(Plain::new(true));
        guest.bring_up_with(EVENT_IDX);
        let state = guest.pause();
        let queue = QueueState { next_avail: start, next_used: start, ..state.serving[0] };
        guest.driver.start_at(start);
        guest.resume(&TransportState { serving: vec![queue], ..state });
        assert_eq!(guest.read(1), sector_bytes(1));
        let state = guest.pause();
        let offered: Vec<_> = (2..8).map(|sector| guest.offer_read(sector)).collect();
        let driver = guest.driver.moved_to(&copy_of(&guest.driver.ram));
        let disk = guest.transport.device_mut().take_disk().unwrap();
        let mut twin = guest_over(driver, disk, || Ok(()));
        twin.transport.restore(&state).unwrap();
        let heads: Vec<_> = twin.used(6).iter().map(|(head, _)| *head).collect();
        assert_eq!(heads, offered.iter().map(|offered| u32::from(offered.head)).collect::<Vec<_>>(), "{start}");
        for (sector, offered) in (2..8).zip(&offered) {
            assert_eq!(twin.driver.taken(offered, 0), sector_bytes(sector));
        }
        assert!(guest.driver.used().is_empty(), "the first machine is at its end");
    }
}

/// The interrupt of the request that the pause waited for reaches a vCPU whose state was taken
/// already: without being told again the twin's driver would wait for ever.
#[test]
fn the_twins_driver_is_told_of_what_it_has_not_seen_and_left_alone_when_it_has() {
    for has_seen in [false, true] {
        let mut guest = guest(Plain::new(true));
        guest.bring_up_with(EVENT_IDX);
        guest.read(1);
        assert!(guest.is_told());
        guest.driver.set_used_event(if has_seen { 1 } else { 0 });
        assert_eq!(guest.twin().is_told(), !has_seen);
    }
}

/// What happens next to a disk and its guest.
#[derive(Debug, Clone)]
enum Step {
    Offer { kind: u32, sector: usize, count: usize, fill: u8 },
    Kick,
    Await,
    Pause,
    Twin,
    Reset,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0_u32..4, 0..SECTORS, 1_usize..9, any::<u8>())
            .prop_map(|(kind, sector, count, fill)| Step::Offer { kind, sector, count: count.min(SECTORS - sector), fill }),
        6 => Just(Step::Kick),
        2 => Just(Step::Await),
        2 => Just(Step::Pause),
        2 => Just(Step::Twin),
        1 => Just(Step::Reset),
    ]
}

/// Requests under way: what each will read.
struct Flow {
    guest: Guest,
    model: Vec<u8>,
    waiting: Vec<(Offered, Vec<u8>)>,
}

/// So many requests of 4 KiB fit the fake driver's memory at a time.
const WAITING_MAX: usize = 10;

impl Flow {
    fn offer(&mut self, kind: u32, span: std::ops::Range<usize>, fill: u8) {
        let sector = span.start / 512;
        let count = u32::try_from(span.len() / 512).unwrap();
        let range = [&(sector as u64).to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
        let (kind, data, wanted) = match kind {
            0 => (1, vec![fill; span.len()], 0),
            1 => (13, range, 0),
            2 => (4, Vec::new(), 0),
            _ => (0, Vec::new(), u32::try_from(span.len()).unwrap()),
        };
        match kind {
            1 => self.model[span.clone()].fill(fill),
            13 => self.model[span.clone()].fill(0),
            _ => {}
        }
        let header = header(kind, sector);
        let offered =
            self.guest.driver.offer(&[Part::Give(&header), Part::Give(&data), Part::Take(wanted), Part::Take(1)]);
        let read = if kind == 0 { self.model[span].to_vec() } else { Vec::new() };
        self.waiting.push((offered, read));
    }

    /// Takes what was completed; each is one of those that wait, and right.
    fn collect(&mut self) -> Result<(), TestCaseError> {
        for (head, _) in self.guest.driver.used() {
            let at = self.waiting.iter().position(|(offered, _)| u32::from(offered.head) == head);
            prop_assert_eq!(at, Some(0), "completed once, in order");
            let (offered, read) = self.waiting.remove(0);
            prop_assert_eq!(self.guest.driver.taken(&offered, 1), [0]);
            prop_assert_eq!(self.guest.driver.taken(&offered, 0), read);
        }
        Ok(())
    }

    fn await_all(&mut self) -> Result<(), TestCaseError> {
        self.guest.kick();
        let start = Instant::now();
        while !self.waiting.is_empty() {
            prop_assert!(start.elapsed() < LIMIT, "{} requests are lost", self.waiting.len());
            self.collect()?;
            std::thread::yield_now();
        }
        Ok(())
    }

    fn step(mut self, step: Step) -> Result<Self, TestCaseError> {
        match step {
            Step::Offer { kind, sector, count, fill } => {
                if self.waiting.len() == WAITING_MAX {
                    self.await_all()?;
                }
                self.offer(kind, sector * 512..(sector + count) * 512, fill);
            }
            Step::Kick => self.guest.kick(),
            Step::Await => self.await_all()?,
            Step::Pause => {
                let state = self.guest.pause();
                self.collect()?;
                self.guest.resume(&state);
            }
            Step::Twin => self.guest = self.guest.twin(),
            Step::Reset => {
                self.await_all()?;
                prop_assert_eq!(self.guest.bring_up(), 0xf);
            }
        }
        self.collect()?;
        Ok(self)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Requests, pauses and twins in any order, against an array: every request is completed
    /// once, in order and with the right bytes.
    #[test]
    fn a_disk_that_wanders_agrees_with_an_array(
        features in prop::sample::select(vec![0, EVENT_IDX]),
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        let base = Plain::new(true);
        let model = base.bytes.clone();
        let mut guest = guest(Overlay::in_memory(Box::new(base), 1 << 20).unwrap());
        guest.bring_up_with(features | FLUSH_AND_ZEROES);
        let mut flow = Flow { guest, model, waiting: Vec::new() };
        for step in steps {
            flow = flow.step(step)?;
        }
        flow.await_all()?;
        for sector in (0..SECTORS).step_by(8) {
            flow.offer(3, sector * 512..(sector + 8) * 512, 0);
            flow.await_all()?;
        }
    }
}
