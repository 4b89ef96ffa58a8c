// SPDX-License-Identifier: Apache-2.0
//! The link to one guest's agent: the control conversation, and the way to open others.
//!
//! Between byte streams (`monitor`) and what users do (`exec`, `files`). A link is either good, or gone for a
//! reason that every operation on it then reports: nothing waits for a dead guest.

mod control;
mod conversation;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(fuzzing)]
pub mod fuzz;
mod health;
#[cfg(test)]
pub(crate) mod real_agent;

use std::sync::Arc;
use std::time::Duration;

use midge_protocol::{AGENT_PORT, Door, Freeze, Gathered, Hello, Stats, ToAgent, ToHost, encode};
use tokio::sync::{mpsc, oneshot};

pub use conversation::{Conversation, Receiver, Sender};
pub(crate) use health::Health;

use crate::error::Error;
use crate::monitor::{Dialer, End, Listener, Stream};
use crate::run_dir::random_bytes;
use crate::timeline::Recorder;

/// How long an agent that answers pings may take to answer something else. Writing everything out may take long; only
/// one that does not mean to answer takes longer.
const ANSWERED: Duration = Duration::from_secs(600);

/// Time limits of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the start to the agent's hello.
    pub boot: Duration,
    /// Longest silence of the agent, when asked, before it counts as dead.
    pub silence: Duration,
}

/// What the host tells the guest at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The guest's host name.
    pub hostname: String,
    /// The guest's machine id.
    pub machine_id: [u8; 16],
    /// How far behind the world's its wall clock is set; zero but for templates.
    pub behind: Duration,
}

impl Identity {
    /// A new one for the sandbox `id`.
    #[must_use]
    pub fn random(id: &str) -> Self {
        Self { hostname: format!("midge-{id}"), machine_id: random_bytes(), behind: Duration::ZERO }
    }
}

/// The link to one agent; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    dialer: Dialer,
    health: Health,
    requests: mpsc::Sender<Request>,
}

/// A request on the control conversation and where its answer goes.
#[derive(Debug)]
pub(crate) struct Request {
    message: ToAgent,
    answer: oneshot::Sender<ToHost>,
}

impl Link {
    /// Waits for the agent's hello on `listener`, answers it, and keeps the control conversation from then on.
    ///
    /// # Errors
    /// [`Error::VmEnded`] when `ended` resolves first, [`Error::BootTimeout`] (without console lines) when
    /// nothing does, [`Error::GuestSetup`] when the agent reports failure, and what a broken agent causes.
    pub async fn establish(
        dialer: Dialer,
        listener: Listener,
        ended: impl Future<Output = Arc<End>> + Send + 'static,
        identity: Identity,
        limits: Limits,
        recorder: Recorder,
    ) -> Result<(Self, Hello), Error> {
        let health = Health::watching(ended);
        let (requests, inbox) = mpsc::channel(16);
        let listener = Some(listener);
        let control = control::Control { listener, health: health.clone(), identity, limits, recorder, inbox };
        let hello = control.start().await?;
        Ok((Self { dialer, health, requests }, hello))
    }

    /// Makes a copy of a frozen guest one of its own: opens a conversation through `dialer`, tells the agent who it is, and
    /// keeps the conversation as the control conversation. Returns when commands run in it. Should it be lost, the agent
    /// calls at `listener`; without one the guest is given up then.
    ///
    /// # Errors
    /// [`Error::VmEnded`] when `ended` resolves first, [`Error::Silent`] when nothing does within `limits.boot`,
    /// [`Error::Failed`] with the agent's reason when it stays frozen, [`Error::Monitor`] when it cannot be reached, and
    /// what a broken agent causes.
    pub async fn resume(
        dialer: Dialer,
        listener: Option<Listener>,
        ended: impl Future<Output = Arc<End>> + Send + 'static,
        identity: Identity,
        limits: Limits,
        recorder: Recorder,
    ) -> Result<Self, Error> {
        let health = Health::watching(ended);
        let (requests, inbox) = mpsc::channel(16);
        let control = control::Control { listener, health: health.clone(), identity, limits, recorder, inbox };
        control.resume(&dialer).await?;
        Ok(Self { dialer, health, requests })
    }

    /// Opens a conversation with its first message. `during` is for error texts.
    ///
    /// # Errors
    /// [`Error::TooLong`] before anything is sent, [`Error::Monitor`] when the agent cannot be reached, or the reason why
    /// the guest is gone.
    pub async fn open(&self, first: &ToAgent, during: &'static str) -> Result<Conversation, Error> {
        open(&self.dialer, &self.health, first, during).await
    }

    /// Connects to a TCP port of the guest's 127.0.0.1, by way of the agent.
    ///
    /// # Errors
    /// [`Error::Failed`] with the guest's errno when nobody listens there, otherwise as for [`Link::open`].
    pub async fn dial(&self, port: u16) -> Result<Stream, Error> {
        let mut conversation = self.open(&ToAgent::Dial(port), "connecting to a port of the guest").await?;
        conversation.receiver.done().await?;
        Ok(conversation.into_stream())
    }

