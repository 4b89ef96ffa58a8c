// SPDX-License-Identifier: Apache-2.0
//! The tool loop of a language model, which runs inside a sandbox: a task in, calls of the model and of tools, an end.
//!
//! [`turn`] decides and [`drive`] does: the machine takes what has happened and says what is next, without I/O and without a clock.
//! The model is reached over the door `model` ([`http`]) in its provider's own format ([`wire`]), a person over the door `ask`, the
//! transcript over the door `record` ([`doors`]). The loop holds no credential and protects nothing: the sandbox around it does.

pub mod context;
pub mod doors;
pub mod drive;
pub mod http;
pub mod prompt;
pub mod sse;
pub mod talk;
pub mod tools;
pub mod turn;
pub mod wire;
