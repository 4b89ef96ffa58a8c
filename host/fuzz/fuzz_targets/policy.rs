// SPDX-License-Identifier: Apache-2.0
//! Any bytes as a policy file: no panic, problems fit for a terminal, and what is right is written out as the same. Body:
//! `host/policy/src/fuzz.rs`.
//!
//! `./dev fuzz 60 policy`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| midge_policy::fuzz::policy(data));
