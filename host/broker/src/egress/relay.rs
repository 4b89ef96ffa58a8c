// SPDX-License-Identifier: Apache-2.0
//! Bytes of a tunnel, unseen, both ways at once: each way ends by itself (half-close), both end when nothing has passed for a
//! time, when a limit is reached, or when one fails. Between two sockets the kernel moves them, so that they are never copied
//! into this process.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use rustix::net::Shutdown;
use tokio::io::AsyncWriteExt as _;

use super::admit::Pass;
use crate::stream::{AnyStream, Socket, Splice, pass_on};

/// Bytes that are moved at once by way of this process.
const BUFFER_BYTES: usize = 256 << 10;
/// How long a tunnel may be silent in both directions.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Moves bytes between the guest and a server, `ahead` first, until both ways are at their ends. What passed is in `pass`, whatever
/// happens.
///
/// # Errors
/// A side failed, a limit was reached, or nothing passed for [`IDLE_TIMEOUT`].
pub(super) async fn relay(guest: AnyStream, ahead: BytesMut, mut server: AnyStream, pass: &mut Pass) -> io::Result<()> {
    pass.charge(ahead.len() as u64)?;
    server.write_all(&ahead).await?;
    server.flush().await?;
    let (sent, received) = (AtomicU64::new(ahead.len() as u64), AtomicU64::new(0));
    let done = tokio::select! {
        done = both_ways(guest, server, &sent, &received, pass) => done,
        error = silence(&sent, &received) => Err(error),
    };
    (pass.sent, pass.received) = (sent.into_inner(), received.into_inner());
    done
}

async fn both_ways(
    guest: AnyStream,
    server: AnyStream,
    sent: &AtomicU64,
    received: &AtomicU64,
    pass: &Pass,
) -> io::Result<()> {
    // The stream in the box is asked, not the box.
    if let (Some(one), Some(other)) = ((*guest).socket(), (*server).socket()) {
        let ways = tokio::try_join!(spliced(one, other, sent, pass), spliced(other, one, received, pass));
        return ways.map(|_| ());
    }
    let (guest_read, guest_write) = tokio::io::split(guest);
    let (server_read, server_write) = tokio::io::split(server);
    let charge = |bytes| pass.charge(bytes);
    let there = pass_on(guest_read, server_write, BUFFER_BYTES, sent, charge);
    let back = pass_on(server_read, guest_write, BUFFER_BYTES, received, charge);
    tokio::try_join!(there, back).map(|_| ())
}

/// One way between two sockets: in the kernel.
async fn spliced(from: Socket<'_>, to: Socket<'_>, moved: &AtomicU64, pass: &Pass) -> io::Result<()> {
    let mut splice = Splice::new()?;
    loop {
        let bytes = splice.pass((from, to), u64::MAX, |bytes| pass.charge(bytes)).await?;
        if bytes == 0 {
            // The other side may have closed already; what it still says is read on.
            let _ = rustix::net::shutdown(to, Shutdown::Write);
            return Ok(());
        }
        moved.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Ends when nothing has passed for a time.
async fn silence(sent: &AtomicU64, received: &AtomicU64) -> io::Error {
    let now = || (sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed));
    let mut before = now();
    loop {
        tokio::time::sleep(IDLE_TIMEOUT).await;
        if before == now() {
            let why = format!("nothing passed for {} s", IDLE_TIMEOUT.as_secs());
            return io::Error::new(io::ErrorKind::TimedOut, why);
        }
        before = now();
    }
}
