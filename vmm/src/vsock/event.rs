// SPDX-License-Identifier: Apache-2.0
//! What can happen in the vsock device, counted. Counting is all: nothing here logs, and no byte of
//! the guest is kept.

/// One kind of thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Event {
    /// A connection was made.
    Opened,
    /// A connection is over and its place free.
    Closed,
    /// A guest's REQUEST found nobody on the host.
    Refused,
    /// A connection was refused because the table is full.
    TableFull,
    /// A guest's packet was no packet.
    PacketFault,
    /// A guest's packet belonged to no connection.
    UnknownConnection,
    /// A guest's packet broke the protocol of its connection.
    ConnectionFault,
    /// A chain without room for a header.
    ChainFault,
    /// A queue was latched.
    QueueFault,
    /// A deadline of a connection passed.
    DeadlinePassed,
    /// A client of the host sent no `CONNECT`, or none in time, or hung up first.
    ClientFault,
    /// The host refused something for want of a resource: file descriptors, memory.
    HostFault,
}

/// How many kinds of [`Event`] there are.
const KINDS: usize = Event::HostFault as usize + 1;

/// A counter per [`Event`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; KINDS]);

impl Counts {
    /// Counts one.
    pub fn add(&mut self, event: Event) {
        self.add_many(event, 1);
    }

    /// Counts some.
    pub fn add_many(&mut self, event: Event, count: u64) {
        if let Some(counter) = self.0.get_mut(event as usize) {
            *counter = counter.saturating_add(count);
        }
    }

    /// How often it happened.
    pub fn of(&self, event: Event) -> u64 {
        self.0.get(event as usize).copied().unwrap_or(0)
    }
}
