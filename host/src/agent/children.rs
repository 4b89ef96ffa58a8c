// SPDX-License-Identifier: Apache-2.0
//! Children of a sandbox: siblings of it as machines, below it in everything else. What one may do and spend is in its
//! [`Order`], which the door `child` has proved to be no wider; here it is made, given doors of its own, and ended.
//!
//! A copy has all that its original had in memory, the loop that asked for it too. So before anything else is done with it every
//! process in it is ended; what is left are its files. What it changes is told against these.

mod work;

use std::io::{self, Seek as _};
use std::sync::{Arc, Weak};

use midge_broker::child::{Changes, Child, Children, Happened, Order};
use midge_broker::ledger::Ledger;
use midge_broker::{Later, Playback};
use midge_policy::{Limits, Name, Policy};
use midge_protocol::broker::{Base, Work};
use midge_record::{Entry, Recorder, Replay, Started};
use tokio::sync::mpsc;

use super::household::{Household, Member};
use super::{Attended, peers, unrecorded};
use crate::error::{Error, Fault, chain};
use crate::monitor::VmmConfig;
use crate::sandbox::Sandbox;
use crate::template::Template;
use crate::workspace::{Moment, Since};

/// Pieces of output that may wait for a parent that is slow.
const OUTPUT_WAITING: usize = 16;
/// What a child exits with for the faults of its host.
const HOST_FAILED: i32 = 125;
/// The most of a child's changes that is written down for its parent, in bytes of files.
const CHANGES_MAX_BYTES: u64 = 1 << 30;

/// Makes the children of one sandbox.
pub(super) struct Kin {
    household: Arc<Household>,
    parent: Weak<Sandbox>,
    /// What others call the parent.
    seat: Option<Name>,
}

impl Kin {
    pub(super) fn new(household: &Arc<Household>, parent: &Arc<Sandbox>, seat: Option<Name>) -> Self {
        Self { household: Arc::clone(household), parent: Arc::downgrade(parent), seat }
    }

    /// The machine, with nothing running in it that its own template does not run.
    async fn machine(&self, base: &Base, policy: &Policy) -> Result<Sandbox, Error> {
        match base {
            Base::Myself => {
                let parent = self.parent.upgrade();
                let parent = parent.ok_or_else(|| Error::prepare("child", Fault::User, "its parent is at its end"))?;
                fits(parent.made().config(), policy.limits())?;
                let mut forks = parent.fork(1).await?;
                drop(parent);
                let child = forks.sandboxes.pop().ok_or_else(|| Error::prepare("child", Fault::Midge, "no fork"))?;
                child.quiesce().await?;
                Ok(child)
            }
            Base::Template(name) => {
                let template = Template::open(name)?;
                fits(&template.record().config, policy.limits())?;
                template.start(self.household.place.clone(), policy.children().allowed).await
            }
        }
    }

    async fn begin(&self, order: Order) -> Result<Begun, Error> {
        let Order { name, policy, base, work, ledger, family } = order;
        let policy = policy.into_policy();
        let replay = self.playback(&name, &work)?;
        let sandbox = self.machine(&base, &policy).await?;
        let before = match sandbox.workspace() {
            Some(workspace) => workspace.collect().await?.moment(),
            None => Moment::default(),
        };
        let recorder = self.household.transcript(&name)?;
        let about = self.about(&name, &policy, &base, &work, &ledger);
        recorder.note(&Entry::Started(Box::new(about))).map_err(unrecorded)?;
        let transcript = Transcript { recorder: recorder.clone(), ledger: ledger.clone(), is_open: true };
        (self.household.watch)(&name, &recorder);
        let tools = super::tools(&policy);
        let seat = self.seat.as_ref().and_then(|parent| peers::of_child(parent, &name));
        let peers = peers::message_peers(&policy, seat.as_ref());
        let member = Member { name, seat, policy, ledger, recorder, family: Some(family), replay };
        let sandbox = Arc::new(sandbox);
        let attended = self.household.admit(&sandbox, member).await?;
        let turn = self.household.turn.clone().map(|run| midge_protocol::broker::Run { tools, peers, ..run });
        let (out, happens) = mpsc::channel(OUTPUT_WAITING);
        let household = Arc::clone(&self.household);
        let life = Living { sandbox, attended, transcript, before, _household: household };
        tokio::spawn(life.live(work, turn, out));
        Ok(Begun { happens, kept: None })
    }

