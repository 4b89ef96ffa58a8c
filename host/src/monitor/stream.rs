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

// Not `into_split`, whose halves shut their direction down when they are dropped: a client that leaves would first
// look like one that has no more input, and its command would see an end of file before its death.

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: Box::new(reader), writer: Box::new(writer) }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        // With a reset in place of an orderly end the other side can tell a client that left from a half-close.
        if let Err(error) = stream.set_zero_linger() {
            tracing::debug!(%error, "a lost connection will look like a half-close");
        }
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: Box::new(reader), writer: Box::new(writer) }
    }
}

/// Connects to a guest port through the monitor's Unix socket: `CONNECT <port>`, then `OK <host port>`.
pub(super) async fn connect_unix(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(ANSWER_MAX_BYTES);
    // Byte by byte: what follows the line already belongs to the conversation.
    while answer.last() != Some(&b'\n') {
        if answer.len() == ANSWER_MAX_BYTES {
            return Err(unexpected(&answer));
        }
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && answer.is_empty() => {
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nothing listens there"));
            }
            Err(error) => return Err(error),
        }
    }
    let is_ok = answer.strip_prefix(b"OK ").is_some_and(|rest| rest.trim_ascii_end().iter().all(u8::is_ascii_digit));
    if is_ok { Ok(stream) } else { Err(unexpected(&answer)) }
}

fn unexpected(answer: &[u8]) -> io::Error {
    let text = format!("the monitor answered {:?}, expected \"OK <port>\"", String::from_utf8_lossy(answer));
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// Connects to a fake monitor that says `answer` and hangs up.
    async fn answered(answer: &'static [u8]) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("v.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let fake = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            peer.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            peer.write_all(answer).await.unwrap();
        });
        let connected = connect_unix(&socket, 1024).await;
        fake.await.unwrap();
        let mut rest = Vec::new();
        connected?.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    #[tokio::test]
    async fn what_follows_ok_belongs_to_the_conversation() {
        assert_eq!(answered(b"OK 1073741824\nabc").await.unwrap(), b"abc");
    }

    #[tokio::test]
    async fn hang_up_is_a_refusal() {
        assert_eq!(answered(b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(answered(b"OK 1").await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn other_answers_are_refused_at_any_length() {
        for answer in [&b"NO\n"[..], b"OK x\n", b"OK 10000000000000000000000"] {
            assert_eq!(answered(answer).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
