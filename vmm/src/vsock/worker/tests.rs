// SPDX-License-Identifier: Apache-2.0
use std::io::Write;
use std::os::unix::net::UnixStream;

use super::super::client::{CLIENTS_MAX, LINE_TIMEOUT_MS};
use super::super::connection::REQUEST_TIMEOUT_MS;
use super::super::model::{HOST_PORT, REQUEST, RESPONSE, RST, RW, SHUTDOWN, Wire};
use super::super::rig::{Rig, is_at_end, read_now};
use super::*;

impl VsockWorker {
    /// As if so much time had passed.
    pub(in super::super) fn later(&mut self, ms: u64) {
        self.start -= std::time::Duration::from_millis(ms);
        self.turn();
        self.turn();
    }
}

#[test]
fn client_is_connected_answered_and_its_early_bytes_are_not_lost() {
    let mut rig = Rig::new();
    let mut client = rig.client("CONNECT 1024\nearly");
    let list = rig.received();
    assert_eq!(list.len(), 1);
    let request = list[0].0;
    assert_eq!((request.op, request.dst_port, request.len), (REQUEST, 1024, 0));
    assert_eq!(read_now(&mut client), b"", "no answer before the guest's");
    rig.send(Wire::guest(RESPONSE).between(1024, request.src_port));
    assert_eq!(read_now(&mut client), format!("OK {}\n", request.src_port).as_bytes());
    let list = rig.received();
    assert_eq!(list[0].1, b"early");
}

#[test]
fn client_may_say_its_line_in_pieces() {
    let mut rig = Rig::new();
    let mut client = rig.client("CONN");
    rig.turn();
    for piece in ["E", "CT 1", "02", "4"] {
        client.write_all(piece.as_bytes()).unwrap();
        rig.turn();
    }
    assert_eq!(rig.worker.connections(), 0);
    client.write_all(b"\n").unwrap();
    assert_eq!(rig.received()[0].0.dst_port, 1024);
}

#[test]
fn client_that_says_anything_else_is_hung_up_on() {
    let mut rig = Rig::new();
    for line in ["CONNECT\n", "GET / HTTP/1.1\r\n", "CONNECT 4294967296\n", "CONNECT 4294967295\n", "\n"] {
        let mut client = rig.client(line);
        rig.turn();
        assert!(is_at_end(&mut client), "{line:?}");
    }
    let mut long = rig.client(&"1".repeat(32));
    rig.turn();
    assert!(is_at_end(&mut long), "a line without an end");
    let mut short = rig.client(&"1".repeat(31));
    rig.turn();
    assert_eq!(read_now(&mut short), b"");
    assert_eq!(rig.worker.connections(), 0);
    assert_eq!(rig.worker.counts().of(Event::ClientFault), 6);
}

#[test]
fn client_that_hangs_up_at_any_stage_is_harmless() {
    let mut rig = Rig::new();
    // Without a word; in the middle of it; before the request is sent; before it is answered.
    drop(rig.client(""));
    rig.turn();
    drop(rig.client("CONNECT 1"));
    rig.turn();
    let half = rig.client("CONNECT 1");
    rig.turn();
    drop(half);
    rig.turn();
    assert_eq!(rig.worker.connections(), 0);
    drop(rig.client("CONNECT 1024\n"));
    let ops = rig.ops();
    assert!(ops.is_empty() || ops == [REQUEST, RST], "{ops:?}");
    assert_eq!(rig.worker.connections(), 0);
    let waiting = rig.client("CONNECT 1024\n");
    let request = rig.received()[0].0;
    drop(waiting);
    assert_eq!(rig.ops(), [RST]);
    rig.send(Wire::guest(RESPONSE).between(1024, request.src_port));
    assert_eq!(rig.ops(), [RST], "the guest's answer came too late");
    assert_eq!(rig.worker.connections(), 0);
    // And after that the device still works.
    let (_, client) = rig.host_opens(80);
    drop(client);
    rig.turn();
}

