// SPDX-License-Identifier: Apache-2.0
//! What a door is served on: any stream of bytes in both directions, and streams with bytes that were read ahead of them.

mod halves;
mod splice;

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

pub(crate) use halves::{ReadHalf, WriteHalf, split, unsplit};
pub(crate) use splice::Splice;

/// A connection, whatever carries it. Dropping it closes both directions; `poll_shutdown` closes the writing one only.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// The socket that it is, if it is one and nothing else: between two of them bytes can be moved by the kernel.
    fn socket(&self) -> Option<Socket<'_>>;

    /// The stream without what it can do, to be taken for the socket that it is.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {
    fn socket(&self) -> Option<Socket<'_>> {
        let any: &dyn Any = self;
        let tcp = any.downcast_ref::<TcpStream>().map(Socket::Tcp);
        tcp.or_else(|| any.downcast_ref::<UnixStream>().map(Socket::Unix))
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// A socket of the host.
#[derive(Debug, Clone, Copy)]
pub enum Socket<'a> {
    /// To the network, or to a program of this machine.
    Tcp(&'a TcpStream),
    /// To a monitor.
    Unix(&'a UnixStream),
}

impl Socket<'_> {
    /// Does `work` as soon as the socket is ready for it; again when it would have blocked.
    pub(crate) async fn when<R>(self, ready: Interest, work: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        match self {
            Self::Tcp(socket) => socket.async_io(ready, work).await,
            Self::Unix(socket) => socket.async_io(ready, work).await,
        }
    }
}

impl AsFd for Socket<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

/// A connection of a kind that is not known when it is compiled.
pub type AnyStream = Box<dyn Stream>;

/// A future that a trait's method returns.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A stream of which some bytes were read already: they are read again first.
#[derive(Debug)]
pub(crate) struct Rewound<S> {
    ahead: BytesMut,
    inner: S,
}

impl<S> Rewound<S> {
    /// `ahead`, then what `inner` still has.
    pub(crate) fn new(ahead: BytesMut, inner: S) -> Self {
        Self { ahead, inner }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, out);
        }
        let length = self.ahead.len().min(out.remaining());
        out.put_slice(&self.ahead[..length]);
        self.ahead.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Passes on what comes from `from`, at most `buffer_bytes` at once, to the end of that direction. `may` is asked before each piece goes
/// on; what went is counted in `moved`.
///
/// # Errors
/// A side failed, or `may` refused.
pub(crate) async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    buffer_bytes: usize,
    moved: &AtomicU64,
    may: impl Fn(u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            // The other side may have closed already; what it still says is read on.
            let _ = to.shutdown().await;
            return Ok(());
        }
        may(length as u64)?;
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        moved.fetch_add(length as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_read_ahead_is_read_again_first() {
        let mut stream = Rewound::new(BytesMut::from(&b"abc"[..]), std::io::Cursor::new(b"def".to_vec()));
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ab");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "cdef");
    }
}
