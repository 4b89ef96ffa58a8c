// SPDX-License-Identifier: Apache-2.0
//! Body of the fuzz target `vsock_pair`: both ends of some connections in virtual time, a driver that
//! keeps the rules ([`super::model`]) and programs of the host, each as slow, as greedy and as rude as
//! the input wants. No byte is lost, doubled or out of order, no window is overrun, no end overtakes
//! a byte, and nothing stands still that could move.

use std::collections::VecDeque;
use std::sync::LazyLock;

use super::connection::{HostEffect, Phase};
use super::model::{Endpoint, GUEST_CID, HOST_PORT, REQUEST, RST, RW, Wire};
use super::mux::{Action, Mux, Turn};
use super::packet::Ports;
use super::table::{ConnectionId, WINDOW_BYTES};

/// Connections of one input, both directions together.
const PAIRS_MAX: usize = 6;

/// What streams consist of, over and over: made once, since most of an input's time went into making it.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let byte = |[low, high]: [u8; 2]| low.wrapping_mul(31) ^ high;
    (0..=u16::MAX).map(|at| byte(at.to_le_bytes())).collect()
});

/// That many bytes from a place of a stream; the two directions differ.
fn bytes(to_guest: bool, from: usize, len: usize) -> Vec<u8> {
    let start = from + usize::from(to_guest) * 77;
    let mut made = Vec::with_capacity(len);
    while made.len() < len {
        let rest = &PATTERN[(start + made.len()) % PATTERN.len()..];
        made.extend_from_slice(&rest[..rest.len().min(len - made.len())]);
    }
    made
}

fn check(to_guest: bool, from: usize, found: &[u8]) {
    assert_eq!(found, bytes(to_guest, from, found.len()), "other bytes at {from} of the stream");
}

/// The host's program, and its socket as the monitor sees it.
#[derive(Default)]
struct Host {
    /// Bytes the program wrote, and those of them that the monitor has read.
    written: usize,
    fetched: usize,
    /// Bytes of the guest that the socket took, and those of them that the program has read.
    taken: usize,
    read: usize,
    /// What the socket refused, kept by the monitor.
    kept: VecDeque<u8>,
    /// What the socket holds at most.
    capacity: usize,
    /// What the program writes at most: not for ever, to a guest that takes a byte at a time.
    limit: usize,
    /// The program writes no more, or is gone altogether.
    ended: bool,
    gone: bool,
    /// What the monitor did to the socket.
    saw_end: bool,
    refuses: bool,
    closed: bool,
}

struct Pair {
    id: Option<ConnectionId>,
    guest: Endpoint,
    /// Bytes the guest's program wants to send, those that it sent, and those that it read.
    wants: usize,
    sent: usize,
    got: usize,
    /// One of them threw the connection away, without an end.
    reset: bool,
    accepts: bool,
    host: Host,
}

impl Pair {
    /// Nobody was rude, and no time-out was possible: every byte arrives.
    fn is_clean(&self, world: &World) -> bool {
        !self.reset && self.accepts && world.now_ms < 8_000
    }
}

struct World {
    mux: Mux,
    pairs: Vec<Pair>,
    /// What the guest has put into its tx queue.
    up: VecDeque<(Wire, Vec<u8>)>,
    now_ms: u64,
}

impl World {
    fn of(&self, id: ConnectionId) -> usize {
        self.pairs.iter().position(|pair| pair.id == Some(id)).expect("a connection that nobody made")
    }

    fn settle(&mut self, id: ConnectionId) {
        let at = self.of(id);
        let pair = &mut self.pairs[at];
        while let Some(effect) = self.mux.host_effect(id) {
            assert!(!pair.host.closed, "{effect:?} of a socket that is closed");
            match effect {
                HostEffect::Answer => {}
                HostEffect::ShutdownWrite => {
                    assert!(pair.host.kept.is_empty() && pair.host.taken == pair.sent, "an end before the last byte");
                    pair.host.saw_end = true;
                }
                HostEffect::ShutdownRead => {
                    pair.host.refuses = true;
                    pair.host.fetched = pair.host.written;
                }
                HostEffect::Close => {
                    pair.host.closed = true;
                    pair.host.kept.clear();
                }
            }
        }
        self.mux.settle(id, self.now_ms);
    }

