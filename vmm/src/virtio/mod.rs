// SPDX-License-Identifier: Apache-2.0
//! virtio over MMIO, written against "Virtual I/O Device (VIRTIO) Version 1.2" (cited by §).
//!
//! The way of a request, in the order of the files: a descriptor index is a *claim* of the guest
//! ([`ring`] reads it), [`chain`] walks it once and checks every rule, [`cursor`] reads and writes
//! what it proved, [`queue`] says when to fetch and when to wake whom, [`mmio`] is the register
//! file a driver negotiates through. Devices ([`crate::block`], [`crate::vsock`]) only ever see
//! checked chains.
//!
//! Nothing here opens a file, knows a device's payload, or makes a `&[u8]` of guest memory.

pub mod spec;

pub mod fault;

pub mod vectored;

pub mod ring;

pub mod cursor;

pub mod chain;

pub mod queue;

pub mod interrupt;

pub mod device;

pub mod mmio;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(fuzzing)]
pub(crate) mod fake;

#[cfg(test)]
mod hostile;

#[cfg(test)]
mod standard;

pub use chain::Chain;
pub use cursor::{Reader, ShortChain, Writer};
pub use device::{ActivateError, Activation, Device};
pub use fault::GuestFault;
pub use interrupt::Interrupt;
pub use mmio::{QueueRegisters, Transport, TransportState};
pub use queue::{Queue, QueueState};
pub use ring::Geometry;
