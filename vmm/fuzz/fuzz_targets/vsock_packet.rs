// SPDX-License-Identifier: Apache-2.0
//! Any header: it is refused, or the packet keeps the promises of its type, and written out again
//! it has the same fields.
//!
//! `./dev fuzz 60 vsock_packet`. Input: which fields to make sound (1 byte),
//! payload in the chain (2), then the 44 bytes of the header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use midge_vmm::vsock::packet::{HEADER_LEN_BYTES, HOST_CID, Op, PORT_ANY, Packet};

const GUEST_CID: u64 = 3;

fuzz_target!(|data: &[u8]| {
    let Some((&[sound, low, high], rest)) = data.split_first_chunk::<3>() else { return };
    let Some((header, _)) = rest.split_first_chunk::<HEADER_LEN_BYTES>() else { return };
    let mut header = *header;
    let available = u16::from_le_bytes([low, high]);
    if sound & 1 != 0 {
        header[0..8].copy_from_slice(&GUEST_CID.to_le_bytes());
        header[8..16].copy_from_slice(&HOST_CID.to_le_bytes());
    }
    if sound & 2 != 0 {
        header[28..30].copy_from_slice(&1_u16.to_le_bytes());
    }
    if sound & 4 != 0 {
        header[26..28].fill(0);
        header[31] = 0;
    }
    match Packet::parse(&header, GUEST_CID, u64::from(available)) {
        Ok(packet) => {
            assert!(packet.ports().guest != PORT_ANY && packet.ports().host != PORT_ANY);
            if let Op::Data { len_bytes } = packet.op() {
                assert!(len_bytes <= u32::from(available));
            }
            let out = packet.encode(GUEST_CID);
            assert_eq!(out[16..20], header[20..24], "ports change places");
            assert_eq!(out[20..24], header[16..20]);
            assert_eq!(out[28..32], header[28..32], "type and operation stay");
            assert_eq!(out[36..44], header[36..44], "so does the credit");
        }
        Err(fault) => {
            if let Some((ports, _)) = fault.answer() {
                assert!(ports.guest != PORT_ANY && ports.host != PORT_ANY);
            }
            assert!(!fault.to_string().is_empty());
        }
    }
});
