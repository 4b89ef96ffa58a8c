// SPDX-License-Identifier: Apache-2.0
//! virtio-vsock in user space (VIRTIO 1.2 §5.10): streams between ports of the guest and Unix
//! sockets of the host.
//!
//! The way of a byte, in the order of the files. Guest to host: `transfer` takes a chain of the tx
//! queue and copies its header once; [`packet`] parses it; [`mux`] finds its [`connection`] in the
//! [`table`], which checks it against the window ([`credit`]) and says how many bytes to forward;
//! [`host_socket`] sends them from guest memory into the Unix socket, and keeps what that refuses,
//! at most a window. Host to guest: [`poller`] says that the socket is readable; [`mux`] gives the
//! connection a turn, as large as the guest's credit; `transfer` reserves rx chains, reads straight
//! into them and writes the headers; `link` says when the guest is interrupted. [`worker`] ties
//! these together on the main thread, [`client`] is how the host's connections begin, [`device`]
//! is what the guest's driver sees.
//!
//! | on the host | what happens |
//! | --- | --- |
//! | connect to `uds`, send `CONNECT <port>\n` | a connection to that guest port; `OK <host port>\n` comes back, or the socket is closed |
//! | listen on `<uds>_<port>` | gets the connections that the guest makes to CID 2 and that port |
//! | `shutdown(SHUT_WR)` on either side | passed on, after the last byte before it |
//!
//! What bounds a guest: the constants of [`table`] and [`mux`].
//! Absent: seqpacket, connections between guests, vhost.

pub mod event;

pub mod packet;

pub mod credit;

pub mod connection;

pub mod table;

pub mod mux;

pub mod host_socket;

pub mod doorman;

pub mod client;

pub mod poller;

pub mod device;

mod link;

pub mod worker;

mod calls;

mod transfer;

mod twin;

#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(test)]
mod hostile;
#[cfg(test)]
pub(crate) mod model;
#[cfg(fuzzing)]
pub(crate) mod model;
#[cfg(test)]
pub(crate) mod rig;

pub use device::{Vsock, VsockControl, VsockError, pair};
pub use twin::VsockState;
pub use worker::VsockWorker;
