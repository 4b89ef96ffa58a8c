// SPDX-License-Identifier: Apache-2.0
//! What the sandboxes of one run have in common, and the broker of each. A run has one sandbox that was asked for, and those that are
//! made of it through the door `child`; all of them have the same human, the same secrets on the host and the same way to a model.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use midge_broker::ask::{Approver, AskDoor, Asking};
use midge_broker::child::{ChildDoor, Family};
use midge_broker::ledger::Ledger;
use midge_broker::tls::{Authority, TlsError};
use midge_broker::told::ToldDoor;
use midge_broker::{Broker, Given, Later, Playback, Secrets, System};
use midge_policy::{Name, Policy};
use midge_protocol::broker::{Rule, Run, Tools, Verdict};
use midge_record::{Difference, Masker, Recorder};
use tokio::sync::{mpsc, watch};

use super::children::{Kin, fits};
use super::{Attended, attend, peers, unrecorded};
use crate::error::{Error, Fault};
use crate::runs;
use crate::sandbox::{Sandbox, Where};

/// Where a sandbox's workspace is in its guest.
pub const WORKSPACE: &str = "/workspace";
/// Where tools work without one.
const HOME: &str = "/tmp";
/// How long all that belongs to a run may take to go.
const LEAVE: Duration = Duration::from_secs(10);

/// See the head of this file.
pub struct Household {
    /// Who answers questions.
    pub approver: Arc<dyn Approver>,
    /// The secrets that the policy names. A child's policy names no other: that is part of being narrower.
    pub secrets: Secrets,
    /// How a tool loop is started; absent where there is no model, and so no child with a task.
    pub turn: Option<Run>,
    /// Where sandboxes run.
    pub place: Where,
    /// The run that is played again, if one is.
    pub replay: Option<Recording>,
    /// Is told of each child's transcript when it begins.
    pub watch: Arc<Watcher>,
    /// Held by every sandbox's broker and every child, to their end.
    pub life: Life,
    /// What narrows the policies of all its sandboxes, those that are to come as well: [`Household::narrow`].
    pub change: watch::Sender<Option<Arc<Policy>>>,
}

impl std::fmt::Debug for Household {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Household").finish_non_exhaustive()
    }
}

/// What is called with a child's name and its transcript.
pub type Watcher = dyn Fn(&str, &Recorder) + Send + Sync;

/// A run that is played again.
pub struct Recording {
    /// The directory of its transcript; those of its children lie beside it.
    pub dir: PathBuf,
    /// Its name.
    pub run: String,
    /// Is told where a tool's result is not what it was.
    pub differs: Arc<dyn Fn(Difference) + Send + Sync>,
}

impl Recording {
    /// The transcript of the child that is called `child` now.
    pub(super) fn of(&self, child: &str) -> Option<PathBuf> {
        // The run's own name is another one now; what is below it is the same.
        let (_, numbers) = child.split_once('.')?;
        Some(self.dir.join(format!("{}.{numbers}.jsonl", self.run)))
    }
}

