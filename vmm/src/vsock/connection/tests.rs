// SPDX-License-Identifier: Apache-2.0
#![expect(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

use super::super::model::{CREDIT_REQUEST, CREDIT_UPDATE, Endpoint, GUEST_CID, GUEST_PORT, HOST_PORT, Wire};
use super::super::model::{REQUEST, RESPONSE, RST, RW, SHUTDOWN};
use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const PORTS: Ports = Ports { guest: GUEST_PORT, host: HOST_PORT };
const WINDOW: u32 = 1000;

fn packet(wire: Wire) -> Packet {
    Packet::parse(&wire.bytes(), GUEST_CID, u64::from(wire.len)).unwrap()
}

fn data(len: u32) -> Packet {
    packet(Wire { len, ..Wire::guest(RW) })
}

fn shutdown(flags: u32) -> Packet {
    packet(Wire { flags, ..Wire::guest(SHUTDOWN) })
}

/// Everything due to the guest, by number and flags.
fn sent(connection: &mut Connection) -> Vec<(u16, u32)> {
    std::iter::from_fn(|| connection.transmit())
        .map(|packet| Wire::read(&packet.encode(GUEST_CID)))
        .map(|wire| (wire.op, wire.flags))
        .collect()
}

fn effects(connection: &mut Connection) -> Vec<HostEffect> {
    std::iter::from_fn(|| connection.host_effect()).collect()
}

/// Made by the guest, RESPONSE already sent.
fn open() -> Connection {
    let mut connection = Connection::from_guest(PORTS, WINDOW, Credit { buf_alloc: 500, fwd_cnt: 0 });
    assert_eq!(connection.sendable_bytes(), 0, "nothing before the RESPONSE");
    assert_eq!(sent(&mut connection), [(RESPONSE, 0)]);
    assert_eq!(connection.sendable_bytes(), 500);
    connection
}

#[test]
fn client_gets_its_answer_after_the_guests_response() {
    let mut connection = Connection::from_host(PORTS, WINDOW, 0);
    assert_eq!(sent(&mut connection), [(REQUEST, 0)]);
    assert_eq!(effects(&mut connection), []);
    assert!(!connection.is_sending(), "the client's bytes wait for the guest");
    connection.on_packet(&packet(Wire::guest(RESPONSE)), 1).unwrap();
    assert_eq!(effects(&mut connection), [HostEffect::Answer]);
    assert_eq!(connection.sendable_bytes(), 65_536);
    assert_eq!(connection.deadline_ms(), None);
}

#[test]
fn request_without_answer_times_out_at_the_deadline_and_not_before() {
    let mut connection = Connection::from_host(PORTS, WINDOW, 50);
    sent(&mut connection);
    connection.on_time(50 + REQUEST_TIMEOUT_MS - 1);
    assert_eq!(connection.phase(), Phase::Requested);
    connection.on_time(50 + REQUEST_TIMEOUT_MS);
    assert_eq!(effects(&mut connection), [HostEffect::Close]);
    assert_eq!(sent(&mut connection), [(RST, 0)]);
    assert!(connection.is_finished());
}

#[test]
fn refused_request_closes_the_client_without_another_reset() {
    let mut connection = Connection::from_host(PORTS, WINDOW, 0);
    sent(&mut connection);
    connection.on_packet(&packet(Wire::guest(RST)), 1).unwrap();
    assert_eq!(effects(&mut connection), [HostEffect::Close]);
    assert_eq!(sent(&mut connection), []);
    assert!(connection.is_finished());
}

#[test]
fn client_that_hangs_up_before_the_answer_is_harmless() {
    let mut unsent = Connection::from_host(PORTS, WINDOW, 0);
    unsent.on_host_gone(1);
    assert_eq!(effects(&mut unsent), [HostEffect::Close]);
    assert_eq!(sent(&mut unsent), [], "the guest never heard of it");
    assert!(unsent.is_finished());

    let mut asked = Connection::from_host(PORTS, WINDOW, 0);
    sent(&mut asked);
    asked.on_host_gone(1);
    assert_eq!(effects(&mut asked), [HostEffect::Close]);
    assert_eq!(sent(&mut asked), [(RST, 0)]);
    assert!(asked.is_finished());
    assert_eq!(asked.on_packet(&packet(Wire::guest(RESPONSE)), 2), Ok(Payload::Nothing));
}

