// SPDX-License-Identifier: Apache-2.0
//! Numbers of the block device (VIRTIO 1.2 §5.2) and the limits we offer with them.

/// Bytes of a sector: the unit of every number in a request (§5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Feature bits (§5.2.3).
pub mod feature {
    /// `seg_max` in the configuration space holds.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk is read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` in the configuration space holds.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flush requests are understood.
    pub const FLUSH: u64 = 1 << 9;
    /// Discard requests are understood.
    pub const DISCARD: u64 = 1 << 13;
    /// Write-zeroes requests are understood.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (§5.2.6).
pub mod kind {
    /// Read sectors.
    pub const IN: u32 = 0;
    /// Write sectors.
    pub const OUT: u32 = 1;
    /// Make completed writes durable.
    pub const FLUSH: u32 = 4;
    /// Ask for the name of the disk.
    pub const GET_ID: u32 = 8;
    /// Give sectors back.
    pub const DISCARD: u32 = 11;
    /// Make sectors read as zeros.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Bytes of a request's header: le32 type, le32 reserved, le64 sector (§5.2.6).
pub const HEADER_BYTES: usize = 16;
/// Bytes of a segment of a discard or write-zeroes request: le64 sector, le32 num_sectors, le32
/// flags (§5.2.6).
pub const RANGE_BYTES: usize = 16;
/// In a segment's flags: the sectors may be given back (§5.2.6).
pub const RANGE_UNMAP: u32 = 1;
/// Bytes of the name that GET_ID returns (§5.2.6).
pub const ID_BYTES: usize = 20;
/// Bytes of the configuration space up to `unused1` (§5.2.4).
pub const CONFIG_BYTES: usize = 60;

/// Descriptors of the queue.
pub const QUEUE_SIZE: u16 = 256;
/// Buffers of data in a request: the queue's descriptors less header and status.
pub const SEG_MAX: u32 = 254;
/// Segments of a discard or write-zeroes request.
pub const RANGES_MAX: u32 = 16;
/// Sectors of one such segment (2 GiB): bounds what one request can make us do.
pub const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// Sectors to which a discard should be aligned: a page of an overlay.
pub const DISCARD_ALIGN_SECTORS: u32 = 8;
