// SPDX-License-Identifier: Apache-2.0
//! Frames: messages to bytes, and bytes as they happen to arrive to messages. Performs no I/O.
//!
//! A receiver reads into a buffer of its own and hands what it got to [`Decoder::decode`] until that returns `None`:
//!
//! ```
//! # use midge_protocol::{encode, Decoder, ToAgent};
//! # let mut stream = Vec::new();
//! # encode(&ToAgent::Ping(7), &mut stream)?;
//! # encode(&ToAgent::GetStats, &mut stream)?;
//! let mut decoder = Decoder::<ToAgent>::new();
//! let mut received = &stream[..]; // what one read returned
//! let mut messages = Vec::new();
//! while let Some(message) = decoder.decode(&mut received)? {
//!     messages.push(message);
//! }
//! assert_eq!(messages, [ToAgent::Ping(7), ToAgent::GetStats]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::marker::PhantomData;

use crate::field::{Field, FieldError};
use crate::message::{Message, kind_name};
use crate::{HEADER_BYTES, ToHost};

/// Why bytes are not messages of the protocol. The stream cannot be used any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No version of the protocol has this kind.
    #[error("received a message of unknown kind {kind:#06x} {direction}; the peer may speak a newer version than {newest}", newest = crate::NEWEST_VERSION)]
    UnknownKind {
        /// The kind's number.
        kind: u16,
        /// Which way it came.
        direction: &'static str,
    },
    /// A kind that only goes the other way.
    #[error("received `{name}` ({kind:#06x}), which never goes {direction}")]
    WrongDirection {
        /// The kind's name.
        name: &'static str,
        /// The kind's number.
        kind: u16,
        /// Which way it came.
        direction: &'static str,
    },
    /// The header announces more than is accepted.
    #[error("received `{name}` with a payload of {len} bytes, at most {limit} are accepted")]
    TooLong {
        /// The kind's name.
        name: &'static str,
        /// Length announced, in bytes.
        len: usize,
        /// Length accepted, in bytes.
        limit: usize,
    },
    /// The header's reserved field is in use.
    #[error("received `{name}` with {value:#06x} in the header's reserved field, which must be 0")]
    Reserved {
        /// The kind's name.
        name: &'static str,
        /// The field's value.
        value: u16,
    },
    /// The payload is not what its kind promises.
    #[error("received a malformed `{name}`")]
    Payload {
        /// The kind's name.
        name: &'static str,
        /// What is wrong with it.
        source: FieldError,
    },
    /// An earlier error has ended this stream.
    #[error("decoding goes no further: the stream was broken before")]
    Ended,
}

/// Why a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The message is longer than the receiver accepts.
    #[error("`{name}` has a payload of {len} bytes, at most {limit} can be sent")]
    TooLong {
        /// The kind's name.
        name: &'static str,
        /// Length of the payload, in bytes.
        len: usize,
        /// Length accepted, in bytes.
        limit: usize,
    },
}

/// Appends `message` to `out` as one frame. On an error `out` is as it was.
///
/// # Errors
/// [`EncodeError::TooLong`] when the receiver would refuse it.
pub fn encode<M: Message>(message: &M, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    message.put_payload(out);
    let len = out.len().saturating_sub(start).saturating_sub(HEADER_BYTES);
    if len > M::MAX_PAYLOAD_BYTES {
        out.truncate(start);
        return Err(EncodeError::TooLong { name: message.name(), len, limit: M::MAX_PAYLOAD_BYTES });
    }
    put_header(&mut out[start..], len, message.kind());
    Ok(())
}

/// Appends a piece of output as one frame, without a message in between. `data` beyond
/// [`crate::MAX_DATA_BYTES`] is left out; how much went in is returned.
pub fn encode_output(stream: OutputStream, offset: u64, data: &[u8], out: &mut Vec<u8>) -> usize {
    let data = &data[..data.len().min(crate::MAX_DATA_BYTES)];
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    offset.put(out);
    u32::try_from(data.len()).unwrap_or(u32::MAX).put(out);
    out.extend_from_slice(data);
    let len = out.len().saturating_sub(start).saturating_sub(HEADER_BYTES);
    put_header(&mut out[start..], len, stream.kind());
    data.len()
}

/// A command's two streams out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputStream {
    fn kind(self) -> u16 {
        let empty = crate::Output { offset: 0, data: Vec::new() };
        match self {
            Self::Stdout => ToHost::Stdout(empty).kind(),
            Self::Stderr => ToHost::Stderr(empty).kind(),
        }
    }
}

