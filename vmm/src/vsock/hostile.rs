// SPDX-License-Identifier: Apache-2.0
//! A guest whose packets keep no rule, against the whole device and real sockets: what comes back is sound, what is kept is
//! bounded by names, and afterwards the device serves a guest that behaves.

use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::event::Event;
use super::model::{CREDIT_REQUEST, CREDIT_UPDATE, GUEST_CID, HOST_PORT, REQUEST, RST, RW, SHUTDOWN, Wire};
use super::rig::{Layout, Rig, is_at_end, read_now};
use super::table::CONNECTIONS_MAX;

/// Numbers that lie on both sides of some border.
fn any_u32() -> impl Strategy<Value = u32> {
    let edges = vec![0, 1, 2, 43, 44, 45, 4096, 65_536, 262_144, 262_145, 1 << 30, (1 << 31) - 1, 1 << 31, u32::MAX];
    prop_oneof![3 => prop::sample::select(edges), 1 => any::<u32>()]
}

/// A header, mostly of the guest's own and between few ports, so that packets meet connections.
fn any_header() -> impl Strategy<Value = Wire> {
    let cids = (
        prop_oneof![15 => Just(GUEST_CID), 1 => prop::sample::select(vec![0, 1, 2, 4, 1 << 32 | 3, u64::MAX])],
        prop_oneof![15 => Just(2), 1 => prop::sample::select(vec![0, 1, 3, 1 << 32 | 2, u64::MAX])],
    );
    let ports = (
        prop_oneof![6 => 1_u32..4, 1 => any_u32()],
        prop_oneof![6 => Just(HOST_PORT), 2 => HOST_PORT..HOST_PORT + 3, 1 => any_u32()],
    );
    let kinds = (
        prop_oneof![9 => Just(1_u16), 1 => prop::sample::select(vec![0, 2, 3, u16::MAX])],
        prop_oneof![4 => Just(REQUEST), 8 => 0_u16..9, 1 => any::<u16>()],
    );
    let rest = (prop_oneof![2 => Just(0), 3 => 0_u32..3000, 2 => any_u32()], any_u32(), any_u32(), any_u32());
    (cids, ports, kinds, rest).prop_map(|((src_cid, dst_cid), (src_port, dst_port), (kind, op), rest)| {
        let (len, flags, buf_alloc, fwd_cnt) = rest;
        Wire { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt }
    })
}

/// What the guest got is what a device may send: to it, from the host, of a known kind, and no more data than it can take.
fn assert_sound(wire: &Wire, payload: &[u8], sent: &[Wire]) -> Result<(), TestCaseError> {
    prop_assert_eq!((wire.src_cid, wire.dst_cid), (2, GUEST_CID));
    prop_assert_eq!(wire.len as usize, payload.len());
    let is_stream = wire.kind == 1;
    let is_answer = wire.op == RST && sent.iter().any(|sent| sent.kind == wire.kind);
    prop_assert!(is_stream || is_answer, "{:?}", wire);
    prop_assert!((REQUEST..=CREDIT_REQUEST).contains(&wire.op), "{:?}", wire);
    prop_assert!(wire.op == RW || payload.is_empty(), "{:?}", wire);
    prop_assert!(
        sent.iter().any(|sent| (sent.src_port, sent.dst_port) == (wire.dst_port, wire.src_port)),
        "{:?}",
        wire
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn any_headers_are_answered_or_dropped_and_leave_a_device_that_works(
        headers in prop::collection::vec((any_header(), 0_usize..2000, 0_u8..4), 1..120),
    ) {
        let mut rig = Rig::new();
        let listener = rig.listen(HOST_PORT);
        listener.set_nonblocking(true).unwrap();
        let mut hosts: Vec<UnixStream> = Vec::new();
        let mut sent = Vec::new();
        for (wire, payload, host) in headers {
            let layout = if payload % 2 == 0 { Layout::Together } else { Layout::Torn };
            rig.put(wire, &vec![7; payload], layout);
            sent.push(wire);
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                hosts.push(stream);
            }
            match (host, hosts.last_mut()) {
                // A host that went away is an error to the writer only.
                (0, Some(stream)) => drop(stream.write(&[9; 5000])),
                (1, Some(stream)) => drop(read_now(stream)),
                (2, _) => drop(hosts.pop()),
                _ => {}
            }
            for (wire, payload) in rig.received() {
                assert_sound(&wire, &payload, &sent)?;
            }
            // Ports 1 to 3 and what any_u32 gives, each with a listener or none.
            prop_assert!(rig.worker.connections() <= sent.len());
        }
        // Nothing of that is the queue's fault, and an honest guest is served at once.
        std::fs::remove_file(rig.dir.path().join(format!("v.sock_{HOST_PORT}"))).unwrap();
        let (mut guest, mut stream) = rig.guest_opens(77_777);
        let packet = guest.send(b"hello").unwrap();
        rig.put(packet.0, &packet.1, Layout::Apart);
        rig.deliver(&mut guest);
        prop_assert_eq!(read_now(&mut stream), b"hello");
    }
}

