// SPDX-License-Identifier: Apache-2.0
//! The command's output on its way to ours, or into memory for `--json`.

use std::io::{ErrorKind, Write};

use midge::exec::OutputReader;
use tokio::io::AsyncReadExt;

/// Kept of each stream with `--json`: the first bytes.
pub(super) const CAPTURE_MAX_BYTES: usize = 1 << 20;
const PIECE_BYTES: usize = 256 << 10;

/// Why a stream was copied no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// It ended.
    All,
    /// Our side was closed by its reader, as with `midge run -- yes | head`.
    ReaderLeft,
    /// Our side failed, a full disk for example.
    Failed(ErrorKind),
}

/// Copies a stream to `out`, piece by piece. At the end of `out` the rest is not read.
pub(super) async fn copy<W: Write + Send + 'static>(mut from: OutputReader, mut out: W) -> Copied {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        // The pump's side cannot fail; it ends.
        let Ok(got @ 1..) = from.read(&mut buffer).await else { return Copied::All };
        // Written from a thread that may block: a paused terminal must not stop signals and timers.
        let written = tokio::task::spawn_blocking(move || {
            let written = out.write_all(&buffer[..got]).and_then(|()| out.flush());
            (written, buffer, out)
        });
        let Ok((written, same_buffer, same_out)) = written.await else { return Copied::Failed(ErrorKind::Other) };
        (buffer, out) = (same_buffer, same_out);
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Copied::ReaderLeft,
            Err(error) => return Copied::Failed(error.kind()),
        }
    }
}

/// The first bytes of a stream, and how many there were in all.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Captured {
    pub(super) head: Vec<u8>,
    pub(super) total_bytes: u64,
}

/// Reads a stream to its end and keeps its head.
pub(super) async fn capture(mut from: OutputReader) -> Captured {
    let mut captured = Captured::default();
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(got @ 1..) = from.read(&mut buffer).await {
        let room = CAPTURE_MAX_BYTES - captured.head.len();
        captured.head.extend_from_slice(&buffer[..got.min(room)]);
        captured.total_bytes += got as u64;
    }
    captured
}
