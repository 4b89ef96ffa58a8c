// SPDX-License-Identifier: Apache-2.0
//! Orders of the host: one datagram each on the control socket, and the descriptors that come
//! with it.
//!
//! A monitor that is started with a SOCK_SEQPACKET socket as its stdin is told more than its
//! configuration there; the end of that socket is the end of the VM, as that of a plain lifeline
//! is. Whoever holds the other end is trusted to start VMs, and to do so wrongly: a bad order is
//! answered, never obeyed in part.
//!
//! | order | descriptors | answer |
//! | --- | --- | --- |
//! | `{"freeze":{}}`, to a running VM | control, events, stderr of the resident | `{"frozen":{"pause_us":N,"save_us":N,"fork_us":N}}`, with the process |
//! | `{"fork":{"uds":PATH}}`, to a resident | control, events, stderr; for vsock a listener, the line to a doorman | `{"forked":{}}`, with the process |
//! | `{"save":{}}`, to a resident | state, memory, one layer for each disk with an overlay | `{"saved":{"memory_bytes":N}}` |
//! | `{"discard":{"ranges":[[START,LEN],...]}}`, to a running VM | | `{"discarded":{"bytes":N}}` |
//! | any | | `{"failed":{"what":TEXT}}` |
//!
//! A process comes as a descriptor of it (`pidfd_open(2)`): its number inside a jail means nothing
//! outside. One that has ended already does not come.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::sockopt::socket_type;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketType, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Longest datagram: a configuration is the longest.
pub const ORDER_MAX_BYTES: usize = 128 << 10;
/// Most descriptors with one order: three streams or files, and a layer for each disk.
pub const DESCRIPTORS_MAX: usize = 16;

/// What the host wants.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Fork off a resident that holds this VM as it is now, and go on.
    Freeze {},
    /// Make a VM of what the resident holds.
    Fork {
        /// Where the fork's guest connects to: `<uds>_<port>`.
        uds: PathBuf,
    },
    /// Write what the resident holds into files.
    Save {},
    /// Drop the content of guest memory that the guest has no use for, while it runs.
    Discard {
        /// Guest-physical address and length of each part, in bytes, whole pages.
        ranges: Vec<(u64, u64)>,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// There is a resident; the VM goes on.
    Frozen {
        /// From the order to the guest's going on, in microseconds.
        pause_us: u64,
        /// Of that, until the state was taken.
        save_us: u64,
        /// Of that, the call of `fork(2)`.
        fork_us: u64,
    },
    /// There is a fork.
    Forked {},
    /// The files are complete and on disk.
    Saved {
        /// Bytes of memory that were not zero.
        memory_bytes: u64,
    },
    /// The memory is the host's again.
    Discarded {
        /// How much.
        bytes: u64,
    },
    /// The order could not be carried out; everything is as before.
    Failed {
        /// Why.
        what: String,
    },
}

/// An order as it arrived.
#[derive(Debug)]
pub struct Received {
    /// What is wanted, or what is wrong with it.
    pub order: Result<Order, String>,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// The monitor's end.
#[derive(Debug)]
pub struct ControlSocket {
    fd: OwnedFd,
    /// Room for a datagram, made once: clearing it for each order would cost a resident, and leave in every fork, 128 KiB of
    /// copied pages.
    room: RefCell<Vec<u8>>,
}

impl ControlSocket {
    /// Takes a descriptor, if it is a socket that keeps datagrams apart.
    ///
    /// # Errors
    /// The descriptor, if it is anything else.
    pub fn new(fd: OwnedFd) -> Result<Self, OwnedFd> {
        if socket_type(&fd) == Ok(SocketType::SEQPACKET) { Ok(Self { fd, room: RefCell::default() }) } else { Err(fd) }
    }

    /// The first datagram as it is: the configuration.
    ///
    /// # Errors
    /// The kernel's.
    pub fn receive_text(&self) -> io::Result<Vec<u8>> {
        Ok(self.receive_raw()?.0)
    }

    /// Waits for the next order; `None` at the end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        let (text, descriptors) = self.receive_raw()?;
        if text.is_empty() {
            return Ok(None);
        }
        let order = serde_json::from_slice(&text).map_err(|error| format!("understanding the order: {error}"));
        Ok(Some(Received { order, descriptors }))
    }

    fn receive_raw(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = self.room.borrow_mut();
        if bytes.is_empty() {
            *bytes = vec![0; ORDER_MAX_BYTES];
        }
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let got = recvmsg(&self.fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            let text = format!("a datagram of more than {ORDER_MAX_BYTES} bytes or {DESCRIPTORS_MAX} descriptors");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok((bytes[..got.bytes].to_vec(), descriptors))
    }

    /// Answers; `process` is one that was made. A host that is gone or does not listen is found out by the end of the
    /// socket.
    pub fn answer(&self, answer: &Answer, process: Option<&OwnedFd>) {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        let descriptors: Vec<_> = process.into_iter().map(AsFd::as_fd).collect();
        // There is room for one.
        let _ = descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(&descriptors));
        if let Ok(text) = serde_json::to_vec(answer) {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let _ = sendmsg(&self.fd, &[IoSlice::new(&text)], &mut control, flags);
        }
    }

    /// The descriptor, for whoever waits for it.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.fd
    }
}

/// What ends the VM when it closes; a socket also brings orders.
#[derive(Debug)]
pub enum Lifeline {
    /// A pipe or the like: bytes on it mean nothing.
    Plain(OwnedFd),
    /// A control socket.
    Control(ControlSocket),
}

impl Lifeline {
    /// Looks at what `fd` is.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        ControlSocket::new(fd).map_or_else(Self::Plain, Self::Control)
    }

    /// The descriptor.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        match self {
            Self::Plain(fd) => fd,
            Self::Control(socket) => socket.descriptor(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
