// SPDX-License-Identifier: Apache-2.0
//! The one exit of a sandbox: doors that a guest's connections come in through, each typed, each held against the policy, the
//! budgets, and recorded. What is behind a door (a provider, the network, a human, another sandbox) is reached from the host, with
//! the host's credentials; the guest sees none of them.
//!
//! A [`Broker`] is one sandbox's. It is [`Given`] all that it uses; it knows nothing of virtual machines, terminals or files of
//! runs. Whoever accepts a connection says which door it came to: [`Broker::serve`].

pub mod ask;
pub mod child;
mod egress;
mod http;
pub mod ledger;
mod lines;
mod model;
mod names;
pub mod peer;
mod shared;
mod stream;
pub mod tls;
pub mod told;
mod usage;
mod veil;

use std::io;
use std::sync::Arc;

use midge_policy::{Bytes, Money, Period, Policy, Problems};
use midge_protocol::Door;
use midge_protocol::broker::Left;
use midge_record::{Entry, RecordError, Recorder};
use tokio::sync::watch;
use tokio_rustls::rustls::RootCertStore;

use ask::AskDoor;
use child::ChildDoor;
use egress::EgressDoor;
use ledger::Ledger;
use model::{ModelDoor, Upstream};
use peer::{Called, PeerDoor};
use shared::Shared;
use tls::{Authority, TlsError};
use told::ToldDoor;

pub use model::Playback;
pub use names::{Dial, Resolve, System};
pub use shared::Secrets;
pub use stream::{AnyStream, Later, Stream};

/// All that a broker uses.
pub struct Given {
    /// What the sandbox may do; its receivers are for the doors below.
    pub policy: watch::Sender<Arc<Policy>>,
    /// What it may spend.
    pub ledger: Ledger,
    /// Where everything is recorded.
    pub recorder: Recorder,
    /// What the policy's secrets are; see [`Secrets::read`].
    pub secrets: Secrets,
    /// The authority whose certificate the guest trusts.
    pub authority: Arc<Authority>,
    /// What servers are checked against; see [`tls::roots`].
    pub roots: RootCertStore,
    /// Who resolves names.
    pub resolve: Arc<dyn Resolve>,
    /// Who opens connections.
    pub dial: Arc<dyn Dial>,
    /// Answers of models; absent: the policy's provider is asked.
    pub replay: Option<Playback>,
    /// The door `ask`, which questions of rules go to as well.
    pub ask: Arc<AskDoor>,
    /// The door `record`.
    pub told: Arc<ToldDoor>,
    /// The door `child`; absent: it is closed.
    pub child: Option<Arc<ChildDoor>>,
    /// The door `peer`; absent: whoever comes is told that there are no peers.
    pub peer: Option<Arc<PeerDoor>>,
}

/// One sandbox's exit. Clones are the same.
#[derive(Clone)]
pub struct Broker {
    shared: Arc<Shared>,
    model: Arc<ModelDoor>,
    egress: Arc<EgressDoor>,
    told: Arc<ToldDoor>,
    child: Option<Arc<ChildDoor>>,
    peer: Option<Arc<PeerDoor>>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}

