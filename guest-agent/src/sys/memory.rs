// SPDX-License-Identifier: Apache-2.0
//! Memory that is taken from the kernel, kept at its place, and given back.
#![expect(unsafe_code, reason = "mmap, vmsplice and munmap of memory that nobody refers to")]

use std::io;
use std::os::fd::AsRawFd as _;

use super::check;

/// Pages of this process that are there, whatever they hold. Dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Held {
    start: usize,
    len: usize,
    /// A pipe with the pages in it, which keeps the kernel from moving them.
    pin: Option<(io::PipeReader, io::PipeWriter)>,
    pinned_len: usize,
}

impl Held {
    /// Takes `len` bytes, a multiple of the page size, and pins as many of them as a pipe holds.
    pub(crate) fn take(len: usize) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // Populated with pages that may be written: else the kernel would lend its one page of zeros.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut held = Self { start: start as usize, len, pin: None, pinned_len: 0 };
        held.pin()?;
        Ok(held)
    }

    fn pin(&mut self) -> io::Result<()> {
        let (reader, writer) = io::pipe()?;
        // Where it may not be as long as that, less is pinned.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, self.len);
        while self.pinned_len < self.len {
            let at = self.start + self.pinned_len;
            let rest = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: self.len - self.pinned_len };
            // SAFETY: the kernel reads one `iovec`, which names mapped memory of ours that lives as long as the pipe.
            let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const rest, 1, libc::SPLICE_F_NONBLOCK) };
            match usize::try_from(spliced) {
                Ok(0) => break,
                Ok(more) => self.pinned_len += more,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::WouldBlock => break,
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        self.pin = Some((reader, writer));
        Ok(())
    }

    /// Where the pinned part begins, and its length in bytes. Its pages stay where they are until [`Held::unpin`].
    pub(crate) fn pinned(&self) -> (usize, usize) {
        (self.start, self.pinned_len)
    }

    /// Lets the kernel move what it likes; the memory stays taken.
    pub(crate) fn unpin(&mut self) {
        self.pin = None;
        self.pinned_len = 0;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pin = None;
        // SAFETY: the mapping was made by `take`, is unmapped once, and nobody refers to it.
        let unmapped = check(unsafe { libc::munmap(self.start as *mut libc::c_void, self.len) });
        debug_assert!(unmapped.is_ok(), "a mapping of ours: {unmapped:?}");
    }
}
