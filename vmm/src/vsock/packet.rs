// SPDX-License-Identifier: Apache-2.0
//! The vsock packet header (VIRTIO 1.2 §5.10.6): bytes in, a checked [`Packet`] out, and back.
//!
//! The first stop of a guest's packet: `transfer` copies the 44 bytes out of guest memory once and
//! [`Packet::parse`] checks every rule that needs no connection. What is behind this border works
//! with [`Packet`] only. Nothing here looks at guest memory, performs I/O or knows a connection.
//!
//! | offset | size | field | meaning |
//! | --- | --- | --- | --- |
//! | 0 | 8 | `src_cid` | sender's context id; the upper 32 bits are zero |
//! | 8 | 8 | `dst_cid` | receiver's context id |
//! | 16 | 4 | `src_port` | sender's port |
//! | 20 | 4 | `dst_port` | receiver's port |
//! | 24 | 4 | `len` | payload bytes after the header |
//! | 28 | 2 | `type` | 1 stream (2 seqpacket is not offered) |
//! | 30 | 2 | `op` | 1 REQUEST, 2 RESPONSE, 3 RST, 4 SHUTDOWN, 5 RW, 6 CREDIT_UPDATE, 7 CREDIT_REQUEST |
//! | 32 | 4 | `flags` | SHUTDOWN: bit 0 receives no more, bit 1 sends no more |
//! | 36 | 4 | `buf_alloc` | sender's receive buffer in bytes |
//! | 40 | 4 | `fwd_cnt` | bytes the sender has taken out of it, wrapping |
//!
//! All fields are little-endian.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

/// Bytes of a packet header on the wire (§5.10.6).
pub const HEADER_LEN_BYTES: usize = 44;
/// The host's context id (§5.10.4).
pub const HOST_CID: u64 = 2;
/// A port that means "any" and therefore never names an end of a connection.
pub const PORT_ANY: u32 = u32::MAX;

/// `type` of a stream socket (§5.10.6).
const TYPE_STREAM: u16 = 1;
/// `op` numbers (§5.10.6).
const OP_REQUEST: u16 = 1;
const OP_RESPONSE: u16 = 2;
const OP_RST: u16 = 3;
const OP_SHUTDOWN: u16 = 4;
const OP_RW: u16 = 5;
const OP_CREDIT_UPDATE: u16 = 6;
const OP_CREDIT_REQUEST: u16 = 7;
/// `flags` of SHUTDOWN (§5.10.6.5): the sender will not receive any more data.
const SHUTDOWN_RECEIVE: u32 = 1;
/// `flags` of SHUTDOWN (§5.10.6.5): the sender will not send any more data.
const SHUTDOWN_SEND: u32 = 2;

/// The two ends of a connection: what identifies it, since the CIDs are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// Port on the guest's side.
    pub guest: u32,
    /// Port on the host's side.
    pub host: u32,
}

/// What one end says about its receive buffer; it rides on every packet (§5.10.6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Size of the sender's receive buffer in bytes.
    pub buf_alloc: u32,
    /// Bytes taken out of that buffer since the connection began, wrapping at 2^32.
    pub fwd_cnt: u32,
}

/// What a packet asks for. Lengths and flags are part of the operation they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Open a connection.
    Request,
    /// The connection is accepted.
    Response,
    /// The connection does not exist, or no longer.
    Reset,
    /// The sender has ended one or both directions.
    Shutdown {
        /// The sender will not receive any more data.
        receive: bool,
        /// The sender will not send any more data.
        send: bool,
    },
    /// Payload.
    Data {
        /// Bytes of payload; for a parsed packet proven to be in its chain.
        len_bytes: u32,
    },
    /// Only tells the credit.
    CreditUpdate,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest,
}

/// A packet without its payload bytes.
///
/// One that comes out of [`Packet::parse`] proves: it was sent by this guest to the host, it is of
/// the stream type with a known operation, its ports name connections, a payload is there only for
/// [`Op::Data`] and then wholly inside the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    ports: Ports,
    op: Op,
    credit: Credit,
}