impl Broker {
    /// Opens the doors; connects to nothing yet.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(given: Given) -> Result<Self, TlsError> {
        let tls = tls::client(given.roots)?;
        let policy = Arc::clone(&given.policy.borrow());
        let source = match (given.replay, policy.model()) {
            (Some(replay), _) => model::Source::Replay(replay),
            (None, Some(model)) => match model.endpoint() {
                Some(endpoint) => {
                    let (resolve, dial) = (Arc::clone(&given.resolve), Arc::clone(&given.dial));
                    model::Source::Live(Upstream::new(endpoint, Arc::clone(&tls), resolve, dial))
                }
                None => model::Source::Nobody,
            },
            (None, None) => model::Source::Nobody,
        };
        let shared = Shared::new(given.policy, given.ledger, given.recorder, given.secrets, given.ask);
        let shared = Arc::new(shared);
        let egress = EgressDoor::new(Arc::clone(&shared), given.resolve, given.dial, given.authority, tls);
        let model = ModelDoor::new(Arc::clone(&shared), source);
        let (told, child, peer) = (given.told, given.child, given.peer);
        Ok(Self { shared, model: Arc::new(model), egress: Arc::new(egress), told, child, peer })
    }

    /// Serves one connection of the guest to `door`, to its end. Dropped, it ends at once. Ends at once also when something could
    /// not be recorded: nothing goes on unrecorded.
    ///
    /// # Errors
    /// The connection failed, or what came was refused; nothing that needs more than a line in a log.
    pub async fn serve(&self, door: Door, stream: impl Stream) -> io::Result<()> {
        if let Some(error) = self.shared.recorder.error() {
            return Err(io::Error::other(error.to_string()));
        }
        let served = async {
            match door {
                Door::Model => self.model.serve(stream).await,
                Door::Egress => self.egress.serve(Box::new(stream)).await,
                Door::Ask => self.shared.ask.serve(stream).await,
                Door::Record => self.told.serve(stream).await,
                Door::Child => match &self.child {
                    Some(door) => door.serve(stream).await,
                    None => Err(io::ErrorKind::Unsupported.into()),
                },
                Door::Peer => match &self.peer {
                    Some(door) => door.serve(stream).await,
                    None => peer::closed(stream).await,
                },
            }
        };
        tokio::select! {
            served = served => served,
            error = self.shared.recorder.failed() => Err(io::Error::other(error.to_string())),
        }
    }

    /// The next call of another sandbox; for ever none where the door `peer` is closed. Can be dropped and called again: nobody is lost.
    pub async fn called(&self) -> Called {
        match &self.peer {
            Some(door) => door.called().await,
            None => std::future::pending().await,
        }
    }

    /// Answers a call of another sandbox, to the end of what it was for. Ends at once as [`Broker::serve`] does.
    ///
    /// # Errors
    /// As for [`Broker::serve`].
    pub async fn answer(&self, called: Called) -> io::Result<()> {
        let Some(door) = &self.peer else { return Ok(()) };
        tokio::select! {
            answered = door.answer(called) => answered,
            error = self.shared.recorder.failed() => Err(io::Error::other(error.to_string())),
        }
    }

    /// Narrows the policy to what `change` allows as well, and the budgets to its, at once: connections that are open and not
    /// allowed any more are ended. Nothing becomes wider, whatever `change` says.
    ///
    /// # Errors
    /// The common part is no policy, or it could not be recorded; nothing is changed then.
    pub fn narrow(&self, change: &Policy) -> Result<(), NarrowError> {
        let policy = self.shared.policy().narrow(change)?;
        self.shared.note(&Entry::Narrowed { policy: policy.to_toml() })?;
        self.shared.ledger.narrow(&budgets(&policy));
        self.shared.set_policy(policy);
        Ok(())
    }
}

/// Why a policy was not narrowed.
#[derive(Debug, thiserror::Error)]
pub enum NarrowError {
    /// What both allow cannot be written down.
    #[error(transparent)]
    Policy(#[from] Problems),
    /// The change could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The budgets of a policy, for a [`ledger::Ledger`]. A sandbox that may not live longer may not work longer.
#[must_use]
pub fn budgets(policy: &Policy) -> Left {
    let (budget, limits) = (policy.budget(), policy.limits());
    let wall = [budget.wall, limits.wall].into_iter().flatten().map(Period::as_ms).min();
    Left {
        turns: budget.turns,
        tool_calls: budget.tool_calls,
        tokens: budget.tokens,
        money_micros: budget.money_usd.map(Money::micros),
        wall_ms: wall,
        egress_bytes: budget.egress.map(Bytes::get),
    }
}
