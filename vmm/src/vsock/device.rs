// SPDX-License-Identifier: Apache-2.0
//! The control half of the vsock device: what the guest's driver negotiates with.
//!
//! It lives behind the registers on the vCPU threads and holds no connection: at DRIVER_OK it
//! sends the queues to [`super::worker`], and at a reset it waits until they have been let go.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::doorman::Doorman;
use super::host_socket::Door;
use super::worker::VsockWorker;
use crate::virtio::spec::{device_id, feature};
use crate::virtio::{ActivateError, Activation, Device};

/// Queues of the device (§5.10.2).
pub(super) const RX_QUEUE: u32 = 0;
pub(super) const TX_QUEUE: u32 = 1;
pub(super) const EVENT_QUEUE: u32 = 2;
/// `id` of the event that the transport was reset (§5.10.6.7).
pub(super) const VSOCK_EVENT_TRANSPORT_RESET: u32 = 0;
/// Largest sizes of the queues: rx, tx, event.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// CIDs a guest may have: 0 is reserved, 1 is the guest itself, 2 the host (§5.10.4).
pub const GUEST_CID_FIRST: u64 = 3;
/// The upper 32 bits are reserved and zero; all ones means any.
pub const GUEST_CID_LAST: u64 = 0xffff_fffe;

/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Not a guest's CID.
    #[error("making the vsock device: guest CID {cid} is not in {GUEST_CID_FIRST}..={GUEST_CID_LAST}; 3 always works")]
    GuestCid {
        /// What was asked for.
        cid: u64,
    },
    /// The host has no descriptor, or no memory, for it.
    #[error("making the vsock device: {what} for {}", path.display())]
    Host {
        /// What was attempted.
        what: &'static str,
        /// The socket it was made for.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// What the control half asks of the worker.
#[derive(Debug)]
pub(super) enum Command {
    /// Begin: here are the queues.
    Activate(Box<Activation>),
    /// Let go of the queues, close every connection, then answer.
    Reset(SyncSender<()>),
    /// Close every connection and tell the guest that it has.
    TransportReset,
}

/// A way to the worker, from any thread.
#[derive(Clone, Debug)]
pub struct VsockControl {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
}

impl VsockControl {
    /// Closes every connection and tells the guest so by the transport-reset event (§5.10.6.7):
    /// it drops its own ends, reads its CID again and goes on. Returns before that is done.
    pub fn transport_reset(&self) {
        self.send(Command::TransportReset);
    }

    /// Nothing happens when the worker is gone: the VM is ending.
    fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            // Fails only when the counter is full, and then the worker is being woken already.
            let _ = self.wake.write(1);
        }
    }
}

/// The device as the registers see it.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    control: VsockControl,
    is_active: bool,
}

/// Makes the two halves of a device: the first goes behind the registers, the second into the
/// monitor's event loop. `listener` is where clients connect, `uds` the path it is bound to.
///
/// The worker must be running, or dropped, whenever the guest may reset the device.
///
/// # Errors
/// [`VsockError::GuestCid`] before anything is opened; [`VsockError::Host`].
pub fn pair(
    guest_cid: u64,
    listener: UnixListener,
    doorman: OwnedFd,
    uds: &Path,
) -> Result<(Vsock, VsockWorker), VsockError> {
    if !(GUEST_CID_FIRST..=GUEST_CID_LAST).contains(&guest_cid) {
        return Err(VsockError::GuestCid { cid: guest_cid });
    }
    let host = |what| move |source| VsockError::Host { what, path: uds.to_path_buf(), source };
    let wake = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(host("opening an eventfd"))?;
    let wake_of_worker = wake.try_clone().map_err(host("duplicating an eventfd"))?;
    let doors = (Door::new(listener).map_err(host("preparing the listening socket"))?, Doorman::new(doorman));
    let (sender, receiver): (Sender<Command>, Receiver<Command>) = channel();
    let worker = VsockWorker::new(guest_cid, doors, receiver, wake_of_worker).map_err(host("opening an epoll"))?;
    let control = VsockControl { commands: sender, wake: Arc::new(wake) };
    Ok((Vsock { guest_cid, control, is_active: false }, worker))
}

impl Vsock {
    /// A way to the worker, to be kept when the device itself is given away.
    pub fn control(&self) -> VsockControl {
        self.control.clone()
    }
}

impl Device for Vsock {
    fn device_id(&self) -> u32 {
        device_id::VSOCK
    }

    fn features(&self) -> u64 {
        feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// §5.10.4: le64 guest_cid.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let config = self.guest_cid.to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, byte) in data.iter_mut().zip(config.iter().skip(from)) {
            *to = *byte;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.is_active = true;
        self.control.send(Command::Activate(Box::new(activation)));
        Ok(())
    }

    fn reset(&mut self) {
        if !std::mem::take(&mut self.is_active) {
            return;
        }
        let (done, is_done) = sync_channel(1);
        self.control.send(Command::Reset(done));
        // An error means that the worker is gone, and with it its hold on the queues.
        let _ = is_done.recv();
    }
}

#[cfg(test)]
mod tests;
