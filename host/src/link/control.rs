// SPDX-License-Identifier: Apache-2.0
//! The control conversation: hello and welcome, requests and their answers, and the pulse.
//!
//! One task per guest. Whoever else asks something of the agent does it through this task's inbox.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use midge_protocol::{Freeze, Hello, MIN_ENTROPY_BYTES, NEWEST_VERSION, ToAgent, ToHost, Welcome, negotiate};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval_at, timeout};

use super::health::Gone;
use super::{Conversation, Health, Identity, Limits, Request, open};
use crate::error::Error;
use crate::monitor::{Dialer, Listener, events::printable};
use crate::run_dir::random_bytes;
use crate::timeline::{Recorder, Source, monotonic_ns};

const DURING: &str = "keeping in touch with the guest";
const STARTING: &str = "starting the guest";
const RESUMING: &str = "resuming the guest";
/// How often the agent is asked for a sign of life.
const PULSE: Duration = Duration::from_secs(5);
/// How long an agent that lost the conversation may take to open it again.
const AGAIN: Duration = Duration::from_secs(10);
/// Unanswered requests that are remembered; beyond it further ones wait.
const PENDING_MAX: usize = 64;

/// What the task needs.
pub(super) struct Control {
    /// Where the agent calls, if it may.
    pub(super) listener: Option<Listener>,
    pub(super) health: Health,
    pub(super) identity: Identity,
    pub(super) limits: Limits,
    pub(super) recorder: Recorder,
    pub(super) inbox: mpsc::Receiver<Request>,
}

impl Control {
    /// Waits for the hello, then goes on in the background.
    pub(super) async fn start(mut self) -> Result<Hello, Error> {
        let limit = self.limits.boot;
        let (conversation, hello) = match timeout(limit, self.greet(STARTING)).await {
            Ok(greeted) => greeted?,
            Err(_) => {
                let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                return Err(Error::BootTimeout { limit_ms, console_tail: Vec::new() });
            }
        };
        self.note_stages(&hello);
        for warning in &hello.warnings {
            tracing::warn!(warning = %printable(warning), "the guest's agent reports");
        }
        tokio::spawn(self.keep(conversation, Duration::ZERO));
        Ok(hello)
    }

    /// Tells the agent of a frozen guest who it is, then goes on in the background.
    pub(super) async fn resume(self, dialer: &Dialer) -> Result<(), Error> {
        // The version was agreed upon in the guest that this one is a copy of; the agent refuses what it does not speak.
        let resume = ToAgent::Resume(self.welcome(NEWEST_VERSION));
        let resumed = async {
            self.recorder.note("resume_sent");
            let mut conversation = open(dialer, &self.health, &resume, RESUMING).await?;
            conversation.receiver.done().await?;
            // What the guest was told is as old as its first steps were slow; now it listens.
            conversation.sender.send(&ToAgent::SetClock(self.unix_time_ns())).await?;
            Ok::<_, Error>(conversation)
        };
        let conversation = tokio::select! {
            biased;
            resumed = timeout(self.limits.boot, resumed) => match resumed {
                Ok(resumed) => resumed?,
                Err(_) => {
                    let silent_ms = u64::try_from(self.limits.boot.as_millis()).unwrap_or(u64::MAX);
                    return Err(Error::Silent { during: RESUMING, silent_ms });
                }
            },
            gone = self.health.gone() => return Err(gone.error(RESUMING)),
        };
        self.recorder.note("resumed");
        // The answer was a sign of life: no ping while the guest does what it was resumed for.
        tokio::spawn(self.keep(conversation, PULSE));
        Ok(())
    }

    /// Takes the agent's connection, its hello, and answers it.
    async fn greet(&mut self, during: &'static str) -> Result<(Conversation, Hello), Error> {
        let Some(listener) = &mut self.listener else { return Err(Gone::Lost.error(during)) };
        let stream = tokio::select! {
            stream = listener.accept() => stream.map_err(|source| Error::Local { during, source })?.into(),
            gone = self.health.gone() => return Err(gone.error(during)),
        };
        let mut conversation = Conversation::new(stream, self.health.clone(), during);
        let hello = match conversation.receiver.next().await? {
            ToHost::Hello(hello) => hello,
            ToHost::InitFailed(failed) => {
                return Err(Error::GuestSetup { step: failed.step, text: failed.text });
            }
            other => return Err(conversation.receiver.unexpected(other, "Hello")),
        };
        let version = negotiate(&hello)?;
        conversation.sender.send(&ToAgent::Welcome(self.welcome(version))).await?;
        Ok((conversation, hello))
    }

