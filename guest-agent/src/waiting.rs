// SPDX-License-Identifier: Apache-2.0
//! Conversations that are opened while the guest is frozen: they wait without a thread until it runs on, or until one of
//! them is the `Resume` that lets it. However many wait, that one is heard.

use midge_protocol::{MAX_CONVERSATIONS, ToAgent, ToHost, Welcome};

use crate::link::{Conversation, LinkError, failure};
use crate::serve::{Gate, busy, start};
use crate::sys::fd::Watch;

/// Conversations that may wait beyond those that can be served, until they have said what they want.
const SPARE: usize = 64;

/// Those who wait, in the order of their coming.
#[derive(Debug, Default)]
pub(crate) struct WaitingRoom {
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    conversation: Conversation,
    first: Option<ToAgent>,
}

/// What a look at one of them leaves to do.
enum Heard {
    Stays,
    Leaves,
    Resume(Welcome),
}

impl WaitingRoom {
    /// Lets one more wait. One that says nothing makes room when there is none: of those who have spoken there are never
    /// too many.
    pub(crate) fn admit(&mut self, conversation: Conversation) {
        if self.waiting.len() >= MAX_CONVERSATIONS + SPARE
            && let Some(silent) = self.waiting.iter().position(|waiting| waiting.first.is_none())
        {
            self.waiting.remove(silent);
        }
        self.waiting.push(Waiting { conversation, first: None });
    }

    /// What to wait for, one after the other.
    pub(crate) fn watches(&self) -> impl Iterator<Item = Watch> {
        self.waiting.iter().map(|waiting| waiting.conversation.watch(waiting.first.is_none()))
    }

    /// Hears those who have something to say by `watches`, which [`WaitingRoom::watches`] gave. Ends with the first that
    /// says `Resume`.
    pub(crate) fn hear(&mut self, watches: &[Watch]) -> Option<(Conversation, Welcome)> {
        let mut spoken = self.waiting.iter().filter(|waiting| waiting.first.is_some()).count();
        // From the last on, so that removing one moves none that is still to be looked at.
        for index in (0..self.waiting.len().min(watches.len())).rev() {
            let heard = match self.waiting.get_mut(index) {
                Some(waiting) => waiting.hear(watches[index], &mut spoken),
                None => Heard::Stays,
            };
            match heard {
                Heard::Stays => {}
                Heard::Leaves => drop(self.waiting.remove(index)),
                Heard::Resume(welcome) => return Some((self.waiting.remove(index).conversation, welcome)),
            }
        }
        None
    }

    /// The guest runs on: all who wait are served.
    pub(crate) fn release(&mut self, gate: &'static Gate) {
        for Waiting { conversation, first } in self.waiting.drain(..) {
            // Without memory for a thread the stream is closed, which its host notices.
            let _ = start(conversation, first, gate);
        }
    }
}

impl Waiting {
    fn hear(&mut self, watch: Watch, spoken: &mut usize) -> Heard {
        // Whoever has hung up wants nothing any more; in a copy that is everybody who waited in the other guest.
        if watch.hung_up() {
            return Heard::Leaves;
        }
        if self.first.is_some() || !watch.readable() {
            return Heard::Stays;
        }
        match self.first_message() {
            Ok(Some(ToAgent::Resume(welcome))) => return Heard::Resume(welcome),
            Ok(Some(_)) if *spoken >= MAX_CONVERSATIONS => {
                let _ = self.conversation.send(&ToHost::Error(busy()));
            }
            Ok(Some(first)) => {
                self.first = Some(first);
                *spoken += 1;
                return Heard::Stays;
            }
            Ok(None) => return Heard::Stays,
            // The host has left, or said what is not the protocol: it is told in any case.
            Err(error) => {
                let _ = self.conversation.send(&ToHost::Error(failure(&error)));
            }
        }
        Heard::Leaves
    }

    /// The first message if it is complete.
    fn first_message(&mut self) -> Result<Option<ToAgent>, LinkError> {
        if !self.conversation.read()? {
            return Err(LinkError::Unfinished);
        }
        self.conversation.received()
    }
}
