// SPDX-License-Identifier: Apache-2.0
//! One vsock connection as a state machine (VIRTIO 1.2 §5.10.6.5): events in, effects out.
//!
//! The middle of the way of a vsock byte: `mux` hands it the guest's packets, `worker` tells it
//! what the host's socket did, and both ask what to do next: [`Connection::transmit`] for the
//! guest, [`Connection::host_effect`] for the host's socket. It performs no I/O, reads no clock (every time
//! is an argument, in milliseconds of any monotonic clock), keeps no payload and allocates nothing;
//! what is due is a set of flags, so that no flood of packets can grow it.
//!
//! ```text
//!  guest REQUEST ----> Open <---- RESPONSE ---- Requested <---- host client's CONNECT
//!                       |  \                        |
//!   guest SHUTDOWN both |   \ host's both           | RST, time-out, client gone
//!   or a clean RST      v    v directions over      |
//!   (bytes owed) Draining    Closing (kill timer)   |
//!                       |    | guest's RST          |
//!                       v    v                      v
//!                        Over  <--------------------+   (at most one RST left to send)
//! ```
//!
//! Half-close passes both ways: the guest's "sends no more" becomes `shutdown(SHUT_WR)` on the
//! host's socket once every byte before it was taken; the host's end of file becomes SHUTDOWN.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::credit::{CreditFault, ReceiveWindow, SendCredit, WindowOverrun};
use super::packet::{Credit, Op, Packet, Ports};

mod effects;

pub use effects::HostEffect;
use effects::{Due, HostDue};

/// How long the guest may take to answer a REQUEST.
pub const REQUEST_TIMEOUT_MS: u64 = 20_000;
/// How long the guest may take to answer a SHUTDOWN of both directions with RST (Linux waits as long).
pub const CLOSE_TIMEOUT_MS: u64 = 8_000;
/// How long a host that takes no byte may hold up a connection that the guest has closed.
pub const DRAIN_STALL_MS: u64 = 60_000;
/// How long to wait for credit before asking for it.
pub const CREDIT_PATIENCE_MS: u64 = 100;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The host's client asked; the guest has not answered yet.
    Requested,
    /// Both ends agreed.
    Open,
    /// SHUTDOWN of both directions is due or sent; the guest's RST is awaited.
    Closing,
    /// The guest is done; bytes it sent are still owed to the host.
    Draining,
    /// Nothing but a RST may be left to send.
    Over,
}

/// What to do with a packet's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// There is none, or it is thrown away (and already counted as taken).
    Nothing,
    /// Hand this many bytes to the host's socket, or keep them; [`Connection::on_forwarded`] when taken.
    Forward(u32),
}

/// The guest broke the protocol; the connection is being reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionFault {
    /// A packet that its phase does not allow.
    #[error("taking a guest packet: {op:?} is not allowed while {phase:?}")]
    Unexpected {
        /// What it asked for.
        op: Op,
        /// Where the connection was.
        phase: Phase,
    },
    /// More payload than the window has room for.
    #[error(transparent)]
    Overrun(#[from] WindowOverrun),
    /// A counter that cannot be.
    #[error(transparent)]
    Credit(#[from] CreditFault),
}

/// One connection. Plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    ports: Ports,
    phase: Phase,
    send: SendCredit,
    window: ReceiveWindow,
    due: Due,
    host_due: HostDue,
    /// The guest's SHUTDOWN flags so far.
    guest_sends_no_more: bool,
    guest_receives_no_more: bool,
    /// The host's socket is at its end of file: it sends no more.
    host_sends_no_more: bool,
    /// The host's socket takes no more.
    host_receives_no_more: bool,
    /// Whether a Draining connection still owes the guest a RST.
    reset_owed: bool,
    /// Credit was asked for since the guest last gave some.
    credit_asked: bool,
    /// When [`Connection::on_time`] has something to do.
    deadline_ms: Option<u64>,
}

impl Connection {
    /// A connection the guest asked for and the host's socket accepted. RESPONSE is due.
    pub fn from_guest(ports: Ports, window_bytes: u32, guest_credit: Credit) -> Self {
        let mut connection = Self::new(ports, Phase::Open, window_bytes, guest_credit);
        connection.due.response = true;
        connection
    }

