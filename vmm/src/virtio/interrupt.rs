// SPDX-License-Identifier: Apache-2.0
//! How a device wakes its driver: InterruptStatus, the irqfd, and the latch for faults.
//!
//! InterruptStatus and the latch, a bit of Status, are words of the page that the guest reads
//! without an exit ([`crate::machine::pages`]). Shared between the thread that serves the queues
//! and the vCPU threads; atomics only, no lock on the way of a request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::EventFd;

use super::fault::GuestFault;
use super::spec::{interrupt, register, status};
use crate::machine::pages::ReadPage;

#[derive(Debug)]
struct Shared {
    irqfd: EventFd,
    page: ReadPage,
    needs_reset: AtomicBool,
    faults: AtomicU64,
    first_fault: OnceLock<GuestFault>,
}

/// The interrupt line of one device; clones are the same line.
#[derive(Debug, Clone)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

impl Interrupt {
    /// A line that raises `irqfd`; `page` is what the guest reads of the device's registers.
    #[must_use]
    pub fn new(irqfd: EventFd, page: ReadPage) -> Self {
        Self {
            shared: Arc::new(Shared {
                irqfd,
                page,
                needs_reset: AtomicBool::new(false),
                faults: AtomicU64::new(0),
                first_fault: OnceLock::new(),
            }),
        }
    }

    /// Tells the driver that buffers were used (§4.2.3.2). Ask
    /// [`super::Queue::needs_notification`] first.
    pub fn signal_used(&self) {
        self.raise(interrupt::USED_BUFFER);
    }

    /// Tells the driver that the configuration or the device status has changed.
    pub fn signal_config(&self) {
        self.raise(interrupt::CONFIG_CHANGE);
    }

    /// Counts `fault` and latches DEVICE_NEEDS_RESET until the driver resets the device; tells
    /// the driver the first time (§2.1.2). The queue is latched already.
    pub fn report_fault(&self, fault: GuestFault) {
        self.shared.faults.fetch_add(1, Ordering::Relaxed);
        // Only the first is kept; a later one finds the cell taken, which is as intended.
        let _ = self.shared.first_fault.set(fault);
        self.latch_needs_reset();
    }

    /// Latches DEVICE_NEEDS_RESET without blaming the guest.
    pub(super) fn latch_needs_reset(&self) {
        if !self.shared.needs_reset.swap(true, Ordering::SeqCst) {
            // Before the interrupt, so that the driver finds it; see `show_status`.
            self.shared.page.set_bits(register::STATUS, status::DEVICE_NEEDS_RESET);
            self.signal_config();
        }
    }

    /// Lets the guest read `value` as the device status, with the latch in it if `is_active`.
    pub(super) fn show_status(&self, value: u32, is_active: bool) {
        self.shared.page.set(register::STATUS, value);
        // Looked at after the word was set: a latch that falls between the two is not lost.
        if is_active && self.needs_reset() {
            self.shared.page.set_bits(register::STATUS, status::DEVICE_NEEDS_RESET);
        }
    }

    /// Faults of the guest since the monitor started, and the first of them.
    #[must_use]
    pub fn faults(&self) -> (u64, Option<GuestFault>) {
        let count = self.shared.faults.load(Ordering::Relaxed);
        (count, self.shared.first_fault.get().copied())
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.shared.needs_reset.load(Ordering::SeqCst)
    }

    pub(super) fn status(&self) -> u32 {
        self.shared.page.get(register::INTERRUPT_STATUS)
    }

    /// Puts cause and latch back, without raising the line.
    pub(super) fn restore(&self, status: u32, needs_reset: bool) {
        self.shared.page.set(register::INTERRUPT_STATUS, status & (interrupt::USED_BUFFER | interrupt::CONFIG_CHANGE));
        self.shared.needs_reset.store(needs_reset, Ordering::SeqCst);
    }

    pub(super) fn acknowledge(&self, seen: u32) {
        self.shared.page.clear_bits(register::INTERRUPT_STATUS, seen);
    }

    pub(super) fn reset(&self) {
        self.shared.page.set(register::INTERRUPT_STATUS, 0);
        self.shared.needs_reset.store(false, Ordering::SeqCst);
    }

    /// The cause is set before the line is raised: the driver reads it when it wakes.
    fn raise(&self, cause: u32) {
        self.shared.page.set_bits(register::INTERRUPT_STATUS, cause);
        // An eventfd fails only when its counter is full, and then the line is raised already.
        let _ = self.shared.irqfd.write(1);
    }
}
