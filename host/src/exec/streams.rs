// SPDX-License-Identifier: Apache-2.0
//! The ends of a command's streams: what the caller holds, and what the pump holds.
//!
//! Each is a bounded pipe in memory. Offsets are checked here: no byte is skipped or told twice.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

/// Output that may wait for its reader, in bytes a stream; further output waits in the guest.
const OUTPUT_PIPE_BYTES: usize = 256 << 10;
/// Input that may wait for the guest, in bytes.
const INPUT_PIPE_BYTES: usize = 64 << 10;

/// Reads one of a command's outputs. Dropping it discards the rest.
#[derive(Debug)]
pub struct OutputReader {
    pipe: DuplexStream,
    offset: u64,
}

impl OutputReader {
    /// Offset of the next byte in the command's whole output: where to go on with
    /// [`Sandbox::attach`](crate::sandbox::Sandbox::attach).
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl AsyncRead for OutputReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.pipe).poll_read(cx, buf);
        self.offset += (buf.filled().len() - before) as u64;
        polled
    }
}

/// Writes a command's input. Dropping it, or shutting it down, is the end of the input.
#[derive(Debug)]
pub struct StdinWriter {
    pipe: DuplexStream,
}

impl AsyncWrite for StdinWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// The input's two ends: the caller's and the pump's.
pub(super) fn input() -> (StdinWriter, DuplexStream) {
    let (pipe, pump_end) = duplex(INPUT_PIPE_BYTES);
    (StdinWriter { pipe }, pump_end)
}

/// An output's two ends, from `offset` on.
pub(super) fn output(offset: u64) -> (OutputReader, Sink) {
    let (pipe, pump_end) = duplex(OUTPUT_PIPE_BYTES);
    (OutputReader { pipe, offset }, Sink { pipe: Some(pump_end), offset })
}

/// The pump's end of an output.
#[derive(Debug)]
pub(super) struct Sink {
    /// `None` once the reader is gone.
    pipe: Option<DuplexStream>,
    offset: u64,
}

/// The guest sent output at another offset than was due.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WrongOffset {
    pub(super) due: u64,
}

impl Sink {
    /// Passes output on; waits while the reader is behind.
    pub(super) async fn take(&mut self, offset: u64, data: &[u8]) -> Result<(), WrongOffset> {
        if offset != self.offset {
            return Err(WrongOffset { due: self.offset });
        }
        self.offset += data.len() as u64;
        if let Some(pipe) = &mut self.pipe
            && pipe.write_all(data).await.is_err()
        {
            self.pipe = None;
        }
        Ok(())
    }

    /// Offset of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn output_counts_on_from_its_first_offset() {
        let (mut reader, mut sink) = output(10);
        sink.take(10, b"abc").await.unwrap();
        sink.take(13, b"d").await.unwrap();
        assert_eq!(sink.offset(), 14);
        drop(sink);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.unwrap();
        assert_eq!((bytes.as_slice(), reader.offset()), (&b"abcd"[..], 14));
    }

    #[tokio::test]
    async fn skipped_or_repeated_output_is_refused() {
        let (_reader, mut sink) = output(0);
        sink.take(0, b"abc").await.unwrap();
        assert_eq!(sink.take(4, b"x").await, Err(WrongOffset { due: 3 }));
        assert_eq!(sink.take(0, b"x").await, Err(WrongOffset { due: 3 }));
    }

    #[tokio::test]
    async fn a_reader_that_left_holds_nothing_up() {
        let (reader, mut sink) = output(0);
        drop(reader);
        let piece = vec![0; OUTPUT_PIPE_BYTES];
        for round in 0..4 {
            sink.take(round * piece.len() as u64, &piece).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_behind_holds_the_guest_up() {
        let (mut reader, mut sink) = output(0);
        let piece = vec![0; OUTPUT_PIPE_BYTES];
        sink.take(0, &piece).await.unwrap();
        let more = sink.take(piece.len() as u64, b"x");
        tokio::pin!(more);
        let wait = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(wait, &mut more).await.is_err());
        reader.read_u8().await.unwrap();
        more.await.unwrap();
    }
}
