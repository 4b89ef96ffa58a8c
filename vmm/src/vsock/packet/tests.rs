// SPDX-License-Identifier: Apache-2.0
use super::super::model::{CREDIT_REQUEST, CREDIT_UPDATE, GUEST_CID, GUEST_PORT, HOST_PORT, Wire};
use super::super::model::{REQUEST, RESPONSE, RST, RW, SHUTDOWN};
use super::*;
use proptest::prelude::*;

const PORTS: Ports = Ports { guest: GUEST_PORT, host: HOST_PORT };

fn parse(wire: Wire, available_bytes: u64) -> Result<Packet, PacketFault> {
    Packet::parse(&wire.bytes(), GUEST_CID, available_bytes)
}

fn with(change: impl FnOnce(&mut Wire)) -> Wire {
    let mut wire = Wire::guest(RW);
    change(&mut wire);
    wire
}

#[test]
fn every_operation_is_known_by_its_number() {
    let ops = [
        (REQUEST, Op::Request),
        (RESPONSE, Op::Response),
        (RST, Op::Reset),
        (RW, Op::Data { len_bytes: 0 }),
        (CREDIT_UPDATE, Op::CreditUpdate),
        (CREDIT_REQUEST, Op::CreditRequest),
    ];
    for (number, op) in ops {
        let packet = parse(Wire { buf_alloc: 7, fwd_cnt: 9, ..Wire::guest(number) }, 0).unwrap();
        assert_eq!(packet.op(), op);
        assert_eq!(packet.ports(), PORTS);
        assert_eq!(packet.credit(), Credit { buf_alloc: 7, fwd_cnt: 9 });
    }
    for (flags, receive, send) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)] {
        let packet = parse(Wire { flags, ..Wire::guest(SHUTDOWN) }, 0).unwrap();
        assert_eq!(packet.op(), Op::Shutdown { receive, send });
    }
}

#[test]
fn operation_outside_the_standard_is_answered_with_reset() {
    for op in [0, 8, u16::MAX] {
        let fault = parse(Wire::guest(op), 0).unwrap_err();
        assert_eq!(fault, PacketFault::Operation { ports: PORTS, op });
        assert_eq!(fault.answer(), Some((PORTS, 1)));
    }
}

#[test]
fn foreign_cids_are_dropped_without_an_answer() {
    for cid in [0, 1, 2, 4, GUEST_CID | 1 << 32, u64::MAX] {
        let fault = parse(with(|wire| wire.src_cid = cid), 0).unwrap_err();
        assert_eq!((fault, fault.answer()), (PacketFault::Source { cid }, None));
    }
    for cid in [0, 1, GUEST_CID, 2 | 1 << 32, u64::MAX] {
        let fault = parse(with(|wire| wire.dst_cid = cid), 0).unwrap_err();
        assert_eq!((fault, fault.answer()), (PacketFault::Destination { cid }, None));
    }
}

#[test]
fn foreign_type_is_answered_with_reset_of_that_type_unless_it_is_one() {
    for kind in [0, 2, 3, u16::MAX] {
        let fault = parse(with(|wire| wire.kind = kind), 0).unwrap_err();
        assert_eq!(fault.answer(), Some((PORTS, kind)));
        let fault = parse(Wire { kind, ..Wire::guest(RST) }, 0).unwrap_err();
        assert_eq!(fault.answer(), None, "a RST is never answered");
    }
}

#[test]
fn port_any_names_no_connection() {
    assert_eq!(parse(with(|wire| wire.src_port = u32::MAX), 0), Err(PacketFault::Port));
    assert_eq!(parse(with(|wire| wire.dst_port = u32::MAX), 0), Err(PacketFault::Port));
    assert!(parse(with(|wire| wire.src_port = u32::MAX - 1), 0).is_ok());
    assert!(parse(with(|wire| wire.dst_port = 0), 0).is_ok());
}

