// SPDX-License-Identifier: Apache-2.0
//! Any report of a guest on its workspace: what is taken in is what an overlay would show, and applying
//! it changes the directory and nothing else. Body: `host/src/workspace/fuzz.rs`.
//!
//! `./dev fuzz 60 changes`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| midge::workspace::fuzz::changes(data));
