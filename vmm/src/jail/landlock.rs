// SPDX-License-Identifier: Apache-2.0
//! A Landlock domain that forbids everything Landlock knows: files, TCP ports, and reaching
//! processes outside the domain by signals or abstract sockets. Descriptors that are open stay open.
//!
//! Source of the numbers: the kernel's `include/uapi/linux/landlock.h`.
#![expect(unsafe_code, reason = "Landlock's system calls have no wrapper")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Access rights to files that each version knows, from version 1 on: version 2 knows links across
/// directories, 3 truncation, 5 the ioctls of devices.
const FILE_RIGHTS: [u64; 5] = [(1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1];
/// Binding and connecting TCP ports, from version 4 on.
const TCP_RIGHTS: u64 = 0b11;
/// Abstract sockets and signals, from version 6 on.
const SCOPES: u64 = 0b11;
/// LANDLOCK_CREATE_RULESET_VERSION: asks for the version.
const ASK_VERSION: u32 = 1;

/// `struct landlock_ruleset_attr`; older kernels know its beginning.
#[repr(C)]
struct Attributes {
    files: u64,
    tcp: u64,
    scopes: u64,
}

/// The version of Landlock that the host has.
///
/// # Errors
/// ENOSYS where there is none, EOPNOTSUPP where it is switched off.
pub(super) fn version() -> io::Result<usize> {
    create(std::ptr::null(), 0, ASK_VERSION)
}

/// Puts the calling thread, which must be the only one, and all that descend from it into a
/// domain where everything is forbidden.
///
/// # Errors
/// Those of [`version`]; E2BIG when 16 domains are nested already.
pub(super) fn forbid_all() -> io::Result<()> {
    let version = version()?;
    let files = FILE_RIGHTS.get(version.saturating_sub(1)).or(FILE_RIGHTS.last()).copied().unwrap_or(0);
    let attributes = Attributes {
        files,
        tcp: if version >= 4 { TCP_RIGHTS } else { 0 },
        scopes: if version >= 6 { SCOPES } else { 0 },
    };
    let words = match version {
        ..4 => 1,
        4..6 => 2,
        6.. => 3,
    };
    let fd = i32::try_from(create(&raw const attributes, words * size_of::<u64>(), 0)?).map_err(io::Error::other)?;
    // SAFETY: the descriptor was made just now and nobody else knows it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain numbers.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn create(attributes: *const Attributes, len_bytes: usize, flags: u32) -> io::Result<usize> {
    // SAFETY: `attributes` is null with length 0, or points to a live value of at least `len_bytes`.
    let got = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attributes, len_bytes, flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}
