// SPDX-License-Identifier: Apache-2.0
//! The few system calls that neither std nor the crates in use give a safe name.
//!
//! Bottom of the crate: imports nothing of it. Each function is safe to call with any argument;
//! the reasons stand at the `unsafe` sites. Nothing here decides anything.
#![expect(unsafe_code, reason = "libc calls; every site states why any argument is fine")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

use kvm_bindings::kvm_run;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

/// Signals that ask the monitor to stop its VM.
pub const STOP_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// CLOCK_MONOTONIC in nanoseconds: the clock that other processes of this host read too.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result; the clock id is a constant the kernel knows.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Physical memory of the host in bytes; 0 when the kernel does not tell.
pub fn host_memory_bytes() -> u64 {
    // SAFETY: an all-zero `sysinfo` is a valid value of that plain C struct.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid place for the result.
    let failed = unsafe { libc::sysinfo(&raw mut info) } != 0;
    if failed {
        return 0;
    }
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Closes every descriptor from `first` on: what the parent left open by mistake.
///
/// Call it before anything of this process is opened.
///
/// # Errors
/// The kernel's error, for example ENOSYS before Linux 5.9.
pub fn close_descriptors_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: called at the start of `main`, when no Rust value owns a descriptor above stderr, or
    // for what belongs to values that are forgotten (`keep_only`).
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A signalfd on which the given signals arrive; they must be blocked in every thread.
///
/// # Errors
/// The kernel's error, for example EMFILE.
pub fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = vmm_sys_util::signal::create_sigset(signals).map_err(io::Error::from)?;
    // SAFETY: `set` is a valid signal set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sub-code and first data words of a KVM_EXIT_INTERNAL_ERROR.
pub fn internal_error(run: &kvm_run) -> (u32, Vec<u64>) {
    // SAFETY: the union's variants are plain integers; any bit pattern is a valid `internal`.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = usize::try_from(internal.ndata).unwrap_or(0).min(internal.data.len());
    (internal.suberror, internal.data.iter().take(count).copied().collect())
}

/// Fills `bytes` with the host kernel's random bytes.
///
/// # Errors
/// The kernel's error; a request of up to 256 bytes is never cut short.
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `bytes`, which is ours to write.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        Ok(len) if len == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Makes a twin of this process: `None` in the twin, its process id in this one.
///
/// The twin has the calling thread only. Whoever calls sees to it that the other threads hold
/// no lock which the twin will take: they wait, or have ended.
///
/// # Errors
/// The kernel's: no memory, or too many processes.
pub fn fork() -> io::Result<Option<u32>> {
    // SAFETY: glibc brings its own locks into order; those of this program are the caller's care,
    // and a lock that is held for ever makes the twin wait, which is no unsafety.
    let pid = unsafe { libc::fork() };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some(pid)),
    }
}

/// Closes every descriptor from `first` on but those of `keep`.
///
/// The Rust values for the others must be forgotten, not dropped.
///
/// # Errors
/// The kernel's error, for example ENOSYS before Linux 5.9.
pub fn keep_only(first: u32, keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).filter(|&fd| fd >= first).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut first = first;
    for fd in keep {
        if first < fd {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

/// Makes `place` another name of `fd`, in place of what it was the name of; not for a program that this one becomes.
///
/// As `dup2(2)` would, by calls that are on a fork's list anyway, and only for the one thread of a process: `place` is free
/// for a moment.
///
/// # Errors
/// The kernel's, or that `place` is not the lowest free number from there on.
pub fn put_in_place(fd: &OwnedFd, place: RawFd) -> io::Result<()> {
    // SAFETY: `place` is a standard stream: no Rust value owns it, and it has an owner again below.
    unsafe { libc::close(place) };
    let got = rustix::io::fcntl_dupfd_cloexec(fd, place)?.into_raw_fd();
    if got == place { Ok(()) } else { Err(io::ErrorKind::AddrInUse.into()) }
}

/// Makes a twin of this process with these flags of `clone(2)`: `None` in the twin, its process id
/// in this one. The calling thread must be the only one of its process.
///
/// # Errors
/// The kernel's: EPERM when a namespace may not be made, ENOSPC when there are too many.
pub fn clone(flags: i32) -> io::Result<Option<u32>> {
    let none = std::ptr::null::<u8>();
    // SAFETY: without CLONE_VM and a stack of its own the twin goes on here with a copy of
    // everything, as after fork(2); there is no other thread whose locks it could miss.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, none, none, none, none) };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some(pid)),
    }
}

/// A descriptor of a process; `None` when it has ended, or none can be had.
pub fn process(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()
}

/// What [`reap_any`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    /// A child that has ended, and its wait status.
    Child {
        /// Its process id.
        pid: u32,
        /// As `wait(2)` gives it.
        status: i32,
    },
    /// There are children, and none has ended.
    None,
    /// There is no child.
    Nobody,
}