#[test]
fn guests_half_close_reaches_the_host_after_the_last_byte() {
    let mut connection = open();
    assert_eq!(connection.on_packet(&data(10), 0), Ok(Payload::Forward(10)));
    connection.on_packet(&shutdown(2), 0).unwrap();
    connection.on_forwarded(9, 0);
    assert_eq!(effects(&mut connection), [], "one byte is still owed");
    connection.on_forwarded(1, 0);
    assert_eq!(effects(&mut connection), [HostEffect::ShutdownWrite]);
    assert_eq!(connection.phase(), Phase::Open, "the other direction goes on");
    assert_eq!(connection.sendable_bytes(), 65_536, "as the guest said last");
    connection.on_packet(&shutdown(2), 0).unwrap();
    assert_eq!(effects(&mut connection), [], "once");
}

#[test]
fn hosts_half_close_is_told_once_and_the_guest_may_go_on() {
    let mut connection = open();
    connection.on_host_end(0);
    connection.on_host_end(0);
    assert_eq!(sent(&mut connection), [(SHUTDOWN, 2)]);
    assert_eq!(connection.sendable_bytes(), 0);
    assert_eq!(connection.on_packet(&data(10), 0), Ok(Payload::Forward(10)));
    connection.on_forwarded(10, 0);
    connection.on_packet(&shutdown(3), 0).unwrap();
    assert_eq!(effects(&mut connection), [HostEffect::Close]);
    assert_eq!(sent(&mut connection), [(RST, 0)]);
    assert!(connection.is_finished());
}

#[test]
fn guest_that_reads_no_more_ends_the_hosts_writing() {
    let mut connection = open();
    connection.on_packet(&shutdown(1), 0).unwrap();
    connection.on_packet(&shutdown(1), 0).unwrap();
    assert_eq!(effects(&mut connection), [HostEffect::ShutdownRead]);
    assert_eq!(connection.sendable_bytes(), 0);
    assert_eq!(connection.on_packet(&data(1), 0), Ok(Payload::Forward(1)));
    connection.on_host_gone(0);
    assert_eq!(sent(&mut connection), [(SHUTDOWN, 3)], "nobody would ever read the rest of the host");
}

#[test]
fn full_close_by_the_host_waits_for_the_guests_reset() {
    let mut connection = open();
    connection.on_host_gone(100);
    assert_eq!(sent(&mut connection), [(SHUTDOWN, 1)], "bytes of the host may still be on their way");
    assert_eq!(connection.sendable_bytes(), 500);
    assert_eq!(connection.on_packet(&data(10), 100), Ok(Payload::Nothing), "thrown away");
    connection.on_host_end(100);
    assert_eq!(sent(&mut connection), [(SHUTDOWN, 3)]);
    assert_eq!(effects(&mut connection), [HostEffect::Close], "nothing can move any more");
    assert!(!connection.is_finished());
    connection.on_packet(&packet(Wire::guest(RST)), 101).unwrap();
    assert_eq!(sent(&mut connection), []);
    assert!(connection.is_finished());
}

#[test]
fn close_that_is_never_answered_is_killed_at_the_deadline_and_not_before() {
    let mut connection = open();
    connection.on_host_gone(100);
    connection.on_host_end(100);
    sent(&mut connection);
    effects(&mut connection);
    connection.on_time(100 + CLOSE_TIMEOUT_MS - 1);
    assert!(!connection.is_finished());
    connection.on_time(100 + CLOSE_TIMEOUT_MS);
    assert_eq!(sent(&mut connection), [(RST, 0)]);
    assert!(connection.is_finished());
}

#[test]
fn guests_close_waits_for_bytes_owed_and_then_resets() {
    let mut connection = open();
    connection.on_packet(&data(10), 0).unwrap();
    connection.on_packet(&shutdown(3), 0).unwrap();
    assert_eq!(connection.phase(), Phase::Draining);
    assert_eq!(effects(&mut connection), [HostEffect::ShutdownRead]);
    connection.on_forwarded(4, 5);
    assert_eq!(sent(&mut connection), []);
    connection.on_forwarded(6, 6);
    assert_eq!(effects(&mut connection), [HostEffect::Close]);
    assert_eq!(sent(&mut connection), [(RST, 0)]);
    assert!(connection.is_finished());
}

