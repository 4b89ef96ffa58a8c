// SPDX-License-Identifier: Apache-2.0
use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use super::super::event::Event;
use super::super::model::{CREDIT_UPDATE, Endpoint, HOST_PORT, Wire};
use super::super::model::{REQUEST, RESPONSE, RST, RW, SHUTDOWN};
use super::super::rig::{EVENT_IDX, Layout, Rig, VERSION_1, is_at_end, pattern, read_now};
use super::super::table::WINDOW_BYTES;
use crate::virtio::fake::{FakeDriver, Part};

#[test]
fn guests_bytes_arrive_in_every_layout_of_its_chains() {
    for layout in [Layout::Together, Layout::Apart, Layout::Torn] {
        let mut rig = Rig::new();
        let (mut guest, mut host) = rig.guest_opens(1);
        let bytes = pattern(300_000);
        assert!(rig.stream(&mut guest, &bytes, layout, &mut host) == bytes, "{layout:?}");
        assert_eq!(rig.worker.kept_bytes(), 0);
        assert_eq!(rig.worker.counts().of(Event::ConnectionFault), 0);
    }
}

#[test]
fn hosts_bytes_arrive_over_many_small_buffers() {
    let mut rig = Rig::inactive(VERSION_1);
    rig.activate();
    rig.give_rx(40, 45);
    rig.give_rx(3, 200);
    let (mut guest, mut host) = rig.host_opens(80);
    let bytes = pattern(5_000);
    host.write_all(&bytes).unwrap();
    assert!(rig.deliver(&mut guest) == bytes);
}

#[test]
fn hosts_bytes_stream_through_buffers_of_linux() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.host_opens(80);
    let bytes = pattern(400_000);
    let mut left = &bytes[..];
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        if let Ok(count) = host.write(left) {
            left = &left[count..];
        }
        got.extend(rig.deliver(&mut guest));
    }
    assert!(got == bytes);
}

#[test]
fn nothing_is_read_from_the_host_without_room_in_the_guest() {
    let mut rig = Rig::inactive(VERSION_1 | EVENT_IDX);
    rig.activate();
    let mut client = rig.client("CONNECT 80\n");
    rig.turn();
    assert_eq!(rig.worker.connections(), 1, "the REQUEST waits for a buffer");
    rig.give_rx(2, 144);
    let list = rig.received();
    assert_eq!(list.len(), 1);
    let mut guest = Endpoint::new(80, list[0].0.src_port, 250);
    let answer = guest.receive(&list[0].0, &[]).unwrap();
    rig.send(answer);
    client.write_all(&pattern(1000)).unwrap();
    // Two buffers of 100 bytes, credit for 250, 1,000 bytes there.
    let first: Vec<_> = rig.received().iter().map(|(wire, _)| wire.len).collect();
    assert_eq!(first, [100, 100]);
    let second: Vec<_> = rig.received().iter().map(|(wire, _)| wire.len).collect();
    assert_eq!(second, [50], "up to the credit and not a byte beyond");
    assert!(rig.ops().is_empty());
}

#[test]
fn full_host_is_kept_within_the_window_and_drained_later() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.guest_opens(1);
    let bytes = pattern(3 << 20);
    let mut sent = 0;
    // Nobody reads: the socket and then the window fill up.
    while let Some((wire, payload)) = guest.send(&bytes[sent..sent + 20_000]) {
        sent += payload.len();
        rig.put(wire, &payload, Layout::Together);
        rig.deliver(&mut guest);
    }
    assert!(rig.worker.kept_bytes() > 0 && rig.worker.kept_bytes() <= WINDOW_BYTES as usize);
    let mut got = read_now(&mut host);
    while got.len() < sent {
        rig.deliver(&mut guest);
        got.extend(read_now(&mut host));
    }
    assert!(got == bytes[..sent]);
    assert_eq!(rig.worker.kept_bytes(), 0);
    rig.deliver(&mut guest);
    assert_eq!(guest.room(), WINDOW_BYTES, "all credit came back");
    let rest = rig.stream(&mut guest, &bytes[sent..sent + 100_000], Layout::Apart, &mut host);
    assert!(rest == bytes[sent..sent + 100_000]);
}

