// SPDX-License-Identifier: Apache-2.0
//! All connections of one guest: who exists, whose turn it is, and what nobody may exceed.
//!
//! The guest's packets come in by [`Mux::on_packet`] and are handed to their [`Connection`];
//! what goes to the guest comes out of [`Mux::next_turn`], one connection after the other. What
//! the guest can make it hold is bounded, here and in [`super::table`]. It performs no I/O, reads
//! no clock and keeps no payload.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::collections::VecDeque;

use super::connection::{Connection, HostEffect, Payload};
use super::event::{Counts, Event};
use super::packet::{Credit, HEADER_LEN_BYTES, Op, PORT_ANY, Packet, PacketFault, Ports, StrayReset};
use super::table::{ConnectionId, HOST_PORT_END, HOST_PORT_FIRST, Table};

/// Most RSTs without a connection that wait for the guest to take them. Beyond it the guest's
/// packets wait in its own queue: none is dropped.
pub const STRAYS_MAX: usize = 256;
/// Most payload a connection may send to the guest in one turn.
pub const TURN_BYTES: u32 = 128 << 10;

/// What the caller must do with a guest's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: it was dropped, or its answer waits for a turn.
    Nothing,
    /// Connect to the host's socket of `ports.host`, then [`Mux::accept`] or [`Mux::refuse`].
    Open {
        /// The connection the guest asks for.
        ports: Ports,
        /// What the guest can take at first.
        credit: Credit,
    },
    /// Hand `len_bytes` of payload to the connection's socket; then settle it.
    Forward {
        /// Whose bytes they are.
        id: ConnectionId,
        /// Payload bytes, all in the chain.
        len_bytes: u32,
    },
    /// The connection has changed: settle it.
    Changed(ConnectionId),
    /// There is none between these ports: one that waits is wanted no more.
    Unknown(Ports),
}

/// What may go to the guest next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A packet without payload.
    Packet([u8; HEADER_LEN_BYTES]),
    /// Up to `limit_bytes` of the connection's socket; then [`Mux::on_read`], and settle it.
    Read {
        /// Whose socket.
        id: ConnectionId,
        /// The least of the guest's credit and the share of one turn; not 0.
        limit_bytes: u32,
        /// What is likely to be there: no more room needs to be reserved.
        expected_bytes: u32,
    },
}

/// All connections of one guest.
#[derive(Debug)]
pub struct Mux {
    guest_cid: u64,
    table: Table,
    /// Places of connections with something for the guest, each at most once.
    turns: VecDeque<u16>,
    strays: VecDeque<StrayReset>,
    /// No deadline is before this; it may be early.
    next_deadline_ms: Option<u64>,
    /// What happened, by kind.
    pub counts: Counts,
}

