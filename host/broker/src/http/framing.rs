// SPDX-License-Identifier: Apache-2.0
//! Where a body ends, and the machine that finds it: bytes in, pieces of the body out; no I/O. Chunked bodies are decoded and
//! written again, so that sizes, extensions and trailers of the sender never reach the other side.

use bytes::{Buf as _, Bytes, BytesMut};

use super::head::BadHead;
use super::headers::Headers;

/// Longest line of a chunk's size with its extension, in bytes.
const CHUNK_LINE_MAX_BYTES: usize = 256;
/// Most bytes of trailers; they are dropped.
const TRAILERS_MAX_BYTES: usize = 8 << 10;

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// This many bytes; 0 is no body.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection ends; responses only.
    UntilClose,
}

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadBody {
    #[error("a chunk's size is malformed")]
    ChunkSize,
    #[error("a chunk does not end with CR LF")]
    ChunkEnd,
    #[error("the trailers are longer than {TRAILERS_MAX_BYTES} bytes or malformed")]
    Trailers,
    #[error("the connection ended inside the body")]
    Truncated,
}

/// Framing of a request.
pub(super) fn request_framing(headers: &Headers) -> Result<Framing, BadHead> {
    Ok(declared(headers)?.unwrap_or(Framing::Length(0)))
}

/// Framing of the response with `status` to a request by `method`.
pub(super) fn response_framing(headers: &Headers, status: u16, method: &str) -> Result<Framing, BadHead> {
    let declared = declared(headers)?;
    if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) {
        return Ok(Framing::Length(0));
    }
    Ok(declared.unwrap_or(Framing::UntilClose))
}

fn declared(headers: &Headers) -> Result<Option<Framing>, BadHead> {
    let codings = headers.all("transfer-encoding").count();
    let lengths = headers.all("content-length").count();
    match (codings, lengths) {
        (0, 0) => Ok(None),
        (1, 0) if headers.one("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked")) => {
            Ok(Some(Framing::Chunked))
        }
        (0, 1) => {
            let digits = headers.one("content-length").unwrap_or_default();
            if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
                return Err(BadHead::Length);
            }
            let text = std::str::from_utf8(digits).map_err(|_| BadHead::Length)?;
            Ok(Some(Framing::Length(text.parse().map_err(|_| BadHead::Length)?)))
        }
        (0, _) => Err(BadHead::Length),
        (_, 0) => Err(BadHead::Coding),
        (_, _) => Err(BadHead::TwoFramings),
    }
}

/// What a [`Decoder`] makes of the bytes there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A piece of the body; never empty.
    Data(Bytes),
    /// More bytes are needed.
    Need,
    /// The body is over; what is left in the buffer is not of it.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fixed(u64),
    Endless,
    Size,
    Chunk(u64),
    ChunkEnd,
    Trailers(usize),
    Done,
}

/// Takes one body out of a buffer.
#[derive(Debug, Clone)]
pub(crate) struct Decoder(State);

impl Decoder {
    /// At the beginning of a body.
    pub(crate) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Fixed(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::Endless,
        })
    }

    /// Takes what there is of the body from the front of `buffer`.
    ///
    /// # Errors
    /// The chunks are malformed.
    pub(crate) fn step(&mut self, buffer: &mut BytesMut) -> Result<Step, BadBody> {
        loop {
            match self.0 {
                State::Done => return Ok(Step::End),
                _ if buffer.is_empty() => return Ok(Step::Need),
                State::Endless => return Ok(Step::Data(buffer.split().freeze())),
                State::Fixed(left) => {
                    let (data, left) = take(buffer, left);
                    self.0 = if left == 0 { State::Done } else { State::Fixed(left) };
                    return Ok(Step::Data(data));
                }
                State::Chunk(left) => {
                    let (data, left) = take(buffer, left);
                    self.0 = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    return Ok(Step::Data(data));
                }
                State::Size => {
                    let Some(line) = take_line(buffer, CHUNK_LINE_MAX_BYTES).ok_or(BadBody::ChunkSize)? else {
                        return Ok(Step::Need);
                    };
                    let size = chunk_size(&line)?;
                    self.0 = if size == 0 { State::Trailers(0) } else { State::Chunk(size) };
                }
                State::ChunkEnd => {
                    if buffer[0] != b'\r' || buffer.get(1).is_some_and(|byte| *byte != b'\n') {
                        return Err(BadBody::ChunkEnd);
                    }
                    if buffer.len() < 2 {
                        return Ok(Step::Need);
                    }
                    buffer.advance(2);
                    self.0 = State::Size;
                }
                State::Trailers(used) => {
                    let Some(line) = take_line(buffer, TRAILERS_MAX_BYTES - used).ok_or(BadBody::Trailers)? else {
                        return Ok(Step::Need);
                    };
                    let used = used + line.len() + 2;
                    self.0 = match line.is_empty() {
                        true => State::Done,
                        false if used < TRAILERS_MAX_BYTES => State::Trailers(used),
                        false => return Err(BadBody::Trailers),
                    };
                }
            }
        }
    }

    /// How many bytes follow that are the body's as they are; 0 where it is in chunks, over, or of a length that nobody knows.
    pub(crate) fn as_is_bytes(&self) -> u64 {
        match self.0 {
            State::Fixed(left) => left,
            _ => 0,
        }
    }

    /// So many of [`Decoder::as_is_bytes`] took another way.
    pub(crate) fn skip(&mut self, bytes: u64) {
        if let State::Fixed(left) = self.0 {
            self.0 = if bytes < left { State::Fixed(left - bytes) } else { State::Done };
        }
    }

    /// The sender has closed.
    ///
    /// # Errors
    /// It has, inside the body.
    pub(crate) fn end(&self) -> Result<(), BadBody> {
        match self.0 {
            State::Done | State::Endless => Ok(()),
            _ => Err(BadBody::Truncated),
        }
    }
}

fn take(buffer: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    let data = buffer.split_to(length).freeze();
    (data, left - length as u64)
}

/// A line without its CR LF; `Some(None)`: not all there yet; `None`: longer than `most`, or its end is malformed.
fn take_line(buffer: &mut BytesMut, most: usize) -> Option<Option<Bytes>> {
    match buffer.iter().take(most).position(|byte| *byte == b'\n') {
        Some(0) => None,
        Some(at) if buffer[at - 1] != b'\r' || buffer[..at - 1].contains(&b'\r') => None,
        Some(at) => {
            let mut line = buffer.split_to(at + 1);
            line.truncate(at - 1);
            Some(Some(line.freeze()))
        }
        None if buffer.len() >= most => None,
        None => Some(None),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, BadBody> {
    if line.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 127) {
        return Err(BadBody::ChunkSize);
    }
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let is_size = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_size).ok_or(BadBody::ChunkSize)?;
    u64::from_str_radix(text, 16).map_err(|_| BadBody::ChunkSize)
}

/// Puts the line before a chunk of `length` bytes; [`end_chunk`] follows the data.
pub(crate) fn put_chunk(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
}

/// What follows a chunk's data; after the last one, the end of the body.
pub(crate) fn end_chunk(last: bool) -> &'static [u8] {
    if last { b"0\r\n\r\n" } else { b"\r\n" }
}

#[cfg(test)]
mod tests;