fn put_header(frame: &mut [u8], len: usize, kind: u16) {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    header[4..6].copy_from_slice(&kind.to_le_bytes());
    frame[..HEADER_BYTES].copy_from_slice(&header);
}

/// A header that was checked: the kind is known in this direction, the length within its limit.
#[derive(Debug, Clone, Copy)]
struct Header {
    len: usize,
    kind: u16,
    name: &'static str,
}

impl Header {
    fn parse<M: Message>(raw: [u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        let [l0, l1, l2, l3, k0, k1, r0, r1] = raw;
        let kind = u16::from_le_bytes([k0, k1]);
        let direction = M::DIRECTION;
        let name = match kind_name(kind) {
            Some((name, known)) if known == direction => name,
            Some((name, _)) => {
                return Err(DecodeError::WrongDirection { name, kind, direction });
            }
            None => return Err(DecodeError::UnknownKind { kind, direction }),
        };
        let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if len > M::MAX_PAYLOAD_BYTES {
            return Err(DecodeError::TooLong { name, len, limit: M::MAX_PAYLOAD_BYTES });
        }
        match u16::from_le_bytes([r0, r1]) {
            0 => Ok(Self { len, kind, name }),
            value => Err(DecodeError::Reserved { name, value }),
        }
    }
}

/// Turns a stream of bytes, cut anywhere, into messages.
///
/// Holds at most one frame. After an error it stays in error: a broken stream has no next frame.
#[derive(Debug)]
pub struct Decoder<M> {
    /// An incomplete frame; empty between frames.
    partial: Vec<u8>,
    ended: bool,
    direction: PhantomData<M>,
}

impl<M: Message> Default for Decoder<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Message> Decoder<M> {
    /// A decoder at the start of a stream. Allocates nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { partial: Vec::new(), ended: false, direction: PhantomData }
    }

    /// Takes at most one message's bytes from the front of `received`. `None` when `received` is used up and the
    /// message is not complete.
    ///
    /// # Errors
    /// A [`DecodeError`] that names the kind; every later call gives [`DecodeError::Ended`].
    pub fn decode(&mut self, received: &mut &[u8]) -> Result<Option<M>, DecodeError> {
        if self.ended {
            return Err(DecodeError::Ended);
        }
        let result = self.advance(received);
        self.ended = result.is_err();
        result
    }

    /// Whether the stream stands between two messages, where it may end.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        self.partial.is_empty() && !self.ended
    }

    /// Bytes of memory held for an incomplete message.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.partial.capacity()
    }

    fn advance(&mut self, received: &mut &[u8]) -> Result<Option<M>, DecodeError> {
        if !self.fill(HEADER_BYTES, received) {
            return Ok(None);
        }
        let mut raw = [0; HEADER_BYTES];
        raw.copy_from_slice(&self.partial[..HEADER_BYTES]);
        let header = Header::parse::<M>(raw)?;
        if self.partial.len() == HEADER_BYTES
            && let Some((payload, rest)) = received.split_at_checked(header.len)
        {
            // The usual case: the payload is there whole and is read where it lies.
            *received = rest;
            self.partial.clear();
            return Self::message(header, payload).map(Some);
        }
        if !self.fill(HEADER_BYTES + header.len, received) {
            return Ok(None);
        }
        let message = Self::message(header, &self.partial[HEADER_BYTES..]);
        self.partial = Vec::new();
        message.map(Some)
    }

    /// Grows the incomplete frame to `len` bytes; false when `received` is too short for that.
    fn fill(&mut self, len: usize, received: &mut &[u8]) -> bool {
        let missing = len.saturating_sub(self.partial.len());
        let (now, rest) = received.split_at(missing.min(received.len()));
        if missing > 0 && len > HEADER_BYTES {
            self.partial.reserve_exact(missing);
        }
        self.partial.extend_from_slice(now);
        *received = rest;
        self.partial.len() >= len
    }

    fn message(header: Header, payload: &[u8]) -> Result<M, DecodeError> {
        match M::take_payload(header.kind, payload) {
            Some(Ok(message)) => Ok(message),
            Some(Err(source)) => Err(DecodeError::Payload { name: header.name, source }),
            None => Err(DecodeError::UnknownKind { kind: header.kind, direction: M::DIRECTION }),
        }
    }
}

#[cfg(test)]
mod tests;
