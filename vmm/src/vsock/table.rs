// SPDX-License-Identifier: Apache-2.0
//! The table of connections: places, names that go stale, and the windows they share.
//!
//! Books only: it knows nothing of packets or turns beyond the marks that [`super::mux`] leaves in
//! a place. Its size is bounded by [`CONNECTIONS_MAX`], its windows by [`WINDOWS_BYTES`].

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::collections::HashMap;

use super::connection::Connection;
use super::packet::Ports;

/// Most connections of a guest at a time, both directions together.
pub const CONNECTIONS_MAX: usize = 1024;
/// The window a connection gets while there are few.
pub const WINDOW_BYTES: u32 = 256 << 10;
/// The window every connection gets, however many there are.
pub const WINDOW_MIN_BYTES: u32 = 32 << 10;
/// All windows of a guest together: the most payload kept for hosts that do not read.
pub const WINDOWS_BYTES: u32 = 64 << 20;
/// The first port the host's end of a client's connection gets.
pub(super) const HOST_PORT_FIRST: u32 = 1 << 30;
/// One past the last such port.
pub(super) const HOST_PORT_END: u32 = 1 << 31;

const _: () = assert!(WINDOW_MIN_BYTES as u64 * CONNECTIONS_MAX as u64 <= WINDOWS_BYTES as u64);
const _: () = assert!(CONNECTIONS_MAX <= u16::MAX as usize);
const _: () = assert!(((HOST_PORT_END - HOST_PORT_FIRST) as usize) > CONNECTIONS_MAX);

/// Names a connection; goes stale when it is over, also if its place is taken again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    place: u16,
    generation: u16,
}

impl ConnectionId {
    /// Its place in a table of [`CONNECTIONS_MAX`].
    pub fn index(self) -> usize {
        usize::from(self.place)
    }

    /// Its place, as it is counted.
    pub fn place(self) -> u16 {
        self.place
    }

    /// As one number, for a token.
    pub fn to_bits(self) -> u32 {
        (u32::from(self.generation) << 16) | u32::from(self.place)
    }

    /// From what [`ConnectionId::to_bits`] gave.
    pub fn from_bits(bits: u32) -> Self {
        let [g1, g0, p1, p0] = bits.to_be_bytes();
        Self { place: u16::from_be_bytes([p1, p0]), generation: u16::from_be_bytes([g1, g0]) }
    }
}

/// One place of the table.
#[derive(Debug, Default)]
pub struct Slot {
    generation: u16,
    connection: Option<Connection>,
    /// The host's socket may have bytes, or its end.
    pub is_readable: bool,
    /// Its end is there behind the bytes, and must be read too.
    pub has_end: bool,
    /// What the next read is likely to find.
    pub expected_bytes: u32,
    /// Its place stands in the list of turns. Stays true when the connection is removed: the entry is still
    /// there, and will be the next connection's, so that the list never outgrows the table.
    pub has_turn: bool,
    /// A SHUTDOWN has let the socket's bytes go first, once.
    pub has_put_off: bool,
}

impl Slot {
    /// Whose place it is, unless it is free.
    pub fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }
}

/// All places.
#[derive(Debug)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u16>,
    by_ports: HashMap<Ports, u16>,
    /// Bytes of windows not yet given out.
    windows_left_bytes: u32,
    pub(super) next_host_port: u32,
}

impl Default for Table {
    fn default() -> Self {
        let by_ports = HashMap::new();
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_ports,
            windows_left_bytes: WINDOWS_BYTES,
            next_host_port: HOST_PORT_FIRST,
        }
    }
}

impl Table {
    /// Connections there are.
    pub fn len(&self) -> usize {
        self.by_ports.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_ports.is_empty()
    }

    /// Whether one more has a place.
    pub fn has_room(&self) -> bool {
        self.len() < CONNECTIONS_MAX
    }

    /// Who has these ports.
    pub fn find(&self, ports: Ports) -> Option<ConnectionId> {
        let place = *self.by_ports.get(&ports)?;
        self.id_at(place)
    }

    /// The connection of `id`, unless it is over.
    pub fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let slot = self.slots.get(id.index())?;
        slot.connection.as_ref().filter(|_| slot.generation == id.generation)
    }

    /// Its place, with the marks.
    pub fn slot(&mut self, id: ConnectionId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.index())?;
        (slot.generation == id.generation).then_some(slot)
    }

    /// The name of whoever has, or would have, this place.
    pub fn id_at(&self, place: u16) -> Option<ConnectionId> {
        let generation = self.slots.get(usize::from(place))?.generation;
        Some(ConnectionId { place, generation })
    }

    /// Every connection with its name.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ConnectionId, &mut Connection)> {
        (0_u16..).zip(self.slots.iter_mut()).filter_map(|(place, slot)| {
            let id = ConnectionId { place, generation: slot.generation };
            slot.connection.as_mut().map(|connection| (id, connection))
        })
    }

    /// Every place, taken or free.
    pub fn slots(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut()
    }

    /// Gives a connection a place; `None` when there is none.
    ///
    /// # Panics
    /// When its ports are taken: the caller looks first.
    pub fn insert(&mut self, connection: Connection) -> Option<ConnectionId> {
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                let place = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot::default());
                place
            }
        };
        let slot = self.slots.get_mut(usize::from(place))?;
        let before = self.by_ports.insert(connection.ports(), place);
        assert!(before.is_none(), "two connections with the same ports");
        slot.connection = Some(connection);
        slot.is_readable = false;
        slot.has_end = false;
        slot.expected_bytes = 0;
        slot.has_put_off = false;
        Some(ConnectionId { place, generation: slot.generation })
    }

    /// Frees a place; true when it was taken.
    pub fn remove(&mut self, id: ConnectionId) -> bool {
        let Some(slot) = self.slot(id) else {
            return false;
        };
        let Some(connection) = slot.connection.take() else {
            return false;
        };
        // A token or a turn of the old connection must not mean the next one.
        slot.generation = slot.generation.wrapping_add(1);
        self.by_ports.remove(&connection.ports());
        self.windows_left_bytes = self.windows_left_bytes.saturating_add(connection.window_bytes());
        self.free.push(id.place);
        true
    }

    /// Takes a window for the next connection, such that every one to come can still have the
    /// smallest.
    ///
    /// # Panics
    /// Without room for a connection: the caller looks first.
    pub fn take_window(&mut self) -> u32 {
        let others = CONNECTIONS_MAX.saturating_sub(self.len()).saturating_sub(1);
        let others_bytes = WINDOW_MIN_BYTES.saturating_mul(u32::try_from(others).unwrap_or(u32::MAX));
        let window_bytes = self.windows_left_bytes.saturating_sub(others_bytes).min(WINDOW_BYTES);
        assert!(window_bytes >= WINDOW_MIN_BYTES, "a window for every place of the table");
        self.windows_left_bytes = self.windows_left_bytes.saturating_sub(window_bytes);
        window_bytes
    }

    /// Ports for a connection of the host to the guest's port `guest`, not in use.
    pub fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_host_port;
            self.next_host_port = match host.saturating_add(1) {
                HOST_PORT_END => HOST_PORT_FIRST,
                next => next,
            };
            let ports = Ports { guest, host };
            if self.find(ports).is_none() {
                return ports;
            }
        }
    }
}
