// SPDX-License-Identifier: Apache-2.0
//! The contract between the register file ([`super::mmio`]) and a device: the control half, which
//! lives behind the registers, and what it hands to its data half.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use super::fault::GuestFault;
use super::interrupt::Interrupt;
use super::queue::Queue;
use crate::memory::GuestRam;

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver set it up wrongly.
    #[error("activating a device: the guest broke a rule")]
    Guest(#[from] GuestFault),
    /// The host could not do its part.
    #[error("activating a device: {what}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// The control half of a device. The data half lives on a thread of the device's choice and gets
/// everything it needs with [`Device::activate`].
pub trait Device: Send {
    /// The device type (§5).
    fn device_id(&self) -> u32;

    /// Feature bits offered; `VERSION_1` is added by the transport.
    fn features(&self) -> u64;

    /// Largest size of each queue, in the order of their indices; powers of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// True when the data half waits in a blocking `read(2)` of a kick; otherwise the eventfds
    /// are non-blocking.
    fn kicks_block(&self) -> bool {
        false
    }

    /// Fills `data` with the configuration space from `offset`; zeros where there is none.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Starts serving. Called once between resets, on a vCPU thread.
    ///
    /// # Errors
    /// [`ActivateError`]; the device then needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops serving. Returns once the data half has let go of the queues and no request is in
    /// flight: nothing is written to guest memory after it. Fine to call when not active.
    fn reset(&mut self);
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub ram: GuestRam,
    /// The negotiated features.
    pub features: u64,
    /// All queues, in order.
    pub queues: Vec<Queue>,
    /// One eventfd a queue, written when the driver kicks it.
    pub kicks: Vec<EventFd>,
    /// The way to wake the driver.
    pub interrupt: Interrupt,
}