#[test]
fn guests_half_close_reaches_the_host_behind_kept_bytes_and_answers_come_back() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.guest_opens(1);
    let bytes = pattern(1 << 20);
    let mut sent = 0;
    while let Some((wire, payload)) = guest.send(&bytes[sent..sent + 20_000]) {
        sent += payload.len();
        rig.put(wire, &payload, Layout::Together);
        rig.deliver(&mut guest);
    }
    let end = guest.shutdown(2);
    rig.send(end);
    let mut got = Vec::new();
    while got.len() < sent {
        got.extend(read_now(&mut host));
        rig.turn();
    }
    assert!(got == bytes[..sent]);
    assert!(is_at_end(&mut host), "shutdown(SHUT_WR) in the guest is the end of file on the host");
    host.write_all(b"answer").unwrap();
    assert_eq!(rig.deliver(&mut guest), b"answer", "the other direction goes on");
    drop(host);
    rig.deliver(&mut guest);
    assert_eq!((guest.peer_flags, guest.is_over), (3, true));
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn hosts_half_close_reaches_the_guest_behind_the_last_byte() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.host_opens(80);
    host.write_all(&pattern(10_000)).unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert!(rig.deliver(&mut guest) == pattern(10_000));
    assert_eq!(guest.peer_flags, 2);
    let (wire, payload) = guest.send(b"still here").unwrap();
    rig.put(wire, &payload, Layout::Apart);
    rig.turn();
    assert_eq!(read_now(&mut host), b"still here");
    let end = guest.shutdown(3);
    rig.send(end);
    assert!(is_at_end(&mut host));
    rig.deliver(&mut guest);
    assert!(guest.is_over);
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn bytes_of_a_host_that_closed_at_once_still_arrive() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.host_opens(80);
    host.write_all(&pattern(50_000)).unwrap();
    drop(host);
    assert!(rig.deliver(&mut guest) == pattern(50_000));
    assert!(guest.is_over);
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn busy_connection_does_not_keep_a_quiet_one_waiting() {
    let mut rig = Rig::new();
    let (mut busy, mut busy_host) = rig.host_opens(80);
    let (mut quiet, mut quiet_host) = rig.host_opens(81);
    busy_host.write_all(&pattern(150_000)).unwrap();
    rig.turn();
    quiet_host.write_all(b"x").unwrap();
    let mut until_quiet = 0;
    let mut packets = Vec::new();
    while until_quiet < 200 && !packets.iter().any(|(wire, _): &(Wire, Vec<u8>)| wire.dst_port == 81) {
        for (wire, payload) in &packets {
            busy.receive(wire, payload);
            if let (_, Some(update)) = busy.read(usize::MAX) {
                rig.put(update, &[], Layout::Together);
            }
        }
        packets = rig.received();
        until_quiet += 1;
    }
    assert!(until_quiet < 4, "the quiet one waited {until_quiet} rounds");
    for (wire, payload) in packets.iter().filter(|(wire, _)| wire.dst_port == 81) {
        quiet.receive(wire, payload);
    }
    assert_eq!(quiet.read(9).0, b"x");
}

#[test]
fn rx_buffers_too_small_for_a_packet_are_given_back_and_counted() {
    let mut rig = Rig::inactive(VERSION_1 | EVENT_IDX);
    rig.activate();
    rig.give_rx(3, 44);
    rig.give_rx(1, 45);
    rig.client("CONNECT 80\n");
    rig.turn();
    assert_eq!(rig.rx.used().iter().map(|used| used.1).collect::<Vec<_>>(), [0, 0, 0, 44]);
    assert_eq!(rig.worker.counts().of(Event::ChainFault), 3);
}

#[test]
fn small_buffer_amid_a_batch_loses_no_chain() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.host_opens(80);
    for _ in 0..3 {
        rig.give_rx(1, 10);
        rig.give_rx(2, 100);
    }
    host.write_all(&pattern(60_000)).unwrap();
    assert!(rig.deliver(&mut guest) == pattern(60_000));
    assert!(rig.worker.counts().of(Event::ChainFault) >= 3);
}

#[test]
fn tx_chain_without_a_header_is_counted_and_the_queue_goes_on() {
    let mut rig = Rig::new();
    rig.tx.offer(&[Part::Give(&[0; 43])]);
    rig.tx.offer(&[Part::Take(100)]);
    rig.send(Wire::guest(RW));
    assert_eq!(rig.ops(), [RST]);
    assert_eq!(rig.worker.counts().of(Event::ChainFault), 2);
    assert_eq!(rig.tx.used().len(), 3, "all were given back");
}

