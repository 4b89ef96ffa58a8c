// SPDX-License-Identifier: Apache-2.0
//! What a guest can do wrong with a queue, as one type.
//!
//! A fault latches the queue it was found on ([`super::queue`]) and is counted and reported once
//! ([`super::interrupt`]); the monitor lives on. A fault is never confused with "no more work" or
//! with a chain that is merely short for its request.

/// One broken rule of the standard, with the numbers that show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestFault {
    /// §2.7: a power of two, at most what the device offers.
    #[error("setting up a queue: size {size} is not a power of two from 1 to {max}")]
    QueueSize {
        /// What the driver asked for.
        size: u32,
        /// What the device offers.
        max: u16,
    },
    /// §2.7: each part has its alignment.
    #[error("setting up a queue: {part} at {addr:#x} is not aligned to {align} bytes")]
    QueueAlignment {
        /// Which of the three areas.
        part: &'static str,
        /// Where the driver put it.
        addr: u64,
        /// What the standard asks for.
        align: u64,
    },
    /// The areas of a queue lie in RAM.
    #[error("setting up a queue: {part} at {addr:#x}, {len} bytes, is not in guest memory")]
    QueueRange {
        /// Which of the three areas.
        part: &'static str,
        /// Where the driver put it.
        addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// §3.1.1 step 7 comes before step 8.
    #[error("activating the device: queue {index} is not ready")]
    QueueNotReady {
        /// The queue without QueueReady.
        index: usize,
    },
    /// §2.7.6: `idx` runs ahead by at most the number of descriptors not yet in use.
    #[error("reading avail.idx: {pending} new chains and {in_flight} in flight, queue size {size}")]
    AvailIndex {
        /// Distance to the last chain taken.
        pending: u16,
        /// Chains taken and not given back.
        in_flight: u16,
        /// Queue size.
        size: u16,
    },
    /// §2.7.6: heads are below the queue size.
    #[error("taking a chain: head {head} is not below queue size {size}")]
    Head {
        /// What the available ring says.
        head: u16,
        /// Queue size.
        size: u16,
    },
    /// §2.7.5: `next` is an index of the same table.
    #[error("walking a chain: next {next} is not below table size {size}")]
    Next {
        /// What the descriptor says.
        next: u16,
        /// Entries of the table.
        size: u16,
    },
    /// §2.7.5.2: no loop, so never more descriptors than there are.
    #[error("walking a chain: more than {limit} descriptors, so it is a loop or too long")]
    ChainLength {
        /// Most descriptors a chain of this table may have.
        limit: u16,
    },
    /// §2.7.4.2: what the device writes comes after what it reads.
    #[error("walking a chain: a readable buffer follows a writable one")]
    Direction,
    /// Buffers lie in RAM.
    #[error("walking a chain: buffer at {addr:#x}, {len} bytes, is not in guest memory")]
    Buffer {
        /// Where the descriptor points.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// §2.7.5.2: at most 2^32 bytes; here one less, so that the used length is exact.
    #[error("walking a chain: its buffers together exceed 4294967295 bytes")]
    TotalLength,
    /// §2.7.5.3.1: only after negotiation.
    #[error("walking a chain: indirect descriptor without VIRTIO_F_INDIRECT_DESC")]
    IndirectNotNegotiated,
    /// §2.7.5.3.1: INDIRECT and NEXT exclude each other.
    #[error("walking a chain: descriptor with both INDIRECT and NEXT")]
    IndirectWithNext,
    /// §2.7.5.3.1: no table inside a table.
    #[error("walking a chain: indirect descriptor inside an indirect table")]
    IndirectNested,
    /// §2.7.5.3: a table is a whole, non-zero number of descriptors.
    #[error("walking a chain: indirect table of {len} bytes, not 16 to 1048576 in steps of 16")]
    IndirectLength {
        /// Its length in bytes.
        len: u32,
    },
    /// The ring was valid at activation and cannot be reached now.
    #[error("reading a queue or an indirect table: {addr:#x} is not in guest memory")]
    Ring {
        /// The address that failed.
        addr: u64,
    },
    /// A rule of the device type, on a chain that is sound by itself.
    #[error("serving a {device} queue: {what}")]
    Device {
        /// Whose rule.
        device: &'static str,
        /// What was wrong.
        what: &'static str,
    },
}
