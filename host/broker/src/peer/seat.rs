// SPDX-License-Identifier: Apache-2.0
//! Which sandboxes are there, and which may talk. No I/O.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use midge_policy::{Peer, Policy, Rate};
use midge_record::Recorder;
use tokio::sync::watch;

use super::Inward;
use super::mailbox::Mailbox;
use crate::lines::Pace;

/// Longest name of a sandbox that is repeated in a transcript.
pub(super) const NAME_MAX_CHARS: usize = 64;

/// What one sandbox wants of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// To send it a message.
    Message,
    /// To connect to its port.
    Tunnel(u16),
}

/// There is a sandbox of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("opening the door `peer` of {0}: another sandbox of this process has that name; name it otherwise")]
pub struct NameTaken(pub String);

/// The sandboxes of one host process that have a door `peer`. Clones are the same.
#[derive(Clone, Default)]
pub struct Switchboard(Arc<Mutex<BTreeMap<String, Arc<Seat>>>>);

impl std::fmt::Debug for Switchboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Switchboard").field(&self.lock().keys()).finish()
    }
}

/// One sandbox at the switchboard.
pub(super) struct Seat {
    pub(super) name: String,
    policy: watch::Receiver<Arc<Policy>>,
    pub(super) recorder: Recorder,
    pub(super) inward: Arc<dyn Inward>,
    pub(super) mailbox: Mailbox,
    /// By the other's name, with the rate it was made for.
    paces: Mutex<BTreeMap<String, (Rate, Pace)>>,
    numbers: AtomicU64,
    gone: watch::Sender<bool>,
}

impl Seat {
    pub(super) fn new(
        name: &str,
        policy: watch::Receiver<Arc<Policy>>,
        recorder: Recorder,
        inward: Arc<dyn Inward>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            policy,
            recorder,
            inward,
            mailbox: Mailbox::default(),
            paces: Mutex::default(),
            numbers: AtomicU64::new(1),
            gone: watch::Sender::new(false),
        }
    }

    /// A number for a transcript.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn in_rate(&self, peer: &Peer) -> Result<(), String> {
        let Some(rate) = peer.rate else { return Ok(()) };
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || (rate, Pace::new(rate.count(), rate.per(), rate.count()));
        let entry = paces.entry(peer.name.to_string()).or_insert_with(new);
        if entry.0 != rate {
            *entry = new();
        }
        let wait = entry.1.take(1).err();
        wait.map_or(Ok(()), |wait| {
            Err(format!("the policy allows {rate} to {}; try again in {} ms", peer.name, wait.as_millis().max(1)))
        })
    }
}

impl Switchboard {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Seat>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn join(&self, seat: Seat) -> Result<Arc<Seat>, NameTaken> {
        let mut seats = self.lock();
        if seats.contains_key(&seat.name) {
            return Err(NameTaken(seat.name));
        }
        let seat = Arc::new(seat);
        seats.insert(seat.name.clone(), Arc::clone(&seat));
        Ok(seat)
    }

    pub(super) fn leave(&self, seat: &Arc<Seat>) {
        seat.gone.send_replace(true);
        let mut seats = self.lock();
        if seats.get(&seat.name).is_some_and(|found| Arc::ptr_eq(found, seat)) {
            seats.remove(&seat.name);
        }
    }

    /// The other sandbox, if both policies allow what `from` wants of it and its rate does too; else why not, for the guest. What
    /// is not named by its own policy a guest learns nothing about.
    pub(super) fn allowed(&self, from: &Seat, to: &str, wish: Wish) -> Result<Arc<Seat>, String> {
        let policy = Arc::clone(&from.policy.borrow());
        let peer = policy.peer(to).filter(|peer| grants(peer, wish));
        let Some(peer) = peer else {
            return Err(format!("the policy of this sandbox does not allow {} {to:.64}", words(wish)));
        };
        let other = self.lock().get(to).cloned();
        let other = other.filter(|other| names_back(&other.policy.borrow(), &from.name, wish));
        let Some(other) = other else {
            return Err(format!("{to} is not there, or its policy does not name {}", from.name));
        };
        from.in_rate(peer)?;
        Ok(other)
    }

    /// Waits until a tunnel is no longer allowed.
    pub(super) async fn revoked(&self, from: &Seat, to: &Seat, wish: Wish) {
        let own = watch_for(&from.policy, |policy| policy.peer(&to.name).is_some_and(|peer| grants(peer, wish)));
        let others = watch_for(&to.policy, |policy| names_back(policy, &from.name, wish));
        let (mut here, mut there) = (from.gone.subscribe(), to.gone.subscribe());
        tokio::select! {
            () = own => {}
            () = others => {}
            // An error means that the seat is gone.
            _ = here.wait_for(|gone| *gone) => {}
            _ = there.wait_for(|gone| *gone) => {}
        }
    }
}

/// Waits until a policy no longer allows something, or its sandbox is gone.
async fn watch_for(policy: &watch::Receiver<Arc<Policy>>, allows: impl Fn(&Policy) -> bool) {
    // An error means that nobody can change it any more: its broker is gone.
    let _ = policy.clone().wait_for(|policy| !allows(policy)).await;
}

fn grants(peer: &Peer, wish: Wish) -> bool {
    match wish {
        Wish::Message => peer.messages,
        Wish::Tunnel(port) => peer.ports.contains(&port),
    }
}

/// Messages need both to allow them. For a tunnel the far end's policy has to name who comes; which of its ports are meant is said
/// by the policy of the one that connects.
fn names_back(policy: &Policy, from: &str, wish: Wish) -> bool {
    policy.peer(from).is_some_and(|peer| wish != Wish::Message || peer.messages)
}

fn words(wish: Wish) -> String {
    match wish {
        Wish::Message => "messages to".to_owned(),
        Wish::Tunnel(port) => format!("a tunnel to port {port} of"),
    }
}
