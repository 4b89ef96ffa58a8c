// SPDX-License-Identifier: Apache-2.0
//! Any bytes, cut anywhere, in both directions: no panic, no memory beyond a frame, one encoding for each message.
//! `./dev fuzz 60 decode`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use midge_protocol::{Decoder, HEADER_BYTES, Message, ToAgent, ToHost, encode};

fn check<M: Message>(cut: usize, bytes: &[u8]) {
    let mut decoder = Decoder::<M>::new();
    let mut again = Vec::new();
    let mut broken = false;
    for mut piece in bytes.chunks(cut) {
        loop {
            match decoder.decode(&mut piece) {
                Ok(Some(message)) => encode(&message, &mut again).expect("what was received can be sent"),
                Ok(None) => break,
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        assert!(decoder.capacity() <= HEADER_BYTES + M::MAX_PAYLOAD_BYTES);
    }
    assert!(bytes.starts_with(&again), "a message has two encodings");
    assert!(broken || !decoder.is_at_boundary() || again.len() == bytes.len());
}

fuzz_target!(|input: &[u8]| {
    if let Some((cut, bytes)) = input.split_first() {
        check::<ToAgent>(usize::from(*cut) + 1, bytes);
        check::<ToHost>(usize::from(*cut) + 1, bytes);
    }
});
