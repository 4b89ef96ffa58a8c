// SPDX-License-Identifier: Apache-2.0
//! The MMIO bus: which device answers which guest-physical address.
//!
//! Windows of one page each stand side by side from a fixed base, so finding a device is a
//! division. Only register accesses come this way; notifications are ioeventfds and data moves
//! through guest memory, so the lock of a window is not on the data path.

use std::sync::{Arc, Mutex, PoisonError};

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

/// First guest-physical address of the first window.
pub const WINDOWS_START: u64 = 0xd000_0000;
/// Bytes in a window.
pub const WINDOW_BYTES: u64 = 0x1000;

/// The devices by window, fixed once the VM runs.
#[derive(Default)]
pub struct Bus {
    windows: Vec<Arc<Mutex<dyn MmioDevice>>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("windows", &self.windows.len()).finish()
    }
}

impl Bus {
    /// Adds a device in the next free window and returns the window's first address.
    pub fn attach(&mut self, device: Arc<Mutex<dyn MmioDevice>>) -> u64 {
        let start = window_start(self.windows.len());
        self.windows.push(device);
        start
    }

    /// Answers a guest read; absent devices read as all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((device, offset)) => {
                device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Takes a guest write; writes to absent devices are lost.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(addr, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    /// The device whose window holds the whole access, and the offset in it.
    fn find(&self, addr: u64, len: usize) -> Option<(&Mutex<dyn MmioDevice>, u64)> {
        let from_start = addr.checked_sub(WINDOWS_START)?;
        let offset = from_start % WINDOW_BYTES;
        let len = u64::try_from(len).ok()?;
        if len == 0 || len > WINDOW_BYTES - offset {
            return None;
        }
        let index = usize::try_from(from_start / WINDOW_BYTES).ok()?;
        Some((&**self.windows.get(index)?, offset))
    }
}

/// First address of window `index`.
pub fn window_start(index: usize) -> u64 {
    let index = u64::try_from(index).unwrap_or(u64::MAX);
    WINDOWS_START.saturating_add(index.saturating_mul(WINDOW_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Log = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

    struct Probe(u8, Log);

    impl MmioDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0);
            self.1.lock().unwrap().push((offset, data.to_vec()));
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.1.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn two() -> (Bus, Log, Log) {
        let (a, b) = (Log::default(), Log::default());
        let mut bus = Bus::default();
        assert_eq!(bus.attach(Arc::new(Mutex::new(Probe(0xa, a.clone())))), WINDOWS_START);
        assert_eq!(bus.attach(Arc::new(Mutex::new(Probe(0xb, b.clone())))), WINDOWS_START + 0x1000);
        (bus, a, b)
    }

    #[test]
    fn each_window_reaches_its_own_device_with_the_offset_in_it() {
        let (bus, a, b) = two();
        let mut four = [0; 4];
        bus.read(WINDOWS_START + 0xffc, &mut four);
        assert_eq!(four, [0xa; 4]);
        bus.write(WINDOWS_START + 0x1000, &[1, 2]);
        assert_eq!(a.lock().unwrap()[0].0, 0xffc);
        assert_eq!(b.lock().unwrap()[0], (0, vec![1, 2]));
    }

    #[test]
    fn an_access_across_a_window_border_reaches_nobody() {
        let (bus, a, b) = two();
        let mut four = [0; 4];
        bus.read(WINDOWS_START + 0xffe, &mut four);
        assert_eq!(four, [0xff; 4]);
        bus.write(WINDOWS_START + 0xffd, &[0; 4]);
        assert!(a.lock().unwrap().is_empty());
        assert!(b.lock().unwrap().is_empty());
    }

    #[test]
    fn absent_addresses_read_as_ones_at_both_ends_of_the_address_space() {
        let (bus, ..) = two();
        for addr in [0, WINDOWS_START - 4, WINDOWS_START + 0x2000, u64::MAX - 3, u64::MAX] {
            let mut four = [0; 4];
            bus.read(addr, &mut four);
            assert_eq!(four, [0xff; 4], "{addr:#x}");
            bus.write(addr, &four);
        }
    }

    #[test]
    fn an_empty_access_reaches_nobody() {
        let (bus, a, _) = two();
        bus.read(WINDOWS_START, &mut []);
        bus.write(WINDOWS_START, &[]);
        assert!(a.lock().unwrap().is_empty());
    }
}
