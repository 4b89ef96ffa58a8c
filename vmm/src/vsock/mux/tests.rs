// SPDX-License-Identifier: Apache-2.0
#![expect(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

use super::super::connection::{CLOSE_TIMEOUT_MS, CREDIT_PATIENCE_MS, REQUEST_TIMEOUT_MS};
use super::super::model::{CREDIT_REQUEST, GUEST_CID, GUEST_PORT, HOST_PORT, Wire};
use super::super::model::{REQUEST, RESPONSE, RST, RW, SHUTDOWN};
use super::super::table::{
    CONNECTIONS_MAX, HOST_PORT_END, HOST_PORT_FIRST, WINDOW_BYTES, WINDOW_MIN_BYTES, WINDOWS_BYTES,
};
use super::*;

fn mux() -> Mux {
    Mux::new(GUEST_CID)
}

/// Hands over a packet with `len` bytes of payload behind it.
fn give(mux: &mut Mux, wire: Wire) -> Action {
    mux.on_packet(&wire.bytes(), u64::from(wire.len), 0)
}

/// A guest's connection that the host accepts.
fn open(mux: &mut Mux, guest: u32, host: u32) -> ConnectionId {
    let action = give(mux, Wire::guest(REQUEST).between(guest, host));
    let Action::Open { ports, credit } = action else { panic!("{action:?}") };
    assert_eq!(ports, Ports { guest, host });
    mux.accept(ports, credit, 0).unwrap()
}

/// Packets for the guest, until there are none or a connection's socket is to be read.
fn packets(mux: &mut Mux) -> Vec<(u16, u32, u32)> {
    let mut list = Vec::new();
    while let Some(turn) = mux.next_turn(0) {
        let Turn::Packet(header) = turn else { break };
        let wire = Wire::read(&header);
        list.push((wire.op, wire.dst_port, wire.src_port));
    }
    list
}

fn close(mux: &mut Mux, id: ConnectionId) {
    let wire = mux.get(id).map(|connection| connection.ports()).unwrap();
    give(mux, Wire::guest(RST).between(wire.guest, wire.host));
    assert_eq!(mux.host_effect(id), Some(HostEffect::Close));
    mux.settle(id, 0);
    assert!(mux.get(id).is_none());
}

#[test]
fn packet_without_connection_is_reset_and_a_reset_is_not() {
    let mut mux = mux();
    for op in [RESPONSE, SHUTDOWN, RW, CREDIT_REQUEST] {
        assert!(matches!(give(&mut mux, Wire::guest(op)), Action::Unknown(_)));
        assert_eq!(packets(&mut mux), [(RST, GUEST_PORT, HOST_PORT)]);
    }
    assert!(matches!(give(&mut mux, Wire::guest(RST)), Action::Unknown(_)));
    assert_eq!(packets(&mut mux), []);
    assert_eq!(mux.counts.of(Event::UnknownConnection), 4);
}

#[test]
fn refused_request_leaves_nothing_behind() {
    let mut mux = mux();
    let Action::Open { ports, .. } = give(&mut mux, Wire::guest(REQUEST)) else { panic!() };
    mux.refuse(ports);
    assert_eq!(packets(&mut mux), [(RST, GUEST_PORT, HOST_PORT)]);
    assert!(mux.is_empty() && !mux.has_turn());
}

#[test]
fn foreign_cid_is_counted_and_not_answered() {
    let mut mux = mux();
    open(&mut mux, GUEST_PORT, HOST_PORT);
    packets(&mut mux);
    give(&mut mux, Wire { src_cid: 4, ..Wire::guest(RST) });
    give(&mut mux, Wire { dst_cid: 5, ..Wire::guest(RW) });
    assert_eq!(packets(&mut mux), []);
    assert_eq!((mux.len(), mux.counts.of(Event::PacketFault)), (1, 2));
}

#[test]
fn fault_resets_its_connection_but_another_type_does_not() {
    let mut mux = mux();
    let id = open(&mut mux, GUEST_PORT, HOST_PORT);
    packets(&mut mux);
    give(&mut mux, Wire { kind: 2, ..Wire::guest(REQUEST) });
    assert!(mux.get(id).is_some(), "a seqpacket socket may have the same ports");
    assert_eq!(packets(&mut mux), [(RST, GUEST_PORT, HOST_PORT)]);

    let wire = Wire { len: 101, ..Wire::guest(RW) };
    assert_eq!(mux.on_packet(&wire.bytes(), 100, 0), Action::Changed(id));
    assert_eq!(mux.host_effect(id), Some(HostEffect::Close));
    mux.settle(id, 0);
    assert_eq!(packets(&mut mux), [(RST, GUEST_PORT, HOST_PORT)]);
    assert!(mux.is_empty());
}

