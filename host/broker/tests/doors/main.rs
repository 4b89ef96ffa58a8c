// SPDX-License-Identifier: Apache-2.0
//! The doors `model` and `egress` against real servers and hostile guests, one file each way of being hostile.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod bad_http;
mod curl;
mod egress;
mod inspect;
mod kit;
mod model;
mod replay;
mod secrets;
mod tunnel;