#[test]
fn reset_after_a_clean_end_keeps_the_bytes_owed_and_another_does_not() {
    let mut clean = open();
    clean.on_packet(&data(10), 0).unwrap();
    clean.on_packet(&shutdown(3), 0).unwrap();
    clean.on_packet(&packet(Wire::guest(RST)), 1).unwrap();
    assert_eq!(clean.phase(), Phase::Draining);
    clean.on_forwarded(10, 2);
    assert!(effects(&mut clean).contains(&HostEffect::Close));
    assert_eq!(sent(&mut clean), [], "the guest has forgotten it");

    let mut half = open();
    half.on_packet(&data(10), 0).unwrap();
    half.on_packet(&shutdown(2), 0).unwrap();
    half.on_packet(&packet(Wire::guest(RST)), 1).unwrap();
    assert_eq!(effects(&mut half), [], "it had said that these were its last bytes");
    half.on_forwarded(10, 2);
    assert_eq!(effects(&mut half), [HostEffect::Close]);

    let mut abrupt = open();
    abrupt.on_packet(&data(10), 0).unwrap();
    abrupt.on_packet(&packet(Wire::guest(RST)), 1).unwrap();
    assert_eq!(effects(&mut abrupt), [HostEffect::Close]);
    assert!(abrupt.is_finished());
}

#[test]
fn host_that_never_drains_is_given_up_only_when_it_stalls() {
    let mut connection = open();
    connection.on_packet(&data(10), 0).unwrap();
    connection.on_packet(&shutdown(3), 0).unwrap();
    connection.on_forwarded(1, 1000);
    connection.on_time(DRAIN_STALL_MS);
    assert_eq!(connection.phase(), Phase::Draining, "it took a byte meanwhile");
    connection.on_time(1000 + DRAIN_STALL_MS);
    assert_eq!(sent(&mut connection), [(RST, 0)]);
    assert!(effects(&mut connection).contains(&HostEffect::Close));
    assert!(connection.is_finished());
}

#[test]
fn what_is_tried_on_a_draining_connection_is_reset() {
    let mut connection = open();
    connection.on_packet(&data(10), 0).unwrap();
    connection.on_packet(&shutdown(3), 0).unwrap();
    connection.on_packet(&packet(Wire::guest(REQUEST)), 0).unwrap();
    assert_eq!(sent(&mut connection), [(RST, 0)]);
    assert_eq!(connection.phase(), Phase::Draining, "the host still gets what it is owed");
}

#[test]
fn packet_that_the_phase_does_not_allow_resets_the_connection() {
    let answered = |wire| {
        let mut connection = open();
        let fault = connection.on_packet(&packet(wire), 0);
        (fault.is_err(), sent(&mut connection), effects(&mut connection))
    };
    let reset = (true, vec![(RST, 0)], vec![HostEffect::Close]);
    assert_eq!(answered(Wire::guest(REQUEST)), reset);
    assert_eq!(answered(Wire::guest(RESPONSE)), reset);
    assert_eq!(answered(Wire { fwd_cnt: 1, ..Wire::guest(CREDIT_UPDATE) }), reset, "credit for nothing sent");

    for op in [RW, SHUTDOWN, CREDIT_UPDATE, CREDIT_REQUEST, REQUEST] {
        let mut connection = Connection::from_host(PORTS, WINDOW, 0);
        sent(&mut connection);
        assert!(connection.on_packet(&packet(Wire::guest(op)), 0).is_err(), "op {op} before the RESPONSE");
        assert_eq!(sent(&mut connection), [(RST, 0)]);
    }

    let mut ended = open();
    ended.on_packet(&shutdown(2), 0).unwrap();
    assert!(ended.on_packet(&data(1), 0).is_err(), "data after the end");
}