#[test]
fn broken_queue_hangs_up_reports_and_stays_quiet_until_reset() {
    let mut rig = Rig::new();
    let (_, mut host) = rig.guest_opens(1);
    // avail.idx far beyond the ring.
    rig.tx.set_avail_idx(0x7000);
    rig.kicks[1].write(1).unwrap();
    rig.turn();
    assert!(is_at_end(&mut host));
    assert_eq!(rig.worker.counts().of(Event::QueueFault), 1);
    rig.turn();
    assert_eq!(rig.worker.counts().of(Event::QueueFault), 1, "once");
    let client = rig.client("CONNECT 80\n");
    rig.turn();
    assert_eq!(rig.worker.connections(), 0);
    // The driver resets the device and begins anew; the client waited in the backlog.
    let worker = &mut rig.worker;
    std::thread::scope(|scope| {
        let resetting = scope.spawn(|| crate::virtio::Device::reset(&mut rig.device));
        while !resetting.is_finished() {
            worker.turn();
        }
    });
    rig.activate();
    rig.give_rx(12, 4140);
    assert_eq!(rig.ops(), [REQUEST]);
    drop(client);
}

#[test]
fn flood_of_requests_is_answered_and_grows_nothing() {
    let mut rig = Rig::new();
    let mut resets = 0;
    for guest in 0..5_000 {
        rig.put(Wire::guest(REQUEST).between(guest, 9), &[], Layout::Together);
        if guest % 8 == 0 {
            resets += rig.ops().iter().filter(|op| **op == RST).count();
        }
    }
    while resets < 5_000 {
        let ops = rig.ops();
        assert!(!ops.is_empty(), "only {resets} of the requests were answered");
        resets += ops.iter().filter(|op| **op == RST).count();
    }
    assert_eq!(rig.worker.connections(), 0);
    assert_eq!(rig.worker.counts().of(Event::Refused), 5_000);
}

#[test]
fn unanswered_resets_hold_the_guests_queue_back_and_none_is_lost() {
    let mut rig = Rig::inactive(VERSION_1);
    rig.activate();
    let mut put = 0;
    for _ in 0..40 {
        for _ in 0..16 {
            rig.put(Wire::guest(RW), &[], Layout::Together);
            put += 1;
            if put - rig.tx.used().len() > 200 {
                break;
            }
        }
        rig.turn();
        if put == 400 {
            break;
        }
    }
    let taken_before = 256;
    rig.give_rx(12, 60);
    let mut resets = 0;
    for _ in 0..200 {
        resets += rig.ops().len();
    }
    assert_eq!(resets, put, "of which {taken_before} waited in the mux");
}

#[test]
fn table_of_connections_fills_up_and_empties() {
    let mut rig = Rig::new();
    let listener = rig.listen(HOST_PORT);
    let mut hosts = Vec::new();
    for guest in 0..200 {
        hosts.push(rig.guest_opens_to(guest, &listener));
    }
    assert_eq!(rig.worker.connections(), 200);
    for (guest, host) in &mut hosts {
        host.write_all(b"hello").unwrap();
        assert_eq!(rig.deliver(guest), b"hello");
    }
    for (guest, host) in &mut hosts {
        let end = guest.shutdown(3);
        rig.send(end);
        rig.deliver(guest);
        assert!(guest.is_over && is_at_end(host));
    }
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn interrupts_and_kicks_are_asked_for_only_when_needed() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.host_opens(80);
    let _ = rig.irq.read();
    // The guest wants an interrupt only 3 used buffers later.
    rig.rx.set_used_event(u16::MAX / 2);
    host.write_all(b"x").unwrap();
    rig.turn();
    assert!(rig.irq.read().is_err(), "EVENT_IDX was heeded");
    rig.deliver(&mut guest);
    let before = rig.rx.avail_event();
    host.write_all(&pattern(4000)).unwrap();
    rig.deliver(&mut guest);
    assert_eq!(rig.rx.avail_event(), before, "no kick is asked for while there are buffers");
}

/// The guest wants an interrupt for the next used buffer.
fn want_next(driver: &FakeDriver) {
    let index = driver.read(driver.used + 2, 2);
    driver.set_used_event(u16::from_le_bytes([index[0], index[1]]));
}