    /// The socket takes what it has room for.
    fn flush(&mut self, id: ConnectionId) {
        let at = self.of(id);
        let host = &mut self.pairs[at].host;
        if host.closed {
            return;
        }
        if host.gone {
            host.kept.clear();
            self.mux.get_mut(id).expect("not closed").on_host_gone(self.now_ms);
            return self.settle(id);
        }
        let room = host.capacity.saturating_sub(host.taken - host.read).min(host.kept.len());
        let moved: Vec<u8> = host.kept.drain(..room).collect();
        check(false, host.taken, &moved);
        host.taken += moved.len();
        let count = u32::try_from(moved.len()).unwrap_or(0);
        self.mux.get_mut(id).expect("not closed").on_forwarded(count, self.now_ms);
        self.settle(id);
    }

    // ---- Guest to host ----------------------------------------------------------------------

    fn deliver_up(&mut self) -> bool {
        if !self.mux.can_take_packet() {
            return false;
        }
        let Some((wire, payload)) = self.up.pop_front() else { return false };
        match self.mux.on_packet(&wire.bytes(), payload.len() as u64, self.now_ms) {
            Action::Nothing | Action::Unknown(_) => {}
            Action::Open { ports, credit } => {
                let at = self.pairs.iter().position(|pair| pair.guest.ports == (ports.guest, ports.host));
                let at = at.expect("the guest asked for it");
                if self.pairs[at].accepts {
                    let id = self.mux.accept(ports, credit, self.now_ms).expect("there is room");
                    self.pairs[at].id = Some(id);
                    self.settle(id);
                } else {
                    self.mux.refuse(ports);
                }
            }
            Action::Forward { id, len_bytes } => {
                assert_eq!(len_bytes as usize, payload.len());
                let at = self.of(id);
                let host = &mut self.pairs[at].host;
                assert!(!host.closed, "bytes for a socket that is closed");
                host.kept.extend(&payload);
                assert!(host.kept.len() <= WINDOW_BYTES as usize, "more than a window is kept");
                self.flush(id);
            }
            Action::Changed(id) => self.settle(id),
        }
        true
    }

    // ---- Host to guest ----------------------------------------------------------------------

    fn receive(&mut self, header: &[u8; 44], payload: &[u8]) {
        let wire = Wire::read(header);
        let ports = (wire.dst_port, wire.src_port);
        let pair = self.pairs.iter_mut().find(|pair| pair.guest.ports == ports).expect("a packet for nobody");
        assert_eq!(wire.op == RW, !payload.is_empty());
        if wire.op == REQUEST && !pair.accepts {
            pair.guest.is_over = true;
            let refusal = pair.guest.packet(RST);
            return self.up.push_back((refusal, Vec::new()));
        }
        if let Some(answer) = pair.guest.receive(&wire, payload) {
            self.up.push_back((answer, Vec::new()));
        }
    }

    /// One turn, with rx buffers of `piece` bytes and `room` bytes in all.
    fn deliver_down(&mut self, room: u32, piece: u32) -> bool {
        let Some(turn) = self.mux.next_turn(self.now_ms) else { return false };
        match turn {
            Turn::Packet(header) => self.receive(&header, &[]),
            Turn::Read { id, limit_bytes, .. } => {
                let at = self.of(id);
                let host = &mut self.pairs[at].host;
                assert!(!host.closed && limit_bytes != 0);
                let room = room.clamp(1, limit_bytes);
                let from = host.fetched;
                let count = (host.written - from).min(room as usize);
                host.fetched += count;
                let is_at_end = count == 0 && (host.ended || host.refuses);
                let mut done = 0;
                while done < count {
                    let len = (count - done).min(piece.max(1) as usize);
                    let header = self.mux.data_header(id, u32::try_from(len).unwrap_or(0)).expect("it has a turn");
                    self.receive(&header, &bytes(true, from + done, len));
                    done += len;
                }
                self.mux.on_read(id, u32::try_from(count).unwrap_or(0), room);
                if is_at_end {
                    self.mux.get_mut(id).expect("it has a turn").on_host_end(self.now_ms);
                }
                self.settle(id);
            }
        }
        true
    }