    /// Asks the agent how the guest is.
    ///
    /// # Errors
    /// [`Error::Unexpected`] for any other answer, or the reason why the guest is gone.
    pub async fn stats(&self) -> Result<Stats, Error> {
        const DURING: &str = "asking for the guest's stats";
        match self.ask(ToAgent::GetStats, DURING).await? {
            ToHost::Stats(stats) => Ok(stats),
            other => Err(conversation::unexpected(DURING, &other, "Stats")),
        }
    }

    /// Has the agent kill every process of the guest but itself, and write everything out.
    ///
    /// # Errors
    /// As for [`Link::stats`].
    pub async fn quiesce(&self) -> Result<(), Error> {
        self.ask_done(ToAgent::Quiesce, "quieting the guest").await
    }

    /// Has the agent write everything out and reset the machine.
    ///
    /// # Errors
    /// As for [`Link::stats`].
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.ask_done(ToAgent::Shutdown, "shutting the guest down").await
    }

    /// Has the agent bring everything in the guest to a stand, so that the machine can be copied: conversations that are
    /// opened from now on wait. With `leave` the agent hangs up after its answer, and the guest runs on only when it is
    /// resumed: nothing can be asked on this link any more.
    ///
    /// # Errors
    /// [`Error::Failed`] when the guest cannot be frozen; it goes on then. Otherwise as for [`Link::stats`].
    pub async fn freeze(&self, leave: bool) -> Result<(), Error> {
        self.ask_done(ToAgent::Freeze(Freeze { leave }), "freezing the guest").await
    }

    /// Lets a guest that was frozen without `leave` run on as it was.
    ///
    /// # Errors
    /// [`Error::Failed`] when it is not frozen. Otherwise as for [`Link::stats`].
    pub async fn thaw(&self) -> Result<(), Error> {
        self.ask_done(ToAgent::Thaw, "thawing the guest").await
    }

    /// Has the agent of a guest that is frozen take some more of its free memory, and tell where that is. It holds it until
    /// the guest runs on, but only what this call returns is sure to stay where it is, until the next request.
    ///
    /// # Errors
    /// [`Error::Failed`] when the guest is not frozen, or cannot tell. Otherwise as for [`Link::stats`].
    pub async fn gather(&self) -> Result<Gathered, Error> {
        const DURING: &str = "gathering the guest's free memory";
        match self.ask(ToAgent::Gather, DURING).await? {
            ToHost::Gathered(gathered) => Ok(gathered),
            other => Err(conversation::unexpected(DURING, &other, "Gathered")),
        }
    }

    /// Has the agent open these doors; those that are open already stay so.
    ///
    /// # Errors
    /// [`Error::Failed`] when the guest has no room for one. Otherwise as for [`Link::stats`].
    pub async fn open_doors(&self, doors: &[Door]) -> Result<(), Error> {
        let bits = Door::ALL.iter().enumerate().filter(|(_, door)| doors.contains(door)).map(|(bit, _)| 1 << bit).sum();
        self.ask_done(ToAgent::OpenDoors(bits), "opening the guest's doors").await
    }

    async fn ask_done(&self, message: ToAgent, during: &'static str) -> Result<(), Error> {
        match self.ask(message, during).await? {
            ToHost::Done => Ok(()),
            other => Err(conversation::unexpected(during, &other, "Done")),
        }
    }

    async fn ask(&self, message: ToAgent, during: &'static str) -> Result<ToHost, Error> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.requests.send(Request { message, answer }).await.ok()?;
            answered.await.ok()
        };
        let answer = tokio::select! {
            biased;
            answer = asked => answer,
            gone = self.health.gone_for_good() => return Err(gone.error(during)),
            () = tokio::time::sleep(ANSWERED) => {
                let silent_ms = u64::try_from(ANSWERED.as_millis()).unwrap_or(u64::MAX);
                return Err(Error::Silent { during, silent_ms });
            }
        };
        match answer {
            Some(ToHost::Error(failure)) => Err(Error::Failed { during, failure }),
            Some(answer) => Ok(answer),
            None => Err(conversation::lost(&self.health, during, std::io::ErrorKind::ConnectionReset.into()).await),
        }
    }
}

/// Opens a conversation with its first message.
async fn open(dialer: &Dialer, health: &Health, first: &ToAgent, during: &'static str) -> Result<Conversation, Error> {
    let mut frame = Vec::new();
    encode(first, &mut frame)?;
    let stream = tokio::select! {
        biased;
        stream = dialer.connect_with(AGENT_PORT, &frame) => stream,
        gone = health.gone_for_good() => return Err(gone.error(during)),
    };
    match stream {
        Ok(stream) => Ok(Conversation::new(stream, health.clone(), during)),
        // A refusal is usually a death whose news are still under way.
        Err(error) => Err(health.reason_soon().await.map_or(Error::Monitor(error), |gone| gone.error(during))),
    }
}

#[cfg(test)]
mod tests;
