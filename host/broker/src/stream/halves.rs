// SPDX-License-Identifier: Apache-2.0
//! The two halves of a connection. Those of a socket still tell which one, so that the kernel can move what only passes through.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use super::{AnyStream, Socket};

/// What is read from.
pub(crate) enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
    Other(tokio::io::ReadHalf<AnyStream>),
}

/// What is written to. Dropped, the other side hears the end of it.
pub(crate) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
    Other(tokio::io::WriteHalf<AnyStream>),
}

/// Takes a connection apart.
pub(crate) fn split(stream: AnyStream) -> (ReadHalf, WriteHalf) {
    // The stream in the box is asked, not the box.
    match (*stream).socket() {
        Some(Socket::Tcp(_)) => {
            let (read, write) = taken::<TcpStream>(stream).into_split();
            (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
        }
        Some(Socket::Unix(_)) => {
            let (read, write) = taken::<UnixStream>(stream).into_split();
            (ReadHalf::Unix(read), WriteHalf::Unix(write))
        }
        None => {
            let (read, write) = tokio::io::split(stream);
            (ReadHalf::Other(read), WriteHalf::Other(write))
        }
    }
}

fn taken<S: 'static>(stream: AnyStream) -> S {
    match stream.into_any().downcast() {
        Ok(socket) => *socket,
        Err(_) => unreachable!("it has said which socket it is"),
    }
}

/// Puts the halves of one connection together again.
///
/// # Errors
/// They are of two.
pub(crate) fn unsplit(read: ReadHalf, write: WriteHalf) -> io::Result<AnyStream> {
    let other = || io::Error::other("halves of two connections");
    Ok(match (read, write) {
        (ReadHalf::Tcp(read), WriteHalf::Tcp(write)) => Box::new(read.reunite(write).map_err(|_| other())?),
        (ReadHalf::Unix(read), WriteHalf::Unix(write)) => Box::new(read.reunite(write).map_err(|_| other())?),
        (ReadHalf::Other(read), WriteHalf::Other(write)) if read.is_pair_of(&write) => read.unsplit(write),
        _ => return Err(other()),
    })
}

impl ReadHalf {
    /// The socket, if it is one.
    pub(crate) fn socket(&self) -> Option<Socket<'_>> {
        match self {
            Self::Tcp(half) => Some(Socket::Tcp(half.as_ref())),
            Self::Unix(half) => Some(Socket::Unix(half.as_ref())),
            Self::Other(_) => None,
        }
    }

    fn inner(self: Pin<&mut Self>) -> Pin<&mut (dyn AsyncRead + Unpin)> {
        Pin::new(match self.get_mut() {
            Self::Tcp(half) => half,
            Self::Unix(half) => half,
            Self::Other(half) => half,
        })
    }
}

impl WriteHalf {
    /// The socket, if it is one.
    pub(crate) fn socket(&self) -> Option<Socket<'_>> {
        match self {
            Self::Tcp(half) => Some(Socket::Tcp(half.as_ref())),
            Self::Unix(half) => Some(Socket::Unix(half.as_ref())),
            Self::Other(_) => None,
        }
    }

    fn inner(self: Pin<&mut Self>) -> Pin<&mut (dyn AsyncWrite + Unpin)> {
        Pin::new(match self.get_mut() {
            Self::Tcp(half) => half,
            Self::Unix(half) => half,
            Self::Other(half) => half,
        })
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_read(cx, out)
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner().poll_write_vectored(cx, data)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn halves_carry_bytes_know_their_socket_and_go_together_again() {
        let (near, far) = UnixStream::pair().unwrap();
        let (other, _far) = tokio::io::duplex(64);
        let ((mut read, write), (far_read, mut far_write)) = (split(Box::new(near)), split(Box::new(far)));
        assert!(read.socket().is_some() && write.socket().is_some());
        far_write.write_all(b"there").await.unwrap();
        let mut five = [0; 5];
        read.read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"there");
        let (other_read, other_write) = split(Box::new(other));
        assert!(other_read.socket().is_none());
        assert!(unsplit(other_read, write).is_err(), "of two connections");
        drop(other_write);
        let mut whole = unsplit(far_read, far_write).unwrap();
        // The writing half is gone: its end is heard.
        assert_eq!(whole.read(&mut five).await.unwrap(), 0);
    }
}