#[test]
fn length_may_reach_the_end_of_the_chain_and_no_further() {
    assert_eq!(parse(with(|wire| wire.len = 100), 100).unwrap().op(), Op::Data { len_bytes: 100 });
    assert!(parse(with(|wire| wire.len = 99), 100).is_ok(), "a larger buffer is fine");
    let fault = parse(with(|wire| wire.len = 101), 100).unwrap_err();
    assert_eq!(fault, PacketFault::Length { ports: PORTS, len_bytes: 101, available_bytes: 100 });
    assert_eq!(fault.answer(), Some((PORTS, 1)));
    assert!(parse(with(|wire| wire.len = u32::MAX), u64::from(u32::MAX)).is_ok());
}

#[test]
fn payload_belongs_to_data_only() {
    for op in [REQUEST, RESPONSE, SHUTDOWN, CREDIT_UPDATE, CREDIT_REQUEST] {
        let fault = parse(Wire { len: 1, ..Wire::guest(op) }, 1).unwrap_err();
        assert_eq!(fault, PacketFault::Payload { ports: PORTS, op, len_bytes: 1 });
        assert_eq!(fault.answer(), Some((PORTS, 1)));
    }
    let reset = parse(Wire { len: 1, ..Wire::guest(RST) }, 1).unwrap();
    assert_eq!(reset.op(), Op::Reset, "a RST with a payload is still a RST");
}

#[test]
fn outgoing_headers_are_those_of_the_standard() {
    let credit = Credit { buf_alloc: 0x1234_5678, fwd_cnt: 0x9abc_def0 };
    let ops = [
        (Op::Request, REQUEST, 0, 0),
        (Op::Response, RESPONSE, 0, 0),
        (Op::Reset, RST, 0, 0),
        (Op::Shutdown { receive: true, send: false }, SHUTDOWN, 1, 0),
        (Op::Shutdown { receive: false, send: true }, SHUTDOWN, 2, 0),
        (Op::Shutdown { receive: true, send: true }, SHUTDOWN, 3, 0),
        (Op::Data { len_bytes: 77 }, RW, 0, 77),
        (Op::CreditUpdate, CREDIT_UPDATE, 0, 0),
        (Op::CreditRequest, CREDIT_REQUEST, 0, 0),
    ];
    for (op, number, flags, len) in ops {
        let wire = Wire::read(&Packet::new(PORTS, op, credit).encode(GUEST_CID));
        let expected = Wire {
            src_cid: 2,
            dst_cid: GUEST_CID,
            src_port: HOST_PORT,
            dst_port: GUEST_PORT,
            len,
            kind: 1,
            op: number,
            flags,
            buf_alloc: credit.buf_alloc,
            fwd_cnt: credit.fwd_cnt,
        };
        assert_eq!(wire, expected);
    }
    let wire = Wire::read(&StrayReset { ports: PORTS, kind: 2 }.encode(GUEST_CID));
    assert_eq!((wire.op, wire.kind, wire.src_port, wire.dst_port), (RST, 2, HOST_PORT, GUEST_PORT));
}

proptest! {
    /// Whatever 44 bytes the guest writes: no panic, and what is accepted keeps its promise.
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::array::uniform32(any::<u8>()), rest in prop::array::uniform12(any::<u8>()), available in 0u64..1 << 33) {
        let mut header = [0; HEADER_LEN_BYTES];
        header[..32].copy_from_slice(&bytes);
        header[32..].copy_from_slice(&rest);
        let _ = Packet::parse(&header, GUEST_CID, available);
        // Past the ids, so that the rest is reached.
        header[..16].copy_from_slice(&Wire::guest(RW).bytes()[..16]);
        header[28..30].copy_from_slice(&1u16.to_le_bytes());
        header[30] %= 10;
        header[31] = 0;
        if let Ok(packet) = Packet::parse(&header, GUEST_CID, available) {
            let wire = Wire::read(&header);
            match packet.op() {
                Op::Data { len_bytes } => prop_assert!(u64::from(len_bytes) <= available),
                Op::Reset => {}
                _ => prop_assert_eq!(wire.len, 0),
            }
            prop_assert_eq!(packet.ports(), Ports { guest: wire.src_port, host: wire.dst_port });
        }
    }
}
