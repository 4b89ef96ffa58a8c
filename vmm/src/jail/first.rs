// SPDX-License-Identifier: Apache-2.0
//! The first process of a jail: it reaps, and tells the keeper how the monitor ended.
//!
//! Forks of a VM outlive it; their process namespace lives as long as its first process. So the
//! monitor is not that one, and the first ends when nobody is left. It reads one thing: the number
//! of a signal for the monitor, from the keeper. When the keeper is gone, the monitor is killed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::filters::{Thread, lock_in};
use crate::sys;

/// Makes the monitor's process: `None` in it, its number in the first.
pub(super) fn split() -> io::Result<Option<u32>> {
    vmm_sys_util::signal::block_signal(libc::SIGCHLD).map_err(|error| io::Error::other(format!("{error:?}")))?;
    let monitor = sys::fork()?;
    if monitor.is_none() {
        vmm_sys_util::signal::unblock_signal(libc::SIGCHLD).map_err(|error| io::Error::other(format!("{error:?}")))?;
        sys::ignore_children();
    }
    Ok(monitor)
}

/// Watches until nobody is left in the jail, and ends.
pub(super) fn watch(monitor: u32, family: OwnedFd) -> ! {
    // An error of the host's: whoever is inside ends with this process.
    let _ = try_watch(monitor, family);
    sys::exit_now(0)
}

fn try_watch(monitor: u32, family: OwnedFd) -> io::Result<()> {
    let signals = sys::signal_descriptor(&[libc::SIGCHLD])?;
    sys::keep_only(0, &[&family, &signals].map(AsRawFd::as_raw_fd))?;
    lock_in(Thread::First)?;
    let mut family = Some(family);
    loop {
        if !reap(monitor, &mut family)? {
            return Ok(());
        }
        let mut waited = vec![PollFd::new(&signals, PollFlags::IN)];
        waited.extend(family.iter().map(|family| PollFd::from_borrowed_fd(family.as_fd(), PollFlags::IN)));
        match poll(&mut waited, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        let is_told = waited.get(1).is_some_and(|family| !family.revents().is_empty());
        let mut ignored = [0; 512];
        let _ = rustix::io::read(&signals, &mut ignored);
        if is_told && let Some(socket) = &family {
            let number = hear(socket);
            let _ = sys::signal(monitor, number.unwrap_or(libc::SIGKILL));
            if number.is_none() {
                family = None;
            }
        }
    }
}

/// The keeper's next word; `None` when it is gone.
fn hear(family: &OwnedFd) -> Option<i32> {
    let mut number = [0];
    match recv(family, &mut number[..], RecvFlags::DONTWAIT) {
        Ok((1, _)) => Some(number[0].into()),
        _ => None,
    }
}

/// Reaps all that have ended; `false` when nobody is left.
fn reap(monitor: u32, family: &mut Option<OwnedFd>) -> io::Result<bool> {
    loop {
        match sys::reap_any()? {
            sys::Reaped::Nobody => return Ok(false),
            sys::Reaped::None => return Ok(true),
            sys::Reaped::Child { pid, status } if pid == monitor => {
                if let Some(socket) = family.take() {
                    // A keeper that is gone needs to know nothing.
                    let _ = send(&socket, &status.to_le_bytes(), SendFlags::NOSIGNAL);
                }
            }
            sys::Reaped::Child { .. } => {}
        }
    }
}