#[test]
fn data_beyond_the_window_resets_and_data_up_to_it_does_not() {
    let mut connection = open();
    assert_eq!(connection.on_packet(&data(WINDOW), 0), Ok(Payload::Forward(WINDOW)));
    assert_eq!(connection.on_packet(&data(0), 0), Ok(Payload::Nothing));
    let fault = connection.on_packet(&data(1), 0).unwrap_err();
    assert!(matches!(fault, ConnectionFault::Overrun(_)));
    assert_eq!(sent(&mut connection), [(RST, 0)]);
}

#[test]
fn credit_request_is_answered_and_credit_is_told_at_half_the_window() {
    let mut connection = open();
    connection.on_packet(&packet(Wire::guest(CREDIT_REQUEST)), 0).unwrap();
    connection.on_packet(&packet(Wire::guest(CREDIT_REQUEST)), 0).unwrap();
    assert_eq!(sent(&mut connection), [(CREDIT_UPDATE, 0)], "asking twice answers once");
    connection.on_packet(&data(WINDOW), 0).unwrap();
    connection.on_forwarded(WINDOW / 2 - 1, 0);
    assert_eq!(sent(&mut connection), []);
    connection.on_forwarded(1, 0);
    assert!(connection.has_packet());
    let packet = connection.transmit_data(5);
    assert_eq!(packet.credit(), Credit { buf_alloc: WINDOW, fwd_cnt: WINDOW / 2 });
    assert_eq!(sent(&mut connection), [], "data carried the credit");
}

#[test]
fn starved_connection_asks_for_credit_once() {
    let mut connection = open();
    connection.transmit_data(500);
    connection.on_starved(10);
    assert_eq!(connection.deadline_ms(), Some(10 + CREDIT_PATIENCE_MS));
    connection.on_time(10 + CREDIT_PATIENCE_MS);
    assert_eq!(sent(&mut connection), [(CREDIT_REQUEST, 0)]);
    let still_none = packet(Wire { buf_alloc: 500, ..Wire::guest(CREDIT_UPDATE) });
    connection.on_packet(&still_none, 200).unwrap();
    connection.on_starved(200);
    assert_eq!(connection.deadline_ms(), None, "no ping-pong with a guest that does not read");
    let some = packet(Wire { buf_alloc: 500, fwd_cnt: 500, ..Wire::guest(CREDIT_UPDATE) });
    connection.on_packet(&some, 300).unwrap();
    assert_eq!(connection.sendable_bytes(), 500);
    connection.transmit_data(500);
    connection.on_starved(300);
    assert!(connection.deadline_ms().is_some(), "it ran out anew");
}

#[test]
fn flood_of_packets_leaves_a_connection_as_large_as_it_was() {
    let mut connection = open();
    for _ in 0..10_000 {
        connection.on_packet(&packet(Wire::guest(CREDIT_REQUEST)), 0).unwrap();
        connection.on_packet(&shutdown(0), 0).unwrap();
    }
    assert_eq!(sent(&mut connection), [(CREDIT_UPDATE, 0)]);
}

// ---- Pair tests: the machine against a model guest and a model host, with a virtual clock ----

/// A machine, the guest's end, the host's socket, and the links between them.
struct Pair {
    machine: Connection,
    guest: Endpoint,
    to_machine: VecDeque<(Wire, Vec<u8>)>,
    to_guest: VecDeque<(Wire, Vec<u8>)>,
    /// What the host's program wrote and the machine has not taken.
    host_out: VecDeque<u8>,
    host_ended: bool,
    /// What the machine sent and the host's program has not read; holds `host_room` bytes.
    host_in: VecDeque<u8>,
    host_room: usize,
    kept: VecDeque<u8>,
    host_in_ended: bool,
    host_closed: bool,
    now_ms: u64,
    guest_left: Vec<u8>,
    host_left: Vec<u8>,
    guest_got: Vec<u8>,
    host_got: Vec<u8>,
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect()
}

