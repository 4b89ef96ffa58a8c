// SPDX-License-Identifier: Apache-2.0
//! What only PID 1 does to its machine: mounts, clock, random numbers, loopback, reset.
#![expect(unsafe_code, reason = "system calls without a safe wrapper in the standard library")]

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use super::{c_path, check};

/// One mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mount<'a> {
    pub(crate) source: &'a str,
    pub(crate) target: &'a Path,
    pub(crate) fs_type: &'a str,
    pub(crate) flags: u64,
    pub(crate) data: &'a str,
}

/// Read-only.
pub(crate) const READ_ONLY: u64 = libc::MS_RDONLY;
/// No set-uid programs, no devices.
pub(crate) const NO_SUID_DEV: u64 = libc::MS_NOSUID | libc::MS_NODEV;
/// No set-uid programs, no devices, no programs.
pub(crate) const NO_SUID_DEV_EXEC: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
/// No set-uid programs, no programs.
pub(crate) const NO_SUID_EXEC: u64 = libc::MS_NOSUID | libc::MS_NOEXEC;
/// Reading leaves no trace.
pub(crate) const NO_ACCESS_TIMES: u64 = libc::MS_NOATIME;
/// The source is a mount that goes to another place.
pub(crate) const MOVE: u64 = libc::MS_MOVE;

/// Mounts.
pub(crate) fn mount(mount: Mount<'_>) -> io::Result<()> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let source = CString::new(mount.source).map_err(invalid)?;
    let fs_type = CString::new(mount.fs_type).map_err(invalid)?;
    let data = CString::new(mount.data).map_err(invalid)?;
    let target = c_path(mount.target)?;
    // SAFETY: all strings end with NUL; the kernel only reads them.
    let answer =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fs_type.as_ptr(), mount.flags, data.as_ptr().cast()) };
    check(answer).map(drop)
}

/// Writes all file systems out.
pub(crate) fn sync() {
    // SAFETY: takes nothing.
    unsafe { libc::sync() };
}

/// Resets the machine; returns only on failure.
pub(crate) fn reset() -> io::Error {
    // SAFETY: takes a number.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    io::Error::last_os_error()
}

/// Sets the wall clock.
pub(crate) fn set_clock(unix_time_ns: u64) -> io::Result<()> {
    const NS_PER_S: u64 = 1_000_000_000;
    let time = libc::timespec {
        tv_sec: i64::try_from(unix_time_ns / NS_PER_S).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(unix_time_ns % NS_PER_S).unwrap_or(0),
    };
    // SAFETY: the kernel reads one `timespec`.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).map(drop)
}

/// Most entropy that is given to the kernel at once, in bytes.
const ENTROPY_MAX_BYTES: usize = 512;
const RNDADDENTROPY: u64 = 0x4008_5203;
const RNDRESEEDCRNG: u64 = 0x5207;

/// The kernel's `struct rand_pool_info` with its buffer.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: libc::c_int,
    len_bytes: libc::c_int,
    buffer: [u8; ENTROPY_MAX_BYTES],
}

/// Gives random bytes to the kernel and makes its generator use them at once.
pub(crate) fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    let bytes = &bytes[..bytes.len().min(ENTROPY_MAX_BYTES)];
    let len_bytes = libc::c_int::try_from(bytes.len()).unwrap_or(0);
    let mut info = RandPoolInfo { entropy_bits: len_bytes * 8, len_bytes, buffer: [0; ENTROPY_MAX_BYTES] };
    info.buffer[..bytes.len()].copy_from_slice(bytes);
    let random = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the structure and `len_bytes` of its buffer.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: takes no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// IFF_UP and IFF_RUNNING of netdevice(7).
const UP_AND_RUNNING: libc::c_short = 0x1 | 0x40;

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: takes three numbers and answers a new descriptor.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = std::mem::MaybeUninit::<libc::ifreq>::zeroed();
    // SAFETY: all-zero bytes are an `ifreq`.
    let request = unsafe { request.assume_init_mut() };
    for (place, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = UP_AND_RUNNING;
    // SAFETY: the kernel reads one `ifreq` with a name that ends with NUL.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const *request) }).map(drop)
}

/// Makes a device node: for tests of what a run may leave.
#[cfg(test)]
pub(crate) fn make_node(path: &Path, mode: libc::mode_t, device: libc::dev_t) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the string ends with NUL.
    check(unsafe { libc::mknod(path.as_ptr(), mode, device) }).map(drop)
}
