// SPDX-License-Identifier: Apache-2.0
//! One conversation of the outpost, from its request line to its end.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UnixStream};

use super::super::qemu::line;
use super::super::wire::{GREETING, MAX_REQUEST_BYTES, Op, Request, socket};
use super::{Outpost, monitors};
use crate::groups::Usage;

/// How long a request line may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes moved at a time.
const COPY_BYTES: usize = 64 << 10;

/// Where requests come from, and more bytes after them.
pub(super) type Reader = BufReader<OwnedReadHalf>;

/// Serves one connection to its end.
pub(super) async fn conversation(stream: TcpStream, outpost: Rc<Outpost>) {
    // Without it small frames wait for acknowledgements; with it gone, they only wait.
    let _ = stream.set_nodelay(true);
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(COPY_BYTES, reader);
    let _ = writer.write_all(format!("{GREETING}\n").as_bytes()).await;
    let result = match tokio::time::timeout(REQUEST_TIMEOUT, read_request(&mut reader, &outpost.token)).await {
        Ok(Ok(op)) => perform(op, reader, &mut writer, &outpost).await,
        Ok(Err(err)) => Err(err),
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
    };
    if let Err(err) = result {
        // Whoever asked may be gone: then nobody needs to know.
        let reason = err.to_string().replace('\n', " ");
        let _ = writer.write_all(format!("ERR {reason}\n").as_bytes()).await;
    }
    let _ = writer.shutdown().await;
}

async fn read_request(reader: &mut (impl AsyncBufRead + Unpin), token: &str) -> io::Result<Op> {
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let line = line(reader, MAX_REQUEST_BYTES).await?.unwrap_or_default();
    let request: Request = serde_json::from_slice(&line).map_err(|err| bad(format!("reading the request: {err}")))?;
    if request.token == token { Ok(request.op) } else { Err(bad("wrong token".into())) }
}

/// An error from here becomes the answer, so that none may be returned after `OK`.
async fn perform(op: Op, reader: Reader, writer: &mut OwnedWriteHalf, outpost: &Outpost) -> io::Result<()> {
    match op {
        Op::Hold => hold(reader, writer, outpost).await,
        Op::Spawn { id, config, allowance } => monitors::spawn(&id, &config, allowance, reader, writer, outpost).await,
        Op::Usage { id } => {
            let path = outpost.guests.quarters(&id)?.path();
            let usage = serde_json::to_string(&path.and_then(|path| Usage::of(&path)))?;
            writer.write_all(format!("OK\n{usage}\n").as_bytes()).await
        }
        Op::Freeze { id, resident } => monitors::freeze(&id, &resident, reader, writer, outpost).await,
        Op::Fork { resident, id } => monitors::fork(&resident, &id, reader, writer, outpost).await,
        Op::Save { resident, layers } => monitors::save(&resident, layers, writer, outpost).await,
        Op::Discard { id, ranges } => monitors::discard(&id, ranges, writer, outpost).await,
        Op::Connect { id, port } => {
            let guest = connect(&socket(&id), port).await?;
            let _ = writer.write_all(b"OK\n").await;
            pump(guest, reader, writer).await;
            Ok(())
        }
        Op::Listen { id, port } => listen(&id, port, reader, writer, outpost).await,
        Op::Signal { id, signal } => {
            outpost.guests.signal(&id, signal)?;
            writer.write_all(b"OK\n").await
        }
    }
}

async fn hold(mut reader: Reader, writer: &mut OwnedWriteHalf, outpost: &Outpost) -> io::Result<()> {
    outpost.held.notify_one();
    let _ = writer.write_all(b"OK\n").await;
    // Whether it closes or fails, the holder is gone.
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    outpost.released.notify_one();
    Ok(())
}

/// Opens a stream to a guest's port by the monitor's convention.
async fn connect(path: &str, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line belongs to the stream.
    while answer.last() != Some(&b'\n') && answer.len() < 32 {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused")),
        }
    }
    if answer.starts_with(b"OK ") { Ok(stream) } else { Err(io::Error::other("the monitor did not answer OK")) }
}

async fn listen(
    id: &str,
    port: u32,
    mut reader: Reader,
    writer: &mut OwnedWriteHalf,
    outpost: &Outpost,
) -> io::Result<()> {
    let listener = outpost.guests.listener(id, port)?;
    let _ = writer.write_all(b"BOUND\n").await;
    let guest = tokio::select! {
        accepted = listener.accept() => accepted?.0,
        // Nothing is sent before `OK`: this is the end of whoever asked.
        _ = tokio::io::AsyncBufReadExt::fill_buf(&mut reader) => return Ok(()),
    };
    // Bound sockets stay with the sandbox, not with a conversation.
    drop(listener);
    let _ = writer.write_all(b"OK\n").await;
    pump(guest, reader, writer).await;
    Ok(())
}

/// Moves bytes both ways; each direction ends by itself and passes its end on.
async fn pump(guest: UnixStream, mut near: Reader, near_writer: &mut OwnedWriteHalf) {
    let (far, far_writer) = guest.into_split();
    let mut far = BufReader::with_capacity(COPY_BYTES, far);
    let inward = async move {
        let mut far_writer = far_writer;
        one_way(&mut near, &mut far_writer).await;
    };
    tokio::join!(inward, one_way(&mut far, near_writer));
}

async fn one_way(from: &mut (impl AsyncBufRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    let _ = tokio::io::copy_buf(from, to).await;
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests;
