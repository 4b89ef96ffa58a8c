// SPDX-License-Identifier: Apache-2.0
//! Commands: started for a conversation, found again for another one. Each runs on the thread of the conversation that
//! asked for it (`session.rs`); this file keeps the list of them.

mod client;
mod command;
mod input;
mod output;
mod reaper;
mod replay;
mod session;
mod sink;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use midge_protocol::{Attach, ErrorCode, Exec, Failure, Refused, ToHost};

use self::client::Client;
pub(crate) use self::command::WORKSPACE;
use self::session::Session;
use crate::cgroup::Tree;
use crate::link::{Conversation, LinkError};
use crate::serve::Pass;
use crate::sys::fd::Bell;

/// Commands that run at once.
const RUNNING_MAX: usize = 512;
/// Finished commands whose replay is kept; the oldest goes first.
const FINISHED_MAX: usize = 32;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static SESSIONS: Mutex<BTreeMap<u64, Arc<Shared>>> = Mutex::new(BTreeMap::new());

/// What others may touch of a session.
#[derive(Debug)]
struct Shared {
    exec_id: u64,
    bell: Arc<Bell>,
    offer: Mutex<Option<Offer>>,
    is_finished: AtomicBool,
    is_evicted: AtomicBool,
}

/// A client that wants to take a session over.
#[derive(Debug)]
struct Offer {
    client: Client,
    pass: Pass,
    stdout_offset: u64,
    stderr_offset: u64,
}

fn sessions() -> MutexGuard<'static, BTreeMap<u64, Arc<Shared>>> {
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Commands that run now.
pub(crate) fn running() -> usize {
    sessions().values().filter(|shared| !shared.is_finished.load(Ordering::Relaxed)).count()
}

/// A place in the list of sessions, given up when dropped.
#[derive(Debug)]
struct Place(Arc<Shared>);

impl Place {
    fn take() -> Result<Self, Refused> {
        let exec_id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let bell = Arc::new(Bell::new().map_err(|error| busy(&format!("{error}")))?);
        let mut sessions = sessions();
        if sessions.values().filter(|shared| !shared.is_finished.load(Ordering::Relaxed)).count() >= RUNNING_MAX {
            return Err(busy(&format!("{RUNNING_MAX} commands run already, which is the most; wait for one to end")));
        }
        let (is_finished, is_evicted) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { exec_id, bell, offer: Mutex::new(None), is_finished, is_evicted });
        sessions.insert(exec_id, Arc::clone(&shared));
        Ok(Self(shared))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        sessions().remove(&self.0.exec_id);
    }
}

fn busy(reason: &str) -> Refused {
    Refused { exit_code: 125, errno: libc::EAGAIN, text: format!("starting a command: {reason}") }
}

impl Shared {
    fn take_offer(&self) -> Option<Offer> {
        self.offer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The command has ended; too many ended ones push the oldest out.
    fn finished(&self) {
        self.is_finished.store(true, Ordering::Relaxed);
        let sessions = sessions();
        let finished: Vec<_> = sessions.values().filter(|shared| shared.is_finished.load(Ordering::Relaxed)).collect();
        for shared in finished.iter().take(finished.len().saturating_sub(FINISHED_MAX)) {
            shared.is_evicted.store(true, Ordering::Relaxed);
            shared.bell.ring();
        }
    }

    fn is_evicted(&self) -> bool {
        self.is_evicted.load(Ordering::Relaxed)
    }
}

/// Runs a command in the conversation that asked for it, and returns when nobody can ask for it any more.
pub(crate) fn run(mut conversation: Conversation, exec: &Exec, pass: Pass) -> Result<(), LinkError> {
    let place = match Place::take() {
        Ok(place) => place,
        Err(refused) => return conversation.send(&ToHost::Refused(refused)),
    };
    let tree = Tree::new(place.0.exec_id);
    let command = match command::prepare(exec, &tree) {
        Ok(command) => command,
        Err(refused) => return conversation.send(&ToHost::Refused(refused)),
    };
    // Everything that may fail comes before the start, or a program would run without a session.
    let mut client = Client::new(conversation)?;
    match reaper::start(&command.program, Arc::clone(&place.0.bell)) {
        Ok(child) => {
            let limits = (exec.timeout_ms, exec.replay_bytes);
            Session::new(Arc::clone(&place.0), (child, tree), command, (client, pass), limits).run();
            Ok(())
        }
        Err((step, error)) => {
            client.send(&ToHost::Refused(command::refusal(exec, step, &error)));
            Ok(client.flush()?)
        }
    }
}

/// Hands a conversation to the session it asks for.
pub(crate) fn attach(mut conversation: Conversation, attach: &Attach, pass: Pass) -> Result<(), LinkError> {
    let Some(shared) = sessions().get(&attach.exec_id).cloned() else {
        let text = format!("attaching to command {}: there is none, or it has ended long ago", attach.exec_id);
        return conversation.send(&ToHost::Error(Failure { code: ErrorCode::NotFound, errno: 0, text }));
    };
    let (stdout_offset, stderr_offset) = (attach.stdout_offset, attach.stderr_offset);
    let client = Client::new(conversation).map_err(|error: io::Error| LinkError::Stream(error))?;
    *shared.offer.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Offer { client, pass, stdout_offset, stderr_offset });
    shared.bell.ring();
    Ok(())
}
