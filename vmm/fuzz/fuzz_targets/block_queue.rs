// SPDX-License-Identifier: Apache-2.0
//! Any requests on a block queue, and any descriptors: what is served is what an array of bytes would
//! have done, with the status and the used length of the standard. Body: `vmm/src/block/worker/fuzz.rs`.
//!
//! `./dev fuzz 60 block_queue`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| midge_vmm::block::worker::fuzz::block_queue(data));
