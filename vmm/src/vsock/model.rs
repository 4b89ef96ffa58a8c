// SPDX-License-Identifier: Apache-2.0
//! The guest's side for tests: packets and one end of a connection, written from VIRTIO 1.2
//! §5.10.6 with its own numbers, never from [`super::packet`] or [`super::credit`], so that a
//! mistake there cannot agree with itself here.

#![expect(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

use std::collections::VecDeque;

pub(crate) const GUEST_CID: u64 = 3;
pub(crate) const GUEST_PORT: u32 = 5001;
pub(crate) const HOST_PORT: u32 = 1025;

pub(crate) const REQUEST: u16 = 1;
pub(crate) const RESPONSE: u16 = 2;
pub(crate) const RST: u16 = 3;
pub(crate) const SHUTDOWN: u16 = 4;
pub(crate) const RW: u16 = 5;
pub(crate) const CREDIT_UPDATE: u16 = 6;
pub(crate) const CREDIT_REQUEST: u16 = 7;

/// A header as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

impl Wire {
    /// A sound packet of the guest, without payload.
    pub(crate) fn guest(op: u16) -> Self {
        Self {
            src_cid: GUEST_CID,
            dst_cid: 2,
            src_port: GUEST_PORT,
            dst_port: HOST_PORT,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 65_536,
            fwd_cnt: 0,
        }
    }

    /// The same between other ports.
    pub(crate) fn between(self, guest: u32, host: u32) -> Self {
        Self { src_port: guest, dst_port: host, ..self }
    }

    pub(crate) fn bytes(&self) -> [u8; 44] {
        let mut bytes = Vec::new();
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes.try_into().unwrap()
    }

    /// What the host wrote.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }
}

/// One end of a connection as a driver keeps it: a stream socket with a receive buffer.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) ports: (u32, u32),
    pub(crate) is_open: bool,
    /// The connection is over: RST was sent or received.
    pub(crate) is_over: bool,
    buf_alloc: u32,
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Received and not yet read by the program.
    pub(crate) inbox: VecDeque<u8>,
    pub(crate) peer_flags: u32,
    pub(crate) flags: u32,
}

impl Endpoint {
    pub(crate) fn new(guest_port: u32, host_port: u32, buf_alloc: u32) -> Self {
        Self {
            ports: (guest_port, host_port),
            is_open: false,
            is_over: false,
            buf_alloc,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            inbox: VecDeque::new(),
            peer_flags: 0,
            flags: 0,
        }
    }

    pub(crate) fn packet(&mut self, op: u16) -> Wire {
        self.told_fwd_cnt = self.fwd_cnt;
        let (guest, host) = self.ports;
        Wire { buf_alloc: self.buf_alloc, fwd_cnt: self.fwd_cnt, ..Wire::guest(op) }.between(guest, host)
    }

    /// Payload the peer can take.
    pub(crate) fn room(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.checked_sub(on_the_way).expect("the host took back a promise")
    }

    /// A packet with payload, as much as the peer can take.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Option<(Wire, Vec<u8>)> {
        let len = (bytes.len() as u32).min(self.room());
        if len == 0 || !self.is_open || self.flags & 2 != 0 {
            return None;
        }
        self.sent = self.sent.wrapping_add(len);
        Some((Wire { len, ..self.packet(RW) }, bytes[..len as usize].to_vec()))
    }

    pub(crate) fn shutdown(&mut self, flags: u32) -> Wire {
        self.flags |= flags;
        Wire { flags: self.flags, ..self.packet(SHUTDOWN) }
    }

    /// The program reads up to `len` bytes; a credit update may be due.
    pub(crate) fn read(&mut self, len: usize) -> (Vec<u8>, Option<Wire>) {
        let len = len.min(self.inbox.len());
        let bytes: Vec<u8> = self.inbox.drain(..len).collect();
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len as u32);
        // Linux tells when the room the peer knows of falls below a packet; here: half.
        let untold = self.fwd_cnt.wrapping_sub(self.told_fwd_cnt);
        let update = (untold >= self.buf_alloc.div_ceil(2) && !self.is_over).then(|| self.packet(CREDIT_UPDATE));
        (bytes, update)
    }

    /// A packet of the host; gives the answer.
    pub(crate) fn receive(&mut self, wire: &Wire, payload: &[u8]) -> Option<Wire> {
        assert_eq!((wire.src_cid, wire.dst_cid, wire.kind), (2, GUEST_CID, 1));
        assert_eq!((wire.dst_port, wire.src_port), self.ports);
        assert_eq!(wire.len as usize, payload.len());
        if self.is_over {
            return (wire.op != RST).then(|| self.packet(RST));
        }
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (wire.buf_alloc, wire.fwd_cnt);
        match wire.op {
            REQUEST => {
                self.is_open = true;
                return Some(self.packet(RESPONSE));
            }
            RESPONSE => self.is_open = true,
            RST => self.is_over = true,
            RW => {
                assert!(self.is_open && self.peer_flags & 2 == 0, "data before the beginning or after the end");
                self.inbox.extend(payload);
                assert!(self.inbox.len() <= self.buf_alloc as usize, "the host sent beyond the guest's buffer");
            }
            SHUTDOWN => {
                assert_eq!(wire.flags & self.peer_flags, self.peer_flags, "an end was taken back");
                self.peer_flags = wire.flags;
                if wire.flags == 3 {
                    self.is_over = true;
                    return Some(self.packet(RST));
                }
            }
            CREDIT_REQUEST => return Some(self.packet(CREDIT_UPDATE)),
            CREDIT_UPDATE => {}
            op => panic!("the host sent op {op}"),
        }
        None
    }
}
