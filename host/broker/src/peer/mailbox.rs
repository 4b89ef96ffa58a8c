// SPDX-License-Identifier: Apache-2.0
//! Messages that wait for one sandbox: a bounded queue, read by one connection at a time. A message that a connection has taken and
//! could not pass on is lost with that connection, as on any wire.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Messages that wait at most.
pub(super) const MESSAGES_MAX: usize = 256;
/// Their bytes.
const BYTES_MAX: usize = 4 << 20;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    queue: Mutex<Queue>,
    /// Rings for each message and each new reader, so that whoever waits looks again.
    bell: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<(String, String)>,
    /// Messages and their bytes, reserved ones included.
    count: usize,
    bytes: usize,
    /// The newest.
    reader: u64,
}

/// Whose turn it is to read.
#[derive(Debug)]
pub(super) struct Turn {
    reader: u64,
    bell: watch::Receiver<()>,
}

/// Room for one message of so many bytes. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    mailbox: &'a Mailbox,
    bytes: usize,
    is_filled: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for a message, if there is some.
    pub(super) fn reserve(&self, bytes: usize) -> Option<Slot<'_>> {
        let mut queue = self.lock();
        let fits = queue.count < MESSAGES_MAX && queue.bytes.saturating_add(bytes) <= BYTES_MAX;
        fits.then(|| {
            queue.count += 1;
            queue.bytes += bytes;
            Slot { mailbox: self, bytes, is_filled: false }
        })
    }

    /// Makes whoever asks the reader; the one before gets nothing any more.
    pub(super) fn take_over(&self) -> Turn {
        let mut queue = self.lock();
        queue.reader += 1;
        self.bell.send_replace(());
        Turn { reader: queue.reader, bell: self.bell.subscribe() }
    }

    /// The next message, with who sent it; none when another reader came. Can be dropped and called again: nothing is lost.
    pub(super) async fn next(&self, turn: &mut Turn) -> Option<(String, String)> {
        loop {
            // Marked before looking: what rings afterwards is seen.
            turn.bell.borrow_and_update();
            {
                let mut queue = self.lock();
                if queue.reader != turn.reader {
                    return None;
                }
                if let Some(message) = queue.messages.pop_front() {
                    queue.count -= 1;
                    queue.bytes -= message.1.len();
                    return Some(message);
                }
            }
            // The bell is as old as the mailbox: it cannot be gone.
            turn.bell.changed().await.ok()?;
        }
    }
}

impl Slot<'_> {
    /// Puts the message there that it was reserved for.
    pub(super) fn fill(mut self, from: String, text: String) {
        debug_assert_eq!(self.bytes, text.len(), "reserved for this very text");
        self.is_filled = true;
        self.mailbox.lock().messages.push_back((from, text));
        self.mailbox.bell.send_replace(());
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.is_filled {
            let mut queue = self.mailbox.lock();
            queue.count -= 1;
            queue.bytes -= self.bytes;
        }
    }
}
