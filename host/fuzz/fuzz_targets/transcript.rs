// SPDX-License-Identifier: Apache-2.0
//! Any file as a transcript: verified, shown, exported and replayed without a crash or anything that a terminal would obey.
//! Body: `host/record/src/fuzz.rs`.
//!
//! `./dev fuzz 60 transcript`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| midge_record::fuzz::transcript(data));