    /// What the guest's wall clock shall show now.
    fn unix_time_ns(&self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_1970.saturating_sub(self.identity.behind).as_nanos()).unwrap_or(u64::MAX)
    }

    fn welcome(&self, version: u16) -> Welcome {
        Welcome {
            version,
            unix_time_ns: self.unix_time_ns(),
            entropy: random_bytes::<{ 2 * MIN_ENTROPY_BYTES }>().to_vec(),
            hostname: self.identity.hostname.clone(),
            machine_id: self.identity.machine_id,
        }
    }

    /// The guest's clock starts with its kernel and cannot be compared with ours: its last stage is taken
    /// to have happened just now.
    fn note_stages(&self, hello: &Hello) {
        let now_ns = monotonic_ns();
        let last_us = hello.stages.iter().map(|stage| stage.at_us).max().unwrap_or(0);
        for stage in &hello.stages {
            let ago_ns = (last_us - stage.at_us).saturating_mul(1000);
            self.recorder.note_at(Source::Agent, &printable(&stage.name), now_ns.saturating_sub(ago_ns));
        }
        self.recorder.note_at(Source::Host, "hello", now_ns);
    }

    /// Keeps the conversation, and takes it up again when the agent opens a new one. The first pulse comes after `pause`.
    async fn keep(mut self, mut conversation: Conversation, mut pause: Duration) {
        loop {
            match self.serve(&mut conversation, pause).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "control conversation over"),
            }
            pause = Duration::ZERO;
            // Hangs up, so that an agent that was found out notices.
            drop(conversation);
            let again = timeout(AGAIN, self.greet(DURING)).await;
            match again {
                Ok(Ok((next, _))) => conversation = next,
                Ok(Err(_)) | Err(_) => {
                    self.health.give_up(Gone::Lost);
                    return;
                }
            }
        }
    }

    /// Serves one conversation until it breaks (an error), the guest is given up or left, or nobody needs it.
    async fn serve(&mut self, conversation: &mut Conversation, pause: Duration) -> Result<(), Error> {
        let mut pending = VecDeque::new();
        let mut pulse = Pulse::new();
        let mut ticks = interval_at(Instant::now() + pause, PULSE);
        loop {
            tokio::select! {
                message = conversation.receiver.next() => {
                    if self.take(message?, &mut pending, &mut pulse)? {
                        return Ok(());
                    }
                }
                request = self.inbox.recv(), if pending.len() < PENDING_MAX => {
                    // Every link to this guest is gone: so is the sandbox.
                    let Some(Request { message, answer }) = request else { return Ok(()) };
                    let leaves = matches!(message, ToAgent::Freeze(Freeze { leave: true }));
                    // A guest that takes nothing any more must not stop the clock.
                    match timeout(self.limits.silence, conversation.sender.send(&message)).await {
                        Ok(sent) => sent?,
                        Err(_) => return self.give_up(self.limits.silence),
                    }
                    pending.push_back(Pending { answer, leaves });
                }
                _ = ticks.tick() => {
                    if pulse.silence() > self.limits.silence {
                        return self.give_up(pulse.silence());
                    }
                    if let Some(number) = pulse.ask() {
                        let ping = ToAgent::Ping(number);
                        match timeout(self.limits.silence, conversation.sender.send(&ping)).await {
                            Ok(sent) => sent?,
                            Err(_) => continue,
                        }
                    }
                }
            }
        }
    }

    /// The guest is no longer waited for.
    fn give_up(&self, silence: Duration) -> Result<(), Error> {
        let silent_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
        self.health.give_up(Gone::Silent { silent_ms });
        Ok(())
    }

    /// Passes an answer on; true when the agent has left with it.
    fn take(&self, message: ToHost, pending: &mut VecDeque<Pending>, pulse: &mut Pulse) -> Result<bool, Error> {
        match message {
            ToHost::Pong(number) => {
                if pulse.answered(number) && number == 1 {
                    self.recorder.note("first_reply");
                }
                Ok(false)
            }
            answer @ (ToHost::Stats(_) | ToHost::Gathered(_) | ToHost::Done | ToHost::Error(_)) => {
                match pending.pop_front() {
                    Some(Pending { answer: asker, leaves }) => {
                        let has_left = leaves && answer == ToHost::Done;
                        // The asker may have lost its patience.
                        let _ = asker.send(answer);
                        Ok(has_left)
                    }
                    None => Err(super::conversation::unexpected(DURING, &answer, "nothing")),
                }
            }
            other => Err(super::conversation::unexpected(DURING, &other, "Pong, Stats, Gathered or Done")),
        }
    }
}

/// A request that is not answered yet.
#[derive(Debug)]
struct Pending {
    answer: oneshot::Sender<ToHost>,
    /// The agent leaves the conversation when it has done this.
    leaves: bool,
}

/// Pings sent and answered. Only an unanswered ping makes silence suspicious.
#[derive(Debug)]
struct Pulse {
    asked: u64,
    waiting_since: Option<Instant>,
}

impl Pulse {
    fn new() -> Self {
        Self { asked: 0, waiting_since: None }
    }

    /// The number of the next ping, unless one is under way.
    fn ask(&mut self) -> Option<u64> {
        if self.waiting_since.is_some() {
            return None;
        }
        self.asked += 1;
        self.waiting_since = Some(Instant::now());
        Some(self.asked)
    }

    fn answered(&mut self, number: u64) -> bool {
        let is_answer = self.waiting_since.is_some() && number == self.asked;
        if is_answer {
            self.waiting_since = None;
        }
        is_answer
    }

    fn silence(&self) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
