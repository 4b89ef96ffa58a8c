// SPDX-License-Identifier: Apache-2.0
//! What the processes of two sandboxes say to each other, as lines of JSON: one connection for each message and each tunnel.
//!
//! Who calls has asked its own policy; who is called asks its own, and answers. A message follows in a second line, and is answered
//! once more. After [`Answer::Agreed`] every byte of a tunnel's connection belongs to the tunnel. Each end takes the other for
//! hostile: lines and times are bounded, and what does not belong there ends the connection.

use std::time::Duration;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::UnixStream;

use crate::lines::{LineError, Lines, write_line};

/// How long the other process may take to say something.
const LINE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest text of the other process that is passed on.
const WORDS_MAX_CHARS: usize = 200;

/// What one sandbox wants of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Call {
    /// To leave a message of so many bytes.
    Message { from: String, bytes: usize },
    /// A connection to a port of its loopback.
    Tunnel { from: String, port: u16 },
}

/// The text that was called for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Letter {
    pub(super) text: String,
}

/// What comes of a call, or of a letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Answer {
    /// The letter may come; the tunnel is open.
    Agreed {},
    /// The letter waits in the mailbox.
    Delivered {},
    /// The policy here does not name the caller for that.
    Unnamed {},
    /// The mailbox has no room for it.
    Full {},
    /// As many tunnels lead here as may.
    Busy {},
    /// There is no connection to that port.
    Unreachable { why: String },
}

/// A connection between two processes.
pub(super) struct Wire {
    lines: Lines<ReadHalf<UnixStream>>,
    out: WriteHalf<UnixStream>,
}

/// Why the other end is not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("it is gone")]
    Gone,
    #[error("it does not answer in time")]
    Late,
    #[error("it does not say what it should; it may belong to another version of midge")]
    Odd,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (read, out) = tokio::io::split(stream);
        Self { lines: Lines::new(read), out }
    }

    /// Says a line.
    pub(super) async fn say(&mut self, line: &impl Serialize) -> Result<(), WireError> {
        let said = tokio::time::timeout(LINE_TIMEOUT, write_line(&mut self.out, line)).await;
        said.map_err(|_| WireError::Late)?.map_err(|_| WireError::Gone)
    }

    /// Hears a line.
    pub(super) async fn hear<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, WireError> {
        let line = tokio::time::timeout(LINE_TIMEOUT, self.lines.next()).await.map_err(|_| WireError::Late)?;
        match line {
            Ok(Some(line)) => serde_json::from_slice(&line).map_err(|_| WireError::Odd),
            Ok(None) | Err(LineError::Io(_) | LineError::Torn) => Err(WireError::Gone),
            Err(LineError::Long) => Err(WireError::Odd),
        }
    }

    /// What was read ahead, and the stream.
    pub(super) fn into_parts(self) -> (BytesMut, UnixStream) {
        let (ahead, read) = self.lines.into_parts();
        (ahead, read.unsplit(self.out))
    }
}

/// Words of the other process, cut and without control characters.
pub(super) fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_MAX_CHARS).collect()
}