    /// A connection a host's client asked for. REQUEST is due.
    pub fn from_host(ports: Ports, window_bytes: u32, now_ms: u64) -> Self {
        let mut connection = Self::new(ports, Phase::Requested, window_bytes, Credit::default());
        connection.due.request = true;
        connection.deadline_ms = Some(now_ms.saturating_add(REQUEST_TIMEOUT_MS));
        connection
    }

    fn new(ports: Ports, phase: Phase, window_bytes: u32, guest_credit: Credit) -> Self {
        Self {
            ports,
            phase,
            send: SendCredit::new(guest_credit),
            window: ReceiveWindow::new(window_bytes),
            due: Due::default(),
            host_due: HostDue::default(),
            guest_sends_no_more: false,
            guest_receives_no_more: false,
            host_sends_no_more: false,
            host_receives_no_more: false,
            reset_owed: false,
            credit_asked: false,
            deadline_ms: None,
        }
    }

    /// Its two ends.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The window it holds, in bytes.
    pub fn window_bytes(&self) -> u32 {
        self.window.size_bytes()
    }

    /// Bytes of the guest that the host's socket has not taken yet.
    pub fn owed_bytes(&self) -> u32 {
        self.window.owed_bytes()
    }

    /// When [`Connection::on_time`] wants to be called, at the latest.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.deadline_ms
    }

    /// Whether nothing is left to do: no packet due and the host's socket closed.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Over && self.host_due.close_done && !self.due.reset
    }

    // ---- Events: the guest ------------------------------------------------------------------

    /// A packet of the guest for this connection.
    ///
    /// # Errors
    /// [`ConnectionFault`]: the guest broke the protocol, and a RST is due.
    pub fn on_packet(&mut self, packet: &Packet, now_ms: u64) -> Result<Payload, ConnectionFault> {
        let result = self.take_packet(packet, now_ms);
        if result.is_err() {
            self.reset();
        }
        result
    }

    fn take_packet(&mut self, packet: &Packet, now_ms: u64) -> Result<Payload, ConnectionFault> {
        let op = packet.op();
        if op == Op::Reset {
            self.on_guest_reset(now_ms);
            return Ok(Payload::Nothing);
        }
        match self.phase {
            Phase::Over => return Ok(Payload::Nothing),
            Phase::Draining => {
                // The guest has forgotten this connection; whatever it tries there must not hang.
                self.due.reset |= matches!(op, Op::Request | Op::Data { .. });
                return Ok(Payload::Nothing);
            }
            Phase::Requested | Phase::Open | Phase::Closing => {
                self.send.learn(packet.credit())?;
                self.credit_asked &= self.send.free_bytes() == 0;
            }
        }
        match (self.phase, op) {
            (Phase::Requested, Op::Response) => {
                self.phase = Phase::Open;
                self.deadline_ms = None;
                self.host_due.answer = true;
            }
            (Phase::Open | Phase::Closing, Op::Data { len_bytes }) if !self.guest_sends_no_more => {
                return self.take_data(len_bytes);
            }
            (Phase::Open | Phase::Closing, Op::Shutdown { receive, send }) => {
                self.on_guest_shutdown(receive, send, now_ms);
            }
            (Phase::Open | Phase::Closing, Op::CreditUpdate) => {}
            // §5.10.6.3: the answer to a CREDIT_REQUEST MUST be sent.
            (Phase::Open | Phase::Closing, Op::CreditRequest) => self.due.credit_update = true,
            (phase, op) => return Err(ConnectionFault::Unexpected { op, phase }),
        }
        Ok(Payload::Nothing)
    }

    fn take_data(&mut self, len_bytes: u32) -> Result<Payload, ConnectionFault> {
        self.window.receive(len_bytes)?;
        if self.host_receives_no_more {
            // On its way before the guest saw our SHUTDOWN.
            self.window.forward(len_bytes);
            return Ok(Payload::Nothing);
        }
        Ok(match len_bytes {
            0 => Payload::Nothing,
            len_bytes => Payload::Forward(len_bytes),
        })
    }

    fn on_guest_shutdown(&mut self, receive: bool, send: bool, now_ms: u64) {
        self.guest_sends_no_more |= send;
        if receive && !self.guest_receives_no_more {
            self.guest_receives_no_more = true;
            self.host_due.shutdown_read = true;
        }
        // §5.10.6.5: both directions ended: a clean disconnect, answered with RST.
        if self.guest_sends_no_more && self.guest_receives_no_more {
            self.reset_owed = true;
            self.drain(now_ms);
        }
    }

    fn on_guest_reset(&mut self, now_ms: u64) {
        let ended_cleanly = self.guest_sends_no_more;
        self.reset_owed = false;
        match self.phase {
            Phase::Open | Phase::Closing if ended_cleanly => self.drain(now_ms),
            Phase::Draining => {}
            Phase::Requested | Phase::Open | Phase::Closing | Phase::Over => self.end(false),
        }
    }

    /// Throws the connection away: RST to the guest, close to the host.
    pub fn reset(&mut self) {
        if self.phase != Phase::Over {
            self.end(true);
        }
    }

    // ---- Events: the host's socket ----------------------------------------------------------

    /// The host's socket took `len_bytes` of what the guest sent.
    pub fn on_forwarded(&mut self, len_bytes: u32, now_ms: u64) {
        self.window.forward(len_bytes);
        match self.phase {
            Phase::Open => {
                self.due.credit_update |= !self.guest_sends_no_more && self.window.is_update_due();
            }
            Phase::Draining => self.drain(now_ms),
            Phase::Requested | Phase::Closing | Phase::Over => {}
        }
    }

    /// The host's socket is at its end of file, and all before it was sent to the guest.
    pub fn on_host_end(&mut self, now_ms: u64) {
        if self.phase == Phase::Open && !self.host_sends_no_more {
            self.host_sends_no_more = true;
            self.tell_shutdown(now_ms);
        }
    }

    /// The host's socket takes no more bytes: its peer has closed, or ended its reading side.
    /// Bytes may still come out of it.
    pub fn on_host_gone(&mut self, now_ms: u64) {
        match self.phase {
            Phase::Requested | Phase::Draining => self.reset(),
            Phase::Open if !self.host_receives_no_more => {
                self.host_receives_no_more = true;
                self.window.forward(self.window.owed_bytes());
                // Nobody reads the rest for the guest: it does not want it.
                self.host_sends_no_more |= self.guest_receives_no_more;
                self.tell_shutdown(now_ms);
            }
            Phase::Open | Phase::Closing | Phase::Over => {}
        }
    }

    /// The host has bytes, and the guest has no credit for them: ask for it after a while.
    pub fn on_starved(&mut self, now_ms: u64) {
        if self.phase == Phase::Open && self.deadline_ms.is_none() && !self.credit_asked {
            self.deadline_ms = Some(now_ms.saturating_add(CREDIT_PATIENCE_MS));
        }
    }

    /// Time has passed.
    pub fn on_time(&mut self, now_ms: u64) {
        if self.deadline_ms.is_none_or(|deadline_ms| now_ms < deadline_ms) {
            return;
        }
        self.deadline_ms = None;
        match self.phase {
            Phase::Requested | Phase::Closing => self.reset(),
            Phase::Draining => self.end(self.reset_owed),
            Phase::Open if self.is_sending() && self.send.free_bytes() == 0 => {
                // Once for each time it runs out: an answer of "still none" is an answer.
                self.due.credit_request = true;
                self.credit_asked = true;
            }
            Phase::Open | Phase::Over => {}
        }
    }

    // ---- Ends -------------------------------------------------------------------------------

    fn tell_shutdown(&mut self, now_ms: u64) {
        self.due.shutdown = true;
        if self.host_sends_no_more && self.host_receives_no_more {
            self.phase = Phase::Closing;
            self.deadline_ms = Some(now_ms.saturating_add(CLOSE_TIMEOUT_MS));
        }
    }

    /// The guest is done: end once nothing is owed to the host.
    fn drain(&mut self, now_ms: u64) {
        if self.window.owed_bytes() == 0 {
            self.end(self.reset_owed);
            return;
        }
        self.phase = Phase::Draining;
        self.due = Due::default();
        self.deadline_ms = Some(now_ms.saturating_add(DRAIN_STALL_MS));
    }

    fn end(&mut self, with_reset: bool) {
        // A REQUEST that never left needs no RST after it.
        let is_known_to_guest = !self.due.request;
        self.phase = Phase::Over;
        self.deadline_ms = None;
        self.due = Due { reset: with_reset && is_known_to_guest, ..Due::default() };
    }
}

#[cfg(test)]
mod tests;
