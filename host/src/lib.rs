// SPDX-License-Identifier: Apache-2.0
//! Midge: sandboxes with a kernel of their own, for AI agents.
//!
//! A [`Sandbox`](sandbox::Sandbox) is one virtual machine, run by one `midge-vmm` process, with the Midge
//! agent as PID 1. This crate prepares what a sandbox needs (kernel, image, disks, the packed workspace),
//! starts the monitor, speaks to the agent, and brings results back. The `midge` command is a thin layer
//! over it.
//!
//! A module imports only from modules listed before it.

pub mod progress;

pub mod cache;
pub mod erofs;

pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod scratch;

pub mod machine;
pub mod probe;

pub mod orders;

mod doorman;

pub mod run_dir;

pub mod groups;

pub mod emulated;

pub mod doctor;

pub mod workspace;

pub mod runs;

pub mod ps;
pub mod timeline;

pub mod monitor;

pub mod error;

pub mod link;

pub mod exec;
pub mod files;

pub mod sandbox;

pub mod template;

pub mod pool;

pub mod agent;

pub mod bench;
