// SPDX-License-Identifier: Apache-2.0
//! Any packets of a guest and any behaviour of its host's sockets, in any order: nothing panics,
//! no bound is passed, and nothing is left when everybody has hung up.
//!
//! `./dev fuzz 60 vsock_mux`. Input: events of 8 bytes: what (1), whose (1),
//! three numbers of 2 bytes each. Ports are drawn from few, so that packets meet connections.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use midge_vmm::vsock::connection::HostEffect;
use midge_vmm::vsock::mux::{Action, Mux, STRAYS_MAX, Turn};
use midge_vmm::vsock::packet::HEADER_LEN_BYTES;
use midge_vmm::vsock::table::{CONNECTIONS_MAX, ConnectionId, WINDOW_BYTES};

const GUEST_CID: u64 = 3;

/// The host's sockets: what each still owes its host.
struct World {
    mux: Mux,
    owed: HashMap<ConnectionId, u32>,
    now_ms: u64,
}

/// Values worth claiming for a counter or a size.
fn claim(value: u16) -> u32 {
    match value % 5 {
        0 => u32::from(value),
        1 => u32::from(value) << 16,
        2 => u32::MAX - u32::from(value),
        3 => 0,
        _ => 65_536,
    }
}

fn header(whose: u8, [a, b, c]: [u16; 3]) -> [u8; HEADER_LEN_BYTES] {
    let mut bytes = [0; HEADER_LEN_BYTES];
    let op = a % 9;
    let len = if op == 5 || a & 0x8000 != 0 { u32::from(b) << (a >> 12 & 3) } else { 0 };
    bytes[0..8].copy_from_slice(&GUEST_CID.to_le_bytes());
    bytes[8..16].copy_from_slice(&2_u64.to_le_bytes());
    bytes[16..20].copy_from_slice(&u32::from(whose & 3).to_le_bytes());
    let host = if whose & 0x80 != 0 { (1 << 30) + u32::from(whose >> 2 & 7) } else { u32::from(whose >> 2 & 1) };
    bytes[20..24].copy_from_slice(&host.to_le_bytes());
    bytes[24..28].copy_from_slice(&len.to_le_bytes());
    bytes[28..30].copy_from_slice(&(1 + u16::from(a & 0x7f00 == 0x100)).to_le_bytes());
    bytes[30..32].copy_from_slice(&op.to_le_bytes());
    bytes[32..36].copy_from_slice(&u32::from(c).to_le_bytes());
    bytes[36..40].copy_from_slice(&claim(c).to_le_bytes());
    bytes[40..44].copy_from_slice(&claim(b).to_le_bytes());
    bytes
}

impl World {
    fn settle(&mut self, id: ConnectionId) {
        while let Some(effect) = self.mux.host_effect(id) {
            if effect == HostEffect::Close {
                self.owed.remove(&id);
            }
        }
        self.mux.settle(id, self.now_ms);
    }

    fn packet(&mut self, header: &[u8; HEADER_LEN_BYTES], accepts: bool) {
        if !self.mux.can_take_packet() {
            return;
        }
        match self.mux.on_packet(header, 100_000, self.now_ms) {
            Action::Nothing | Action::Unknown(_) => {}
            Action::Open { ports, credit } if accepts => {
                let id = self.mux.accept(ports, credit, self.now_ms).expect("there was room");
                assert!(self.owed.insert(id, 0).is_none());
                self.settle(id);
            }
            Action::Open { ports, .. } => self.mux.refuse(ports),
            Action::Forward { id, len_bytes } => {
                let owed = self.owed.get_mut(&id).expect("bytes for a socket that is closed");
                *owed += len_bytes;
                assert!(len_bytes != 0 && *owed <= WINDOW_BYTES, "more than the window is kept");
                self.settle(id);
            }
            Action::Changed(id) => self.settle(id),
        }
    }

    fn turns(&mut self, count: u16, found: u16) {
        for _ in 0..count % 64 {
            let Some(turn) = self.mux.next_turn(self.now_ms) else { return };
            let Turn::Read { id, limit_bytes, .. } = turn else { continue };
            assert!(limit_bytes != 0 && self.owed.contains_key(&id), "a turn of a closed socket");
            let found = u32::from(found).min(limit_bytes);
            if found == 0 {
                self.mux.get_mut(id).expect("it has a turn").on_host_end(self.now_ms);
            } else {
                self.mux.data_header(id, found).expect("it has a turn");
            }
            self.mux.on_read(id, found, limit_bytes);
            self.settle(id);
        }
    }

    /// Something happens to one of the sockets.
    fn socket(&mut self, what: u8, number: u16) {
        let mut ids: Vec<_> = self.owed.keys().copied().collect();
        ids.sort_by_key(|id| id.to_bits());
        let Some(&id) = ids.get(usize::from(number) % ids.len().max(1)) else { return };
        let owed = self.owed[&id];
        let Some(connection) = self.mux.get_mut(id) else { return };
        match what % 4 {
            0 => {
                // What is owed to a host that is gone is forgotten.
                let taken = owed.min(connection.owed_bytes()).min(u32::from(number));
                connection.on_forwarded(taken, self.now_ms);
                self.owed.insert(id, owed - taken);
            }
            1 => self.mux.set_readable(id, number & 1 != 0),
            2 => {
                connection.on_host_gone(self.now_ms);
                self.owed.insert(id, 0);
            }
            _ => connection.on_host_end(self.now_ms),
        }
        self.settle(id);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut world = World { mux: Mux::new(GUEST_CID), owed: HashMap::new(), now_ms: 0 };
    for event in data.chunks_exact(8).take(512) {
        let numbers = [2, 4, 6].map(|at| u16::from_le_bytes([event[at], event[at + 1]]));
        match event[0] % 8 {
            0..=3 => world.packet(&header(event[1], numbers), event[0] & 8 == 0),
            4 => world.turns(numbers[0], numbers[1]),
            5 => world.socket(event[1], numbers[0]),
            6 => {
                world.now_ms += u64::from(numbers[0]);
                for id in world.mux.on_time(world.now_ms) {
                    world.settle(id);
                }
            }
            _ => {
                if let Some(id) = world.mux.connect(u32::from(event[1] & 3), world.now_ms) {
                    world.owed.insert(id, 0);
                    world.settle(id);
                }
            }
        }
        assert!(world.mux.len() <= CONNECTIONS_MAX && world.owed.len() <= world.mux.len());
    }
    // The host hangs up on everything, and time passes.
    let ids: Vec<_> = world.owed.keys().copied().collect();
    for id in ids {
        if let Some(connection) = world.mux.get_mut(id) {
            connection.on_host_gone(world.now_ms);
            connection.on_host_end(world.now_ms);
        }
        world.settle(id);
    }
    world.now_ms += 200_000;
    for id in world.mux.on_time(world.now_ms) {
        world.settle(id);
    }
    for _ in 0..=STRAYS_MAX + 2 * CONNECTIONS_MAX {
        let turn = world.mux.next_turn(world.now_ms);
        assert!(!matches!(turn, Some(Turn::Read { .. })));
    }
    assert!(world.mux.is_empty() && world.owed.is_empty(), "something was left: {:?}", world.mux);
});
