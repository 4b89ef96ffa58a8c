// SPDX-License-Identifier: Apache-2.0
//! A connection that is read by heads and bodies. Bounded: at most one head and one piece of a body are held.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::framing::{BadBody, Decoder, Step};
use super::head::{BadHead, HEAD_MAX_BYTES};

/// Bytes asked for at once while a body is read.
const PIECE_BYTES: usize = 128 << 10;

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Head(#[from] BadHead),
    #[error(transparent)]
    Body(#[from] BadBody),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The reading half of a connection and what has been read ahead of it.
#[derive(Debug)]
pub(crate) struct Conn<R> {
    io: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Conn<R> {
    /// With bytes that were read before.
    pub(crate) fn new(io: R, buffer: BytesMut) -> Self {
        Self { io, buffer }
    }

    /// The next head, raw, with its empty line; `None` when the peer closed before it began.
    ///
    /// # Errors
    /// It is too long, does not begin as one, or the connection failed inside it.
    pub(crate) async fn head(&mut self) -> Result<Option<Bytes>, ReadError> {
        let mut seen = 0;
        loop {
            if let Some(end) = find_end(&self.buffer, seen)? {
                return Ok(Some(self.buffer.split_to(end).freeze()));
            }
            if self.buffer.len() >= HEAD_MAX_BYTES {
                return Err(BadHead::TooLong.into());
            }
            seen = self.buffer.len();
            self.buffer.reserve(4096);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                };
            }
        }
    }

    /// The next piece of a body; `None` at its end.
    ///
    /// # Errors
    /// The body is malformed, or the connection failed or ended inside it.
    pub(crate) async fn piece(&mut self, decoder: &mut Decoder) -> Result<Option<Bytes>, ReadError> {
        loop {
            match decoder.step(&mut self.buffer)? {
                Step::Data(data) => return Ok(Some(data)),
                Step::End => return Ok(None),
                Step::Need => {}
            }
            self.buffer.reserve(PIECE_BYTES);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                decoder.end()?;
                return Ok(None);
            }
        }
    }

    /// What is read from.
    pub(crate) fn io(&self) -> &R {
        &self.io
    }

    /// Whether nothing has been read ahead.
    pub(crate) fn is_drained(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Waits until there is a byte to read; `false`: the peer has closed.
    ///
    /// # Errors
    /// The connection failed.
    pub(crate) async fn ready(&mut self) -> io::Result<bool> {
        if !self.buffer.is_empty() {
            return Ok(true);
        }
        self.buffer.reserve(4096);
        Ok(self.io.read_buf(&mut self.buffer).await? != 0)
    }

    /// The connection again, and what was read ahead of it.
    pub(crate) fn into_parts(self) -> (R, BytesMut) {
        (self.io, self.buffer)
    }
}

/// Where the empty line ends, looked for from `seen`. A line that ends with LF alone is refused at once: what follows it would
/// be waited for in vain.
fn find_end(buffer: &[u8], seen: usize) -> Result<Option<usize>, BadHead> {
    let from = seen.saturating_sub(3);
    for (at, byte) in buffer.iter().enumerate().skip(from) {
        if *byte != b'\n' {
            continue;
        }
        if at == 0 || buffer[at - 1] != b'\r' {
            return Err(BadHead::BareLineEnd);
        }
        if at == 1 {
            return Err(BadHead::Start);
        }
        if at >= 3 && buffer[at - 2] == b'\n' {
            return Ok(Some(at + 1));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
