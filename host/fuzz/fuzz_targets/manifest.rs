// SPDX-License-Identifier: Apache-2.0
//! Any file as the manifest of a workspace: what is taken can be written, and read again as the same.
//! Body: `host/src/workspace/fuzz.rs`.
//!
//! `./dev fuzz 60 manifest`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| midge::workspace::fuzz::manifest(data));
