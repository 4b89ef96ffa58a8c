// SPDX-License-Identifier: Apache-2.0
//! What only PID 1 does to its machine: mounts, clock, random numbers, loopback, reset.
#![expect(unsafe_code, reason = "system calls without a safe wrapper in the standard library")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::system::{RebootCommand, reboot, sethostname};
use rustix::time::{ClockId, Timespec, clock_settime};

use super::check;

/// One mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mount<'a> {
    pub(crate) source: &'a str,
    pub(crate) target: &'a Path,
    pub(crate) fs_type: &'a str,
    pub(crate) flags: MountFlags,
    pub(crate) data: &'a str,
}

/// Read-only.
pub(crate) const READ_ONLY: MountFlags = MountFlags::RDONLY;
/// No set-uid programs, no devices.
pub(crate) const NO_SUID_DEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
/// No set-uid programs, no devices, no programs.
pub(crate) const NO_SUID_DEV_EXEC: MountFlags = NO_SUID_DEV.union(MountFlags::NOEXEC);
/// No set-uid programs, no programs.
pub(crate) const NO_SUID_EXEC: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
/// Reading leaves no trace.
pub(crate) const NO_ACCESS_TIMES: MountFlags = MountFlags::NOATIME;

/// Mounts.
pub(crate) fn mount(mount: Mount<'_>) -> io::Result<()> {
    let data = CString::new(mount.data).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(rustix::mount::mount(mount.source, mount.target, mount.fs_type, mount.flags, &*data)?)
}

/// Moves a mount to another place.
pub(crate) fn move_mount(from: &str, to: &str) -> io::Result<()> {
    Ok(rustix::mount::mount_move(from, to)?)
}

/// Makes the directory `from` appear at `to` as well.
pub(crate) fn bind_mount(from: &str, to: &str) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(from, to)?)
}

/// Mounts that are made from here on appear in the mount tables made from this one: a bind mount into a container, for
/// one, whose engine complains where they do not.
pub(crate) fn share_mounts() -> io::Result<()> {
    Ok(rustix::mount::mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?)
}

/// Writes all file systems out.
pub(crate) fn sync() {
    rustix::fs::sync();
}

/// Resets the machine; returns only on failure.
pub(crate) fn reset() -> io::Error {
    match reboot(RebootCommand::Restart) {
        Ok(()) => io::ErrorKind::Other.into(),
        Err(error) => error.into(),
    }
}

/// Sets the wall clock.
pub(crate) fn set_clock(unix_time_ns: u64) -> io::Result<()> {
    const NS_PER_S: u64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: i64::try_from(unix_time_ns / NS_PER_S).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(unix_time_ns % NS_PER_S).unwrap_or(0),
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Sets the host name.
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    Ok(sethostname(name.as_bytes())?)
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

/// The kernel's source of random numbers, to be given some.
pub(crate) fn open_random() -> io::Result<File> {
    OpenOptions::new().write(true).open("/dev/urandom")
}

/// Gives random bytes to the kernel, by way of an open [`open_random`], and makes its generator use them at once.
pub(crate) fn add_entropy(random: &File, bytes: &[u8]) -> io::Result<()> {
    let bytes = &bytes[..bytes.len().min(ENTROPY_MAX_BYTES)];
    let len_bytes = libc::c_int::try_from(bytes.len()).unwrap_or(0);
    let mut info = RandPoolInfo { entropy_bits: len_bytes * 8, len_bytes, buffer: [0; ENTROPY_MAX_BYTES] };
    info.buffer[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the kernel reads the structure and `len_bytes` of its buffer.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: takes no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// IFF_UP and IFF_RUNNING of netdevice(7).
const UP_AND_RUNNING: libc::c_short = 0x1 | 0x40;

/// The kernel's `struct ifreq`, with flags in its union.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: libc::c_short,
    unused: [u8; 22],
}
const _: () = assert!(size_of::<InterfaceFlags>() == size_of::<libc::ifreq>());

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = InterfaceFlags { name: [0; 16], flags: UP_AND_RUNNING, unused: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: the kernel reads one `ifreq` with a name that ends with NUL.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

/// Gives this thread a mount table of its own: for tests that mount.
#[cfg(test)]
pub(crate) fn own_mounts() -> io::Result<()> {
    // SAFETY: the thread's working directory is no longer the other threads'; no descriptor is touched.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?)
}

/// Makes a device node: for tests of what a run may leave.
#[cfg(test)]
pub(crate) fn make_character_device(path: &Path, device: libc::dev_t) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    Ok(mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), device)?)
}
