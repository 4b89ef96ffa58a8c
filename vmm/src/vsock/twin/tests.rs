// SPDX-License-Identifier: Apache-2.0
//! A device and its twin, each with a guest of its own that remembers the same connections.

use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::super::connection::REQUEST_TIMEOUT_MS;
use super::super::event::Event;
use super::super::model::{Endpoint, HOST_PORT, REQUEST, RESPONSE, RST, Wire};
use super::super::rig::{EVENT_IDX, Layout, Rig, VERSION_1, is_at_end, pattern, read_now};
use super::super::table::{HOST_PORT_END, HOST_PORT_FIRST};
use super::*;
use crate::virtio::fake::{Offered, Part};

/// The same as the worker's own.
const RESET_MAX_MS: u64 = 2_000;

/// With `events` buffers for events, as Linux offers eight of 8 bytes.
fn rig_with(features: u64, events: usize) -> (Rig, Vec<Offered>) {
    let mut rig = Rig::inactive(VERSION_1 | features);
    rig.activate();
    rig.give_rx(12, 4096 + 44);
    let offered = (0..events).map(|_| rig.event.offer(&[Part::Take(8)])).collect();
    rig.kicks[2].write(1).unwrap();
    rig.turn();
    (rig, offered)
}

impl Rig {
    /// What the guest was told by events, its buffers given back as Linux does.
    fn events(&mut self) -> usize {
        let used = self.event.used();
        for (_, len) in &used {
            assert_eq!(*len, 4, "an event is its id");
            let wants_kick = self.event.avail_event() == self.event.avail_idx() || self.features & EVENT_IDX == 0;
            self.event.offer(&[Part::Take(8)]);
            if wants_kick {
                self.kicks[2].write(1).unwrap();
            }
        }
        used.len()
    }
}

#[test]
fn a_guest_with_connections_is_told_that_they_are_gone_and_a_twin_has_none_of_them() {
    for features in [0, EVENT_IDX] {
        let (mut home, offered) = rig_with(features, 8);
        let (mut guest, mut host) = home.guest_opens(7);
        let mut twin = home.twin();
        assert_eq!(twin.worker.connections(), 0);
        twin.turn();
        assert_eq!(twin.event.taken(&offered[0], 0), [0, 0, 0, 0, 0xee, 0xee, 0xee, 0xee]);
        assert!(twin.irq.read().is_ok(), "by an interrupt");
        assert_eq!(twin.events(), 1);
        assert!(twin.ops().is_empty(), "nothing is said on connections that are gone");
        // At home nobody has noticed anything.
        host.write_all(b"still here").unwrap();
        assert_eq!(home.deliver(&mut guest), b"still here");
        assert_eq!(home.events(), 0);
    }
}

#[test]
fn a_guest_without_connections_is_told_nothing_and_can_be_called_at_once() {
    let (mut home, _) = rig_with(EVENT_IDX, 8);
    let (mut guest, host) = home.host_opens(80);
    drop(host);
    home.deliver(&mut guest);
    assert_eq!(home.worker.connections(), 0);
    let mut twin = home.twin();
    twin.turn();
    assert_eq!(twin.events(), 0);
    let (mut guest, mut client) = twin.host_opens(81);
    client.write_all(b"at once").unwrap();
    assert_eq!(twin.deliver(&mut guest), b"at once");
}

#[test]
fn nobody_new_enters_before_the_guest_has_dropped_the_old() {
    for features in [0, EVENT_IDX] {
        let (mut home, _) = rig_with(features, 8);
        let _connection = home.guest_opens(7);
        let mut twin = home.twin();
        let mut client = twin.client("CONNECT 80\n");
        for _ in 0..10 {
            assert!(twin.ops().is_empty(), "it would be dropped with the old ones");
        }
        assert_eq!(read_now(&mut client), b"", "nor is it hung up on");
        if features == EVENT_IDX {
            assert_eq!(twin.event.avail_event(), twin.event.avail_idx(), "the next buffer is kicked for");
        }
        assert_eq!(twin.events(), 1, "now the guest has dealt with it");
        assert_eq!(twin.ops(), [REQUEST]);
    }
}

#[test]
fn a_guest_that_takes_the_event_and_gives_no_buffer_back_is_called_after_two_seconds() {
    let (mut home, _) = rig_with(EVENT_IDX, 8);
    let _connection = home.guest_opens(7);
    let mut twin = home.twin();
    let _client = twin.client("CONNECT 80\n");
    twin.turn();
    twin.worker.later(RESET_MAX_MS - 500);
    assert!(twin.ops().is_empty());
    twin.worker.later(500);
    assert_eq!(twin.ops(), [REQUEST]);
}