/// §5.10.6.5: what was once said of the ends holds.
#[test]
fn a_shutdown_cannot_be_taken_back() {
    let mut rig = Rig::new();
    let (mut guest, mut host) = rig.guest_opens(50);
    let end = guest.shutdown(2);
    rig.send(end);
    rig.send(Wire { flags: 0, ..end });
    assert!(is_at_end(&mut host), "the guest sends no more");
    rig.put(Wire { len: 5, ..Wire::guest(RW) }.between(50, HOST_PORT), b"again", Layout::Together);
    assert!(rig.ops().contains(&RST), "data after the end resets the connection");
    assert_eq!(rig.worker.connections(), 0);
}

/// A guest that opens connections and forgets them: what it leaves behind is bounded, and gone with a reset of the device.
#[test]
fn connections_that_a_guest_leaves_half_open_are_bounded_and_end_with_the_driver() {
    let mut rig = Rig::new();
    let listener = rig.listen(HOST_PORT);
    let mut hosts = Vec::new();
    // Half of them shut down one side and never speak again, the others say nothing at all.
    for guest in 0..300 {
        rig.send(Wire::guest(REQUEST).between(guest, HOST_PORT));
        hosts.push(listener.accept().unwrap().0);
        if guest % 2 == 0 {
            rig.send(Wire { flags: 1, ..Wire::guest(SHUTDOWN) }.between(guest, HOST_PORT));
        }
        let _ = rig.received();
    }
    assert_eq!(rig.worker.connections(), 300);
    const { assert!(300 < CONNECTIONS_MAX) };
    // A REQUEST for ports that are taken is no second connection.
    rig.send(Wire::guest(REQUEST).between(7, HOST_PORT));
    assert!(rig.worker.connections() <= 300);
    let Rig { device, worker, .. } = &mut rig;
    std::thread::scope(|scope| {
        let resetting = scope.spawn(|| crate::virtio::Device::reset(device));
        while !resetting.is_finished() {
            worker.turn();
        }
    });
    assert_eq!(rig.worker.connections(), 0);
    for host in &mut hosts {
        host.set_nonblocking(true).unwrap();
        assert!(is_at_end(host), "the host hears of it");
    }
    rig.activate();
    rig.give_rx(12, 4140);
    drop(hosts);
    std::fs::remove_file(rig.dir.path().join(format!("v.sock_{HOST_PORT}"))).unwrap();
    rig.guest_opens(5);
}

/// 4 GiB of credit do not make the monitor read more from a host than the guest has buffers for.
#[test]
fn four_gib_of_credit_are_no_reason_to_read_ahead() {
    let mut rig = Rig::inactive(super::rig::VERSION_1);
    rig.activate();
    rig.give_rx(2, 100);
    let listener = rig.listen(HOST_PORT);
    rig.send(Wire { buf_alloc: u32::MAX, ..Wire::guest(REQUEST) });
    let (mut host, _) = listener.accept().unwrap();
    host.set_nonblocking(true).unwrap();
    let mut taken = 0;
    for _ in 0..200 {
        taken += host.write(&[1; 65_536]).unwrap_or(0);
        rig.turn();
    }
    // One buffer has the RESPONSE, the other 56 bytes; the rest is in the socket, whose size the kernel bounds.
    let list: usize = rig.received().iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(list, 56);
    let stored = taken;
    for _ in 0..20 {
        taken += host.write(&[1; 65_536]).unwrap_or(0);
    }
    assert!(taken - stored < 1000, "no more is read than was delivered: {} of {stored}", taken - stored);
}

/// Credit that goes backwards, and buffers that shrink to nothing and grow to 4 GiB: never more data than the least promise.
#[test]
fn credit_that_goes_back_and_forth_never_lets_more_through_than_was_promised() {
    let mut rig = Rig::new();
    let (_, mut host) = rig.guest_opens(60);
    host.write_all(&[5; 20_000]).unwrap();
    let mut got: usize = rig.received().iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(got, 20_000);
    let credit = |buf_alloc, fwd_cnt| Wire { buf_alloc, fwd_cnt, ..Wire::guest(CREDIT_UPDATE) }.between(60, HOST_PORT);
    // All was read, and 100 more are allowed; then old news of a time when nothing had been read.
    rig.send(credit(100, 20_000));
    rig.send(credit(u32::MAX, 3));
    host.write_all(&[6; 1000]).unwrap();
    got = rig.received().iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(got, 100, "the older word is ignored with all it says");
    rig.send(credit(0, 20_100));
    assert_eq!(rig.received().iter().map(|(_, payload)| payload.len()).sum::<usize>(), 0);
    // More than was ever sent: the connection goes.
    rig.send(credit(u32::MAX, 30_000));
    assert!(rig.ops().contains(&RST));
    assert_eq!(rig.worker.counts().of(Event::ConnectionFault), 1);
    assert_eq!(rig.worker.connections(), 0);
}