/// A header that breaks a rule: the guest's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketFault {
    /// The guest pretends to be somebody else: dropped without an answer.
    #[error("parsing a guest packet: src_cid is {cid}, not the guest's own")]
    Source {
        /// The `src_cid` it wrote.
        cid: u64,
    },
    /// Not for the host; there is nobody else: dropped without an answer.
    #[error("parsing a guest packet: dst_cid is {cid}, only the host (2) can be reached")]
    Destination {
        /// The `dst_cid` it wrote.
        cid: u64,
    },
    /// A socket type that was not negotiated (§5.10.6.4.2: the answer MUST be RST).
    #[error("parsing a guest packet: type {kind} is not the stream type 1")]
    Kind {
        /// The connection it would be about.
        ports: Ports,
        /// The `type` it wrote.
        kind: u16,
        /// Whether the packet is itself a RST, which is never answered.
        is_reset: bool,
    },
    /// An operation outside 1..=7.
    #[error("parsing a guest packet: op {op} is not one of 1..=7")]
    Operation {
        /// The connection it would be about.
        ports: Ports,
        /// The `op` it wrote.
        op: u16,
    },
    /// A port that cannot name a connection.
    #[error("parsing a guest packet: port {PORT_ANY} means any and names no connection")]
    Port,
    /// More payload announced than the chain holds.
    #[error("parsing a guest packet: len {len_bytes} is beyond the chain's {available_bytes} bytes of payload")]
    Length {
        /// The connection it is about.
        ports: Ports,
        /// The `len` it wrote.
        len_bytes: u32,
        /// What the chain holds after the header.
        available_bytes: u64,
    },
    /// A payload on an operation that has none.
    #[error("parsing a guest packet: op {op} carries {len_bytes} bytes, only RW has a payload")]
    Payload {
        /// The connection it is about.
        ports: Ports,
        /// The `op` it wrote.
        op: u16,
        /// The `len` it wrote.
        len_bytes: u32,
    },
}

impl PacketFault {
    /// The connection that must be answered with RST, and the `type` the answer carries;
    /// `None` when the packet is to be dropped.
    pub fn answer(&self) -> Option<(Ports, u16)> {
        match *self {
            Self::Source { .. } | Self::Destination { .. } | Self::Port => None,
            Self::Kind { is_reset: true, .. } => None,
            Self::Kind { ports, kind, .. } => Some((ports, kind)),
            Self::Operation { ports, .. } | Self::Length { ports, .. } | Self::Payload { ports, .. } => {
                Some((ports, TYPE_STREAM))
            }
        }
    }
}

impl Packet {
    /// A packet from the host to the guest.
    pub fn new(ports: Ports, op: Op, credit: Credit) -> Self {
        Self { ports, op, credit }
    }

    /// The connection it is about.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// What it asks for.
    pub fn op(&self) -> Op {
        self.op
    }

    /// What its sender says about its receive buffer.
    pub fn credit(&self) -> Credit {
        self.credit
    }

    /// Checks a header that the guest wrote. `available_bytes` is what its chain holds after the
    /// header.
    ///
    /// # Errors
    /// The first rule that is broken, as a [`PacketFault`].
    pub fn parse(header: &[u8; HEADER_LEN_BYTES], guest_cid: u64, available_bytes: u64) -> Result<Self, PacketFault> {
        let raw = RawHeader::read(header);
        if raw.src_cid != guest_cid {
            return Err(PacketFault::Source { cid: raw.src_cid });
        }
        if raw.dst_cid != HOST_CID {
            return Err(PacketFault::Destination { cid: raw.dst_cid });
        }
        let ports = Ports { guest: raw.src_port, host: raw.dst_port };
        if ports.guest == PORT_ANY || ports.host == PORT_ANY {
            return Err(PacketFault::Port);
        }
        if raw.kind != TYPE_STREAM {
            return Err(PacketFault::Kind { ports, kind: raw.kind, is_reset: raw.op == OP_RST });
        }
        let op = raw.operation(ports, available_bytes)?;
        let credit = Credit { buf_alloc: raw.buf_alloc, fwd_cnt: raw.fwd_cnt };
        Ok(Self { ports, op, credit })
    }

    /// The header of this packet as the guest reads it, host to guest.
    pub fn encode(&self, guest_cid: u64) -> [u8; HEADER_LEN_BYTES] {
        let (op, flags, len_bytes) = match self.op {
            Op::Request => (OP_REQUEST, 0, 0),
            Op::Response => (OP_RESPONSE, 0, 0),
            Op::Reset => (OP_RST, 0, 0),
            Op::Shutdown { receive, send } => (OP_SHUTDOWN, shutdown_flags(receive, send), 0),
            Op::Data { len_bytes } => (OP_RW, 0, len_bytes),
            Op::CreditUpdate => (OP_CREDIT_UPDATE, 0, 0),
            Op::CreditRequest => (OP_CREDIT_REQUEST, 0, 0),
        };
        RawHeader {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len_bytes,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: self.credit.buf_alloc,
            fwd_cnt: self.credit.fwd_cnt,
        }
        .write()
    }
}

/// A RST about a connection that has no machine: an answer to a packet that names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrayReset {
    /// The connection the guest named.
    pub ports: Ports,
    /// The `type` the guest wrote, given back.
    pub kind: u16,
}