#[test]
fn the_wait_for_a_guest_that_says_nothing_is_timed() {
    let (mut home, _) = rig_with(EVENT_IDX, 8);
    let _connection = home.guest_opens(7);
    let mut twin = home.twin();
    twin.turn();
    let deadline = twin.worker.link.as_ref().and_then(Link::deadline_ms).unwrap();
    assert!((RESET_MAX_MS..RESET_MAX_MS + 1_000).contains(&deadline), "the worker wakes for it: {deadline}");
}

#[test]
fn a_guest_that_has_no_buffer_for_the_event_gets_it_once_it_has() {
    let (mut home, _) = rig_with(EVENT_IDX, 0);
    let _connection = home.guest_opens(7);
    let mut twin = home.twin();
    let _client = twin.client("CONNECT 80\n");
    twin.worker.later(RESET_MAX_MS + 1);
    assert!(twin.ops().is_empty(), "the time begins when it was told");
    twin.event.offer(&[Part::Take(8)]);
    twin.kicks[2].write(1).unwrap();
    twin.turn();
    assert!(twin.ops().is_empty());
    assert_eq!(twin.events(), 1);
    assert_eq!(twin.ops(), [REQUEST]);
}

/// A fork that is frozen itself before its guest has run.
#[test]
fn a_reset_that_was_not_told_yet_is_told_in_the_twin_of_the_twin() {
    for events in [0, 8] {
        let (mut home, _) = rig_with(EVENT_IDX, events);
        let _connection = home.guest_opens(7);
        let mut between = home.twin();
        if events != 0 {
            // The event lies in the ring, and the guest has not looked.
            between.turn();
        }
        let mut twin = between.twin();
        let _client = twin.client("CONNECT 80\n");
        assert!(twin.ops().is_empty());
        if events == 0 {
            twin.event.offer(&[Part::Take(8)]);
            twin.kicks[2].write(1).unwrap();
            twin.turn();
        }
        assert!(twin.events() >= 1);
        assert_eq!(twin.ops(), [REQUEST]);
    }
}

#[test]
fn host_ports_go_on_so_that_no_old_one_is_taken_for_a_new() {
    let (mut home, _) = rig_with(EVENT_IDX, 8);
    let connections: Vec<_> = (80..85).map(|port| home.host_opens(port)).collect();
    let last = connections.last().unwrap().0.ports.1;
    let mut twin = home.twin();
    twin.turn();
    twin.events();
    let (guest, _client) = twin.host_opens(80);
    assert_eq!(guest.ports.1, last + 1);
}

#[test]
fn a_host_port_that_is_none_is_not_taken_over() {
    for port in [0, 1, HOST_PORT_FIRST - 1, HOST_PORT_END, u32::MAX] {
        let (mut rig, _) = rig_with(EVENT_IDX, 8);
        rig.worker.restore(VsockState { next_host_port: port, had_connections: false });
        assert_eq!(rig.worker.state().0.next_host_port, HOST_PORT_FIRST, "{port:#x}");
    }
    let (mut rig, _) = rig_with(EVENT_IDX, 8);
    rig.worker.restore(VsockState { next_host_port: HOST_PORT_END - 1, had_connections: false });
    let connections = [80, 81].map(|port| rig.host_opens(port));
    assert_eq!(
        connections.each_ref().map(|(guest, _)| guest.ports.1),
        [HOST_PORT_END - 1, HOST_PORT_FIRST],
        "and the last is followed by the first"
    );
}

#[test]
fn a_driver_that_was_ready_an_instant_ago_is_not_forgotten() {
    let mut rig = Rig::inactive(VERSION_1);
    assert!(rig.worker.state().1.is_empty(), "no driver");
    let activation = rig.activation();
    crate::virtio::Device::activate(&mut rig.device, activation).unwrap();
    assert_eq!(rig.worker.state().1.len(), 3, "its queues had not reached the worker yet");
}

#[test]
fn a_broken_link_has_no_queues_and_its_twin_waits_for_a_reset() {
    let (mut home, _) = rig_with(EVENT_IDX, 8);
    home.tx.set_avail_idx(0x7000);
    home.kicks[1].write(1).unwrap();
    home.turn();
    let (state, queues) = home.worker.state();
    assert!(queues.is_empty());
    assert!(!state.had_connections);
    let mut twin = home.twin();
    let _client = twin.client("CONNECT 80\n");
    twin.turn();
    assert_eq!(twin.worker.connections(), 0);
    twin.activate();
    twin.give_rx(12, 4140);
    assert_eq!(twin.ops(), [REQUEST]);
}

