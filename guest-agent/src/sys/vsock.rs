// SPDX-License-Identifier: Apache-2.0
//! Sockets of the family AF_VSOCK. A connected one is handed out as a [`UnixStream`], whose methods work on any stream
//! socket: read, write, shutdown, time-outs.
#![expect(unsafe_code, reason = "addresses of AF_VSOCK have no safe wrapper")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, bind, listen, socket_with};

/// The host, for every guest.
const HOST_CID: u32 = 2;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// AF_VSOCK, as an address holds it.
const FAMILY: libc::sa_family_t = 40;
/// Length of an address, in bytes.
const ADDRESS_BYTES: SocketAddrLen = 16;
const _: () = assert!(size_of::<libc::sockaddr_vm>() == 16 && libc::AF_VSOCK == 40);

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

/// A context and a port.
struct Address(libc::sockaddr_vm);

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        let (svm_family, svm_cid, svm_port) = (FAMILY, cid, port);
        Self(libc::sockaddr_vm { svm_family, svm_reserved1: 0, svm_port, svm_cid, svm_zero: [0; 4] })
    }
}

// SAFETY: the pointer is readable for `ADDRESS_BYTES`, which the assertion above compares with the type, during the call.
unsafe impl SocketAddrArg for Address {
    // SAFETY: asks nothing of its caller but what the trait does: not to keep the pointer.
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f((&raw const self.0).cast(), ADDRESS_BYTES)
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Listens on `port` for the host.
pub(crate) fn listen_on(port: u32) -> io::Result<Listener> {
    let socket = socket()?;
    bind(&socket, &Address::new(libc::VMADDR_CID_ANY, port))?;
    listen(&socket, BACKLOG)?;
    Ok(Listener(socket))
}

/// Connects to `port` of the host.
pub(crate) fn connect(port: u32) -> io::Result<UnixStream> {
    let socket = socket()?;
    rustix::net::connect(&socket, &Address::new(HOST_CID, port))?;
    Ok(UnixStream::from(socket))
}

impl Listener {
    /// The next connection.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        Ok(UnixStream::from(accept_with(&self.0, SocketFlags::CLOEXEC)?))
    }
}