impl StrayReset {
    /// The answer to a packet of the stream type.
    pub fn stream(ports: Ports) -> Self {
        Self { ports, kind: TYPE_STREAM }
    }

    /// The header as the guest reads it, host to guest.
    pub fn encode(&self, guest_cid: u64) -> [u8; HEADER_LEN_BYTES] {
        RawHeader {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len_bytes: 0,
            kind: self.kind,
            op: OP_RST,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
        .write()
    }
}

/// The ten fields, unchecked.
struct RawHeader {
    src_cid: u64,
    dst_cid: u64,
    src_port: u32,
    dst_port: u32,
    len_bytes: u32,
    kind: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl RawHeader {
    fn read(bytes: &[u8; HEADER_LEN_BYTES]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field::<0, 8>(bytes)),
            dst_cid: u64::from_le_bytes(field::<8, 8>(bytes)),
            src_port: u32::from_le_bytes(field::<16, 4>(bytes)),
            dst_port: u32::from_le_bytes(field::<20, 4>(bytes)),
            len_bytes: u32::from_le_bytes(field::<24, 4>(bytes)),
            kind: u16::from_le_bytes(field::<28, 2>(bytes)),
            op: u16::from_le_bytes(field::<30, 2>(bytes)),
            flags: u32::from_le_bytes(field::<32, 4>(bytes)),
            buf_alloc: u32::from_le_bytes(field::<36, 4>(bytes)),
            fwd_cnt: u32::from_le_bytes(field::<40, 4>(bytes)),
        }
    }

    fn write(&self) -> [u8; HEADER_LEN_BYTES] {
        let mut bytes = [0; HEADER_LEN_BYTES];
        put::<0, 8>(&mut bytes, self.src_cid.to_le_bytes());
        put::<8, 8>(&mut bytes, self.dst_cid.to_le_bytes());
        put::<16, 4>(&mut bytes, self.src_port.to_le_bytes());
        put::<20, 4>(&mut bytes, self.dst_port.to_le_bytes());
        put::<24, 4>(&mut bytes, self.len_bytes.to_le_bytes());
        put::<28, 2>(&mut bytes, self.kind.to_le_bytes());
        put::<30, 2>(&mut bytes, self.op.to_le_bytes());
        put::<32, 4>(&mut bytes, self.flags.to_le_bytes());
        put::<36, 4>(&mut bytes, self.buf_alloc.to_le_bytes());
        put::<40, 4>(&mut bytes, self.fwd_cnt.to_le_bytes());
        bytes
    }

    fn operation(&self, ports: Ports, available_bytes: u64) -> Result<Op, PacketFault> {
        let op = match self.op {
            OP_REQUEST => Op::Request,
            OP_RESPONSE => Op::Response,
            // A RST is never answered, so a payload on it is not a reason to.
            OP_RST => return Ok(Op::Reset),
            OP_SHUTDOWN => {
                Op::Shutdown { receive: self.flags & SHUTDOWN_RECEIVE != 0, send: self.flags & SHUTDOWN_SEND != 0 }
            }
            OP_RW if u64::from(self.len_bytes) > available_bytes => {
                return Err(PacketFault::Length { ports, len_bytes: self.len_bytes, available_bytes });
            }
            OP_RW => {
                return Ok(Op::Data { len_bytes: self.len_bytes });
            }
            OP_CREDIT_UPDATE => Op::CreditUpdate,
            OP_CREDIT_REQUEST => Op::CreditRequest,
            op => return Err(PacketFault::Operation { ports, op }),
        };
        if self.len_bytes != 0 {
            return Err(PacketFault::Payload { ports, op: self.op, len_bytes: self.len_bytes });
        }
        Ok(op)
    }
}

fn shutdown_flags(receive: bool, send: bool) -> u32 {
    let receive_flag = if receive { SHUTDOWN_RECEIVE } else { 0 };
    let send_flag = if send { SHUTDOWN_SEND } else { 0 };
    receive_flag | send_flag
}

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "the range is a constant that the const assertion proves to be inside the header"
)]
fn field<const AT: usize, const N: usize>(bytes: &[u8; HEADER_LEN_BYTES]) -> [u8; N] {
    const { assert!(AT + N <= HEADER_LEN_BYTES) };
    let mut out = [0; N];
    out.copy_from_slice(&bytes[AT..AT + N]);
    out
}

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "the range is a constant that the const assertion proves to be inside the header"
)]
fn put<const AT: usize, const N: usize>(bytes: &mut [u8; HEADER_LEN_BYTES], value: [u8; N]) {
    const { assert!(AT + N <= HEADER_LEN_BYTES) };
    bytes[AT..AT + N].copy_from_slice(&value);
}

#[cfg(test)]
mod tests;
