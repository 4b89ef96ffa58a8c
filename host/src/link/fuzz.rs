// SPDX-License-Identifier: Apache-2.0
//! Body of the fuzz target `link`: the receiving half of a conversation, against the decoder on the
//! bytes as a whole.

use std::future::pending;

use midge_protocol::{Decoder, ToHost};
use tokio::io::{AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};

use super::conversation::Conversation;
use super::health::Health;
use crate::error::Error;
use crate::monitor::Stream;

/// A runtime whose clock passes when nobody has anything to do.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// What is in the bytes, and whether they are all.
fn decoded(mut bytes: &[u8]) -> (Vec<ToHost>, bool) {
    let (mut decoder, mut messages) = (Decoder::<ToHost>::new(), Vec::new());
    loop {
        match decoder.decode(&mut bytes) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, true),
            Err(_) => return (messages, false),
        }
    }
}

/// Input: the size of the pieces (1 byte), then what the agent sends before it hangs up.
pub fn link(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else { return };
    let (expected, is_sound) = decoded(bytes);
    runtime().block_on(async {
        let (near, mut far) = duplex(1 + usize::from(*piece));
        let (reader, writer) = tokio::io::split(near);
        let stream = Stream { reader: Box::new(reader), writer: Box::new(writer) };
        let conversation = Conversation::new(stream, Health::watching(pending()), "fuzzing");
        let agent = async move {
            // Who has had enough of it hangs up.
            let _ = far.write_all(bytes).await;
        };
        let host = async move {
            // Both halves: the agent finds out that nobody listens by the last of them.
            let mut conversation = conversation;
            let mut messages = Vec::new();
            loop {
                match conversation.receiver.next().await {
                    Ok(message) => messages.push(message),
                    Err(error) => break (messages, error),
                }
            }
        };
        let ((), (messages, error)) = tokio::join!(agent, host);
        assert_eq!(messages, expected);
        assert_eq!(matches!(error, Error::Broken { .. }), !is_sound, "{error}");
    });
}
