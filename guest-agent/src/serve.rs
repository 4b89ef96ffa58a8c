// SPDX-License-Identifier: Apache-2.0
//! Takes conversations, each on a thread of its own, and passes them to what their first message asks for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use midge_protocol::{ErrorCode, Failure, MAX_CONVERSATIONS, Message as _, ToAgent, ToHost};

use crate::link::{Conversation, LinkError, Listener, failure};
use crate::{exec, files};

/// Stack of a conversation's thread, in bytes.
const STACK_BYTES: usize = 256 * 1024;
/// A stream that says nothing for this time was opened by mistake.
const FIRST_MESSAGE_MAX: Duration = Duration::from_secs(30);
/// How long a command waits for the host's `Welcome`.
const WELCOME_MAX: Duration = Duration::from_secs(30);
/// Pause after an accept that failed for want of memory or descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Closed until the host's `Welcome` is in force: no command sees an old clock or another guest's random numbers.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) const fn new() -> Self {
        Self { is_open: Mutex::new(false), opened: Condvar::new() }
    }

    pub(crate) fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    /// Whether it is open, at the latest after `timeout`.
    pub(crate) fn pass(&self, timeout: Duration) -> bool {
        let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.opened.wait_timeout_while(is_open, timeout, |is_open| !*is_open);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// One conversation among those that are counted.
struct Open;

impl Open {
    fn count() -> (Self, bool) {
        (Self, OPEN.fetch_add(1, Ordering::Relaxed) < MAX_CONVERSATIONS)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes conversations for ever.
pub(crate) fn serve(listener: &Listener, gate: &'static Gate) {
    loop {
        let Ok(stream) = listener.accept() else {
            thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        let mut conversation = Conversation::new(stream);
        let (open, is_room) = Open::count();
        if !is_room {
            // Best effort: a full stream of a host that does not read is closed in any case.
            let _ = conversation.send(&ToHost::Error(busy()));
            continue;
        }
        let builder = thread::Builder::new().name("conversation".into()).stack_size(STACK_BYTES);
        let started = builder.spawn(move || {
            // A conversation that broke has nobody left to tell.
            let _ = converse(conversation, gate);
            drop(open);
        });
        if started.is_err() {
            thread::sleep(ACCEPT_PAUSE);
        }
    }
}

fn busy() -> Failure {
    let text = format!("opening a conversation: {MAX_CONVERSATIONS} are open, which is the most; close one first");
    Failure { code: ErrorCode::Busy, errno: libc::EAGAIN, text }
}

/// One conversation from its first message to its end.
pub(crate) fn converse(mut conversation: Conversation, gate: &Gate) -> Result<(), LinkError> {
    conversation.set_timeout(Some(FIRST_MESSAGE_MAX))?;
    let first = match conversation.receive() {
        Ok(Some(first)) => first,
        Ok(None) => return Ok(()),
        Err(error) => return conversation.send(&ToHost::Error(failure(&error))),
    };
    conversation.set_timeout(None)?;
    if !gate.pass(WELCOME_MAX) {
        let text = "the host has not said `Welcome` on the control conversation yet".to_owned();
        let failure = Failure { code: ErrorCode::Protocol, errno: 0, text };
        return conversation.send(&ToHost::Error(failure));
    }
    match first {
        ToAgent::Exec(exec) => exec::run(conversation, &exec),
        ToAgent::Attach(attach) => exec::attach(conversation, &attach),
        first => answer_requests(conversation, first),
    }
}

/// Requests for files, one after another.
fn answer_requests(mut conversation: Conversation, first: ToAgent) -> Result<(), LinkError> {
    let mut next = Some(first);
    while let Some(request) = next {
        if !files::answer(&mut conversation, &request)? {
            let text = format!("received `{}`, which does not open a conversation", request.name());
            return conversation.send(&ToHost::Error(Failure { code: ErrorCode::Protocol, errno: 0, text }));
        }
        next = match conversation.receive() {
            Err(error @ LinkError::Decode(_)) => return conversation.send(&ToHost::Error(failure(&error))),
            received => received?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests;
