// SPDX-License-Identifier: Apache-2.0
//! The register file as plain data, out of one machine and into another. What a driver could not
//! have brought about is refused, and a queue's place is checked like a fresh one's.

use std::sync::Arc;

use super::{STATUS_STEPS, Transport};
use crate::virtio::device::{ActivateError, Device};
use crate::virtio::fault::GuestFault;
use crate::virtio::queue::{Queue, QueueState};
use crate::virtio::ring::Geometry;
use crate::virtio::spec::{feature, status};

/// What the driver wrote of one queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueRegisters {
    /// Where it put it.
    pub geometry: Geometry,
    /// Whether it said that it is in use.
    pub ready: bool,
}

/// A device's registers as plain data, with its queues while it is stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransportState {
    /// Device status, without DEVICE_NEEDS_RESET.
    pub status: u32,
    /// Selects the half of the offered features that is read.
    pub device_features_sel: u32,
    /// Selects the half of the driver's features that is written.
    pub driver_features_sel: u32,
    /// What the driver has accepted.
    pub driver_features: u64,
    /// Selects the queue that the queue registers mean.
    pub queue_sel: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// DEVICE_NEEDS_RESET is latched: the queues are not served until the driver resets.
    pub needs_reset: bool,
    /// Every queue's registers.
    pub queues: Vec<QueueRegisters>,
    /// Every queue's place, while the device serves them; else empty.
    pub serving: Vec<QueueState>,
}

impl<D: Device> Transport<D> {
    /// The registers, with `serving` as what the data half says of its queues: empty when it
    /// serves none.
    #[must_use]
    pub fn state(&self, serving: Vec<QueueState>) -> TransportState {
        TransportState {
            status: self.status,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            queue_sel: self.queue_sel,
            interrupt_status: self.interrupt.status(),
            needs_reset: self.interrupt.needs_reset(),
            queues: self.queues.clone(),
            serving,
        }
    }

    /// Gives fresh registers the content of `state`, and a device that served its queues back to
    /// them. What a driver could not have brought about is refused: `state` may come from a file.
    ///
    /// # Errors
    /// [`ActivateError`].
    pub fn restore(&mut self, state: &TransportState) -> Result<(), ActivateError> {
        if !self.is_reachable(state) {
            let what = "a state that no driver could have set up";
            return Err(GuestFault::Device { device: "virtio-mmio", what }.into());
        }
        self.status = state.status;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.driver_features = state.driver_features;
        self.queue_sel = state.queue_sel;
        self.queues.clone_from(&state.queues);
        self.interrupt.restore(state.interrupt_status, state.needs_reset);
        self.show();
        self.resume(&state.serving)
    }

    /// Whether a driver could have brought this about: steps of the status in their order, only
    /// features that are offered, and queues served from DRIVER_OK on, where it put them.
    fn is_reachable(&self, state: &TransportState) -> bool {
        let known = STATUS_STEPS.iter().fold(status::FAILED, |all, step| all | step);
        let steps = STATUS_STEPS.map(|step| state.status & step != 0);
        let [.., has_features, is_active] = steps;
        let unknown = state.driver_features & !self.offered_features();
        let are_features_fine = unknown == 0 && state.driver_features & feature::VERSION_1 != 0;
        // A latched device may have let go of its queues or not.
        let counts = match (is_active, state.needs_reset) {
            (false, _) => [0; 2],
            (true, false) => [self.queues.len(); 2],
            (true, true) => [0, self.queues.len()],
        };
        let mut served = state.serving.iter().zip(&state.queues);
        state.status & !known == 0
            && steps.is_sorted_by(|before, step| before >= step)
            && (!has_features || are_features_fine)
            && state.queues.len() == self.queues.len()
            && counts.contains(&state.serving.len())
            && served.all(|(queue, registers)| registers.ready && queue.geometry == registers.geometry)
    }

    /// Gives a device that has let go of its queues them back, where they were.
    ///
    /// # Errors
    /// [`ActivateError`].
    pub fn resume(&mut self, serving: &[QueueState]) -> Result<(), ActivateError> {
        if !self.is_active() || self.interrupt.needs_reset() || serving.is_empty() {
            return Ok(());
        }
        let maxima = self.device.queue_max_sizes();
        if serving.len() != maxima.len() {
            let what = "another number of queues than the device has";
            return Err(GuestFault::Device { device: "virtio-mmio", what }.into());
        }
        let restored = serving
            .iter()
            .zip(maxima)
            .map(|(state, max)| Queue::restore(Arc::clone(&self.ram), *state, *max, self.driver_features));
        let queues = restored.collect::<Result<Vec<_>, _>>()?;
        let activation = self.activation_of(queues)?;
        self.device.activate(activation)?;
        // Kicks are not part of a state: everything may have one waiting.
        for kick in &self.kicks {
            let _ = kick.write(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
