// SPDX-License-Identifier: Apache-2.0
//! A stream of bytes to or from a port of the guest, whatever carries it.
//!
//! Half-close works both ways: shutting the writer down tells the guest that no more will come. Dropping both halves
//! tells it that its client is gone.

use std::fmt;
use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Longest answer to `CONNECT`: `OK 4294967295\n`.
const ANSWER_MAX_BYTES: usize = 14;

/// Two independent halves of one connection.
pub struct Stream {
    /// What the guest sends.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What the guest receives; shutting it down is a half-close.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

/// A connection that the guest has made, as the socket which carries it: what only passes through can be moved by the kernel.
#[derive(Debug)]
pub enum Inbound {
    /// From a monitor of this machine.
    Unix(UnixStream),
    /// From an emulated host.
    Tcp(TcpStream),
}

impl From<UnixStream> for Inbound {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl From<TcpStream> for Inbound {
    fn from(stream: TcpStream) -> Self {
        // With a reset in place of an orderly end the other side can tell a client that left from a half-close.
        if let Err(error) = stream.set_zero_linger() {
            tracing::debug!(%error, "a lost connection will look like a half-close");
        }
        Self::Tcp(stream)
    }
}

// Not `into_split`, whose halves shut their direction down when they are dropped: a client that leaves would first
// look like one that has no more input, and its command would see an end of file before its death.

impl<S: Into<Inbound>> From<S> for Stream {
    fn from(stream: S) -> Self {
        fn halves(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Stream {
            let (reader, writer) = tokio::io::split(stream);
            Stream { reader: Box::new(reader), writer: Box::new(writer) }
        }
        match stream.into() {
            Inbound::Unix(stream) => halves(stream),
            Inbound::Tcp(stream) => halves(stream),
        }
    }
}

/// Connects to a guest port through the monitor's Unix socket: `CONNECT <port>` with the conversation's first bytes right
/// behind it, then `OK <host port>`.
pub(super) async fn connect_unix(socket: &Path, port: u32, first: &[u8]) -> io::Result<Stream> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut request = format!("CONNECT {port}\n").into_bytes();
    request.extend_from_slice(first);
    // A monitor that refuses hangs up with what it has not read, and a write may be the first to notice.
    stream.write_all(&request).await.map_err(refusal)?;
    let mut received = Vec::with_capacity(ANSWER_MAX_BYTES);
    let line_bytes = loop {
        if let Some(end) = received.iter().position(|byte| *byte == b'\n') {
            break end + 1;
        }
        if received.len() >= ANSWER_MAX_BYTES {
            return Err(unexpected(&received));
        }
        match stream.read_buf(&mut received).await {
            Ok(0) if received.is_empty() => return Err(refusal(io::ErrorKind::BrokenPipe.into())),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => return Err(refusal(error)),
        }
    };
    // What follows the line already belongs to the conversation.
    let early = received.split_off(line_bytes);
    let is_ok = received.strip_prefix(b"OK ").is_some_and(|rest| rest.trim_ascii_end().iter().all(u8::is_ascii_digit));
    if !is_ok || line_bytes > ANSWER_MAX_BYTES {
        return Err(unexpected(&received));
    }
    let Stream { reader, writer } = stream.into();
    Ok(if early.is_empty() {
        Stream { reader, writer }
    } else {
        Stream { reader: Box::new(io::Cursor::new(early).chain(reader)), writer }
    })
}

/// A hang-up in place of an answer means that nothing listens there.
fn refusal(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            io::Error::new(io::ErrorKind::ConnectionRefused, "nothing listens there")
        }
        _ => error,
    }
}

fn unexpected(answer: &[u8]) -> io::Error {
    let text = format!("the monitor answered {:?}, expected \"OK <port>\"", String::from_utf8_lossy(answer));
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// Connects to a fake monitor that reads `expected`, says `answer` and hangs up.
    async fn exchanged(first: &[u8], expected: &'static [u8], answer: &'static [u8]) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("v.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let fake = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut request = vec![0; expected.len()];
            peer.read_exact(&mut request).await.unwrap();
            assert_eq!(request, expected);
            peer.write_all(answer).await.unwrap();
        });
        let connected = connect_unix(&socket, 1024, first).await;
        fake.await.unwrap();
        let mut rest = Vec::new();
        connected?.reader.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    async fn answered(answer: &'static [u8]) -> io::Result<Vec<u8>> {
        exchanged(b"", b"CONNECT 1024\n", answer).await
    }

    #[tokio::test]
    async fn what_follows_ok_belongs_to_the_conversation() {
        assert_eq!(answered(b"OK 1073741824\nabc").await.unwrap(), b"abc");
        assert_eq!(
            answered(b"OK 1\nOK 2\n and much more than an answer").await.unwrap(),
            b"OK 2\n and much more than an answer"
        );
        assert_eq!(answered(b"OK 1\n").await.unwrap(), b"");
    }

    #[tokio::test]
    async fn the_first_bytes_follow_the_request_unasked() {
        assert_eq!(exchanged(b"first", b"CONNECT 1024\nfirst", b"OK 5\nanswer").await.unwrap(), b"answer");
    }

    #[tokio::test]
    async fn hang_up_is_a_refusal() {
        assert_eq!(answered(b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(answered(b"OK 1").await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // Also with bytes that the monitor has not read.
        for first in [&b"x"[..], &[b'x'; 1 << 20]] {
            let refused = exchanged(first, b"CONNECT 1024\n", b"").await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
    }

    #[tokio::test]
    async fn other_answers_are_refused_at_any_length() {
        for answer in [&b"NO\n"[..], b"OK x\n", b"OK 10000000000000000000000", b"OK 10000000000000000000000\n"] {
            assert_eq!(answered(answer).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
