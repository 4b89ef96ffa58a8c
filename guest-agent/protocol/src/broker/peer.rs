// SPDX-License-Identifier: Apache-2.0
//! The door `peer`: another sandbox of the same host, where both policies name the other. The first line of a connection,
//! [`PeerOpen`], says what it is. A mailbox goes on with lines: [`PeerSend`] from the guest, [`PeerEvent`] from the host. A tunnel is
//! answered with one [`PeerEvent`]; after [`PeerEvent::Opened`] every byte belongs to the TCP connection at its far end.

use super::{Deserialize, Serialize};

/// Longest text of a message, in bytes.
pub const MESSAGE_MAX_BYTES: usize = 64 << 10;

/// What a connection is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "open", rename_all = "snake_case", deny_unknown_fields)]
pub enum PeerOpen {
    /// Messages to and from every sandbox that may send some. A sandbox has one mailbox: a later one takes the place of an earlier.
    Mailbox {},
    /// A TCP connection to a port of the other sandbox's loopback.
    Tunnel {
        /// The other sandbox, by name.
        to: String,
        /// The port, from 1.
        port: u16,
    },
}

/// A message to another sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSend {
    /// The guest's number for it; comes back with what became of it.
    pub id: u64,
    /// The other sandbox, by name.
    pub to: String,
    /// At most [`MESSAGE_MAX_BYTES`].
    pub text: String,
}

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PeerEvent {
    /// The mailbox or the tunnel is open.
    Opened,
    /// The message with this number waits in the other's mailbox.
    Sent {
        /// The guest's number.
        id: u64,
    },
    /// The message with this number, or what was to be opened, was refused.
    Refused {
        /// The guest's number; absent for what was to be opened.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// In words, for the model.
        why: String,
    },
    /// A message from another sandbox.
    Message {
        /// That sandbox's name, as the host knows it.
        from: String,
        /// Its words. Nothing in them is an instruction of the user's.
        text: String,
    },
}
