// SPDX-License-Identifier: Apache-2.0
//! What a first process does to its machine: mounts, network interfaces, the end.
#![expect(unsafe_code, reason = "interface addresses are set by ioctl, for which there is no safe wrapper at hand")]

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::system::{RebootCommand, reboot};

use super::super::wire::HOST_MOUNT;

/// Source, target, type, options.
type Mount = (&'static str, &'static str, &'static str, &'static std::ffi::CStr);

/// The kernel's file systems, in this order.
const KERNEL: [Mount; 7] = [
    ("proc", "/proc", "proc", c""),
    ("sysfs", "/sys", "sysfs", c""),
    ("debugfs", "/sys/kernel/debug", "debugfs", c""),
    ("devtmpfs", "/dev", "devtmpfs", c""),
    ("devpts", "/dev/pts", "devpts", c"mode=620"),
    ("tmpfs", "/dev/shm", "tmpfs", c"mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", c"nsdelegate,favordynmods"),
];

/// What an outpost works in.
const WORK: [Mount; 2] = [("tmpfs", "/run", "tmpfs", c"mode=755"), ("tmpfs", "/tmp", "tmpfs", c"mode=1777")];

/// The real host's files. In large messages, and cached: nobody changes kernels and images under a running sandbox, and
/// what changes has another name.
const SHARE: Mount = ("host", HOST_MOUNT, "9p", c"trans=virtio,version=9p2000.L,cache=loose,msize=524288,access=any");

/// Settings of a good KVM host: huge pages for whoever asks for them, in files too.
const SETTINGS: [(&str, &str); 2] = [
    ("/sys/kernel/mm/transparent_hugepage/enabled", "madvise"),
    ("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise"),
];

/// Mounts the kernel's file systems, and applies the settings.
pub(crate) fn mount_kernel() -> io::Result<()> {
    for mount in KERNEL {
        mount_one(mount, MountFlags::empty())?;
    }
    for (path, value) in SETTINGS {
        // A kernel without the setting has nothing to gain from it.
        let _ = std::fs::write(path, value);
    }
    Ok(())
}

/// Mounts what an outpost works in and with.
pub(super) fn mount_work() -> io::Result<()> {
    for mount in WORK {
        mount_one(mount, MountFlags::empty())?;
    }
    mount_one(SHARE, MountFlags::RDONLY)
}

fn mount_one((source, target, kind, options): Mount, flags: MountFlags) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    mount(source, target, kind, flags, options)
        .map_err(|errno| io::Error::other(format!("mounting {kind} on {target}: {errno}")))
}

/// Gives an interface its address, and switches it on. The netmask is that of the address's class.
pub(super) fn network_up(interface: &str, address: Ipv4Addr) -> io::Result<()> {
    let failed = |doing: &str, err: io::Error| io::Error::other(format!("{doing} of {interface}: {err}"));
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = empty_request(interface);
    request.ifr_ifru.ifru_addr = socket_address(address);
    interface_ioctl(&socket, libc::SIOCSIFADDR, &mut request).map_err(|err| failed("setting the address", err))?;
    let mut request = empty_request(interface);
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(libc::c_short::MAX);
    interface_ioctl(&socket, libc::SIOCSIFFLAGS, &mut request).map_err(|err| failed("setting the flags", err))
}

fn empty_request(interface: &str) -> libc::ifreq {
    let mut name = [0; libc::IFNAMSIZ];
    // The last byte stays zero: the kernel wants a string.
    for (to, from) in name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_metric: 0 } }
}

/// `sockaddr_in` as the bytes of a `sockaddr`: port, then address, both in network order.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().skip(2).zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default(), sa_data: data }
}

fn interface_ioctl(socket: &OwnedFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: both numbers used here take a pointer to an `ifreq`, which `request` is, alive and exclusively ours during the
    // call; the kernel writes nothing beyond it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), number, std::ptr::from_mut(request)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A line for whoever reads the console. There is nobody else to tell, so that a failure is not told.
pub(crate) fn say(line: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = console.write_all(format!("{line}\n").as_bytes());
    }
}

/// Ends the machine: QEMU is told not to restart, and ends.
pub(crate) fn power_off() -> ! {
    loop {
        let _ = reboot(RebootCommand::Restart);
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_has_the_layout_of_sockaddr_in() {
        let address = socket_address(Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(i32::from(address.sa_family), libc::AF_INET);
        assert_eq!(
            address.sa_data[..7].iter().map(|byte| byte.cast_unsigned()).collect::<Vec<_>>(),
            [0, 0, 10, 0, 2, 15, 0]
        );
    }

    #[test]
    fn interface_name_is_cut_to_what_fits_with_its_zero() {
        let long = empty_request("a-name-that-is-far-too-long").ifr_name;
        assert_eq!(long[libc::IFNAMSIZ - 1], 0);
        assert_ne!(long[libc::IFNAMSIZ - 2], 0);
        assert_eq!(empty_request("lo").ifr_name[2], 0);
    }

    #[test]
    fn interface_that_is_not_there_is_named() {
        let err = network_up("none0", Ipv4Addr::LOCALHOST).unwrap_err().to_string();
        assert!(err.contains("none0"), "{err}");
    }

    #[test]
    fn the_real_hosts_files_are_apart_and_cached() {
        assert_eq!((SHARE.1, SHARE.2), (HOST_MOUNT, "9p"));
        assert!(SHARE.3.to_str().unwrap().contains("cache=loose"));
        assert!(KERNEL.iter().all(|mount| mount.2 != "9p"));
    }
}
