// SPDX-License-Identifier: Apache-2.0
//! Moves bytes straight between guest memory and files or sockets: `preadv(2)` and its kin over
//! volatile slices. The only place in the data path where a pointer into guest memory is formed.
//!
//! Never copies, never retries, never looks at the bytes.
#![expect(unsafe_code, reason = "the vectored system calls take raw pointers; each wrapper is one call")]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// Most slices handed to the kernel in one call (IOV_MAX is 1024; 64 keeps the array on the stack
/// small, and 64 pages are enough for one call).
pub const SLICES_MAX: usize = 64;

/// A fixed-capacity list of slices of guest memory; derefs to `[VolatileSlice]`.
#[derive(Debug, Clone)]
pub struct Slices<'a> {
    slices: [VolatileSlice<'a>; SLICES_MAX],
    count: usize,
    len_bytes: usize,
}

impl<'a> Slices<'a> {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        let empty: &'a mut [u8] = &mut [];
        Self { slices: [VolatileSlice::from(empty); SLICES_MAX], count: 0, len_bytes: 0 }
    }

    /// Appends `slice`; false when the list is full. An empty slice is dropped.
    pub fn push(&mut self, slice: VolatileSlice<'a>) -> bool {
        if slice.is_empty() {
            return true;
        }
        let Some(place) = self.slices.get_mut(self.count) else {
            return false;
        };
        *place = slice;
        self.count = self.count.saturating_add(1);
        self.len_bytes = self.len_bytes.saturating_add(slice.len());
        true
    }

    /// Sum of the lengths in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Default for Slices<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Deref for Slices<'a> {
    type Target = [VolatileSlice<'a>];

    fn deref(&self) -> &Self::Target {
        self.slices.get(..self.count).unwrap_or(&[])
    }
}

/// A position in a list of slices: hands them out in pieces cut to measure.
#[derive(Debug, Clone, Copy)]
pub struct Rest<'a> {
    slices: &'a [VolatileSlice<'a>],
    /// Bytes of the first slice already passed.
    passed: usize,
}

impl<'a> Rest<'a> {
    /// All of `slices`.
    #[must_use]
    pub fn new(slices: &'a [VolatileSlice<'a>]) -> Self {
        Self { slices, passed: 0 }
    }

    /// Passes `count` bytes, at most to the end.
    pub fn skip(&mut self, count: usize) {
        let mut to_pass = count;
        while let Some((first, later)) = self.slices.split_first() {
            let here = first.len().saturating_sub(self.passed);
            if to_pass < here {
                self.passed = self.passed.saturating_add(to_pass);
                return;
            }
            to_pass = to_pass.saturating_sub(here);
            (self.slices, self.passed) = (later, 0);
        }
    }

    /// The next bytes, at most `limit_bytes` and what [`Slices`] holds; empty only at the end.
    #[must_use]
    pub fn take(&mut self, limit_bytes: usize) -> Slices<'a> {
        let mut list = Slices::new();
        while let Some((first, later)) = self.slices.split_first() {
            let here = first.len().saturating_sub(self.passed);
            let wanted = here.min(limit_bytes.saturating_sub(list.len_bytes()));
            if wanted == 0 && here != 0 {
                break;
            }
            let Ok(piece) = first.subslice(self.passed, wanted) else {
                unreachable!("a piece is cut inside its slice");
            };
            if !list.push(piece) {
                break;
            }
            if wanted < here {
                self.passed = self.passed.saturating_add(wanted);
                break;
            }
            (self.slices, self.passed) = (later, 0);
        }
        list
    }
}

/// Sum of the lengths of `slices` in bytes.
#[must_use]
pub fn total_bytes(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().fold(0, |sum: usize, slice| sum.saturating_add(slice.len()))
}

/// What the kernel reads as its array of buffers; valid while the slices it was made of live.
struct IoVecs {
    vecs: [libc::iovec; SLICES_MAX],
    count: libc::c_int,
}

impl IoVecs {
    /// Takes the first [`SLICES_MAX`] of `slices`: a shorter transfer, as the calls allow anyway.
    fn new(slices: &[VolatileSlice<'_>]) -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut vecs = [none; SLICES_MAX];
        let mut count = 0;
        for (vec, slice) in vecs.iter_mut().zip(slices) {
            vec.iov_base = slice.ptr_guard_mut().as_ptr().cast();
            vec.iov_len = slice.len();
            count += 1;
        }
        Self { vecs, count }
    }

    /// What `sendmsg(2)` and `recvmsg(2)` take; it points at this, which must stay where it is.
    fn message(&mut self) -> libc::msghdr {
        // SAFETY: `msghdr` is a plain C struct of integers and pointers; all-zero is a valid value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vecs.as_mut_ptr();
        message.msg_iovlen = usize::try_from(self.count).unwrap_or(0);
        message
    }
}

fn transferred(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

/// `preadv(2)`: fills `into` in order; returns the bytes read, 0 at the end of the file.
///
/// # Errors
/// Whatever the call reports, `EINTR` included; `EOVERFLOW` for an offset beyond `off_t`.
pub fn read_at(fd: BorrowedFd<'_>, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let vecs = IoVecs::new(into);
    let offset = file_offset(offset)?;
    // SAFETY: the first `count` entries describe memory that `into` keeps mapped and writable for
    // the duration of the call; other users of it use volatile accesses, so no reference is
    // invalidated by the kernel's writes.
    let result = unsafe { libc::preadv(fd.as_raw_fd(), vecs.vecs.as_ptr(), vecs.count, offset) };
    transferred(result)
}

/// `pwritev(2)`: writes `from` in order; returns the bytes written.
///
/// # Errors
/// Whatever the call reports, `EINTR` included; `EOVERFLOW` for an offset beyond `off_t`.
pub fn write_at(fd: BorrowedFd<'_>, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let vecs = IoVecs::new(from);
    let offset = file_offset(offset)?;
    // SAFETY: the first `count` entries describe memory that `from` keeps mapped and readable for
    // the duration of the call, and the kernel only reads it.
    let result = unsafe { libc::pwritev(fd.as_raw_fd(), vecs.vecs.as_ptr(), vecs.count, offset) };
    transferred(result)
}

/// `recvmsg(2)` from a connected stream socket, never waiting; returns the bytes received, 0 at its end.
///
/// # Errors
/// Whatever the call reports, `EAGAIN` and `EINTR` included.
pub fn receive(fd: BorrowedFd<'_>, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut vecs = IoVecs::new(into);
    let mut message = vecs.message();
    // SAFETY: `message` points at `vecs`, whose first `count` entries are as in `read_at`; without room for
    // ancillary data the kernel drops what comes with the bytes.
    let result = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    transferred(result)
}

/// `sendmsg(2)` to a connected socket, never raising SIGPIPE, never waiting; returns the bytes
/// sent.
///
/// # Errors
/// Whatever the call reports, `EAGAIN`, `EPIPE` and `EINTR` included.
pub fn send(fd: BorrowedFd<'_>, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut vecs = IoVecs::new(from);
    let message = vecs.message();
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: `message` points at `vecs`, whose first `count` entries describe memory that `from`
    // keeps mapped for the duration of the call, and the kernel only reads it.
    let result = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
    transferred(result)
}
