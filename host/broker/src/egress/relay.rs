// SPDX-License-Identifier: Apache-2.0
//! Bytes of a tunnel, unseen, both ways at once: each way ends by itself (half-close), both end when nothing has passed for a
//! time, when a limit is reached, or when one fails.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::admit::Pass;
use crate::stream::AnyStream;

/// Bytes that are moved at once.
const BUFFER_BYTES: usize = 256 << 10;
/// How long a tunnel may be silent in both directions.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Moves bytes between the guest and a server until both ways are at their ends. What passed is in `pass`, whatever happens.
///
/// # Errors
/// A side failed, a limit was reached, or nothing passed for [`IDLE_TIMEOUT`].
pub(super) async fn relay(guest: AnyStream, server: AnyStream, pass: &mut Pass) -> io::Result<()> {
    let (sent, received) = (AtomicU64::new(pass.sent), AtomicU64::new(pass.received));
    let done = {
        let (guest_read, guest_write) = tokio::io::split(guest);
        let (server_read, server_write) = tokio::io::split(server);
        let (there, back) =
            (one_way(guest_read, server_write, &sent, pass), one_way(server_read, guest_write, &received, pass));
        tokio::select! {
            done = async { tokio::try_join!(there, back) } => done.map(|_| ()),
            error = silence(&sent, &received) => Err(error),
        }
    };
    (pass.sent, pass.received) = (sent.into_inner(), received.into_inner());
    done
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &AtomicU64,
    pass: &Pass,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            // The other side may have closed already; what it still says is read on.
            let _ = to.shutdown().await;
            return Ok(());
        }
        pass.charge(length as u64)?;
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        moved.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// Ends when nothing has passed for a time.
async fn silence(sent: &AtomicU64, received: &AtomicU64) -> io::Error {
    let now = || (sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed));
    let mut before = now();
    loop {
        tokio::time::sleep(IDLE_TIMEOUT).await;
        if before == now() {
            return io::Error::new(io::ErrorKind::TimedOut, format!("nothing passed for {} s", IDLE_TIMEOUT.as_secs()));
        }
        before = now();
    }
}
