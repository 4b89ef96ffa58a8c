// SPDX-License-Identifier: Apache-2.0
//! Pseudo-terminals.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;

use midge_protocol::WindowSize;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{SpecialCodeIndex, Winsize, tcgetattr, tcgetpgrp, tcsetwinsize};

/// A terminal's two ends: ours, and the program's.
pub(crate) fn open(size: &WindowSize) -> io::Result<(File, OwnedFd)> {
    let ours = OpenOptions::new().read(true).write(true).open("/dev/ptmx")?;
    resize(&ours, size)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((ours, theirs))
}

/// Tells the terminal's size; its foreground programs get SIGWINCH.
pub(crate) fn resize(ours: &File, size: &WindowSize) -> io::Result<()> {
    Ok(tcsetwinsize(ours, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// The process group in the foreground of the terminal.
pub(crate) fn foreground(ours: &File) -> io::Result<libc::pid_t> {
    Ok(tcgetpgrp(ours)?.as_raw_nonzero().get())
}

/// The character that means end of file to programs on this terminal.
pub(crate) fn end_of_file(ours: &File) -> io::Result<u8> {
    Ok(tcgetattr(ours)?.special_codes[SpecialCodeIndex::VEOF])
}
