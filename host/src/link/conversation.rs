// SPDX-License-Identifier: Apache-2.0
//! One conversation with the agent: messages over one stream, each way on its own.
//!
//! Frames and failures only; what a message means is for others. Receiving can be cancelled at any point
//! without losing a byte; sending cannot.

use std::io;

use midge_protocol::{Decoder, ToAgent, ToHost, encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Health;
use crate::error::Error;
use crate::monitor::Stream;

/// Two full messages of output fit, so that bulk data is rarely copied twice.
const READ_BYTES: usize = 136 << 10;

/// Both directions of a conversation.
#[derive(Debug)]
pub struct Conversation {
    /// To the agent.
    pub sender: Sender,
    /// From the agent.
    pub receiver: Receiver,
}

impl Conversation {
    pub(super) fn new(stream: Stream, health: Health, during: &'static str) -> Self {
        let Stream { reader, writer } = stream;
        Self {
            sender: Sender { writer, health: health.clone(), during, frame: Vec::new() },
            receiver: Receiver {
                reader,
                health,
                during,
                decoder: Decoder::new(),
                buffer: vec![0; READ_BYTES],
                unread: 0..0,
            },
        }
    }
}

impl Conversation {
    /// The stream, after messages that are over: what was received and not yet decoded comes first.
    #[must_use]
    pub fn into_stream(self) -> Stream {
        let Receiver { reader, mut buffer, unread, .. } = self.receiver;
        buffer.truncate(unread.end);
        buffer.drain(..unread.start);
        let reader = Box::new(io::Cursor::new(buffer).chain(reader));
        Stream { reader, writer: self.sender.writer }
    }
}

/// The way to the agent.
pub struct Sender {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    health: Health,
    during: &'static str,
    frame: Vec<u8>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("during", &self.during).finish_non_exhaustive()
    }
}

impl Sender {
    /// Sends one message whole.
    ///
    /// # Errors
    /// [`Error::TooLong`] before anything is sent, or the reason why the guest is gone.
    pub async fn send(&mut self, message: &ToAgent) -> Result<(), Error> {
        self.frame.clear();
        encode(message, &mut self.frame)?;
        let sent = tokio::select! {
            biased;
            sent = self.writer.write_all(&self.frame) => sent,
            gone = self.health.gone_for_good() => return Err(gone.error(self.during)),
        };
        match sent {
            Ok(()) => Ok(()),
            Err(error) => Err(lost(&self.health, self.during, error).await),
        }
    }
}

/// The way from the agent.
pub struct Receiver {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    health: Health,
    during: &'static str,
    decoder: Decoder<ToHost>,
    buffer: Vec<u8>,
    /// What of `buffer` was received and not yet decoded.
    unread: std::ops::Range<usize>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("during", &self.during).finish_non_exhaustive()
    }
}

impl Receiver {
    /// The agent's next message. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`Error::Broken`] for what is not the protocol; when the stream ends, the reason why.
    pub async fn next(&mut self) -> Result<ToHost, Error> {
        loop {
            let mut unread = &self.buffer[self.unread.clone()];
            let decoded = self.decoder.decode(&mut unread);
            self.unread.start = self.unread.end - unread.len();
            match decoded {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(source) => return Err(Error::Broken { during: self.during, source }),
            }
            let got = tokio::select! {
                biased;
                got = self.reader.read(&mut self.buffer) => got,
                gone = self.health.gone_for_good() => return Err(gone.error(self.during)),
            };
            match got {
                Ok(0) => return Err(lost(&self.health, self.during, io::ErrorKind::UnexpectedEof.into()).await),
                Ok(got) => self.unread = 0..got,
                Err(error) => return Err(lost(&self.health, self.during, error).await),
            }
        }
    }

    /// The next message, which has to be the plain success of a request.
    ///
    /// # Errors
    /// [`Error::Failed`] when the agent says so, [`Error::Unexpected`] for other messages, and those of
    /// [`Receiver::next`].
    pub async fn done(&mut self) -> Result<(), Error> {
        match self.next().await? {
            ToHost::Done => Ok(()),
            other => Err(self.unexpected(other, "Done")),
        }
    }

    /// The error for `got`: the agent's own, where it sent one.
    #[must_use]
    pub fn unexpected(&self, got: ToHost, expected: &'static str) -> Error {
        match got {
            ToHost::Error(failure) => Error::Failed { during: self.during, failure },
            other => unexpected(self.during, &other, expected),
        }
    }
}

pub(super) fn unexpected(during: &'static str, got: &ToHost, expected: &'static str) -> Error {
    use midge_protocol::Message;
    Error::Unexpected { during, got: got.name().to_owned(), expected }
}

/// The error for a broken stream: the guest's death, if that becomes known soon.
pub(super) async fn lost(health: &Health, during: &'static str, source: io::Error) -> Error {
    match health.reason_soon().await {
        Some(gone) => gone.error(during),
        None => Error::Lost { during, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use midge_protocol::{HEADER_BYTES, MAX_PAYLOAD_TO_AGENT_BYTES};
    use std::future::pending;
    use tokio::net::UnixStream;

    fn pair() -> (Conversation, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Conversation::new(ours.into(), Health::watching(pending()), "testing"), theirs)
    }

    #[tokio::test]
    async fn messages_survive_any_cut_and_any_cancellation() {
        let (mut conversation, mut peer) = pair();
        let mut bytes = Vec::new();
        for number in 0..3 {
            encode(&ToHost::Pong(number), &mut bytes).unwrap();
        }
        let mut seen = Vec::new();
        for byte in bytes {
            peer.write_all(&[byte]).await.unwrap();
            // Cancelled after each byte unless that byte completes a message.
            let next = conversation.receiver.next();
            if let Ok(message) = tokio::time::timeout(std::time::Duration::from_millis(2), next).await {
                seen.push(message.unwrap());
            }
        }
        assert_eq!(seen, [ToHost::Pong(0), ToHost::Pong(1), ToHost::Pong(2)]);
    }

    #[tokio::test]
    async fn message_that_is_too_long_leaves_the_stream_in_order() {
        let (mut conversation, mut peer) = pair();
        let error = conversation.sender.send(&ToAgent::Data(vec![0; MAX_PAYLOAD_TO_AGENT_BYTES])).await.unwrap_err();
        assert!(matches!(error, Error::TooLong(_)), "{error}");
        conversation.sender.send(&ToAgent::End).await.unwrap();
        let mut frame = [0; HEADER_BYTES];
        peer.read_exact(&mut frame).await.unwrap();
        let mut expected = Vec::new();
        encode(&ToAgent::End, &mut expected).unwrap();
        assert_eq!(frame[..], expected);
    }

    #[tokio::test(start_paused = true)]
    async fn stream_that_ends_inside_a_message_is_lost() {
        let (mut conversation, mut peer) = pair();
        peer.write_all(&[1, 0, 0]).await.unwrap();
        drop(peer);
        let error = conversation.receiver.next().await.unwrap_err();
        assert!(
            matches!(&error, Error::Lost { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof),
            "{error}"
        );
    }
}
