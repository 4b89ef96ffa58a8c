// SPDX-License-Identifier: Apache-2.0
//! What a block request asks for (§5.2.6): pure functions of its header, its lengths and the
//! limits of the disk.
//!
//! How the chain is cut into buffers has been forgotten before this point, so header and data may
//! share a buffer or a header may be spread over several. A [`Request`] is proof that its range
//! lies on the disk and its kind was offered; what cannot be a request gets a [`Status`].
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::spec::{
    HEADER_BYTES, ID_BYTES, RANGE_BYTES, RANGE_SECTORS_MAX, RANGE_UNMAP, RANGES_MAX, SECTOR_BYTES, kind,
};

/// The last byte of every request (§5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done: out of range, refused, or the host failed.
    IoError = 1,
    /// Not a request that this device knows.
    Unsupported = 2,
}

/// What the disk and the negotiation allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Length of the disk in sectors.
    pub sectors: u64,
    /// Writing is an error.
    pub read_only: bool,
    /// VIRTIO_BLK_F_DISCARD was negotiated.
    pub discard: bool,
    /// VIRTIO_BLK_F_WRITE_ZEROES was negotiated.
    pub write_zeroes: bool,
}

/// A request that can be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Fill the whole writable part but its last byte, from this byte of the disk.
    Read {
        /// First byte.
        offset: u64,
    },
    /// Write the rest of the readable part at this byte of the disk.
    Write {
        /// First byte.
        offset: u64,
    },
    /// Make completed writes durable.
    Flush,
    /// Fill in the name of the disk.
    GetId,
    /// Give back the ranges that follow, each [`RANGE_BYTES`] long.
    Discard,
    /// Zero the ranges that follow.
    WriteZeroes,
}

/// One range of a discard or write-zeroes request, on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// The storage may be given back.
    pub may_free: bool,
}

/// Reads a header. `given_bytes` follow it in the readable part; `wanted_bytes` come before the
/// status byte in the writable part.
///
/// # Errors
/// The status to answer with.
pub fn parse(
    header: [u8; HEADER_BYTES],
    given_bytes: usize,
    wanted_bytes: usize,
    limits: &Limits,
) -> Result<Request, Status> {
    let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    match u32::from_le_bytes([k0, k1, k2, k3]) {
        kind::IN => Ok(Request::Read { offset: offset_of(sector, wanted_bytes, limits)? }),
        // §5.2.6.2: on a read-only disk a write MUST fail and MUST NOT write anything.
        kind::OUT if limits.read_only => Err(Status::IoError),
        kind::OUT => Ok(Request::Write { offset: offset_of(sector, given_bytes, limits)? }),
        kind::FLUSH => Ok(Request::Flush),
        kind::GET_ID if wanted_bytes < ID_BYTES => Err(Status::IoError),
        kind::GET_ID => Ok(Request::GetId),
        kind::DISCARD if limits.discard => ranges_fit(given_bytes).map(|()| Request::Discard),
        kind::WRITE_ZEROES if limits.write_zeroes => ranges_fit(given_bytes).map(|()| Request::WriteZeroes),
        _ => Err(Status::Unsupported),
    }
}

/// Reads one range of a discard (`discard`) or write-zeroes request.
///
/// # Errors
/// The status to answer with.
pub fn parse_range(bytes: [u8; RANGE_BYTES], discard: bool, limits: &Limits) -> Result<Range, Status> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    // §5.2.6.2: an unknown flag, or UNMAP in a discard, MUST be answered with UNSUPP.
    let known = if discard { 0 } else { RANGE_UNMAP };
    if flags & !known != 0 {
        return Err(Status::Unsupported);
    }
    if count > RANGE_SECTORS_MAX {
        return Err(Status::IoError);
    }
    let sectors = u64::from(count);
    let offset = on_disk(sector, sectors, limits)?;
    Ok(Range { offset, len: sectors.saturating_mul(SECTOR_BYTES), may_free: discard || flags & RANGE_UNMAP != 0 })
}

/// §5.2.6.1: data is whole sectors, and all of them lie on the disk. No data is no sectors, which
/// are anywhere up to the end.
fn offset_of(sector: u64, len_bytes: usize, limits: &Limits) -> Result<u64, Status> {
    let len = len_bytes as u64;
    if !len.is_multiple_of(SECTOR_BYTES) {
        return Err(Status::IoError);
    }
    on_disk(sector, len.checked_div(SECTOR_BYTES).unwrap_or(0), limits)
}

/// The byte offset of `sector`, when `count` sectors from it lie on the disk.
fn on_disk(sector: u64, count: u64, limits: &Limits) -> Result<u64, Status> {
    sector
        .checked_add(count)
        .filter(|end| *end <= limits.sectors)
        .and_then(|_| sector.checked_mul(SECTOR_BYTES))
        .ok_or(Status::IoError)
}

/// §5.2.6.1: a whole number of segments, no more than offered.
fn ranges_fit(given_bytes: usize) -> Result<(), Status> {
    let most = (RANGES_MAX as usize).saturating_mul(RANGE_BYTES);
    if given_bytes.is_multiple_of(RANGE_BYTES) && given_bytes <= most { Ok(()) } else { Err(Status::IoError) }
}

#[cfg(test)]
mod tests;