impl Pair {
    fn new(window: u32, guest_buffer: u32, host_room: usize, sizes: (usize, usize)) -> Self {
        let mut guest = Endpoint::new(GUEST_PORT, HOST_PORT, guest_buffer);
        let request = packet(guest.packet(REQUEST));
        Self {
            machine: Connection::from_guest(PORTS, window, request.credit()),
            guest,
            to_machine: VecDeque::new(),
            to_guest: VecDeque::new(),
            host_out: VecDeque::new(),
            host_ended: false,
            host_in: VecDeque::new(),
            host_room,
            kept: VecDeque::new(),
            host_in_ended: false,
            host_closed: false,
            now_ms: 0,
            guest_left: pattern(sizes.0, 1),
            host_left: pattern(sizes.1, 2),
            guest_got: Vec::new(),
            host_got: Vec::new(),
        }
    }

    fn step(&mut self, kind: u8, amount: usize) {
        match kind {
            0 => self.guest_writes(amount),
            1 => {
                let (bytes, update) = self.guest.read(amount);
                self.guest_got.extend(bytes);
                self.to_machine.extend(update.map(|wire| (wire, Vec::new())));
            }
            2 => self.host_writes(amount),
            3 => {
                let count = amount.min(self.host_in.len());
                self.host_got.extend(self.host_in.drain(..count));
                self.flush();
            }
            4 => self.deliver_to_machine(),
            5 => self.deliver_to_guest(),
            6 => self.machine_sends(amount),
            _ => {
                self.now_ms += 20;
                self.machine.on_time(self.now_ms);
            }
        }
        self.host_effects();
        assert!(self.kept.len() <= self.machine.window_bytes() as usize, "kept more than the window");
    }

    fn guest_writes(&mut self, amount: usize) {
        let count = amount.min(self.guest_left.len());
        if let Some((wire, bytes)) = self.guest.send(&self.guest_left[..count]) {
            self.guest_left.drain(..bytes.len());
            self.to_machine.push_back((wire, bytes));
        }
        if self.guest_left.is_empty() && self.guest.flags == 0 && self.guest.is_open {
            let wire = self.guest.shutdown(2);
            self.to_machine.push_back((wire, Vec::new()));
        }
    }

    fn host_writes(&mut self, amount: usize) {
        let count = amount.min(self.host_left.len()).min(500 - self.host_out.len().min(500));
        self.host_out.extend(self.host_left.drain(..count));
        self.host_ended = self.host_left.is_empty();
    }

    fn deliver_to_machine(&mut self) {
        let Some((wire, bytes)) = self.to_machine.pop_front() else { return };
        match self.machine.on_packet(&packet(wire), self.now_ms).expect("the model guest keeps the rules") {
            Payload::Forward(len) => {
                assert_eq!(len as usize, bytes.len());
                self.kept.extend(bytes);
                self.flush();
            }
            Payload::Nothing => {}
        }
    }

    fn flush(&mut self) {
        let count = self.kept.len().min(self.host_room.saturating_sub(self.host_in.len()));
        self.host_in.extend(self.kept.drain(..count));
        self.machine.on_forwarded(count as u32, self.now_ms);
    }

    fn deliver_to_guest(&mut self) {
        let Some((wire, bytes)) = self.to_guest.pop_front() else { return };
        let answer = self.guest.receive(&wire, &bytes);
        self.to_machine.extend(answer.map(|wire| (wire, Vec::new())));
    }

    fn machine_sends(&mut self, amount: usize) {
        while let Some(packet) = self.machine.transmit() {
            self.to_guest.push_back((Wire::read(&packet.encode(GUEST_CID)), Vec::new()));
        }
        let wanted = amount.min(self.host_out.len());
        let len = wanted.min(self.machine.sendable_bytes() as usize);
        if wanted > 0 && len == 0 && self.machine.is_sending() {
            self.machine.on_starved(self.now_ms);
        }
        if len > 0 {
            let bytes: Vec<u8> = self.host_out.drain(..len).collect();
            let header = self.machine.transmit_data(len as u32).encode(GUEST_CID);
            self.to_guest.push_back((Wire::read(&header), bytes));
        }
        if self.host_ended && self.host_out.is_empty() && self.machine.is_sending() {
            self.machine.on_host_end(self.now_ms);
        }
    }