    fn about(&self, name: &str, policy: &Policy, base: &Base, work: &Work, ledger: &Ledger) -> Started {
        let task = match work {
            Work::Task(task) => task.clone(),
            Work::Command(argv) => argv.join(" "),
        };
        let provider = policy.model().map(|model| model.provider.name().to_owned());
        Started {
            task,
            policy: policy.to_toml(),
            provider: provider.unwrap_or_default(),
            model: self.household.turn.as_ref().map_or_else(String::new, |run| run.model.clone()),
            template: match base {
                Base::Myself => None,
                Base::Template(name) => Some(name.clone()),
            },
            parent: name.rsplit_once('.').map(|(parent, _)| parent.to_owned()),
            replay_of: self.household.replay.as_ref().map(|recording| recording.run.clone()),
            budget: ledger.left(),
            versions: super::versions(),
        }
    }

    /// What a model answered a child in the run that is played again.
    fn playback(&self, name: &str, work: &Work) -> Result<Option<Playback>, Error> {
        let Some(recording) = self.household.replay.as_ref().filter(|_| matches!(work, Work::Task(_))) else {
            return Ok(None);
        };
        let failed = |why: String| Error::prepare("recorded answers of a child's model", Fault::User, why);
        let path = recording.of(name).ok_or_else(|| failed(format!("{name} is no child's name")))?;
        let there = |error: &dyn std::error::Error| failed(format!("{}: {}", path.display(), chain(error)));
        let file = std::fs::File::open(&path).map_err(|error| there(&error))?;
        let replay = Replay::read(io::BufReader::new(file)).map_err(|error| there(&error))?;
        let differs = Arc::clone(&recording.differs);
        Ok(Some(Playback::new(replay, move |difference| differs(difference))))
    }
}

impl Children for Kin {
    fn start(&self, order: Order) -> Later<'_, Result<Box<dyn Child>, String>> {
        Box::pin(async move {
            let begun = self.begin(order).await.map_err(|error| chain(&error))?;
            Ok(Box::new(begun) as Box<dyn Child>)
        })
    }
}

/// Refuses a machine that has more than its policy lets it have: a copy has what its original has.
pub(super) fn fits(machine: &VmmConfig, limits: &Limits) -> Result<(), Error> {
    let mut disk_mib = 0;
    for disk in machine.disks.iter().filter(|disk| disk.is_writable()) {
        let size = std::fs::metadata(&disk.path);
        disk_mib += size.map_err(|source| Error::Local { during: "looking at a machine's disk", source })?.len() >> 20;
    }
    let axes = [
        ("limits.disk_mib", disk_mib, limits.disk_mib),
        ("limits.vcpus", u64::from(machine.cpus), u64::from(limits.vcpus)),
        ("limits.memory_mib", machine.mem_mib, limits.memory_mib),
    ];
    match axes.into_iter().find(|(_, has, may)| has > may) {
        None => Ok(()),
        Some((axis, has, may)) => Err(Error::prepare(
            "machine within its policy",
            Fault::User,
            format!(
                "{axis} of the policy is {may}, and the machine has {has}; raise the limit, or name a template of a smaller \
                 machine"
            ),
        )),
    }
}

/// A child as its parent's door sees it.
struct Begun {
    happens: mpsc::Receiver<Next>,
    kept: Option<Kept>,
}

/// What a child's own task says.
enum Next {
    Output(String),
    Ended { code: i32, text: String, changed: Vec<String>, kept: Option<Kept> },
}

/// What is there after a child's end: its changes, and the machine, whose directory has their data.
struct Kept {
    since: Arc<Since>,
    _sandbox: Arc<Sandbox>,
    _household: Arc<Household>,
}