    // ---- Programs ---------------------------------------------------------------------------

    fn open(&mut self, from_host: bool, accepts: bool, buf_alloc: u32, capacity: usize) {
        if self.pairs.len() == PAIRS_MAX {
            return;
        }
        let guest_port = 5000 + u32::try_from(self.pairs.len()).unwrap_or(0);
        let mut guest = Endpoint::new(guest_port, HOST_PORT, buf_alloc);
        let mut id = None;
        if from_host {
            id = self.mux.connect(guest_port, self.now_ms);
            let Ports { guest: near, host } = self.mux.get(id.expect("there is room")).expect("a new one").ports();
            guest.ports = (near, host);
        } else {
            let request = guest.packet(REQUEST);
            self.up.push_back((request, Vec::new()));
        }
        let limit = 500 * buf_alloc as usize;
        let host = Host { capacity: capacity.max(64), limit, ..Host::default() };
        self.pairs.push(Pair { id, guest, wants: 0, sent: 0, got: 0, reset: false, accepts, host });
    }

    fn guest_does(&mut self, at: usize, what: u8, number: usize) {
        let Some(pair) = self.pairs.get_mut(at) else { return };
        let packet = match what % 4 {
            0 => {
                if pair.guest.is_open && !pair.guest.is_over && pair.guest.flags & 2 == 0 {
                    pair.wants = (pair.wants + number).min(1 << 20);
                }
                let most = (pair.guest.room() as usize).min(65_536);
                let sent = pair.guest.send(&bytes(false, pair.sent, (pair.wants - pair.sent).min(most)));
                pair.sent += sent.as_ref().map_or(0, |(_, payload)| payload.len());
                sent
            }
            1 => {
                let (found, update) = pair.guest.read(number);
                check(true, pair.got, &found);
                pair.got += found.len();
                update.map(|wire| (wire, Vec::new()))
            }
            2 if pair.guest.is_open && !pair.guest.is_over => {
                let flags = 1 + u32::try_from(number % 3).unwrap_or(0);
                Some((pair.guest.shutdown(flags), Vec::new()))
            }
            3 if number % 4 == 0 && !pair.guest.is_over && pair.guest.is_open => {
                (pair.reset, pair.guest.is_over) = (true, true);
                Some((pair.guest.packet(RST), Vec::new()))
            }
            _ => None,
        };
        self.up.extend(packet);
    }

    fn host_does(&mut self, at: usize, what: u8, number: usize) {
        let Some(pair) = self.pairs.get_mut(at) else { return };
        let (Some(id), host) = (pair.id, &mut pair.host) else { return };
        if host.gone || host.closed && what % 4 != 1 {
            return;
        }
        match what % 4 {
            0 if !host.ended && !host.refuses => {
                host.written = host.limit.min(host.written + number);
                self.mux.set_readable(id, false);
                self.settle(id);
            }
            1 => {
                host.read += number.min(host.taken - host.read);
                self.flush(id);
            }
            2 if !host.ended => {
                host.ended = true;
                self.mux.set_readable(id, true);
                self.settle(id);
            }
            3 if number % 4 == 0 => {
                (host.ended, host.gone) = (true, true);
                host.kept.clear();
                self.mux.set_readable(id, true);
                let connection = self.mux.get_mut(id).expect("not closed");
                // A client that does not wait for the answer is as rude as a guest that throws a connection away.
                pair.reset |= connection.phase() == Phase::Requested;
                connection.on_host_gone(self.now_ms);
                self.settle(id);
            }
            _ => {}
        }
    }

