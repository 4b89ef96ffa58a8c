// SPDX-License-Identifier: Apache-2.0
//! Conversations that the host opens: each on a thread of its own, behind the gate, and passed to what its first message
//! asks for.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use midge_protocol::{ErrorCode, Failure, MAX_CONVERSATIONS, Message as _, ToAgent, ToHost};

use crate::link::{Conversation, LinkError, failure};
use crate::{dial, exec, files};

/// Stack of a conversation's thread, in bytes.
const STACK_BYTES: usize = 256 * 1024;
/// A stream that says nothing for this time was opened by mistake.
const FIRST_MESSAGE_MAX: Duration = Duration::from_secs(30);
/// How long a command waits for the host's `Welcome`.
const WELCOME_MAX: Duration = Duration::from_secs(30);

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Where every conversation passes before it does anything. Closed until the host's `Welcome` is in force, so that no
/// command sees an old clock or another guest's random numbers, and closed again while the guest is frozen.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    opened: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct State {
    is_open: bool,
    is_frozen: bool,
    /// How many times this guest has become a copy of another.
    copies: u64,
}

/// The right to act, given by the gate to one conversation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass {
    gate: &'static Gate,
    copies: u64,
}

impl Gate {
    pub(crate) const fn new() -> Self {
        let state = State { is_open: false, is_frozen: false, copies: 0 };
        Self { state: Mutex::new(state), opened: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state().is_open
    }

    /// The host's `Welcome` is in force, or a frozen guest runs on.
    pub(crate) fn open(&self) {
        let mut state = self.state();
        (state.is_open, state.is_frozen) = (true, false);
        self.opened.notify_all();
    }

    /// Lets nobody through until it is opened.
    pub(crate) fn freeze(&self) {
        let mut state = self.state();
        (state.is_open, state.is_frozen) = (false, true);
    }

    /// A frozen guest runs on as another one.
    pub(crate) fn open_in_copy(&self) {
        self.state().copies += 1;
        self.open();
    }

    /// Waits until it is open: for as long as the guest is frozen, else at most `patience`.
    pub(crate) fn pass(&'static self, patience: Duration) -> Option<Pass> {
        let state = self.state();
        let waited = self.opened.wait_timeout_while(state, patience, |state| !state.is_open && !state.is_frozen);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let state = self.opened.wait_while(state, |state| state.is_frozen).unwrap_or_else(PoisonError::into_inner);
        state.is_open.then_some(Pass { gate: self, copies: state.copies })
    }
}

impl Pass {
    /// Whether this guest has become another since; while it is frozen this cannot be said, and waits.
    pub(crate) fn is_from_before_a_copy(self) -> bool {
        let waited = self.gate.opened.wait_while(self.gate.state(), |state| state.is_frozen);
        waited.unwrap_or_else(PoisonError::into_inner).copies != self.copies
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

/// Serves a conversation on a thread of its own; `first` is its first message, if that has come.
pub(crate) fn start(mut conversation: Conversation, first: Option<ToAgent>, gate: &'static Gate) -> io::Result<()> {
    let (open, is_room) = Open::count();
    if !is_room {
        // Best effort: a full stream of a host that does not read is closed in any case.
        let _ = conversation.send(&ToHost::Error(busy()));
        return Ok(());
    }
    let builder = thread::Builder::new().name("conversation".into()).stack_size(STACK_BYTES);
    builder.spawn(move || {
        // A conversation that broke has nobody left to tell.
        let _ = converse(conversation, first, gate);
        drop(open);
    })?;
    Ok(())
}

/// The answer to one conversation too many.
pub(crate) fn busy() -> Failure {
    let text = format!("opening a conversation: {MAX_CONVERSATIONS} are open, which is the most; close one first");
    Failure { code: ErrorCode::Busy, errno: libc::EAGAIN, text }
}

/// One conversation from its first message to its end.
pub(crate) fn converse(
    mut conversation: Conversation,
    first: Option<ToAgent>,
    gate: &'static Gate,
) -> Result<(), LinkError> {
    let first = match first {
        Some(first) => first,
        None => match first_message(&mut conversation) {
            Ok(Some(first)) => first,
            Ok(None) => return Ok(()),
            Err(error) => return conversation.send(&ToHost::Error(failure(&error))),
        },
    };
    if let ToAgent::Resume(_) = first {
        let text = "received `Resume`, which opens a conversation only with a guest that is frozen".to_owned();
        return conversation.send(&ToHost::Error(Failure { code: ErrorCode::Protocol, errno: 0, text }));
    }
    let waits = !gate.is_open();
    let Some(pass) = gate.pass(WELCOME_MAX) else {
        let text = "the host has not said `Welcome` on the control conversation yet".to_owned();
        let failure = Failure { code: ErrorCode::Protocol, errno: 0, text };
        return conversation.send(&ToHost::Error(failure));
    };
    // In a copy the one who asked is another guest's client: what it asked for is done there.
    if waits && conversation.is_gone() {
        return Ok(());
    }
    match first {
        ToAgent::Exec(exec) => exec::run(conversation, &exec, pass),
        ToAgent::Attach(attach) => exec::attach(conversation, &attach, pass),
        ToAgent::Dial(port) => dial::answer(conversation, port),
        first => {
            conversation.set_timeout(None)?;
            answer_requests(conversation, first)
        }
    }
}

/// Nothing ends the wait but this time-out: commands do not block on their stream, the rest takes it back.
fn first_message(conversation: &mut Conversation) -> Result<Option<ToAgent>, LinkError> {
    conversation.set_timeout(Some(FIRST_MESSAGE_MAX))?;
    conversation.receive()
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
