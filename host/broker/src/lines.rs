// SPDX-License-Identifier: Apache-2.0
//! Lines of JSON to and from a guest, in bounded memory and at a bounded pace. What is in a line is its door's business.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use midge_protocol::broker::LINE_MAX_BYTES;
use midge_record::{Entry, RecordError, Recorder};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

/// How long a guest may take to read what it is told.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of nonsense that are recorded.
const EXCERPT_BYTES: usize = 200;

/// Why there is no further line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The connection failed.
    #[error("reading a line")]
    Io(#[from] io::Error),
    /// It is longer than [`LINE_MAX_BYTES`].
    #[error("a line is longer than {LINE_MAX_BYTES} bytes")]
    Long,
    /// The connection ended in the middle of one.
    #[error("the last line does not end")]
    Torn,
}

/// The lines of one direction.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    read: R,
    buffer: BytesMut,
    /// Bytes of the buffer that hold no line feed.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(read: R) -> Self {
        Self { read, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line without its line feed; none at the end. Can be dropped and called again: nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                return Ok(Some(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.searched >= LINE_MAX_BYTES {
                return Err(LineError::Long);
            }
            let room = (LINE_MAX_BYTES - self.searched) as u64;
            if (&mut self.read).take(room).read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(LineError::Torn) };
            }
        }
    }

    /// Waits until the other end hangs up; what it says meanwhile is kept, up to a line's length, and then not read any further.
    pub(crate) async fn closed(&mut self) {
        while self.buffer.len() < LINE_MAX_BYTES {
            let room = (LINE_MAX_BYTES - self.buffer.len()) as u64;
            match (&mut self.read).take(room).read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        std::future::pending().await
    }

    /// What was read ahead, and the rest.
    pub(crate) fn into_parts(self) -> (BytesMut, R) {
        (self.buffer, self.read)
    }
}

/// Writes a line.
pub(crate) async fn write_line(out: &mut (impl AsyncWrite + Unpin), line: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    let written = async {
        out.write_all(&bytes).await?;
        out.flush().await
    };
    tokio::time::timeout(WRITE_TIMEOUT, written).await?
}

/// Records what no door understands.
pub(crate) fn note_nonsense(recorder: &Recorder, door: &str, line: &[u8], why: &str) -> Result<(), RecordError> {
    let excerpt = String::from_utf8_lossy(&line[..line.len().min(EXCERPT_BYTES)]).into_owned();
    recorder.note(&Entry::Malformed { door: door.to_owned(), why: why.to_owned(), excerpt }).map(drop)
}

/// The refusal that ends a connection when something could not be recorded.
pub(crate) fn unrecorded(error: RecordError) -> io::Error {
    io::Error::other(error)
}

/// At most so many in so long, and so many at once: a bucket that fills with time. Who takes too much waits, or is told how long.
#[derive(Debug)]
pub(crate) struct Pace {
    each: Duration,
    burst: Duration,
    /// When the bucket is full again.
    full: Instant,
}

impl Pace {
    /// `count` in `period`, of which `burst` may come at once. Either zero counts as one.
    pub(crate) fn new(count: u32, period: Duration, burst: u32) -> Self {
        let each = period / count.max(1);
        Self { each, burst: each.saturating_mul(burst.max(1)), full: Instant::now() }
    }

    /// Takes `count` if they are there.
    ///
    /// # Errors
    /// How long it takes until they are; nothing is taken.
    pub(crate) fn take(&mut self, count: u32) -> Result<(), Duration> {
        let now = Instant::now();
        let full = self.full.max(now) + self.each.saturating_mul(count);
        // More than the bucket holds is taken from a full one.
        let most = self.burst.max(self.each.saturating_mul(count));
        match full.saturating_duration_since(now).checked_sub(most) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                self.full = full;
                Ok(())
            }
        }
    }

    /// Takes `count`, when they are there.
    pub(crate) async fn wait(&mut self, count: u32) {
        while let Err(wait) = self.take(count) {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests;
