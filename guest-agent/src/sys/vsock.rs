// SPDX-License-Identifier: Apache-2.0
//! Sockets of the family AF_VSOCK. A connected one is handed out as a [`UnixStream`], whose methods work on any stream
//! socket: read, write, shutdown, time-outs.
#![expect(unsafe_code, reason = "addresses of AF_VSOCK have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use super::check;

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

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)?)
}

/// Listens on `port` for the host; taking a connection never waits.
pub(crate) fn listen_on(port: u32) -> io::Result<Listener> {
    let socket = socket(SocketFlags::NONBLOCK)?;
    bind(&socket, &Address::new(libc::VMADDR_CID_ANY, port))?;
    listen(&socket, BACKLOG)?;
    Ok(Listener(socket))
}

/// Connects to `port` of the host.
pub(crate) fn connect(port: u32) -> io::Result<UnixStream> {
    let socket = socket(SocketFlags::empty())?;
    rustix::net::connect(&socket, &Address::new(HOST_CID, port))?;
    Ok(UnixStream::from(socket))
}

impl Listener {
    /// The next connection from the host, or [`io::ErrorKind::WouldBlock`]. The guest's own programs can reach this port too where the kernel loops
    /// vsock back, and must not get to command the agent.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, cid) = self.accept_any()?;
            if cid == HOST_CID {
                return Ok(UnixStream::from(stream));
            }
        }
    }

    /// The next connection and the context it comes from.
    fn accept_any(&self) -> io::Result<(OwnedFd, u32)> {
        let Address(mut peer) = Address::new(libc::VMADDR_CID_ANY, 0);
        let mut len = ADDRESS_BYTES;
        let (listener, flags) = (self.0.as_raw_fd(), libc::SOCK_CLOEXEC);
        // SAFETY: the kernel writes at most `len` bytes, the size of the address.
        let fd = check(unsafe { libc::accept4(listener, (&raw mut peer).cast(), &raw mut len, flags) })?;
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok((unsafe { OwnedFd::from_raw_fd(fd) }, peer.svm_cid))
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::time::Duration;

    /// This machine's own context, where its kernel loops vsock back.
    const LOCAL_CID: u32 = 1;

    #[test]
    fn a_program_of_the_guest_cannot_command_the_agent() {
        let port = 0x4000_0000 | std::process::id();
        let connected = listen_on(port).and_then(|listener| {
            let socket = socket(SocketFlags::empty())?;
            rustix::net::connect(&socket, &Address::new(LOCAL_CID, port))?;
            Ok((listener, UnixStream::from(socket)))
        });
        let (listener, mut stream) = match connected {
            Ok(connected) => connected,
            Err(error) => return eprintln!("skipped: this kernel does not loop vsock back: {error}"),
        };
        std::thread::spawn(move || {
            while listener.accept().is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let answer = stream.read(&mut [0]);
        // Closed: neither served nor left open.
        assert!(
            answer.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |len| *len == 0),
            "{answer:?}"
        );
    }
}