#[test]
fn taken_packets_are_told_late_or_when_they_are_many_or_with_something_else() {
    let mut rig = Rig::new();
    let (mut guest, host) = rig.guest_opens(1);
    let mut write = |rig: &mut Rig| {
        let (wire, payload) = guest.send(b"x").unwrap();
        rig.put(wire, &payload, Layout::Together);
        rig.worker.turn();
    };
    std::thread::sleep(Duration::from_millis(5));
    rig.turn();
    let _ = rig.irq.read();
    // The guest wants to hear of every one.
    rig.tx.used();
    want_next(&rig.tx);
    write(&mut rig);
    assert!(rig.irq.read().is_err(), "one packet alone is no reason");
    std::thread::sleep(Duration::from_millis(5));
    rig.turn();
    assert_eq!(rig.irq.read().unwrap(), 1, "but it is told in the end");

    want_next(&rig.tx);
    let mut packets = 0;
    while rig.irq.read().is_err() {
        write(&mut rig);
        packets += 1;
    }
    assert!(packets <= 32, "told after {packets}");

    want_next(&rig.tx);
    want_next(&rig.rx);
    write(&mut rig);
    (&host).write_all(b"y").unwrap();
    rig.turn();
    assert_eq!(rig.irq.read().unwrap(), 1, "one interrupt for both");
    std::thread::sleep(Duration::from_millis(5));
    rig.turn();
    assert!(rig.irq.read().is_err(), "nothing was left to tell");
}

#[test]
fn transport_reset_closes_everything_and_reaches_the_guest() {
    let mut rig = Rig::new();
    let (_, mut host) = rig.guest_opens(1);
    let control = rig.device.control();
    control.transport_reset();
    rig.turn();
    assert!(is_at_end(&mut host));
    assert_eq!(rig.worker.connections(), 0);
    assert_eq!(rig.event.used(), [], "the guest has given no buffer for it yet");
    rig.event.offer(&[Part::Take(2)]);
    let offered = rig.event.offer(&[Part::Take(8)]);
    rig.kicks[2].write(1).unwrap();
    rig.turn();
    let used: Vec<_> = rig.event.used().iter().map(|used| used.1).collect();
    assert_eq!(used, [0, 4], "a buffer too small is given back");
    assert_eq!(rig.event.taken(&offered, 0)[..4], [0, 0, 0, 0], "id 0: transport reset");
    assert!(rig.ops().is_empty(), "nothing of the old connections is left to say");
    let (mut guest, mut host) = rig.guest_opens(2);
    host.write_all(b"new").unwrap();
    assert_eq!(rig.deliver(&mut guest), b"new");
}

#[test]
fn data_for_a_host_that_is_gone_is_thrown_away_and_the_guest_told() {
    let mut rig = Rig::new();
    let (mut guest, host) = rig.guest_opens(1);
    drop(host);
    let (wire, payload) = guest.send(b"too late").unwrap();
    rig.put(wire, &payload, Layout::Together);
    let ops: Vec<_> = rig.received().iter().map(|(wire, _)| (wire.op, wire.flags)).collect();
    assert_eq!(ops.last(), Some(&(SHUTDOWN, 3)));
    rig.send(guest.packet(RST));
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn guest_that_connects_and_closes_at_once_is_harmless() {
    let mut rig = Rig::new();
    let listener = rig.listen(HOST_PORT);
    let mut guest = Endpoint::new(1, HOST_PORT, 1000);
    let request = guest.packet(REQUEST);
    rig.put(request, &[], Layout::Together);
    let end = guest.shutdown(3);
    rig.put(end, &[], Layout::Together);
    assert_eq!(rig.ops().last(), Some(&RST));
    let (mut host, _) = listener.accept().unwrap();
    assert!(is_at_end(&mut host));
    assert_eq!(rig.worker.connections(), 0);
}

#[test]
fn credit_is_told_before_the_guest_starves() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.guest_opens(1);
    // libkrun #772: a guest that fills the window to the last byte and waits.
    let mut total = 0;
    for _ in 0..20 {
        while let Some((wire, payload)) = guest.send(&pattern(20_000)) {
            total += payload.len();
            rig.put(wire, &payload, Layout::Together);
            rig.turn();
        }
        assert_eq!(guest.room(), 0);
        let mut got = Vec::new();
        while rig.worker.kept_bytes() > 0 || got.is_empty() {
            got.extend(read_now(&mut host));
            rig.turn();
        }
        got.extend(read_now(&mut host));
        let ops: Vec<_> = rig.received();
        assert!(ops.iter().any(|(wire, _)| wire.op == CREDIT_UPDATE));
        for (wire, payload) in ops {
            guest.receive(&wire, &payload);
        }
        assert!(guest.room() >= WINDOW_BYTES / 2);
    }
    assert!(total > 2 << 20);
    assert_eq!(rig.ops().iter().filter(|op| **op == RESPONSE).count(), 0);
}
