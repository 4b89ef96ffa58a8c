// SPDX-License-Identifier: Apache-2.0
//! What the doors of one sandbox have in common: the policy as it is now, the budgets, the transcript, the secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use midge_policy::{Policy, Secret, SecretError};
use midge_record::{Entry, RecordError, Recorder};
use tokio::sync::watch;

use crate::ask::AskDoor;
use crate::ledger::{Exhausted, Ledger};

/// The secrets that a policy names, read once, before anything starts. They stay in this process.
#[derive(Clone, Default)]
pub struct Secrets {
    key: Option<Secret>,
    credentials: BTreeMap<String, Secret>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("credentials", &self.credentials.keys()).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Reads all of them; may wait for commands. With `model` false the model's key is left out: a replay needs none.
    ///
    /// # Errors
    /// The first one that cannot be read.
    pub fn read(policy: &Policy, model: bool) -> Result<Self, SecretError> {
        let key =
            policy.model().filter(|_| model).and_then(|model| model.key.as_ref()).map(Secret::read).transpose()?;
        let credentials = policy.credentials().iter();
        let read = credentials.map(|credential| Ok((credential.name.to_string(), Secret::read(&credential.secret)?)));
        Ok(Self { key, credentials: read.collect::<Result<_, SecretError>>()? })
    }

    /// Values that no transcript and no guest may see: for [`midge_record::Masker`].
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.key.iter().chain(self.credentials.values()).map(Secret::expose)
    }

    /// The model's key.
    pub(crate) fn key(&self) -> Option<&Secret> {
        self.key.as_ref()
    }

    /// The secret of the credential called `name`.
    pub(crate) fn credential(&self, name: &str) -> Option<&Secret> {
        self.credentials.get(name)
    }
}

/// See the head of this file.
pub(crate) struct Shared {
    policy: watch::Sender<Arc<Policy>>,
    /// What can be spent.
    pub(crate) ledger: Ledger,
    /// The transcript.
    pub(crate) recorder: Recorder,
    /// Secrets.
    pub(crate) secrets: Secrets,
    /// The door where questions of rules are put.
    pub(crate) ask: Arc<AskDoor>,
    numbers: AtomicU64,
    used_up: Mutex<BTreeSet<&'static str>>,
}

impl Shared {
    pub(crate) fn new(
        policy: watch::Sender<Arc<Policy>>,
        ledger: Ledger,
        recorder: Recorder,
        secrets: Secrets,
        ask: Arc<AskDoor>,
    ) -> Self {
        Self { policy, ledger, recorder, secrets, ask, numbers: AtomicU64::new(1), used_up: Mutex::default() }
    }

    /// The policy as it is now.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Puts another policy in force, for what is open as well.
    pub(crate) fn set_policy(&self, policy: Policy) {
        self.policy.send_replace(Arc::new(policy));
    }

    /// Waits until `allows` is false of the policy.
    pub(crate) async fn revoked(&self, allows: impl Fn(&Policy) -> bool) {
        let mut changes = self.policy.subscribe();
        // An error would mean that the sender, which is here, is gone.
        let _ = changes.wait_for(|policy| !allows(policy)).await;
    }

    /// A number for an exchange or a connection.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Records; what could not be recorded must not happen.
    pub(crate) fn note(&self, entry: &Entry) -> Result<(), RecordError> {
        self.recorder.note(entry).map(drop)
    }

    /// Records that a budget is used up, once for each.
    pub(crate) fn used_up(&self, exhausted: &Exhausted) {
        if self.used_up.lock().unwrap_or_else(PoisonError::into_inner).insert(exhausted.budget) {
            // A failure latches; who lets something out next gets it.
            let _ = self.note(&Entry::Exhausted { budget: exhausted.budget.to_owned() });
        }
    }
}
