// SPDX-License-Identifier: Apache-2.0
//! A stopped VM as data: what KVM held of it and what its devices held.
//!
//! [`VmState`] is what a resident keeps, and builds forks from, without ever encoding it.
//! [`mod@format`] turns it into a file and back, [`codec`] is how that file's numbers are laid out,
//! [`cpu`] says whether this host can go on with it, [`files`] writes state, memory and layers. Memory
//! and the pages of overlays are in files of their own, which are mapped and never read whole.
//!
//! A state that comes from a file is as hostile as a guest: every length is bounded, and whoever
//! restores checks again what he is given (`Queue::restore`, `Transport::restore`).

pub mod codec;
pub mod cpu;
pub mod files;
pub mod format;

use crate::disk::PageMap;
use crate::machine::state::{MachineState, VcpuState};
use crate::virtio::TransportState;
use crate::vsock::VsockState;

/// A disk and the registers in front of it.
#[derive(Debug)]
pub struct DiskState {
    /// The registers.
    pub transport: TransportState,
    /// Length of the disk in bytes.
    pub len_bytes: u64,
    /// Whether the guest was shown a disk that cannot be written.
    pub is_read_only: bool,
    /// Which pages its layer holds; only in a state that comes from a file.
    pub layer: Option<PageMap>,
}

/// The vsock device and the registers in front of it.
#[derive(Debug)]
pub struct VsockDeviceState {
    /// The registers.
    pub transport: TransportState,
    /// What outlives its connections.
    pub device: VsockState,
    /// The guest's context id.
    pub guest_cid: u64,
}

/// A stopped VM without its memory.
#[derive(Debug)]
pub struct VmState {
    /// Guest memory in bytes.
    pub mem_bytes: u64,
    /// Where its kernel's image lies, for a look at its last words.
    pub kernel_range: (u64, u64),
    /// Whether it had a serial console.
    pub has_console: bool,
    /// Interrupt controllers and clock.
    pub machine: MachineState,
    /// The vCPUs in order.
    pub vcpus: Vec<VcpuState>,
    /// The disks in order.
    pub disks: Vec<DiskState>,
    /// The vsock device.
    pub vsock: Option<VsockDeviceState>,
}
