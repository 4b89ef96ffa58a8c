// SPDX-License-Identifier: Apache-2.0
//! The content of a file or an archive on its way: `Data`* and `End`, in either direction.

use midge_protocol::{MAX_DATA_BYTES, ToAgent, ToHost};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::Error;
use crate::link::Conversation;

pub(super) const READING: &str = "reading a file of the guest";
pub(super) const WRITING: &str = "writing a file of the guest";
pub(super) const UNPACKING: &str = "unpacking an archive in the guest";
pub(super) const PACKING: &str = "packing an archive in the guest";

/// Copies what the agent sends into `into`, at most `max_bytes`; returns how much it was.
pub(super) async fn receive(
    conversation: &mut Conversation,
    during: &'static str,
    max_bytes: u64,
    into: &mut (impl AsyncWrite + Unpin),
) -> Result<u64, Error> {
    let local = |source| Error::Local { during, source };
    let mut got_bytes = 0_u64;
    loop {
        match conversation.receiver.next().await? {
            ToHost::Data(data) if data.len() as u64 <= max_bytes - got_bytes => {
                got_bytes += data.len() as u64;
                into.write_all(&data).await.map_err(local)?;
            }
            ToHost::End => {
                into.flush().await.map_err(local)?;
                return Ok(got_bytes);
            }
            other => return Err(conversation.receiver.unexpected(other, "data within the limit, or End")),
        }
    }
}

/// Sends all of `content`, and waits for the agent's verdict, which may come early.
pub(super) async fn send(
    conversation: Conversation,
    during: &'static str,
    content: &mut (impl AsyncRead + Unpin),
) -> Result<(), Error> {
    let Conversation { mut sender, mut receiver } = conversation;
    let sending = async {
        let mut buffer = vec![0; MAX_DATA_BYTES];
        loop {
            let got = content.read(&mut buffer).await.map_err(|source| Error::Local { during, source })?;
            if got == 0 {
                return sender.send(&ToAgent::End).await;
            }
            sender.send(&ToAgent::Data(buffer[..got].to_vec())).await?;
        }
    };
    let verdict = receiver.done();
    tokio::pin!(sending, verdict);
    tokio::select! {
        biased;
        // A refusal in the middle: no use in sending the rest.
        early = &mut verdict => early,
        sent = &mut sending => match sent {
            // A stream that breaks under the sender was usually closed with a verdict.
            Ok(()) | Err(Error::Lost { .. }) => verdict.await,
            Err(error) => Err(error),
        },
    }
}
