// SPDX-License-Identifier: Apache-2.0
//! Midge's virtual machine monitor: one Linux guest on KVM per process.
//!
//! The modules stand in the order in which they may use each other (a file imports only from
//! files above it). Whose fault a failure is decides what happens, everywhere in this crate:
//!
//! | whose fault | type | reaction |
//! | --- | --- | --- |
//! | guest | a `GuestFault` | the queue is latched or the connection reset; counted; the VM lives |
//! | host | the module's error with the `io::Error` | the request fails, or the VM stops with its own exit code |
//! | user | [`config::ConfigError`] | exit code 2, before anything is opened |
//! | us | `assert!` with its reason | abort; never reachable from guest bytes |
//!
//! The crate knows nothing of agents, models or policy: it moves bytes between a guest and
//! Unix sockets.

#[cfg(test)]
mod dice;

pub mod sys;

pub mod config;

pub mod trace;

pub mod memory;

pub mod machine;

pub mod boot;

pub mod virtio;

pub mod disk;

pub mod block;

pub mod vsock;

pub mod snapshot;

pub mod jail;

pub mod postmortem;

pub mod orders;

pub mod control;

pub mod vm;
