// SPDX-License-Identifier: Apache-2.0
//! Any bytes of an agent, in any pieces: the messages are those of the bytes as a whole. Body:
//! `host/src/link/fuzz.rs`.
//!
//! `./dev fuzz 60 link`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| midge::link::fuzz::link(data));
