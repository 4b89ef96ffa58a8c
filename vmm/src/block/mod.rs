// SPDX-License-Identifier: Apache-2.0
//! The virtio block device (VIRTIO 1.2 §5.2): one queue, one thread a disk.
//!
//! A request comes as a checked chain ([`crate::virtio`]); [`request`] says what it asks for, as a
//! pure function of its header and lengths; [`worker`] does it on the [`crate::disk::Disk`] and
//! completes the chain; [`device`] is the control half behind the registers. No lock and no
//! allocation on the way of a request.
//!
//! The image's format is never guessed: bytes are bytes.

pub mod spec;

pub mod event;

pub mod request;

pub mod worker;

pub mod device;

pub use device::Block;
pub use event::{Counters, Event};