impl Mux {
    /// No connections yet, for the guest with this CID.
    pub fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            table: Table::default(),
            turns: VecDeque::new(),
            strays: VecDeque::new(),
            next_deadline_ms: None,
            counts: Counts::default(),
        }
    }

    /// Connections there are, those with a last RST to send included.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// The host's port of the next connection to the guest.
    pub fn next_host_port(&self) -> u32 {
        self.table.next_host_port
    }

    /// Takes up counting the host's ports at `port`, if it is one of them.
    pub fn set_next_host_port(&mut self, port: u32) {
        if (HOST_PORT_FIRST..HOST_PORT_END).contains(&port) {
            self.table.next_host_port = port;
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether one more can be made.
    pub fn has_room(&self) -> bool {
        self.table.has_room()
    }

    /// The connection of `id`, unless it is over.
    pub fn get(&self, id: ConnectionId) -> Option<&Connection> {
        self.table.get(id)
    }

    /// The same, to tell it an event; [`Mux::settle`] afterwards.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.table.slot(id)?.connection()
    }

    // ---- From the guest ---------------------------------------------------------------------

    /// Whether the guest's next packet may be taken: there is room for its answer.
    pub fn can_take_packet(&self) -> bool {
        self.strays.len() < STRAYS_MAX
    }

    /// A packet of the guest; `available_bytes` is what its chain holds after the header.
    pub fn on_packet(&mut self, header: &[u8; HEADER_LEN_BYTES], available_bytes: u64, now_ms: u64) -> Action {
        let packet = match Packet::parse(header, self.guest_cid, available_bytes) {
            Ok(packet) => packet,
            Err(fault) => return self.on_fault(&fault),
        };
        let Some(id) = self.table.find(packet.ports()) else {
            return self.on_unknown(&packet);
        };
        let Some(connection) = self.get_mut(id) else {
            return Action::Nothing;
        };
        match connection.on_packet(&packet, now_ms) {
            Ok(Payload::Forward(len_bytes)) => Action::Forward { id, len_bytes },
            Ok(Payload::Nothing) => Action::Changed(id),
            Err(_) => {
                self.counts.add(Event::ConnectionFault);
                Action::Changed(id)
            }
        }
    }

    fn on_fault(&mut self, fault: &PacketFault) -> Action {
        self.counts.add(Event::PacketFault);
        let Some((ports, kind)) = fault.answer() else {
            return Action::Nothing;
        };
        // A packet of another type is about another connection, even with the same ports.
        let known = self.table.find(ports);
        if let Some(id) = known.filter(|_| !matches!(fault, PacketFault::Kind { .. })) {
            if let Some(connection) = self.get_mut(id) {
                connection.reset();
            }
            return Action::Changed(id);
        }
        self.stray(StrayReset { ports, kind });
        Action::Nothing
    }

    fn on_unknown(&mut self, packet: &Packet) -> Action {
        let ports = packet.ports();
        match packet.op() {
            Op::Reset => Action::Unknown(ports),
            Op::Request if self.has_room() => Action::Open { ports, credit: packet.credit() },
            Op::Request => {
                self.counts.add(Event::TableFull);
                self.refuse(ports);
                Action::Nothing
            }
            // §5.10.6.4: what belongs to no connection is answered with RST.
            Op::Response | Op::Shutdown { .. } | Op::Data { .. } | Op::CreditUpdate | Op::CreditRequest => {
                self.counts.add(Event::UnknownConnection);
                self.stray(StrayReset::stream(ports));
                Action::Unknown(ports)
            }
        }
    }

    /// The host's socket took the connection of an [`Action::Open`]; `None` without room for it.
    pub fn accept(&mut self, ports: Ports, credit: Credit, now_ms: u64) -> Option<ConnectionId> {
        let is_new = self.has_room() && self.table.find(ports).is_none();
        let window_bytes = if is_new { self.table.take_window() } else { return None };
        self.insert(Connection::from_guest(ports, window_bytes, credit), now_ms)
    }

    /// Nobody on the host wants the connection of an [`Action::Open`].
    pub fn refuse(&mut self, ports: Ports) {
        self.counts.add(Event::Refused);
        self.stray(StrayReset::stream(ports));
    }

    // ---- From the host ----------------------------------------------------------------------

    /// A client of the host wants the guest's `port`. `None` when the table is full, or the port
    /// names nothing.
    pub fn connect(&mut self, guest_port: u32, now_ms: u64) -> Option<ConnectionId> {
        if !self.has_room() || guest_port == PORT_ANY {
            self.counts.add(Event::TableFull);
            return None;
        }
        let ports = self.table.free_ports(guest_port);
        let window_bytes = self.table.take_window();
        self.insert(Connection::from_host(ports, window_bytes, now_ms), now_ms)
    }

    /// The connection's socket may have bytes, and behind them its end; settle it afterwards.
    pub fn set_readable(&mut self, id: ConnectionId, has_end: bool) {
        if let Some(slot) = self.table.slot(id) {
            slot.is_readable = true;
            slot.has_end |= has_end;
        }
    }

    // ---- To the guest -----------------------------------------------------------------------

    /// Whether [`Mux::next_turn`] has something.
    pub fn has_turn(&self) -> bool {
        !self.strays.is_empty() || !self.turns.is_empty()
    }

    /// What goes to the guest next: RSTs without a connection, then one connection after the
    /// other, a connection's own packets before its bytes.
    pub fn next_turn(&mut self, now_ms: u64) -> Option<Turn> {
        if let Some(stray) = self.strays.pop_front() {
            return Some(Turn::Packet(stray.encode(self.guest_cid)));
        }
        while let Some(place) = self.turns.pop_front() {
            let Some(id) = self.table.id_at(place) else {
                continue;
            };
            if let Some(turn) = self.turn_of(id, now_ms) {
                return Some(turn);
            }
        }
        None
    }

    fn turn_of(&mut self, id: ConnectionId, now_ms: u64) -> Option<Turn> {
        let guest_cid = self.guest_cid;
        let slot = self.table.slot(id)?;
        slot.has_turn = false;
        let is_readable = slot.is_readable;
        let has_put_off = slot.has_put_off;
        let expected_bytes = slot.expected_bytes;
        let connection = slot.connection()?;
        let limit_bytes = connection.sendable_bytes().min(TURN_BYTES);
        let can_read = is_readable && limit_bytes != 0;
        // A host that hangs up is mostly at its end too: read first, and say both in one packet.
        let puts_off = can_read && connection.has_only_shutdown() && !has_put_off;
        let packet = if puts_off { None } else { connection.transmit() };
        slot.has_put_off |= puts_off;
        match packet {
            Some(packet) => {
                self.settle(id, now_ms);
                Some(Turn::Packet(packet.encode(guest_cid)))
            }
            None => can_read.then_some(Turn::Read { id, limit_bytes, expected_bytes }),
        }
    }

    /// The header for `len_bytes` just read from the connection's socket.
    pub fn data_header(&mut self, id: ConnectionId, len_bytes: u32) -> Option<[u8; HEADER_LEN_BYTES]> {
        let guest_cid = self.guest_cid;
        let connection = self.get_mut(id)?;
        Some(connection.transmit_data(len_bytes).encode(guest_cid))
    }

    /// A read of the connection's socket that could have taken `room_bytes` found `found_bytes`.
    /// Less than it could have taken: the socket is empty, and has no turn until it is readable
    /// again, unless its end has still to be read.
    pub fn on_read(&mut self, id: ConnectionId, found_bytes: u32, room_bytes: u32) {
        if let Some(slot) = self.table.slot(id) {
            let is_full = found_bytes >= room_bytes;
            slot.is_readable = is_full || (slot.has_end && found_bytes != 0);
            slot.expected_bytes = if is_full { found_bytes.saturating_mul(2) } else { found_bytes };
        }
    }

    /// The next thing to do to the connection's socket; ask until there is none, then settle.
    pub fn host_effect(&mut self, id: ConnectionId) -> Option<HostEffect> {
        self.get_mut(id)?.host_effect()
    }

    /// To be called after every event of a connection: gives it a turn if it has something for
    /// the guest, notes its deadline, and frees its place when it is over.
    pub fn settle(&mut self, id: ConnectionId, now_ms: u64) {
        let Some(slot) = self.table.slot(id) else {
            return;
        };
        let is_readable = slot.is_readable;
        let Some(connection) = slot.connection() else {
            return;
        };
        if connection.is_finished() {
            self.remove(id);
            return;
        }
        let has_bytes = is_readable && connection.is_sending();
        let can_send = has_bytes && connection.sendable_bytes() != 0;
        if has_bytes && !can_send {
            connection.on_starved(now_ms);
        }
        let deadline_ms = connection.deadline_ms();
        let wants_turn = can_send || connection.has_packet();
        if wants_turn && !std::mem::replace(&mut slot.has_turn, true) {
            self.turns.push_back(id.place());
        }
        self.note_deadline(deadline_ms);
    }

    /// When [`Mux::on_time`] wants to be called, at the latest.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.next_deadline_ms
    }

    /// Time has passed; gives the connections to settle.
    pub fn on_time(&mut self, now_ms: u64) -> Vec<ConnectionId> {
        let mut changed = Vec::new();
        if self.next_deadline_ms.is_none_or(|deadline_ms| now_ms < deadline_ms) {
            return changed;
        }
        self.next_deadline_ms = None;
        let mut next_ms: Option<u64> = None;
        for (id, connection) in self.table.iter_mut() {
            let Some(deadline_ms) = connection.deadline_ms() else {
                continue;
            };
            if deadline_ms <= now_ms {
                connection.on_time(now_ms);
                changed.push(id);
            } else {
                next_ms = Some(next_ms.map_or(deadline_ms, |next_ms| next_ms.min(deadline_ms)));
            }
        }
        self.next_deadline_ms = next_ms;
        let count = u64::try_from(changed.len()).unwrap_or(u64::MAX);
        self.counts.add_many(Event::DeadlinePassed, count);
        changed
    }

    /// Forgets every connection and every RST: the guest's driver is gone, or was told
    /// (transport reset). The caller closes the sockets.
    pub fn clear(&mut self) {
        let ids: Vec<_> = self.table.iter_mut().map(|(id, _)| id).collect();
        for id in ids {
            self.remove(id);
        }
        self.turns.clear();
        for slot in self.table.slots() {
            slot.has_turn = false;
        }
        self.strays.clear();
        self.next_deadline_ms = None;
    }

    fn insert(&mut self, connection: Connection, now_ms: u64) -> Option<ConnectionId> {
        let id = self.table.insert(connection)?;
        self.counts.add(Event::Opened);
        self.settle(id, now_ms);
        Some(id)
    }

    fn remove(&mut self, id: ConnectionId) {
        if self.table.remove(id) {
            self.counts.add(Event::Closed);
        }
    }

    /// Beyond [`STRAYS_MAX`] by those refused late.
    fn stray(&mut self, reset: StrayReset) {
        self.strays.push_back(reset);
    }

    fn note_deadline(&mut self, deadline_ms: Option<u64>) {
        if let Some(deadline_ms) = deadline_ms {
            let next_ms = self.next_deadline_ms.unwrap_or(u64::MAX);
            self.next_deadline_ms = Some(next_ms.min(deadline_ms));
        }
    }
}

#[cfg(test)]
mod tests;
