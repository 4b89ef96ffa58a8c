// SPDX-License-Identifier: Apache-2.0
//! Pseudo-terminals.
#![expect(unsafe_code, reason = "terminals have no place in the standard library")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use midge_protocol::WindowSize;

use super::check;

/// A terminal's two ends: ours, and the program's.
pub(crate) fn open(size: &WindowSize) -> io::Result<(File, OwnedFd)> {
    let ours = OpenOptions::new().read(true).write(true).open("/dev/ptmx")?;
    resize(&ours, size)?;
    let unlock: libc::c_int = 0;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes a number and answers a new descriptor.
    let theirs = check(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok((ours, unsafe { OwnedFd::from_raw_fd(theirs) }))
}

/// Tells the terminal's size; its foreground programs get SIGWINCH.
pub(crate) fn resize(ours: &File, size: &WindowSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one `winsize`.
    check(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// The process group in the foreground of the terminal.
pub(crate) fn foreground(ours: &File) -> io::Result<libc::pid_t> {
    let mut group: libc::pid_t = 0;
    // SAFETY: the kernel writes one `pid_t`.
    check(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPGRP, &raw mut group) })?;
    Ok(group)
}

/// The character that means end of file to programs on this terminal.
pub(crate) fn end_of_file(ours: &File) -> io::Result<u8> {
    let mut state = std::mem::MaybeUninit::<libc::termios>::zeroed();
    // SAFETY: the kernel writes one `termios` where there is room for one.
    check(unsafe { libc::tcgetattr(ours.as_raw_fd(), state.as_mut_ptr()) })?;
    // SAFETY: all-zero bytes are a `termios` already, and the call has succeeded.
    Ok(unsafe { state.assume_init() }.c_cc[libc::VEOF])
}
