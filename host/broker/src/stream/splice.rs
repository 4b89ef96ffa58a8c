// SPDX-License-Identifier: Apache-2.0
//! Bytes from one socket to another by way of a pipe, in the kernel: never copied into this process.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::Socket;

/// Size of a pipe, and so what is moved at once. A user without privileges may have 64 MiB of pipes in all.
const PIPE_BYTES: usize = 256 << 10;
/// Its size once it was full: as large as such a user may have one.
const BUSY_PIPE_BYTES: usize = 1 << 20;
/// Pipes of that size that this process has at once; others stay as they are.
const BUSY_PIPES_MAX: usize = 16;

/// The pipe of one way between two sockets.
#[derive(Debug)]
pub(crate) struct Splice {
    out: OwnedFd,
    into: OwnedFd,
    bytes: usize,
    busy: Option<SemaphorePermit<'static>>,
}

impl Splice {
    /// A pipe with nothing in it.
    ///
    /// # Errors
    /// There is no descriptor left for it.
    pub(crate) fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut splice = Self { out, into, bytes: 0, busy: None };
        splice.resize(PIPE_BYTES);
        Ok(splice)
    }

    /// Waits for bytes and passes them on, `most` at most; how many, 0 at the end. `may` is asked before they go on.
    ///
    /// # Errors
    /// A side failed, or `may` refused.
    pub(crate) async fn pass(
        &mut self,
        (from, to): (Socket<'_>, Socket<'_>),
        most: u64,
        may: impl FnOnce(u64) -> io::Result<()>,
    ) -> io::Result<u64> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.bytes);
        let take = || Ok(splice(from, None, &self.into, None, most, flags)?);
        let taken = from.when(Interest::READABLE, take).await?;
        if taken == 0 {
            return Ok(0);
        }
        may(taken as u64)?;
        let mut left = taken;
        while left > 0 {
            left -= to.when(Interest::WRITABLE, || Ok(splice(&self.out, None, to, None, left, flags)?)).await?;
        }
        if taken >= self.bytes {
            self.grow();
        }
        Ok(taken as u64)
    }

    /// A busy way has a larger pipe, so that fewer steps move the same.
    fn grow(&mut self) {
        static BUSY: Semaphore = Semaphore::const_new(BUSY_PIPES_MAX);
        if self.busy.is_none() {
            self.busy = BUSY.try_acquire().ok();
            if self.busy.is_some() {
                self.resize(BUSY_PIPE_BYTES);
            }
        }
    }

    /// Where the user has no more room for pipes, a smaller one will do.
    fn resize(&mut self, bytes: usize) {
        let size = fcntl_setpipe_size(&self.into, bytes).or_else(|_| fcntl_getpipe_size(&self.into));
        self.bytes = size.unwrap_or(PIPE_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn no_more_passes_than_is_asked_for_and_may() {
        let ((mut one, from), (to, mut other)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let way = (Socket::Unix(&from), Socket::Unix(&to));
        let mut splice = Splice::new().unwrap();
        one.write_all(b"abcdef").await.unwrap();
        assert_eq!(splice.pass(way, 4, |_| Ok(())).await.unwrap(), 4);
        let refused = splice.pass(way, 4, |bytes| Err(io::Error::other(bytes.to_string()))).await.unwrap_err();
        assert_eq!(refused.to_string(), "2");
        drop(one);
        assert_eq!(Splice::new().unwrap().pass(way, 4, |_| Ok(())).await.unwrap(), 0);
        drop(to);
        let mut passed = String::new();
        other.read_to_string(&mut passed).await.unwrap();
        assert_eq!(passed, "abcd");
    }

    #[tokio::test]
    async fn a_pipe_that_was_full_is_made_larger() {
        let ((mut one, from), (to, mut other)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let mut splice = Splice::new().unwrap();
        let small = splice.bytes;
        // What counts is that it was full, so it is made small enough for a socket's buffer.
        splice.resize(4096);
        one.write_all(&[7; 4096]).await.unwrap();
        let way = (Socket::Unix(&from), Socket::Unix(&to));
        assert_eq!(splice.pass(way, u64::MAX, |_| Ok(())).await.unwrap(), 4096);
        assert!(splice.busy.is_some() && splice.bytes >= small, "{} {small}", splice.bytes);
        let mut passed = vec![0; 4096];
        other.read_exact(&mut passed).await.unwrap();
        assert!(passed.iter().all(|byte| *byte == 7));
    }
}
