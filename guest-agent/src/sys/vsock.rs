// SPDX-License-Identifier: Apache-2.0
//! Sockets of the family AF_VSOCK. A connected one is handed out as a [`UnixStream`], whose methods work on any stream
//! socket: read, write, shutdown, time-outs.
#![expect(unsafe_code, reason = "AF_VSOCK has no place in the standard library")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use super::check;

/// The host, for every guest.
const HOST_CID: u32 = 2;
/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// AF_VSOCK, as an address holds it.
const FAMILY: libc::sa_family_t = 40;
/// Length of an address, in bytes.
const ADDRESS_BYTES: libc::socklen_t = 16;
const _: () = assert!(size_of::<libc::sockaddr_vm>() == 16 && libc::AF_VSOCK == 40);

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: takes three numbers and answers a new descriptor.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    let address =
        libc::sockaddr_vm { svm_family: FAMILY, svm_reserved1: 0, svm_port: port, svm_cid: cid, svm_zero: [0; 4] };
    (address, ADDRESS_BYTES)
}

/// Listens on `port` for the host.
pub(crate) fn listen(port: u32) -> io::Result<Listener> {
    let socket = socket()?;
    let (address, len) = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is a `sockaddr_vm` of `len` bytes, which the kernel only reads.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    // SAFETY: takes two numbers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(Listener(socket))
}

/// Connects to `port` of the host.
pub(crate) fn connect(port: u32) -> io::Result<UnixStream> {
    let socket = socket()?;
    let (address, len) = address(HOST_CID, port);
    // SAFETY: the address is a `sockaddr_vm` of `len` bytes, which the kernel only reads.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(UnixStream::from(socket))
}

impl Listener {
    /// The next connection.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        let (nowhere, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: with null pointers the kernel does not write the peer's address.
        let fd = check(unsafe { libc::accept4(self.0.as_raw_fd(), nowhere, no_len, libc::SOCK_CLOEXEC) })?;
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}
