// SPDX-License-Identifier: Apache-2.0
//! A base image: a file that many sandboxes read and none writes.
//!
//! `preadv(2)` straight into guest memory, never a mapping: a file that shrinks under us is then
//! an I/O error of one request instead of a SIGBUS of the monitor. Opening the file is the
//! caller's; this module sees a descriptor only.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;

use super::{Disk, DiskError, Layer, OpenError, check_range};
use crate::virtio::vectored::{self, Rest};

/// Images are whole sectors of this many bytes.
const SECTOR_BYTES: u64 = 512;

/// A read-only image.
#[derive(Debug)]
pub struct Base {
    file: File,
    len_bytes: u64,
}

impl Base {
    /// Takes an open regular file or block device.
    ///
    /// # Errors
    /// [`OpenError::Length`] unless it is a positive multiple of 512 bytes long;
    /// [`OpenError::Io`] when the length cannot be found.
    pub fn new(mut file: File) -> Result<Self, OpenError> {
        // A block device has no length in its metadata; its end can be sought.
        let len = file
            .seek(SeekFrom::End(0))
            .map_err(|source| OpenError::Io { what: "finding the length of an image", source })?;
        if len == 0 || !len.is_multiple_of(SECTOR_BYTES) {
            return Err(OpenError::Length { len });
        }
        Ok(Self { file, len_bytes: len })
    }
}

impl Disk for Base {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let len = vectored::total_bytes(into) as u64;
        check_range(offset, len, self.len_bytes)?;
        transfer(into, offset, "reading a disk file", |slices, at| vectored::read_at(self.file.as_fd(), slices, at))
    }

    fn write_at(&mut self, _offset: u64, _from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn discard(&mut self, _offset: u64, _len: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn write_zeroes(&mut self, _offset: u64, _len: u64, _may_free: bool) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn layer(&self) -> Option<Layer<'_>> {
        Some(Layer { descriptors: vec![self.file.as_raw_fd()], changed: None })
    }
}

/// Repeats `call` until all of `slices` is moved: calls may be short or interrupted. A call that
/// moves nothing means that the file ended.
pub(super) fn transfer(
    slices: &[VolatileSlice<'_>],
    offset: u64,
    what: &'static str,
    mut call: impl FnMut(&[VolatileSlice<'_>], u64) -> io::Result<usize>,
) -> Result<(), DiskError> {
    let mut at = offset;
    for chunk in slices.chunks(vectored::SLICES_MAX) {
        let len = vectored::total_bytes(chunk);
        let mut done = 0;
        while done < len {
            let moved = if done == 0 {
                call(chunk, at)
            } else {
                let mut rest = Rest::new(chunk);
                rest.skip(done);
                call(&rest.take(usize::MAX), at)
            };
            match moved {
                Ok(0) => return Err(DiskError::Shrunk { offset: at }),
                Ok(count) => {
                    done = done.saturating_add(count);
                    at = at.saturating_add(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(DiskError::Io { what, offset: at, source }),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