#[test]
fn what_waited_in_the_guests_queue_is_served_once_by_each() {
    let (mut home, _) = rig_with(EVENT_IDX, 8);
    home.put(Wire::guest(REQUEST).between(5, HOST_PORT), &[], Layout::Together);
    let mut twin = home.twin();
    for rig in [&mut home, &mut twin] {
        let listener = rig.listen(HOST_PORT);
        assert_eq!(rig.ops(), [RESPONSE]);
        assert!(listener.accept().is_ok());
        assert_eq!(rig.tx.used().len(), 1);
        assert_eq!(rig.worker.connections(), 1);
    }
}

#[test]
fn the_twins_guest_is_told_of_packets_that_were_taken_at_home() {
    let (mut home, _) = rig_with(EVENT_IDX, 8);
    home.rx.set_used_event(0);
    home.put(Wire::guest(RST), &[], Layout::Together);
    home.worker.turn();
    assert!(home.irq.read().is_err(), "that has time");
    let mut twin = home.twin();
    twin.turn();
    assert!(twin.irq.read().is_ok(), "its memory may be all the guest waits for");
    assert_eq!(twin.tx.used().len(), 1);
}

#[test]
fn a_client_that_waits_for_the_guests_answer_stays_at_home() {
    let (mut home, _) = rig_with(EVENT_IDX, 8);
    let mut client = home.client("CONNECT 1024\n");
    let request = home.received()[0].0;
    let mut twin = home.twin();
    twin.turn();
    assert_eq!(twin.events(), 1, "a connection that is being made is one");
    let answer = Wire::guest(RESPONSE).between(1024, request.src_port);
    twin.send(answer);
    assert_eq!(twin.ops(), [RST], "the twin's host asked for nothing");
    assert_eq!(read_now(&mut client), b"");
    home.send(answer);
    assert_eq!(read_now(&mut client), format!("OK {}\n", request.src_port).as_bytes());
    home.worker.later(REQUEST_TIMEOUT_MS);
    assert_eq!(home.worker.connections(), 1);
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    GuestOpens,
    HostOpens,
    GuestSends { whose: usize, len: usize },
    HostSends { whose: usize, len: usize },
    Deliver,
    HostCloses { whose: usize },
    Twin,
}

fn any_step() -> impl Strategy<Value = Step> {
    let whose = 0_usize..8;
    prop_oneof![
        2 => Just(Step::GuestOpens),
        2 => Just(Step::HostOpens),
        6 => (whose.clone(), 1_usize..9000).prop_map(|(whose, len)| Step::GuestSends { whose, len }),
        6 => (whose.clone(), 1_usize..9000).prop_map(|(whose, len)| Step::HostSends { whose, len }),
        6 => Just(Step::Deliver),
        1 => whose.prop_map(|whose| Step::HostCloses { whose }),
        2 => Just(Step::Twin),
    ]
}

/// A connection and all bytes that were ever sent on it, both ways.
struct Line {
    guest: Endpoint,
    host: UnixStream,
    to_host: Vec<u8>,
    to_guest: Vec<u8>,
    at_host: Vec<u8>,
    at_guest: Vec<u8>,
}

impl Line {
    fn new((guest, host): (Endpoint, UnixStream)) -> Self {
        let none = Vec::new;
        Self { guest, host, to_host: none(), to_guest: none(), at_host: none(), at_guest: none() }
    }
}

/// A device that wanders from machine to machine, with everybody's connections.
struct Flow {
    rig: Rig,
    lines: Vec<Line>,
    next_guest_port: u32,
    /// The host's ports that ever were in use.
    ports_seen: Vec<u32>,
    /// Tx chains that were completed, in all machines.
    completed: usize,
    /// Payload that lies in the guest's tx queue, at most.
    waiting_bytes: usize,
}