#[test]
fn client_is_hung_up_on_when_the_guest_refuses() {
    let mut rig = Rig::new();
    let mut client = rig.client("CONNECT 1024\n");
    let request = rig.received()[0].0;
    rig.send(Wire::guest(RST).between(1024, request.src_port));
    assert!(is_at_end(&mut client));
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn guest_that_never_answers_costs_a_client_its_time_out_only() {
    let mut rig = Rig::new();
    let mut client = rig.client("CONNECT 1024\n");
    assert_eq!(rig.ops(), [REQUEST]);
    rig.worker.later(REQUEST_TIMEOUT_MS - 2_000);
    assert_eq!(read_now(&mut client), b"");
    assert_eq!(rig.worker.connections(), 1);
    rig.worker.later(2_000);
    assert!(is_at_end(&mut client));
    assert_eq!(rig.ops(), [RST]);
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn hesitating_clients_fill_their_places_and_are_sent_away_in_time() {
    let mut rig = Rig::new();
    let mut idle: Vec<UnixStream> = (0..CLIENTS_MAX).map(|_| rig.client("CONNECT")).collect();
    rig.turn();
    let _late = rig.client("CONNECT 1024\n");
    rig.turn();
    assert_eq!(rig.worker.connections(), 0, "it waits in the backlog");
    rig.worker.later(LINE_TIMEOUT_MS + 1);
    for client in &mut idle {
        assert!(is_at_end(client));
    }
    assert_eq!(rig.ops(), [REQUEST], "then its turn has come");
}

#[test]
fn places_of_clients_that_were_served_are_free_at_once() {
    let mut rig = Rig::new();
    let mut served = 0;
    for port in 0..100 {
        let (mut guest, client) = rig.host_opens(port);
        drop(client);
        rig.deliver(&mut guest);
        served += u32::from(guest.is_over);
    }
    assert!(served as usize > CLIENTS_MAX);
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn host_that_closes_costs_one_packet() {
    let mut rig = Rig::new();
    let (_, mut client) = rig.host_opens(80);
    client.write_all(b"bye").unwrap();
    drop(client);
    let list: Vec<_> = rig.received().iter().map(|(wire, _)| (wire.op, wire.flags, wire.len)).collect();
    assert_eq!(list.last(), Some(&(SHUTDOWN, 3, 0)));
    assert!(list.iter().any(|(op, _, len)| (*op, *len) == (RW, 3)));
}

#[test]
fn guests_request_is_refused_when_nobody_listens_or_the_backlog_is_full() {
    let mut rig = Rig::new();
    rig.send(Wire::guest(REQUEST));
    assert_eq!(rig.ops(), [RST]);
    // A stale socket file: nobody behind it.
    drop(rig.listen(HOST_PORT));
    rig.send(Wire::guest(REQUEST));
    assert_eq!(rig.ops(), [RST]);
    // A listener that never accepts: its backlog fills up, and nothing blocks.
    let _listener = rig.listen(HOST_PORT + 1);
    let mut refused = 0;
    for guest in 0..600 {
        rig.send(Wire::guest(REQUEST).between(guest, HOST_PORT + 1));
        refused += rig.ops().iter().filter(|op| **op == RST).count();
        if refused > 0 {
            break;
        }
    }
    // Where the limit of the host is beyond 600, the connections simply stand.
    assert!(refused > 0 || rig.worker.connections() == 600);
    rig.turn();
}

/// Packets of the guest's that ask for connections, not answered yet.
fn ask(rig: &mut Rig, guests: std::ops::Range<u32>) {
    for guest in guests {
        rig.put(Wire::guest(REQUEST).between(guest, HOST_PORT), &[], super::super::rig::Layout::Together);
        rig.worker.turn();
    }
}

#[test]
fn a_flood_of_requests_waits_for_the_doorman_up_to_a_bound_and_the_rest_is_refused() {
    let mut rig = Rig::new();
    let _listener = rig.listen(HOST_PORT);
    let calls = u32::try_from(super::super::calls::CALLS_MAX).unwrap();
    ask(&mut rig, 0..calls);
    assert_eq!((rig.worker.connections(), rig.worker.counts().of(Event::Refused)), (0, 0));
    ask(&mut rig, calls..calls + 3);
    assert_eq!(rig.worker.counts().of(Event::Refused), 3);
    // Asking again for what waits already is no second connection.
    ask(&mut rig, 0..1);
    rig.turn();
    assert_eq!(rig.worker.connections(), super::super::calls::CALLS_MAX);
    assert_eq!(rig.worker.counts().of(Event::Refused), 3);
}

#[test]
fn what_the_doorman_brings_after_a_reset_belongs_to_nobody() {
    let mut rig = Rig::new();
    let listener = rig.listen(HOST_PORT);
    ask(&mut rig, 1..3);
    rig.worker.transport_reset();
    ask(&mut rig, 3..4);
    rig.turn();
    assert_eq!(rig.worker.connections(), 1);
    let mut byte = [0];
    for _ in 0..2 {
        assert_eq!(std::io::Read::read(&mut listener.accept().unwrap().0, &mut byte).unwrap(), 0, "let go of");
    }
}

#[test]
fn without_a_doorman_everything_is_refused_and_clients_are_served_on() {
    let mut rig = Rig::new();
    let (other, _) = super::super::doorman::line().unwrap();
    ask(&mut rig, 1..3);
    rig.doorman = other;
    rig.turn();
    assert_eq!(rig.ops(), [RST, RST]);
    ask(&mut rig, 3..4);
    rig.turn();
    assert_eq!((rig.ops(), rig.worker.counts().of(Event::HostFault)), (vec![RST], 1));
    let client = rig.client("CONNECT 1024\n");
    rig.turn();
    assert_eq!(rig.ops(), [REQUEST]);
    drop(client);
}

#[test]
fn a_doorman_that_makes_no_sense_is_not_asked_again() {
    let mut rig = Rig::new();
    ask(&mut rig, 1..3);
    rustix::net::send(&rig.doorman, &[1, 2, 3], rustix::net::SendFlags::NOSIGNAL).unwrap();
    rig.worker.on_doorman();
    assert_eq!(rig.worker.counts().of(Event::HostFault), 1);
    ask(&mut rig, 3..8);
    assert!(!rig.worker.has_calls(), "nobody waits for an answer that never comes");
    assert_eq!(rig.ops(), [RST; 7]);
}

/// Nothing wakes the worker for a while.
fn assert_sleeps(rig: &mut Rig) {
    rig.turn();
    for _ in 0..5 {
        std::thread::sleep(std::time::Duration::from_millis(4));
        let woken: Vec<_> = rig.worker.poller.poll().iter().map(|(token, _)| token).collect();
        assert!(woken.is_empty(), "woken by {woken:?}");
        assert_eq!(rig.worker.time_left_ms(), None);
        rig.worker.turn();
    }
}

#[test]
fn a_broken_link_has_no_deadline_to_wake_for() {
    let mut rig = Rig::new();
    // A packet that was taken, of which the guest has not been told yet, and then a lie.
    rig.put(Wire::guest(RST), &[], super::super::rig::Layout::Together);
    rig.worker.turn();
    rig.tx.set_avail_idx(0x7000);
    rig.kicks[1].write(1).unwrap();
    rig.turn();
    assert_eq!(rig.worker.counts().of(Event::QueueFault), 1);
    std::thread::sleep(std::time::Duration::from_millis(10));
    rig.turn();
    assert_sleeps(&mut rig);
}

#[test]
fn a_pause_of_the_door_ends_though_nobody_is_let_in() {
    let mut rig = Rig::inactive(super::super::rig::VERSION_1);
    rig.worker.door_pause_ms = Some(1);
    std::thread::sleep(std::time::Duration::from_millis(5));
    rig.turn();
    assert_sleeps(&mut rig);
}

#[test]
fn idle_worker_has_nothing_to_do() {
    let mut rig = Rig::new();
    let (_, host) = rig.host_opens(80);
    rig.turn();
    for _ in 0..3 {
        assert_eq!(rig.worker.poller.poll().iter().count(), 0, "a busy loop");
    }
    drop(host);
    assert!(rig.worker.poller.poll().iter().count() > 0);
}
