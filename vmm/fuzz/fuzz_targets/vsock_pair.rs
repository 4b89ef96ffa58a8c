// SPDX-License-Identifier: Apache-2.0
//! Both ends of vsock connections in virtual time: no byte lost, doubled or out of order, no window
//! overrun, nothing that stands still and could move. Body: `vmm/src/vsock/fuzz.rs`.
//!
//! `./dev fuzz 60 vsock_pair`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| midge_vmm::vsock::fuzz::vsock_pair(data));