/// Reaps one child that has ended.
///
/// # Errors
/// The kernel's; none is known to occur.
pub fn reap_any() -> io::Result<Reaped> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(None) => Ok(Reaped::None),
        Ok(Some((pid, status))) => {
            Ok(Reaped::Child { pid: pid.as_raw_nonzero().get().unsigned_abs(), status: status.as_raw() })
        }
        Err(rustix::io::Errno::CHILD) => Ok(Reaped::Nobody),
        Err(error) => Err(error.into()),
    }
}

/// Waits for a child's end; gives its wait status.
///
/// # Errors
/// ECHILD when it is no child of this process, or was reaped already.
pub fn wait_for(pid: u32) -> io::Result<i32> {
    loop {
        match waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status.as_raw()),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a signal to a child that was not reaped yet.
///
/// # Errors
/// The kernel's; EINVAL for what is no signal.
pub fn signal(pid: u32, number: i32) -> io::Result<()> {
    let named = (Pid::from_raw(pid.cast_signed()), Signal::from_named_raw(number));
    let (Some(pid), Some(signal)) = named else { return Err(io::ErrorKind::InvalidInput.into()) };
    Ok(kill_process(pid, signal)?)
}

/// Ends this process at once: nothing is flushed and nothing dropped.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: it does not return, and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Ends this process in the way that a wait status tells of: with the same exit code, or by the
/// same signal.
pub fn end_as(status: i32) -> ! {
    if libc::WIFSIGNALED(status) {
        let number = libc::WTERMSIG(status);
        // SAFETY: SIG_DFL runs no code of ours.
        unsafe { libc::signal(number, libc::SIG_DFL) };
        // A signal that cannot be unblocked ends nothing; the code below does.
        let _ = vmm_sys_util::signal::unblock_signal(number);
        let _ = signal(std::process::id(), number);
        exit_now(128 + number);
    }
    exit_now(libc::WEXITSTATUS(status))
}

/// Leaves the mapping of `len` bytes that begins with `first` out of twins of this process.
///
/// # Errors
/// The kernel's: EINVAL when no mapping begins there.
pub fn keep_from_twins<T>(first: &mut T, len: usize) -> io::Result<()> {
    // SAFETY: the advice changes nothing in this process, and a twin that touches what it has not
    // dies of it.
    check(unsafe { libc::madvise(std::ptr::from_mut(first).cast(), len, libc::MADV_DONTFORK) })
}

/// Children that end leave no zombie: nobody waits for them.
pub fn ignore_children() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_forward_and_memory_is_known() {
        let first = monotonic_ns();
        assert!(first > 0);
        assert!(monotonic_ns() >= first);
        assert!(host_memory_bytes() > 1 << 26);
    }

    #[test]
    fn what_is_put_in_place_of_another_descriptor_is_there_and_nowhere_else() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        // Higher than what other tests have open.
        let place = rustix::io::fcntl_dupfd_cloexec(&null, 900).unwrap().into_raw_fd();
        put_in_place(&writer.into(), place).unwrap();
        // SAFETY: it was made above, and nobody owns it.
        let mut writer = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(place) });
        std::io::Write::write_all(&mut writer, b"here").unwrap();
        drop(writer);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "here");
    }

    #[test]
    fn random_bytes_fill_the_slice_and_differ() {
        let (mut a, mut b) = ([0; 64], [0; 64]);
        fill_random(&mut a).unwrap();
        fill_random(&mut b).unwrap();
        assert_ne!(a, b);
        assert!(a[32..].iter().any(|&byte| byte != 0));
    }

    #[test]
    fn an_internal_error_never_reads_past_its_data() {
        let mut run = kvm_run::default();
        run.__bindgen_anon_1.internal.suberror = 1;
        run.__bindgen_anon_1.internal.ndata = u32::MAX;
        let (code, data) = internal_error(&run);
        assert_eq!(code, 1);
        assert_eq!(data.len(), 16);
    }
}