    fn pass_time(&mut self, ms: u64) {
        self.now_ms += ms;
        for id in self.mux.on_time(self.now_ms) {
            self.settle(id);
        }
    }

    /// Everybody does what there is to do, until there is no more.
    fn come_to_rest(&mut self) {
        for _ in 0..6 {
            let mut moves = 0_u32;
            loop {
                let before = moves;
                while self.deliver_up() || self.deliver_down(3000, 1000) {
                    moves += 1;
                }
                for at in 0..self.pairs.len() {
                    let (sent, got, read) = (self.pairs[at].sent, self.pairs[at].got, self.pairs[at].host.read);
                    self.guest_does(at, 0, 0);
                    self.guest_does(at, 1, usize::MAX);
                    self.host_does(at, 1, usize::MAX / 2);
                    moves += u32::from(self.pairs[at].sent != sent)
                        + u32::from(self.pairs[at].got != got)
                        + u32::from(self.pairs[at].host.read != read);
                }
                assert!(moves < 1_000_000, "it goes on for ever");
                if moves == before && self.up.is_empty() && !self.mux.has_turn() {
                    break;
                }
            }
            self.pass_time(150);
        }
    }

    fn check_rest(&self) {
        for pair in self.pairs.iter().filter(|pair| pair.is_clean(self)) {
            let (guest, host) = (&pair.guest, &pair.host);
            // Nobody takes what the other side no longer wants.
            if !host.gone {
                assert_eq!(host.read, pair.sent, "bytes of the guest were lost or stand still");
                assert!(guest.flags & 2 == 0 || host.saw_end || host.closed, "the guest's end was lost");
            }
            if guest.flags & 2 == 0 && guest.peer_flags & 1 == 0 && !guest.is_over {
                assert_eq!(pair.sent, pair.wants, "the guest has bytes to send, and no credit for them");
            }
            if guest.flags == 0 {
                assert_eq!(pair.got, host.written, "bytes of the host were lost or stand still");
                assert!(!host.ended || guest.peer_flags & 2 != 0, "the host's end was lost");
                assert!(host.gone || !guest.is_over && !host.closed, "nobody had ended it");
            }
        }
    }
}

/// Input: events of 4 bytes: who and what (1), whose (1), a number (2).
pub fn vsock_pair(data: &[u8]) {
    let mut world = World { mux: Mux::new(GUEST_CID), pairs: Vec::new(), up: VecDeque::new(), now_ms: 0 };
    for [what, whose, n0, n1] in data.as_chunks::<4>().0.iter().take(256) {
        let (at, number) = (usize::from(whose % 8), u16::from_le_bytes([*n0, *n1]));
        // A few bytes are as good as many, but for those that fill a window.
        let count = usize::from(number & 0xfff) << if number >> 12 == 15 { 6 } else { 0 };
        match what % 16 {
            0 | 1 => {
                let buf_alloc = if number & 1 == 0 { u32::from(number) + 1 } else { 65_536 };
                world.open(what % 16 == 0, whose & 0x70 != 0x70, buf_alloc, usize::from(number));
            }
            2..=5 => world.guest_does(at, what % 16 - 2, count),
            6..=9 => world.host_does(at, what % 16 - 6, count),
            10 | 11 => (0..=whose % 16).take_while(|_| world.deliver_up()).for_each(drop),
            12..=14 => {
                let piece = u32::from(whose >> 4) * 300;
                (0..=whose % 16).take_while(|_| world.deliver_down(u32::from(number), piece)).for_each(drop);
            }
            _ => world.pass_time(u64::from(number) >> (whose % 16)),
        }
    }
    world.come_to_rest();
    world.check_rest();
}
