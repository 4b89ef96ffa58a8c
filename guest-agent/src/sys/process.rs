// SPDX-License-Identifier: Apache-2.0
//! Processes: their end, signals to them, limits of our own.
#![expect(unsafe_code, reason = "system calls without a safe wrapper in the standard library")]

use std::io;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getegid, geteuid, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::check;

/// How a process ended and what it used, its waited-for children included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The kernel's wait status.
    pub(crate) status: i32,
    /// Time in programs.
    pub(crate) user: Duration,
    /// Time in the kernel.
    pub(crate) system: Duration,
    /// Largest resident set, in KiB.
    pub(crate) max_rss_kib: u64,
}

impl Ended {
    /// The exit code, or `None` when a signal ended it.
    pub(crate) fn code(self) -> Option<i32> {
        libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status))
    }

    /// The signal that ended it, or 0.
    pub(crate) fn signal(self) -> i32 {
        if libc::WIFSIGNALED(self.status) { libc::WTERMSIG(self.status) } else { 0 }
    }
}

/// Waits until any child has ended, and leaves it in the process table. `None` when there is no child.
pub(crate) fn wait_any() -> io::Result<Option<libc::pid_t>> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes one `siginfo_t` where there is room for one.
    match check(unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) }) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
        Err(error) => return Err(error),
    }
    // SAFETY: all-zero bytes are a `siginfo_t` already, and the call has succeeded.
    let info = unsafe { info.assume_init() };
    // SAFETY: the kernel has described a child, so the process id's place in the union is in use.
    Ok(Some(unsafe { info.si_pid() }))
}

/// Takes a child that has ended from the process table.
pub(crate) fn reap(pid: libc::pid_t) -> io::Result<Ended> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one int and one `rusage` where there is room for them.
    check(unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) })?;
    // SAFETY: all-zero bytes are an `rusage` already, and the call has succeeded.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        let (sec, us) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_usec).unwrap_or(0));
        Duration::from_secs(sec) + Duration::from_micros(us)
    };
    let max_rss_kib = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    Ok(Ended { status, user: time(usage.ru_utime), system: time(usage.ru_stime), max_rss_kib })
}

/// Sends a signal to a process, or with a negative number to a process group.
pub(crate) fn kill(pid: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: takes two numbers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// A write to a pipe or socket that nobody reads shall fail, not kill us.
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: sets a disposition; no function of ours is called by the kernel.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Permission bits that new files never get.
pub(crate) fn set_umask(mask: Mode) {
    rustix::process::umask(mask);
}

/// Lets this process open `hard` files; what is started from it gets its own limit.
pub(crate) fn raise_open_files(hard: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: Some(hard) })?)
}

/// Files that this process and those it starts may open at most.
pub(crate) fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// All threads share one heap: without this every conversation's thread maps a heap of its own.
pub(crate) fn share_one_heap() {
    // SAFETY: takes two numbers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// The ids of this process: user, group.
pub(crate) fn own_ids() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

/// A moment of the clock that starts with the kernel.
pub(crate) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}
