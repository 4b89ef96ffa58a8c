// SPDX-License-Identifier: Apache-2.0
//! Any tree as an image, and any file as an image: what is written is read back by a reader that was
//! written from the format's documentation. Body: `host/src/erofs/fuzz.rs`.
//!
//! `./dev fuzz 60 erofs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| midge::erofs::fuzz::erofs(data));
