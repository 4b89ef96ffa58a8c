// SPDX-License-Identifier: Apache-2.0
//! One TCP connection to the outpost: the request, its answer, and the bytes behind it. Knows no operation by name.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;

use super::wire::{GREETING, Op, Request};
use super::{EmulatedError, io_error, qemu};

/// Longest answer line of the outpost.
pub(super) const MAX_ANSWER_BYTES: usize = 4096;

/// How long an answer may take: far more than on the busiest machine. An emulator that was stopped never gives one.
const ANSWER_MAX: Duration = Duration::from_secs(120);

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", ANSWER_MAX.as_secs()))
}

/// Where an emulated host is reached; clones are the same one.
///
/// One connection at a time comes in. QEMU's user network listens with a backlog of one: what comes beside seems to be
/// connected, but is not, tries again later and later, and is given up after a minute; of a hundred at once most are lost.
#[derive(Debug, Clone)]
pub(super) struct Entrance {
    port: u16,
    free: Arc<Mutex<()>>,
}

impl Entrance {
    /// This port of the loopback.
    pub(super) fn new(port: u16) -> Self {
        Self { port, free: Arc::default() }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Comes in, and asks.
    pub(super) async fn open(&self, request: &[u8]) -> io::Result<Connection> {
        let _free = self.free.lock().await;
        let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))).await?;
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
        writer.write_all(request).await?;
        // One byte at a time is read ahead, so that what follows an answer can be handed on with the socket.
        let mut connection = Connection { reader: BufReader::with_capacity(1, reader), writer };
        let greeting = connection.answer().await?;
        if greeting == GREETING {
            Ok(connection)
        } else {
            Err(io::Error::other(format!("not an outpost: {greeting:?}")))
        }
    }
}

/// One conversation with the outpost.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) reader: BufReader<OwnedReadHalf>,
    pub(super) writer: OwnedWriteHalf,
}

impl Connection {
    /// The next answer line.
    pub(super) async fn answer(&mut self) -> io::Result<String> {
        let line = qemu::line(&mut self.reader, MAX_ANSWER_BYTES).await?;
        let line = line.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the emulated host hung up"))?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// The socket, with all that has not been answered yet still in it.
    pub(super) fn whole(self) -> Result<TcpStream, EmulatedError> {
        let reader = self.reader.into_inner();
        reader.reunite(self.writer).map_err(|err| io_error("joining the halves of a connection", io::Error::other(err)))
    }
}

pub(super) fn request(token: &str, op: Op) -> Vec<u8> {
    // A request is strings and numbers: it has no way to fail.
    let mut line = serde_json::to_vec(&Request { token: token.to_owned(), op }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Opens a conversation that is answered at once.
pub(super) async fn converse(entrance: &Entrance, request: &[u8], doing: &str) -> Result<Connection, EmulatedError> {
    expect(entrance, request, doing, "OK").await
}

/// Opens a `listen` conversation, up to the point where the port is bound.
pub(super) async fn bind(entrance: &Entrance, request: &[u8]) -> Result<Connection, EmulatedError> {
    expect(entrance, request, "listening for the guest", "BOUND").await
}

async fn expect(entrance: &Entrance, request: &[u8], doing: &str, wanted: &str) -> Result<Connection, EmulatedError> {
    let failed = |source| io_error(&format!("{doing} on the emulated host"), source);
    let asked = async {
        let mut connection = entrance.open(request).await?;
        let answer = connection.answer().await?;
        Ok((connection, answer))
    };
    let (connection, answer) = match tokio::time::timeout(ANSWER_MAX, asked).await {
        Ok(asked) => asked.map_err(failed)?,
        Err(_) => return Err(failed(no_answer())),
    };
    if answer == wanted {
        return Ok(connection);
    }
    let reason = answer.strip_prefix("ERR ").unwrap_or(&answer).to_owned();
    Err(EmulatedError::Refused { doing: doing.to_owned(), reason })
}