    fn host_effects(&mut self) {
        while let Some(effect) = self.machine.host_effect() {
            match effect {
                HostEffect::ShutdownWrite => {
                    assert!(self.kept.is_empty(), "the end came before the last byte");
                    self.host_in_ended = true;
                }
                HostEffect::Close => self.host_closed = true,
                HostEffect::Answer | HostEffect::ShutdownRead => {}
            }
        }
    }

    fn is_done(&self) -> bool {
        let guest_saw_end = self.guest.peer_flags & 2 != 0 && self.guest.inbox.is_empty();
        guest_saw_end && self.host_in_ended && self.host_in.is_empty()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any order of events, any sizes of buffers down to one byte: every byte arrives once and in
    /// order in both directions, both ends see the end, nobody is ever starved for good.
    #[test]
    fn bytes_arrive_whatever_the_order(
        window in 1u32..600,
        guest_buffer in 1u32..600,
        host_room in 1usize..600,
        sizes in (0usize..3000, 0usize..3000),
        steps in prop::collection::vec((0u8..8, 0usize..400), 0..600),
    ) {
        let mut pair = Pair::new(window, guest_buffer, host_room, sizes);
        for (kind, amount) in steps {
            pair.step(kind, amount);
        }
        // Then everybody does their part in turn.
        let mut rounds = 0;
        while !pair.is_done() {
            for kind in 0..8 {
                pair.step(kind, 300);
            }
            rounds += 1;
            prop_assert!(rounds < 20_000, "starved: {:?} {:?}", pair.machine, pair.guest);
        }
        prop_assert_eq!(&pair.guest_got, &pattern(sizes.1, 2));
        prop_assert_eq!(&pair.host_got, &pattern(sizes.0, 1));
        prop_assert!(!pair.guest.is_over, "nobody had a reason for a RST");
        // The guest's program closes.
        let wire = pair.guest.shutdown(3);
        pair.to_machine.push_back((wire, Vec::new()));
        for _ in 0..4 {
            (4..7).for_each(|kind| pair.step(kind, 1));
        }
        prop_assert!(pair.machine.is_finished() && pair.host_closed && pair.guest.is_over);
    }

    /// No sequence of packets, however hostile, panics, forwards beyond the window, or makes a
    /// machine that is over speak again.
    #[test]
    fn hostile_packets_end_in_a_reset_at_worst(
        from_host in any::<bool>(),
        events in prop::collection::vec((0u16..9, any::<u32>(), any::<u32>(), prop_oneof![Just(0u32), Just(1000), any::<u32>()], 0u8..6), 1..80),
    ) {
        let credit = Credit { buf_alloc: 100, fwd_cnt: 0 };
        let mut machine = if from_host { Connection::from_host(PORTS, WINDOW, 0) } else { Connection::from_guest(PORTS, WINDOW, credit) };
        let mut owed = 0;
        let mut now_ms = 0;
        for (op, a, b, c, host) in events {
            let wire = Wire { len: if op == RW { a % 1200 } else { 0 }, flags: a, buf_alloc: b, fwd_cnt: c, ..Wire::guest(op) };
            let packet = Packet::parse(&wire.bytes(), GUEST_CID, 2000);
            if let Ok(Ok(Payload::Forward(len))) = packet.map(|packet| machine.on_packet(&packet, now_ms)) { owed += len; }
            let is_forwarding = matches!(machine.phase(), Phase::Open | Phase::Draining) && !machine.host_receives_no_more;
            if !is_forwarding { owed = 0; }
            prop_assert!(owed <= WINDOW);
            match host {
                0 => { let n = a % (owed + 1); if is_forwarding { machine.on_forwarded(n, now_ms); owed -= n; } }
                1 => machine.on_host_end(now_ms),
                2 => machine.on_host_gone(now_ms),
                3 => { now_ms += u64::from(a % 30_000); machine.on_time(now_ms); }
                4 => { let n = machine.sendable_bytes().min(a); machine.transmit_data(n); }
                _ => machine.on_starved(now_ms),
            }
            while machine.host_effect().is_some() {}
            while machine.transmit().is_some() {}
            if machine.phase() == Phase::Over {
                prop_assert!(machine.is_finished());
                prop_assert_eq!(machine.sendable_bytes(), 0);
                prop_assert_eq!(machine.deadline_ms(), None);
            }
        }
    }
}
