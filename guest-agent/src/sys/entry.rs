// SPDX-License-Identifier: Apache-2.0
//! The C entry point. The standard library's own would abort in a guest without a console, where PID 1 is started with
//! no open file and nothing in `/dev` to open.
#![expect(unsafe_code, reason = "an entry point has a name that the C library knows")]

use std::ffi::{c_char, c_int};

// SAFETY: no other symbol of this program is called `main`; the C library calls it once, with the types it declares.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    c_int::from(crate::start())
}