#[test]
fn flood_of_requests_fills_the_table_and_then_the_guests_own_queue() {
    let mut mux = mux();
    let mut refused = 0;
    for guest in 0.. {
        if !mux.can_take_packet() {
            break;
        }
        match give(&mut mux, Wire::guest(REQUEST).between(guest, HOST_PORT)) {
            Action::Open { ports, credit } => assert!(mux.accept(ports, credit, 0).is_some()),
            Action::Nothing => refused += 1,
            action => panic!("{action:?}"),
        }
        assert!(guest < 10_000, "nothing held the flood back");
    }
    assert_eq!((mux.len(), refused), (CONNECTIONS_MAX, STRAYS_MAX));
    let answers = packets(&mut mux);
    assert_eq!(answers.iter().filter(|packet| packet.0 == RESPONSE).count(), CONNECTIONS_MAX);
    assert_eq!(answers.iter().filter(|packet| packet.0 == RST).count(), STRAYS_MAX);
    assert!(mux.can_take_packet());
    assert_eq!(mux.connect(80, 0), None, "the host finds the table full too");
}

#[test]
fn connections_that_come_and_go_unheard_do_not_grow_the_turns() {
    let mut mux = mux();
    for guest in 0..10_000 {
        let id = open(&mut mux, guest, HOST_PORT);
        close(&mut mux, id);
    }
    assert!(mux.turns.len() <= 1 && mux.table.slots().count() == 1 && mux.is_empty());
    let id = open(&mut mux, 1, HOST_PORT);
    assert_eq!(packets(&mut mux), [(RESPONSE, 1, HOST_PORT)], "the old turn is the new connection's");
    assert!(mux.get(id).is_some());
}

#[test]
fn stale_id_means_nobody() {
    let mut mux = mux();
    let old = open(&mut mux, 1, HOST_PORT);
    close(&mut mux, old);
    let new = open(&mut mux, 2, HOST_PORT);
    assert_eq!(old.index(), new.index());
    assert!(mux.get(old).is_none() && mux.get_mut(old).is_none());
    mux.set_readable(old, true);
    packets(&mut mux);
    assert!(!mux.has_turn());
    assert_eq!(ConnectionId::from_bits(new.to_bits()), new);
    assert_ne!(old.to_bits(), new.to_bits());
}

#[test]
fn every_connection_has_a_window_and_all_together_keep_the_bound() {
    let mut mux = mux();
    let ids: Vec<_> = (0..CONNECTIONS_MAX as u32).map(|guest| open(&mut mux, guest, 1)).collect();
    let windows: Vec<u64> = ids.iter().map(|id| u64::from(mux.get(*id).unwrap().window_bytes())).collect();
    assert_eq!(windows[0], u64::from(WINDOW_BYTES));
    assert_eq!(*windows.iter().min().unwrap(), u64::from(WINDOW_MIN_BYTES));
    assert!(windows.iter().sum::<u64>() <= u64::from(WINDOWS_BYTES));
    for id in ids {
        close(&mut mux, id);
    }
    let again: Vec<_> = (0..CONNECTIONS_MAX as u32).map(|guest| open(&mut mux, guest, 1)).collect();
    let again = again.iter().map(|id| u64::from(mux.get(*id).unwrap().window_bytes()));
    assert!(again.eq(windows), "every window came back");
}

#[test]
fn connections_with_bytes_take_turns() {
    let mut mux = mux();
    let ids: Vec<_> = (0..5).map(|guest| open(&mut mux, guest, 1)).collect();
    packets(&mut mux);
    for id in &ids {
        mux.set_readable(*id, false);
        mux.settle(*id, 0);
        mux.settle(*id, 0);
    }
    let mut order = Vec::new();
    for _ in 0..15 {
        let Some(Turn::Read { id, limit_bytes, .. }) = mux.next_turn(0) else { panic!() };
        assert_eq!(limit_bytes, 65_536.min(TURN_BYTES) - 1000 * (order.len() as u32 / 5));
        mux.data_header(id, 1000).unwrap();
        mux.settle(id, 0);
        order.push(id);
    }
    assert_eq!(order, [&ids[..], &ids[..], &ids[..]].concat());
}

#[test]
fn one_turn_is_bounded_however_large_the_credit() {
    let mut mux = mux();
    let action = give(&mut mux, Wire { buf_alloc: u32::MAX, ..Wire::guest(REQUEST) });
    let Action::Open { ports, credit } = action else { panic!() };
    let id = mux.accept(ports, credit, 0).unwrap();
    packets(&mut mux);
    mux.set_readable(id, false);
    mux.settle(id, 0);
    let expected = Turn::Read { id, limit_bytes: TURN_BYTES, expected_bytes: 0 };
    assert_eq!(mux.next_turn(0), Some(expected));
}

