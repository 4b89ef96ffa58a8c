// SPDX-License-Identifier: Apache-2.0
//! Waiting for and waking by file descriptors; extended attributes and sizes that the standard library leaves out.
#![expect(unsafe_code, reason = "poll(2) with places that wait for nothing has no safe wrapper")]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{CWD, RenameFlags, lgetxattr, renameat_with, statvfs};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::check;

/// Longest extended attribute that is read, in bytes.
const ATTRIBUTE_MAX_BYTES: usize = 4096;

/// One descriptor in a wait.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Watch(libc::pollfd);

impl Watch {
    /// Waits until `fd` can be read or written as asked; its hang-up is told in any case.
    pub(crate) fn new(fd: &impl AsRawFd, read: bool, write: bool) -> Self {
        let events = if read { libc::POLLIN } else { 0 } | if write { libc::POLLOUT } else { 0 };
        Self(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 })
    }

    /// Waits for nothing: keeps a place in the list.
    pub(crate) const fn idle() -> Self {
        Self(libc::pollfd { fd: -1, events: 0, revents: 0 })
    }

    /// There is something to read, or the end, or an error that reading will tell.
    pub(crate) fn readable(self) -> bool {
        self.0.revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0
    }

    /// There is room to write, or an error that writing will tell.
    pub(crate) fn writable(self) -> bool {
        self.0.revents & (libc::POLLOUT | libc::POLLHUP | libc::POLLERR) != 0
    }

    /// The peer is gone in both directions.
    pub(crate) fn hung_up(self) -> bool {
        self.0.revents & (libc::POLLHUP | libc::POLLERR) != 0
    }
}

/// Waits until one of `watches` is ready or the time is over. An interruption counts as ready.
pub(crate) fn wait(watches: &mut [Watch], timeout: Option<Duration>) -> io::Result<()> {
    let count = libc::nfds_t::try_from(watches.len()).unwrap_or(libc::nfds_t::MAX);
    let timeout_ms = match timeout {
        // Rounded up, or a wait for the last part of a millisecond would spin.
        Some(left) => i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
        None => -1,
    };
    // SAFETY: `Watch` is a transparent `pollfd`, and the kernel writes `revents` of exactly `count` of them.
    let answer = unsafe { libc::poll(watches.as_mut_ptr().cast(), count, timeout_ms) };
    match check(answer) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Makes reads and writes of `fd` return instead of waiting.
pub(crate) fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, true)?)
}

/// Whether the other end of a vsock has closed both directions. It tells of that only when it is sent something; other sockets tell
/// it to [`Watch::hung_up`].
pub(crate) fn is_gone(socket: &impl AsFd) -> bool {
    matches!(send(socket, &[], SendFlags::NOSIGNAL), Err(Errno::PIPE | Errno::NOTCONN | Errno::CONNRESET))
}

/// A descriptor that wakes a waiting thread.
#[derive(Debug)]
pub(crate) struct Bell(File);

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(File::from(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Wakes the thread that waits, now or at its next wait.
    pub(crate) fn ring(&self) {
        // Fails only when the counter is full, and then the bell rings already.
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }

    /// Makes the next wait wait.
    pub(crate) fn silence(&self) {
        // Fails only when the bell is silent.
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The extended attribute `name` of `path` itself, no symlink followed.
pub(crate) fn attribute(path: &Path, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; ATTRIBUTE_MAX_BYTES];
    match lgetxattr(path, name, &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Size of the file system that holds `path`: total bytes, free bytes.
pub(crate) fn disk_bytes(path: &Path) -> io::Result<(u64, u64)> {
    let answer = statvfs(path)?;
    Ok((answer.f_blocks.saturating_mul(answer.f_frsize), answer.f_bavail.saturating_mul(answer.f_frsize)))
}

/// Renames without replacing what is at `to`.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Sets an extended attribute: for tests of what a run may leave.
#[cfg(test)]
pub(crate) fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty())?)
}

#[cfg(test)]
mod tests;
