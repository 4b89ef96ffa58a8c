// SPDX-License-Identifier: Apache-2.0
//! What is sent, and how long the other side may take to take it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::http::{end_chunk, put_chunk};

/// How long either side may be silent inside a body.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Says these parts, one after the other.
///
/// # Errors
/// The connection failed, or took nothing for [`IDLE_TIMEOUT`].
pub(super) async fn say(to: &mut (impl AsyncWrite + Unpin), parts: &[&[u8]]) -> io::Result<()> {
    let said = async {
        for part in parts {
            to.write_all(part).await?;
        }
        to.flush().await
    };
    tokio::time::timeout(IDLE_TIMEOUT, said).await?
}

/// Says a piece of a body, as a chunk where the body is `chunked`. An empty one is none.
///
/// # Errors
/// As for [`say`].
pub(super) async fn say_piece(to: &mut (impl AsyncWrite + Unpin), piece: &[u8], chunked: bool) -> io::Result<()> {
    if piece.is_empty() {
        return Ok(());
    }
    if !chunked {
        return say(to, &[piece]).await;
    }
    let mut line = Vec::with_capacity(16);
    put_chunk(&mut line, piece.len());
    say(to, &[&line, piece, end_chunk(false)]).await
}
