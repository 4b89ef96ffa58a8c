// SPDX-License-Identifier: Apache-2.0
//! How many children there were in a whole family: each sandbox's policy limits all that are made below it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use midge_policy::Policy;
use tokio::sync::watch;

/// One sandbox's place in its family. Clones are the same place.
#[derive(Clone)]
pub struct Family(Arc<Place>);

struct Place {
    /// Where the limit is read; a child's is put in when its own broker is there.
    policy: RwLock<watch::Receiver<Arc<Policy>>>,
    /// Children made at this place and below.
    made: AtomicU32,
    /// Requests at this place.
    asked: AtomicU64,
    above: Option<Family>,
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Family").field("made", &self.0.made).finish_non_exhaustive()
    }
}

impl Family {
    /// The place of a sandbox that nobody's child is; `policy` is its policy as it is now.
    #[must_use]
    pub fn new(policy: watch::Receiver<Arc<Policy>>) -> Self {
        Self::at(policy, None)
    }

    fn at(policy: watch::Receiver<Arc<Policy>>, above: Option<Self>) -> Self {
        let policy = RwLock::new(policy);
        Self(Arc::new(Place { policy, made: AtomicU32::new(0), asked: AtomicU64::new(0), above }))
    }

    /// The place of a child whose policy begins as `policy`.
    pub(super) fn below(&self, policy: &Policy) -> Self {
        // The sender is not kept: until `follow` the policy is what it was.
        let (_, policy) = watch::channel(Arc::new(policy.clone()));
        Self::at(policy, Some(self.clone()))
    }

    /// Reads the limit from `policy` from now on, so that a narrower one holds at once.
    pub fn follow(&self, policy: watch::Receiver<Arc<Policy>>) {
        *self.0.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Children that were made at this place and below.
    #[must_use]
    pub fn made(&self) -> u32 {
        self.0.made.load(Ordering::Acquire)
    }

    /// A number for a request.
    pub(super) fn number(&self) -> u64 {
        self.0.asked.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts one more child here and at every place above, or says which limit forbids it.
    pub(super) fn admit(&self) -> Result<(), String> {
        let number = {
            let policy = self.0.policy.read().unwrap_or_else(PoisonError::into_inner);
            let policy = policy.borrow();
            if policy.children().allowed { policy.children().number } else { 0 }
        };
        let counted =
            self.0.made.fetch_update(Ordering::AcqRel, Ordering::Acquire, |made| (made < number).then_some(made + 1));
        counted.map_err(|made| {
            format!("{made} children were made already, and the policy allows {number} in the whole run")
        })?;
        let Some(above) = &self.0.above else { return Ok(()) };
        above.admit().inspect_err(|_| self.give_back_here())
    }

    /// Takes back what [`Family::admit`] counted.
    pub(super) fn give_back(&self) {
        self.give_back_here();
        if let Some(above) = &self.0.above {
            above.give_back();
        }
    }

    fn give_back_here(&self) {
        self.0.made.fetch_sub(1, Ordering::AcqRel);
    }
}
