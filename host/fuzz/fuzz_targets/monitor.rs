// SPDX-License-Identifier: Apache-2.0
//! Any events and any answers of a monitor: bounded, and fit for a terminal. Body:
//! `host/src/monitor/fuzz.rs`.
//!
//! `./dev fuzz 60 monitor`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| midge::monitor::fuzz::monitor(data));
