// SPDX-License-Identifier: Apache-2.0
//! A base for tests and fuzz targets, whose content is a function of the place.

use vm_memory::VolatileSlice;

use super::{Disk, DiskError};
use crate::virtio::vectored::total_bytes;

/// A read-only disk of so many bytes; `fill` gives what a request reads, from its offset on. Who writes to it, or reads behind
/// its end, has a bug.
pub struct FakeBase<F> {
    /// Its length.
    pub len_bytes: u64,
    /// Offset, and where the bytes from there on go, which are zeros before.
    pub fill: F,
}

impl<F: FnMut(u64, &mut [u8]) + Send> Disk for FakeBase<F> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let mut bytes = vec![0; total_bytes(into)];
        assert!(offset + bytes.len() as u64 <= self.len_bytes, "read behind the end of the base");
        (self.fill)(offset, &mut bytes);
        let mut bytes = bytes.as_slice();
        for slice in into {
            let (now, later) = bytes.split_at(slice.len());
            slice.copy_from(now);
            bytes = later;
        }
        Ok(())
    }
    fn write_at(&mut self, _: u64, _: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        unreachable!("a base is never written")
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
    fn discard(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
        unreachable!("a base is never written")
    }
    fn write_zeroes(&mut self, _: u64, _: u64, _: bool) -> Result<(), DiskError> {
        unreachable!("a base is never written")
    }
}