impl Flow {
    /// Hands the guest's packets to their connections and sends the answers, until all is quiet.
    fn deliver(&mut self) -> Result<(), TestCaseError> {
        self.waiting_bytes = 0;
        loop {
            let list = self.rig.received();
            self.completed += self.rig.tx.used().len();
            for line in &mut self.lines {
                line.at_host.extend(read_now(&mut line.host));
            }
            if list.is_empty() {
                return Ok(());
            }
            for (wire, payload) in list {
                let line = self.lines.iter_mut().find(|line| line.guest.ports == (wire.dst_port, wire.src_port));
                let Some(line) = line else {
                    prop_assert!(false, "a packet of a connection of another machine: {wire:?}");
                    return Ok(());
                };
                let answer = line.guest.receive(&wire, &payload);
                let (read, update) = line.guest.read(usize::MAX);
                line.at_guest.extend(read);
                for wire in answer.into_iter().chain(update) {
                    self.rig.put(wire, &[], Layout::Together);
                }
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for line in &self.lines {
            prop_assert!(line.to_host.starts_with(&line.at_host), "other bytes than the guest sent");
            prop_assert!(line.to_guest.starts_with(&line.at_guest), "other bytes than the host sent");
        }
        Ok(())
    }

    fn twin(&mut self) -> Result<(), TestCaseError> {
        let had_connections = self.rig.worker.connections() != 0;
        let mut twin = self.rig.twin();
        twin.turn();
        prop_assert_eq!(
            twin.events(),
            usize::from(had_connections),
            "told once, and only if there is something to tell"
        );
        twin.turn();
        self.lines.clear();
        // What was on its way to connections of the first machine the guest throws away.
        twin.received();
        self.completed += twin.tx.used().len();
        self.rig = twin;
        self.waiting_bytes = 0;
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let count = self.lines.len();
        let pick = |whose: &usize| (count != 0).then(|| whose % count);
        match step {
            Step::GuestOpens | Step::HostOpens if count < 6 => {
                self.deliver()?;
                self.next_guest_port += 1;
                let port = self.next_guest_port;
                let is_guests = matches!(step, Step::GuestOpens);
                let line = Line::new(if is_guests { self.rig.guest_opens(port) } else { self.rig.host_opens(port) });
                let host_port = line.guest.ports.1;
                prop_assert!(is_guests || !self.ports_seen.contains(&host_port), "a port of another machine");
                self.ports_seen.push(host_port);
                self.lines.push(line);
            }
            Step::GuestOpens | Step::HostOpens => {}
            Step::GuestSends { whose, len } => {
                if self.waiting_bytes + len > 40_000 {
                    self.deliver()?;
                }
                let Some(line) = pick(whose).map(|at| &mut self.lines[at]) else { return Ok(()) };
                let bytes = pattern(len + line.to_host.len())[line.to_host.len()..].to_vec();
                if let Some((wire, payload)) = line.guest.send(&bytes) {
                    line.to_host.extend(&payload);
                    self.waiting_bytes += payload.len();
                    self.rig.put(wire, &payload, Layout::Apart);
                }
            }
            Step::HostSends { whose, len } => {
                let Some(line) = pick(whose).map(|at| &mut self.lines[at]) else { return Ok(()) };
                let bytes = pattern(len + line.to_guest.len())[line.to_guest.len()..].to_vec();
                // The socket may be full, or closed by the guest's end.
                let sent = line.host.write(&bytes).unwrap_or(0);
                line.to_guest.extend(&bytes[..sent]);
            }
            Step::Deliver => self.deliver()?,
            Step::HostCloses { whose } => {
                self.deliver()?;
                let Some(at) = pick(whose) else { return Ok(()) };
                let mut line = self.lines.remove(at);
                drop(line.host);
                self.rig.deliver(&mut line.guest);
                prop_assert!(line.guest.is_over);
            }
            Step::Twin => self.twin()?,
        }
        self.check()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Connections of both sides, traffic and twins in any order: whoever is connected gets the
    /// bytes that were sent to it, and nobody else's; every packet is taken once.
    #[test]
    fn connections_end_with_their_machine_and_never_mix(
        features in prop::sample::select(vec![0, EVENT_IDX]),
        steps in prop::collection::vec(any_step(), 1..60),
    ) {
        let (rig, _) = rig_with(features, 8);
        let mut flow = Flow { rig, lines: Vec::new(), next_guest_port: 10, ports_seen: Vec::new(), completed: 0, waiting_bytes: 0 };
        for step in &steps {
            flow.step(step)?;
        }
        flow.deliver()?;
        for line in &mut flow.lines {
            prop_assert_eq!(&line.at_host, &line.to_host);
            prop_assert_eq!(&line.at_guest, &line.to_guest);
            prop_assert!(!line.guest.is_over && !is_at_end(&mut line.host));
        }
        prop_assert_eq!(flow.completed, usize::from(flow.rig.tx.avail_idx()), "every packet is taken once");
        prop_assert_eq!(flow.rig.worker.counts().of(Event::ConnectionFault), 0);
    }
}
