// SPDX-License-Identifier: Apache-2.0
//! vsock of a machine that goes on in another: no connection goes with it.
//!
//! A connection belongs to a socket of the host, and that to one machine. The guest is told that
//! its connections are gone (§5.10.6.7), and nobody new may enter until it has dropped them.

use super::link::Link;
use super::worker::VsockWorker;
use crate::virtio::QueueState;

/// What outlives the connections of a device when it is put into another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VsockState {
    /// The host's port of the next connection to the guest, which may still know the ones before.
    pub next_host_port: u32,
    /// There were connections, which the guest must be told are gone, or has still to be.
    pub had_connections: bool,
}

impl VsockWorker {
    /// What a twin of this device needs to know, and where its queues stand.
    pub fn state(&mut self) -> (VsockState, Vec<QueueState>) {
        // The driver may have become ready an instant ago.
        self.on_commands();
        let was_told = self.link.as_ref().is_none_or(|link| !link.is_reset_event_due && link.awaited.is_none());
        let had_connections = !self.mux.is_empty() || self.has_calls() || !was_told;
        let state = VsockState { next_host_port: self.mux.next_host_port(), had_connections };
        (state, self.link.as_ref().map(Link::states).unwrap_or_default())
    }

    /// Goes on where `state` was taken, with none of its connections: the guest is told that they
    /// are gone, if there were any. Comes after the device behind the registers was restored.
    pub fn restore(&mut self, state: VsockState) {
        self.on_commands();
        self.mux.set_next_host_port(state.next_host_port);
        if state.had_connections {
            self.transport_reset();
        }
    }

    /// Whether the guest can be talked to by somebody new.
    pub(super) fn may_enter(&mut self) -> bool {
        let now_ms = self.now_ms;
        let Some(link) = self.link.as_mut().filter(|link| !link.is_broken) else {
            return false;
        };
        match link.is_resetting(now_ms) {
            Ok(is_resetting) => !is_resetting,
            Err(fault) => {
                self.on_queue_fault(fault);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
