// SPDX-License-Identifier: Apache-2.0
//! What a connection wants done: the packets due to the guest and the effects due on the host's
//! socket, as flags. Events set them ([`super`]); asking here clears them.

use super::super::packet::{Op, Packet};
use super::{Connection, Phase};

/// What is due towards the guest: one flag per packet kind, so that asking twice sends once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) reset: bool,
    pub(super) request: bool,
    pub(super) response: bool,
    pub(super) shutdown: bool,
    pub(super) credit_update: bool,
    pub(super) credit_request: bool,
}

/// What is due towards the host's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HostDue {
    pub(super) answer: bool,
    pub(super) shutdown_read: bool,
    /// `shutdown(SHUT_WR)` was asked for; it is done once, and not before the last byte.
    pub(super) shutdown_write_done: bool,
    pub(super) close_done: bool,
}

/// What the worker must do with the host's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEffect {
    /// Tell the client that the connection stands: `OK <port>`.
    Answer,
    /// The guest sends no more, and every byte before was taken: `shutdown(SHUT_WR)`.
    ShutdownWrite,
    /// The guest receives no more: `shutdown(SHUT_RD)`.
    ShutdownRead,
    /// Close the socket and throw away what was kept for it.
    Close,
}

impl Connection {
    /// Bytes of the host that may be sent to the guest now.
    pub fn sendable_bytes(&self) -> u32 {
        if self.is_sending() { self.send.free_bytes() } else { 0 }
    }

    /// Whether bytes of the host are wanted at all, with or without credit.
    pub fn is_sending(&self) -> bool {
        self.phase == Phase::Open && !self.due.response && !self.host_sends_no_more && !self.guest_receives_no_more
    }

    /// Whether [`Connection::transmit`] would give a packet.
    pub fn has_packet(&self) -> bool {
        self.due != Due::default()
    }

    /// Whether that would be a SHUTDOWN, with nothing else due.
    pub fn has_only_shutdown(&self) -> bool {
        self.due == Due { shutdown: true, ..Due::default() }
    }

    /// The next packet without payload for the guest, most urgent first.
    pub fn transmit(&mut self) -> Option<Packet> {
        let due = &mut self.due;
        let op = if std::mem::take(&mut due.reset) {
            Op::Reset
        } else if std::mem::take(&mut due.request) {
            Op::Request
        } else if std::mem::take(&mut due.response) {
            Op::Response
        } else if std::mem::take(&mut due.shutdown) {
            self.shutdown_op()
        } else if std::mem::take(&mut due.credit_request) {
            Op::CreditRequest
        } else if due.credit_update {
            Op::CreditUpdate
        } else {
            return None;
        };
        Some(self.packet(op))
    }

    /// The header for `len_bytes` of the host's bytes, which count as sent from here on.
    ///
    /// # Panics
    /// When that is more than [`Connection::sendable_bytes`]: the caller asks first.
    pub fn transmit_data(&mut self, len_bytes: u32) -> Packet {
        self.send.spend(len_bytes);
        self.packet(Op::Data { len_bytes })
    }

    /// The next thing to do to the host's socket.
    pub fn host_effect(&mut self) -> Option<HostEffect> {
        if self.host_due.close_done {
            return None;
        }
        if matches!(self.phase, Phase::Closing | Phase::Over) {
            self.host_due.close_done = true;
            return Some(HostEffect::Close);
        }
        if std::mem::take(&mut self.host_due.answer) {
            return Some(HostEffect::Answer);
        }
        let is_write_over = self.guest_sends_no_more && self.window.owed_bytes() == 0;
        if is_write_over && !self.host_due.shutdown_write_done && !self.host_receives_no_more {
            self.host_due.shutdown_write_done = true;
            return Some(HostEffect::ShutdownWrite);
        }
        std::mem::take(&mut self.host_due.shutdown_read).then_some(HostEffect::ShutdownRead)
    }

    /// Puts the credit on a packet: whatever goes out is a credit update too.
    fn packet(&mut self, op: Op) -> Packet {
        self.due.credit_update = false;
        Packet::new(self.ports, op, self.window.tell())
    }

    fn shutdown_op(&self) -> Op {
        Op::Shutdown { receive: self.host_receives_no_more, send: self.host_sends_no_more }
    }
}