#[test]
fn starved_connection_has_no_turn_and_asks_later() {
    let mut mux = mux();
    let id = open(&mut mux, 1, 1);
    packets(&mut mux);
    mux.set_readable(id, false);
    mux.settle(id, 0);
    let Some(Turn::Read { limit_bytes, .. }) = mux.next_turn(0) else { panic!() };
    mux.data_header(id, limit_bytes).unwrap();
    mux.settle(id, 0);
    assert!(!mux.has_turn());
    assert_eq!(mux.next_deadline_ms(), Some(CREDIT_PATIENCE_MS));
    assert_eq!(mux.on_time(CREDIT_PATIENCE_MS - 1), []);
    assert_eq!(mux.on_time(CREDIT_PATIENCE_MS), [id]);
    mux.settle(id, CREDIT_PATIENCE_MS);
    assert_eq!(packets(&mut mux), [(CREDIT_REQUEST, 1, 1)]);
    assert_eq!(mux.next_deadline_ms(), None);
}

#[test]
fn deadlines_of_many_connections_come_one_after_the_other() {
    let mut mux = mux();
    let first = mux.connect(10, 5).unwrap();
    let second = mux.connect(11, 9).unwrap();
    assert_eq!(packets(&mut mux).len(), 2);
    assert_eq!(mux.next_deadline_ms(), Some(5 + REQUEST_TIMEOUT_MS));
    assert_eq!(mux.on_time(5 + REQUEST_TIMEOUT_MS), [first]);
    assert_eq!(mux.next_deadline_ms(), Some(9 + REQUEST_TIMEOUT_MS));
    assert_eq!(mux.on_time(9 + REQUEST_TIMEOUT_MS), [second]);
    for id in [first, second] {
        assert_eq!(mux.host_effect(id), Some(HostEffect::Close));
        mux.settle(id, 0);
    }
    assert_eq!(packets(&mut mux), [(RST, 10, HOST_PORT_FIRST), (RST, 11, HOST_PORT_FIRST + 1)]);
    assert!(mux.is_empty(), "half-open connections do not leak");
}

#[test]
fn close_that_the_guest_never_answers_frees_its_place() {
    let mut mux = mux();
    let id = open(&mut mux, 1, 1);
    packets(&mut mux);
    let connection = mux.get_mut(id).unwrap();
    connection.on_host_gone(0);
    connection.on_host_end(0);
    assert_eq!(mux.host_effect(id), Some(HostEffect::Close));
    mux.settle(id, 0);
    assert_eq!(packets(&mut mux), [(SHUTDOWN, 1, 1)]);
    assert_eq!(mux.on_time(CLOSE_TIMEOUT_MS), [id]);
    mux.settle(id, CLOSE_TIMEOUT_MS);
    assert_eq!(packets(&mut mux), [(RST, 1, 1)]);
    assert!(mux.is_empty());
}

#[test]
fn host_ports_are_distinct_and_go_round() {
    let mut mux = mux();
    mux.table.next_host_port = HOST_PORT_END - 1;
    let last = mux.connect(1, 0).unwrap();
    let first = mux.connect(1, 0).unwrap();
    assert_eq!(mux.get(last).unwrap().ports().host, HOST_PORT_END - 1);
    assert_eq!(mux.get(first).unwrap().ports().host, HOST_PORT_FIRST);
    mux.table.next_host_port = HOST_PORT_FIRST;
    let next = mux.connect(1, 0).unwrap();
    assert_eq!(mux.get(next).unwrap().ports().host, HOST_PORT_FIRST + 1, "one in use is passed over");
    assert_eq!(mux.connect(u32::MAX, 0), None, "port any");
}

#[test]
fn clear_forgets_everything_and_leaves_a_working_table() {
    let mut mux = mux();
    let id = open(&mut mux, 1, 1);
    give(&mut mux, Wire::guest(RW));
    mux.connect(5, 0).unwrap();
    mux.clear();
    assert!(mux.is_empty() && !mux.has_turn() && mux.next_deadline_ms().is_none());
    assert!(mux.get(id).is_none());
    open(&mut mux, 1, 1);
    assert_eq!(packets(&mut mux), [(RESPONSE, 1, 1)]);
}

#[test]
fn read_that_finds_less_than_it_could_ends_the_turns_unless_the_end_is_behind_it() {
    let mut mux = mux();
    let id = open(&mut mux, 1, 1);
    packets(&mut mux);
    let next = |mux: &mut Mux, has_end: bool, found, room| {
        mux.set_readable(id, has_end);
        mux.settle(id, 0);
        let Some(Turn::Read { .. }) = mux.next_turn(0) else { panic!() };
        mux.on_read(id, found, room);
        mux.settle(id, 0);
        match mux.next_turn(0) {
            Some(Turn::Read { expected_bytes, .. }) => Some(expected_bytes),
            _ => None,
        }
    };
    assert_eq!(next(&mut mux, false, 99, 100), None);
    assert_eq!(next(&mut mux, false, 100, 100), Some(200), "there may be more, and twice as much");
    assert_eq!(next(&mut mux, false, 0, 100), None);
    assert_eq!(next(&mut mux, true, 99, 100), Some(99), "the end has still to be read");
    assert_eq!(next(&mut mux, false, 0, 100), None);
}
