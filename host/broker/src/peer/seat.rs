// SPDX-License-Identifier: Apache-2.0
//! One sandbox among those that may talk: what its own policy says of the others. No I/O.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use midge_policy::{Name, Peer, Policy, Rate};
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

/// See the head of this file.
pub(super) struct Seat {
    pub(super) name: Name,
    policy: watch::Receiver<Arc<Policy>>,
    pub(super) recorder: Recorder,
    pub(super) inward: Arc<dyn Inward>,
    pub(super) mailbox: Mailbox,
    /// By the other's name, with the rate it was made for.
    paces: Mutex<BTreeMap<Name, (Rate, Pace)>>,
    numbers: AtomicU64,
}

impl Seat {
    pub(super) fn new(
        name: &Name,
        policy: watch::Receiver<Arc<Policy>>,
        recorder: Recorder,
        inward: Arc<dyn Inward>,
    ) -> Self {
        let (mailbox, paces, numbers) = (Mailbox::default(), Mutex::default(), AtomicU64::new(1));
        Self { name: name.clone(), policy, recorder, inward, mailbox, paces, numbers }
    }

    /// A number for a transcript.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The other's name, if the policy lets this sandbox have what it wishes of it, and now; else why not, for the guest.
    pub(super) fn may(&self, to: &str, wish: Wish) -> Result<Name, String> {
        let policy = Arc::clone(&self.policy.borrow());
        let peer = policy.peer(to).filter(|peer| grants(peer, wish));
        let peer = peer.ok_or_else(|| {
            let what = match wish {
                Wish::Message => "messages to".to_owned(),
                Wish::Tunnel(port) => format!("a tunnel to port {port} of"),
            };
            format!("the policy of this sandbox does not allow {what} {to:.64}")
        })?;
        self.in_rate(peer)?;
        Ok(peer.name.clone())
    }

    fn in_rate(&self, peer: &Peer) -> Result<(), String> {
        let Some(rate) = peer.rate else { return Ok(()) };
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || (rate, Pace::new(rate.count(), rate.per(), rate.count()));
        let entry = paces.entry(peer.name.clone()).or_insert_with(new);
        if entry.0 != rate {
            *entry = new();
        }
        let wait = entry.1.take(1).err();
        wait.map_or(Ok(()), |wait| {
            Err(format!("the policy allows {rate} to {}; try again in {} ms", peer.name, wait.as_millis().max(1)))
        })
    }

    /// Whether the policy lets another sandbox in with that.
    pub(super) fn lets_in(&self, from: &str, wish: Wish) -> bool {
        names_back(&self.policy.borrow(), from, wish)
    }

    /// Waits until the policy does not let this sandbox reach that port of the other any more.
    pub(super) async fn revoked(&self, to: &Name, port: u16) {
        self.until(|policy| !policy.peer(to.as_str()).is_some_and(|peer| grants(peer, Wish::Tunnel(port)))).await;
    }

    /// Waits until the policy does not let tunnels of the other in any more.
    pub(super) async fn shut_to(&self, from: &str, port: u16) {
        self.until(|policy| !names_back(policy, from, Wish::Tunnel(port))).await;
    }

    async fn until(&self, is_over: impl Fn(&Policy) -> bool) {
        // An error means that nobody can change it any more: its broker is gone.
        let _ = self.policy.clone().wait_for(|policy| is_over(policy)).await;
    }
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