/// What is held as long as something of a run is there.
#[derive(Debug, Clone)]
pub struct Life(#[expect(dead_code, reason = "it is held, not used")] mpsc::Sender<()>);

/// The end of everything that holds a [`Life`].
#[derive(Debug)]
pub struct Over(mpsc::Receiver<()>);

impl Life {
    /// One more run.
    #[must_use]
    pub fn new() -> (Self, Over) {
        let (held, over) = mpsc::channel(1);
        (Self(held), Over(over))
    }
}

impl Over {
    /// Waits until nobody holds the [`Life`] any more; at most 10 s.
    pub async fn wait(mut self) {
        // Nothing is ever sent: what comes is the end.
        if tokio::time::timeout(LEAVE, self.0.recv()).await.is_err() {
            tracing::warn!("something of this run does not end; `midge ps` shows what is alive");
        }
    }
}

/// One sandbox of a household.
pub struct Member {
    /// Its name: the run's, for a child with its numbers behind.
    pub name: String,
    /// What other sandboxes of the user call it; without it the door `peer` is closed.
    pub seat: Option<Name>,
    /// What it may do.
    pub policy: Policy,
    /// What it may spend.
    pub ledger: Ledger,
    /// Its transcript.
    pub recorder: Recorder,
    /// Of a child: its place below its parent.
    pub family: Option<Family>,
    /// Answers of a model that was asked before.
    pub replay: Option<Playback>,
}

impl Household {
    /// Takes from all sandboxes of the run, at once, what `change` does not allow: connections that are open and not allowed any more
    /// are ended. Nothing becomes wider, whatever it says.
    pub fn narrow(&self, change: Policy) {
        self.change.send_replace(Some(Arc::new(change)));
    }

    /// A transcript for a sandbox called `name`, of those that are kept, which shows no secret.
    ///
    /// # Errors
    /// A secret that cannot be masked, a name that cannot be a file's, or the file cannot be made.
    pub fn transcript(&self, name: &str) -> Result<Recorder, Error> {
        let masker = Masker::new(self.secrets.values());
        let masker = masker.map_err(|error| Error::prepare("policy's secrets", Fault::User, error))?;
        let path = runs::new_path(name).map_err(|error| Error::prepare("run's transcript", Fault::Host, error))?;
        Recorder::create(&path, name, masker).map_err(unrecorded)
    }

    /// Puts a broker behind the doors of a sandbox, which makes children of it as far as its policy lets it.
    ///
    /// # Errors
    /// What [`attend`] says; TLS cannot be set up; another sandbox has its name; or the machine has more than its policy lets it have.
    pub async fn admit(self: &Arc<Self>, sandbox: &Arc<Sandbox>, member: Member) -> Result<Attended, Error> {
        let setting_up = |error: TlsError| Error::prepare("broker", Fault::Host, error);
        let Member { name, seat, policy, ledger, recorder, family, replay } = member;
        fits(sandbox.made().config(), policy.limits())?;
        super::guest::bound_processes(sandbox, policy.limits().processes).await?;
        let approver: Arc<dyn Approver> = match &family {
            Some(_) => Arc::new(ForChild { name: name.clone(), approver: Arc::clone(&self.approver) }),
            None => Arc::clone(&self.approver),
        };
        let seat = seat.filter(|_| !policy.peers().is_empty());
        let policy = watch::Sender::new(Arc::new(policy));
        let family = family.unwrap_or_else(|| Family::new(policy.subscribe()));
        // From here on what narrows its policy narrows how many children there may be below it.
        family.follow(policy.subscribe());
        let kin = Arc::new(Kin::new(self, sandbox, seat.clone()));
        let child = ChildDoor::new(&name, kin, policy.subscribe(), ledger.clone(), recorder.clone(), family);
        let peer = seat.map(|name| peers::door(&name, sandbox, policy.subscribe(), &recorder)).transpose()?;
        let certificates = Arc::new(Authority::new(&name).map_err(setting_up)?);
        let pem = certificates.pem().to_owned();
        let broker = Broker::new(Given {
            ask: AskDoor::new(approver, recorder.clone(), policy.subscribe()),
            told: ToldDoor::new(recorder.clone(), ledger.clone()),
            child: Some(child),
            peer,
            policy,
            ledger,
            recorder,
            secrets: self.secrets.clone(),
            authority: certificates,
            roots: midge_broker::tls::roots(&[]).map_err(setting_up)?,
            resolve: Arc::new(System),
            dial: Arc::new(System),
            replay,
        })
        .map_err(setting_up)?;
        attend(sandbox, broker, &pem, self.change.subscribe()).await
    }
}

/// Ends a sandbox that others may still have a hand on.
pub async fn end(sandbox: Arc<Sandbox>) {
    if let Some(sandbox) = Arc::into_inner(sandbox) {
        sandbox.kill().await;
    }
}

/// The directory in the guest where commands and tools work.
#[must_use]
pub fn cwd(sandbox: &Sandbox) -> &'static str {
    if sandbox.workspace().is_some() { WORKSPACE } else { HOME }
}

/// What a loop is told of its tools.
#[must_use]
pub fn tools(policy: &Policy) -> Tools {
    let rule = |action| match action {
        midge_policy::Action::Allow => Rule::Allow,
        midge_policy::Action::Ask => Rule::Ask,
        midge_policy::Action::Deny => Rule::Deny,
    };
    let tools = policy.tools();
    Tools {
        default: rule(tools.default),
        rules: tools.rules.iter().map(|(name, action)| (name.to_string(), rule(*action))).collect(),
        ask_commands: tools.ask_commands.iter().map(ToString::to_string).collect(),
    }
}

/// Puts a child's questions to whoever answers its run's, and says whose they are.
struct ForChild {
    name: String,
    approver: Arc<dyn Approver>,
}

impl Approver for ForChild {
    fn ask(&self, mut asking: Asking) -> Later<'_, Option<Verdict>> {
        asking.why = format!("child {}: {}", self.name, asking.why);
        self.approver.ask(asking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use midge_broker::ask::channel;
    use serde_json::json;

    #[tokio::test]
    async fn end_of_all_that_holds_a_life_is_waited_for() {
        let (life, over) = Life::new();
        let held = life.clone();
        let waiting = tokio::spawn(over.wait());
        drop(life);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "something is there");
        drop(held);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn questions_of_a_child_say_whose_they_are() {
        let (approver, mut questions) = channel();
        let child = ForChild { name: "run.2".into(), approver: Arc::new(approver) };
        let asking = Asking { question: 1, asked: json!({}), why: "a rule".into(), timeout: Duration::from_secs(1) };
        let answered = tokio::spawn(async move { child.ask(asking).await });
        let pending = questions.recv().await.unwrap();
        assert_eq!(pending.asking.why, "child run.2: a rule");
        pending.answer(Verdict::Allow);
        assert_eq!(answered.await.unwrap(), Some(Verdict::Allow));
    }

    #[test]
    fn transcripts_of_children_lie_beside_their_runs() {
        let recording = Recording { dir: "/runs".into(), run: "old".into(), differs: Arc::new(|_| ()) };
        assert_eq!(recording.of("new.1.3"), Some("/runs/old.1.3.jsonl".into()));
        assert_eq!(recording.of("new"), None);
    }
}
