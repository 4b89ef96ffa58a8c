// SPDX-License-Identifier: Apache-2.0
//! The MMIO bus: which device answers which guest-physical address.

/// A device that answers accesses to one window of guest-physical addresses.
///
/// Called on a vCPU thread, one access at a time. `offset` is relative to the window and the
/// access lies inside it; everything else about it is the guest's choice.
pub trait MmioDevice: Send {
    /// Fills `data` (1, 2, 4 or 8 bytes) with what the guest reads at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes the 1, 2, 4 or 8 bytes the guest writes at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}
