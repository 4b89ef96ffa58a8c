// SPDX-License-Identifier: Apache-2.0
//! The host's end: Unix sockets. The only file of vsock that moves bytes in or out of one.
//!
//! [`Door`] is where clients knock, [`connect`] how a doorman lets the guest out; [`HostStream`] is
//! the socket of one connection, with the bytes it could not take yet. Bytes go straight between
//! the socket and guest memory ([`crate::virtio::vectored`]); only what a full socket refuses is
//! copied, and the connection's window bounds that. Nothing here waits, and nothing here knows
//! packets, credit or queues.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, socket_with};
use vm_memory::VolatileSlice;

use crate::virtio::{Reader, vectored};

/// Where connections come in.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
}

impl Door {
    /// Takes a listening socket.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// The next client, if one waits.
    ///
    /// # Errors
    /// The kernel's, mostly EMFILE: the client goes on waiting.
    pub fn accept(&self) -> io::Result<Option<HostStream>> {
        // std would need another call for a socket that does not block.
        match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => Ok(Some(HostStream::new(socket.into()))),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Connects to whoever listens for a guest on `port`, at the path `uds` with `_<port>` behind it.
///
/// # Errors
/// ENOENT or ECONNREFUSED when nobody does, EAGAIN when their backlog is full, EINVAL when the path is too long.
pub fn connect(uds: &Path, port: u32) -> io::Result<UnixStream> {
    let mut path = OsString::from(uds);
    path.push(format!("_{port}"));
    let address = SocketAddrUnix::new(&*path).map_err(|_| Errno::INVAL)?;
    // A Unix socket is connected, or refused, at once; std would wait for a full backlog.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

impl AsRawFd for Door {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

/// What became of an attempt to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// So many bytes; not 0.
    Bytes(usize),
    /// Nothing at present.
    Empty,
    /// The end: no byte will come any more.
    End,
}

/// The peer takes nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// The socket of one connection, and what it could not take yet.
#[derive(Debug)]
pub struct HostStream {
    socket: UnixStream,
    kept: VecDeque<u8>,
}

impl HostStream {
    /// `socket` must not block.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, kept: VecDeque::new() }
    }

    /// Fills `into`, guest memory or other.
    pub fn read(&self, into: &[VolatileSlice<'_>]) -> Incoming {
        loop {
            return match vectored::receive(self.socket.as_fd(), into) {
                Ok(0) => Incoming::End,
                Ok(count) => Incoming::Bytes(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Incoming::Empty,
                Err(_) => Incoming::End,
            };
        }
    }

    /// Sends `len_bytes` of a chain; keeps what the socket does not take. Gives the number of
    /// bytes the socket took.
    ///
    /// # Errors
    /// [`Gone`]; then nothing is kept.
    pub fn send_or_keep(&mut self, mut from: Reader<'_>, len_bytes: u32) -> Result<u32, Gone> {
        let mut left = (len_bytes as usize).min(from.left_bytes());
        let mut sent = 0_u32;
        while left > 0 && self.kept.is_empty() {
            let slices = from.slices(left);
            let Some(count) = self.send(&slices)? else {
                break;
            };
            let is_short = count < slices.len_bytes();
            from.advance(count);
            left -= count;
            sent = sent.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
            if is_short {
                break;
            }
        }
        while left > 0 {
            let slices = from.slices(left);
            for slice in slices.iter() {
                self.keep(slice);
            }
            from.advance(slices.len_bytes());
            left -= slices.len_bytes();
        }
        Ok(sent)
    }

    /// Sends what was kept, as far as the socket takes it. Gives the number of bytes it took.
    ///
    /// # Errors
    /// [`Gone`]; then nothing is kept any more.
    pub fn flush(&mut self) -> Result<u32, Gone> {
        let mut sent = 0_u32;
        while !self.kept.is_empty() {
            let (front, back) = self.kept.as_mut_slices();
            let parts = [VolatileSlice::from(front), VolatileSlice::from(back)];
            let sent_now = vectored::send(self.socket.as_fd(), &parts);
            let Some(count) = outcome(sent_now).inspect_err(|_| self.kept.clear())? else {
                break;
            };
            self.kept.drain(..count);
            sent = sent.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        }
        Ok(sent)
    }

    /// Sends a short text of ours whole, ahead of everything else.
    ///
    /// # Errors
    /// [`Gone`], also when the socket has no room for it, which a new one always has.
    pub fn send_text(&mut self, text: &str) -> Result<(), Gone> {
        let mut bytes = text.as_bytes().to_vec();
        let slice = VolatileSlice::from(bytes.as_mut_slice());
        match self.send(&[slice])? {
            Some(count) if count == text.len() => Ok(()),
            _ => Err(Gone),
        }
    }

    /// Bytes kept because the socket was full.
    pub fn kept_bytes(&self) -> usize {
        self.kept.len()
    }

    /// Ends one direction. A peer that has closed already is no error.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = self.socket.shutdown(how);
    }

    /// `None` when the socket is full.
    fn send(&mut self, from: &[VolatileSlice<'_>]) -> Result<Option<usize>, Gone> {
        outcome(vectored::send(self.socket.as_fd(), from))
    }

    fn keep(&mut self, slice: &VolatileSlice<'_>) {
        let mut chunk = [0; 4096];
        let mut rest = *slice;
        while !rest.is_empty() {
            let count = rest.copy_to(&mut chunk[..]);
            self.kept.extend(chunk.iter().take(count));
            let Ok(next) = rest.offset(count) else {
                return;
            };
            rest = next;
        }
    }
}

impl AsRawFd for HostStream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn outcome(sent: io::Result<usize>) -> Result<Option<usize>, Gone> {
    match sent {
        Ok(count) => Ok(Some(count)),
        // Also EINTR: what is kept is sent when the socket has room, and now it may have.
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        // EPIPE, ECONNRESET, or a host out of memory: the connection cannot go on either way.
        Err(_) => Err(Gone),
    }
}

#[cfg(test)]
mod tests;
