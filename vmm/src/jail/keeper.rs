// SPDX-License-Identifier: Apache-2.0
//! The keeper of a jail: the process that was started, and stays outside.
//!
//! It can do what the jail cannot, and so does three things only: it connects Unix sockets for the
//! guest, to the one path it was given with a port behind it ([`doorman`]); it passes stop signals
//! on; and it ends as the monitor ends. It reads four bytes at a time from the jail.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::set_dumpable_behavior;

use super::enclosure::NOT_DUMPABLE;
use super::filters::{Thread, lock_in};
use crate::sys;
use crate::vsock::doorman;
use crate::vsock::host_socket::connect;

/// Keeps the jail whose first process is `first`, to its end.
pub(super) fn keep(first: u32, family: OwnedFd, doorman: OwnedFd, uds: Option<&Path>) -> ! {
    // Without a word on how the monitor ended, what the first came to must do.
    let status = try_keep(&family, doorman, uds).ok().flatten();
    drop(family);
    sys::end_as(status.or_else(|| sys::wait_for(first).ok()).unwrap_or(libc::SIGKILL))
}

fn try_keep(family: &OwnedFd, doorman: OwnedFd, uds: Option<&Path>) -> io::Result<Option<i32>> {
    let signals = sys::signal_descriptor(&sys::STOP_SIGNALS)?;
    sys::keep_only(3, &[family, &doorman, &signals].map(AsRawFd::as_raw_fd))?;
    set_dumpable_behavior(NOT_DUMPABLE)?;
    lock_in(Thread::Keeper)?;
    let mut doorman = Some(doorman);
    loop {
        let mut waited = vec![PollFd::new(family, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        waited.extend(doorman.iter().map(|doorman| PollFd::new(doorman, PollFlags::IN)));
        match poll(&mut waited, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        let [is_ended, is_signalled, is_asked] =
            [0, 1, 2].map(|index| waited.get(index).is_some_and(|polled| !polled.revents().is_empty()));
        if is_ended {
            let mut status = [0; 4];
            let (_, len) = recv(family, &mut status[..], RecvFlags::empty())?;
            return Ok((len == status.len()).then(|| i32::from_le_bytes(status)));
        }
        if is_signalled {
            pass_on(&signals, family);
        }
        if is_asked && !doorman.as_ref().is_some_and(|line| attend(line, uds)) {
            doorman = None;
        }
    }
}

/// Tells the first which signal came.
fn pass_on(signals: &OwnedFd, family: &OwnedFd) {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    if rustix::io::read(signals, &mut info).is_ok()
        // The signal's number, a u32, comes first; signals have small numbers.
        && let Some(number) = info.first()
    {
        // One that has ended needs no signal.
        let _ = send(family, &[*number], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// Answers one question; `false` when there will be no other.
fn attend(line: &OwnedFd, uds: Option<&Path>) -> bool {
    let connect = |port| uds.map_or(Err(io::Error::from_raw_os_error(libc::ECONNREFUSED)), |uds| connect(uds, port));
    doorman::attend(line, connect).unwrap_or(false)
}

/// The doorman's part alone, for a monitor that is not in a jail.
pub(super) fn attend_in_thread(line: OwnedFd, uds: Option<&Path>) -> io::Result<()> {
    let uds: Option<PathBuf> = uds.map(Path::to_path_buf);
    let work = move || while attend(&line, uds.as_deref()) {};
    std::thread::Builder::new().name("doorman".to_owned()).spawn(work).map(drop)
}
