// SPDX-License-Identifier: Apache-2.0
//! The system calls that the standard library does not offer: the only place of the agent with `unsafe`.
//! Each function checks what the kernel answers; none keeps state.

#[cfg(not(test))]
mod entry;
pub(crate) mod fd;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod spawn;
pub(crate) mod tty;
pub(crate) mod vsock;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The result of a system call that answers -1 for an error.
fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// `path` as the kernel takes it.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