impl Child for Begun {
    fn next(&mut self) -> Later<'_, Happened> {
        Box::pin(async move {
            match self.happens.recv().await {
                Some(Next::Output(text)) => Happened::Output(text),
                Some(Next::Ended { code, text, changed, kept }) => {
                    self.kept = kept;
                    Happened::Ended { code, text, changed }
                }
                None => {
                    let text = "the child's end is not known: its host failed".to_owned();
                    Happened::Ended { code: HOST_FAILED, text, changed: Vec::new() }
                }
            }
        })
    }

    fn changes(&mut self) -> Later<'_, io::Result<Changes>> {
        Box::pin(async move {
            let Some(Kept { since, .. }) = &self.kept else {
                return Ok(Changes { tar: Box::new(tokio::io::empty()), tar_bytes: 0, removed: Vec::new() });
            };
            if since.data_bytes() > CHANGES_MAX_BYTES {
                let has = since.data_bytes();
                return Err(io::Error::other(format!(
                    "its files have {has} bytes, at most {CHANGES_MAX_BYTES} are handed over; take less"
                )));
            }
            let removed = since.removed();
            let since = Arc::clone(since);
            let written = tokio::task::spawn_blocking(move || written(&since)).await?;
            let (tar, tar_bytes) = written?;
            Ok(Changes { tar: Box::new(tokio::fs::File::from_std(tar)), tar_bytes, removed })
        })
    }
}

/// The changes as a tar without a name, in the directory that has their data.
fn written(since: &Since) -> io::Result<(std::fs::File, u64)> {
    let mut file = tempfile::tempfile_in(since.dir())?;
    since.write_tar(io::BufWriter::new(&file))?;
    let len = file.stream_position()?;
    file.rewind()?;
    Ok((file, len))
}

/// A child's transcript: whoever drops it before its end closes it.
struct Transcript {
    recorder: Recorder,
    ledger: Ledger,
    is_open: bool,
}

impl Transcript {
    fn close(&mut self, how: &str, code: i32, text: &str) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let exit_code = u8::try_from(code).unwrap_or(u8::MAX);
        let (how, text, spent) = (how.to_owned(), text.to_owned(), self.ledger.spent());
        // A failure latches: whoever asks the recorder next gets it, and here nobody is left to ask.
        let _ = self.recorder.note(&Entry::Ended { how, exit_code, text, spent });
        let _ = self.recorder.finish();
    }
}

impl Drop for Transcript {
    fn drop(&mut self) {
        self.close("cancelled", work::KILLED, "the child was ended before its own end");
    }
}

/// A child's life, in a task of its own that outlives nobody: it ends when its parent's door lets go of it.
struct Living {
    sandbox: Arc<Sandbox>,
    attended: Attended,
    transcript: Transcript,
    before: Moment,
    // Last: when nobody has it any more, everything of the run is gone.
    _household: Arc<Household>,
}

impl Living {
    async fn live(self, work: Work, turn: Option<midge_protocol::broker::Run>, out: mpsc::Sender<Next>) {
        let Self { sandbox, attended, mut transcript, before, _household: household } = self;
        let job =
            work::Job { sandbox: &sandbox, ledger: &transcript.ledger, recorder: &transcript.recorder, out: &out };
        let done = tokio::select! {
            done = job.done(work, turn) => Some(done),
            () = out.closed() => None,
        };
        attended.end().await;
        let Some((how, code, text)) = done else {
            drop(transcript);
            return super::end(sandbox).await;
        };
        let changed = tokio::select! {
            changed = changed(&sandbox, &before) => changed,
            () = out.closed() => {
                drop(transcript);
                return super::end(sandbox).await;
            }
        };
        let (text, kept) = match changed {
            Ok(since) => (text, since.map(Arc::new)),
            Err(error) => (format!("{text}\n[what it changed is not known: {}]", chain(&error)), None),
        };
        let changed = kept.as_ref().map_or_else(Vec::new, |since| since.names());
        if kept.is_some() {
            // A failure latches; see `close`.
            let _ = transcript.recorder.note(&Entry::Changes { changed: changed.clone(), applied: false });
        }
        transcript.close(&how, code, &text);
        let kept = kept.map(|since| Kept { since, _sandbox: sandbox, _household: household });
        // Nobody hears it whose parent left just now.
        let _ = out.send(Next::Ended { code, text, changed, kept }).await;
    }
}

/// What a child changed in its workspace, after all that ran in it is ended; `None` without a workspace.
async fn changed(sandbox: &Sandbox, before: &Moment) -> Result<Option<Since>, Error> {
    let Some(workspace) = sandbox.workspace() else { return Ok(None) };
    sandbox.quiesce().await?;
    Ok(Some(workspace.collect().await?.since(before)))
}

#[cfg(test)]
mod tests;
