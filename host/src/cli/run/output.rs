// SPDX-License-Identifier: Apache-2.0
//! The command's output on its way to ours, or into memory for `--json`.

use std::io::{ErrorKind, Write};

use tokio::io::{AsyncRead, AsyncReadExt};

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
pub(super) async fn copy<W: Write + Send + 'static>(mut from: impl AsyncRead + Unpin, mut out: W) -> Copied {
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
pub(super) async fn capture(mut from: impl AsyncRead + Unpin) -> Captured {
    let mut captured = Captured::default();
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(got @ 1..) = from.read(&mut buffer).await {
        let room = CAPTURE_MAX_BYTES - captured.head.len();
        captured.head.extend_from_slice(&buffer[..got.min(room)]);
        captured.total_bytes += got as u64;
    }
    captured
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    /// Takes `room` bytes and then fails.
    #[derive(Clone)]
    struct Narrow {
        taken: Arc<Mutex<Vec<u8>>>,
        room: usize,
        failure: ErrorKind,
    }

    impl Write for Narrow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let mut taken = self.taken.lock().unwrap();
            let room = self.room - taken.len();
            if room == 0 {
                return Err(self.failure.into());
            }
            taken.extend_from_slice(&buf[..buf.len().min(room)]);
            Ok(buf.len().min(room))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    async fn copied(bytes: &[u8], room: usize, failure: ErrorKind) -> (Copied, usize) {
        let out = Narrow { taken: Arc::default(), room, failure };
        let copied = copy(bytes, out.clone()).await;
        let taken = out.taken.lock().unwrap().len();
        (copied, taken)
    }

    #[tokio::test]
    async fn everything_is_copied_in_pieces() {
        let bytes = vec![7; 3 * PIECE_BYTES + 1];
        assert_eq!(copied(&bytes, bytes.len(), ErrorKind::BrokenPipe).await, (Copied::All, bytes.len()));
        assert_eq!(copied(b"", 0, ErrorKind::BrokenPipe).await, (Copied::All, 0));
    }

    #[tokio::test]
    async fn reader_that_left_is_told_from_a_full_disk() {
        let bytes = vec![7; PIECE_BYTES];
        assert_eq!(copied(&bytes, 100, ErrorKind::BrokenPipe).await, (Copied::ReaderLeft, 100));
        let full = ErrorKind::StorageFull;
        assert_eq!(copied(&bytes, 100, full).await, (Copied::Failed(full), 100));
    }

    #[tokio::test]
    async fn capture_keeps_the_head_and_counts_the_rest() {
        let bytes: Vec<u8> = (0..251).cycle().take(CAPTURE_MAX_BYTES + 1).collect();
        let captured = capture(&bytes[..]).await;
        assert_eq!((captured.head.len(), captured.total_bytes), (CAPTURE_MAX_BYTES, CAPTURE_MAX_BYTES as u64 + 1));
        assert!(captured.head == bytes[..CAPTURE_MAX_BYTES]);
        assert_eq!(capture(&b"few"[..]).await, Captured { head: b"few".to_vec(), total_bytes: 3 });
    }
}
