// SPDX-License-Identifier: Apache-2.0
//! One run of an agent from the first check to the last word; whoever drops it ends it.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use midge::agent::{self, Ended, Household, Life, Member, Recording, unrecorded};
use midge::error::{Error, Fault, chain};
use midge::monitor::events::printable;
use midge::progress::{Bar, Silent, Watch};
use midge::runs;
use midge::sandbox::{Sandbox, Where};
use midge::template::Template;
use midge::workspace::ApplyOptions;
use midge::workspace::review::{names, notes};
use midge_broker::ledger::Ledger;
use midge_broker::{Playback, Secrets, budgets};
use midge_policy::Policy;
use midge_protocol::broker::{Mcp, Run};
use midge_record::{Difference, Entry, Recorder, Replay, Started};
use serde_json::{Value, json};
use tokio::sync::watch::Sender;

use super::args::AgentArgs;
use super::authority::{Authority, read_secrets};
use super::{approve, change, progress};
use crate::cli::fail::say;
use crate::cli::run::args::Mode;
use crate::cli::run::report::Report;
use crate::cli::run::review::{Asked, review_aside, unapplied};
use crate::cli::run::signals::Target;

/// Longest task, in bytes.
const TASK_MAX_BYTES: u64 = 256 << 10;

pub(super) struct Session<'a> {
    pub(super) args: &'a AgentArgs,
    pub(super) target: &'a Target,
    /// Held by everything of the run, children too, to its end.
    pub(super) life: Life,
}

/// A run after its loop.
struct Finished {
    ended: Ended,
    ledger: Ledger,
}

fn difference_json(difference: &Difference) -> Value {
    let text = |text: &Option<String>| text.as_deref().map(printable);
    json!({"call": printable(&difference.id), "recorded": text(&difference.recorded), "now": text(&difference.now)})
}

impl Session<'_> {
    /// Does it all and gives the exit code.
    pub(super) async fn run(self, report: &mut Report) -> Result<u8, Error> {
        let replay = self.args.replay.as_deref().map(open_replay).transpose()?;
        let recorded = replay.as_ref().map(|(replay, _)| replay);
        let task = self.task(recorded)?;
        check_servers(&self.args.mcp)?;
        let authority = Authority::new(self.args, recorded)?;
        agent::check_name_is_free(self.args.name.as_ref(), &authority.policy)?;
        let secrets = read_secrets(&authority.policy, replay.is_none()).await?;
        let sandbox = Arc::new(self.sandbox(&authority.policy).await?);
        if let Some(workspace) = sandbox.workspace().filter(|_| !self.args.json) {
            notes(&workspace.manifest().notes).lines().for_each(say);
        }
        let run = self.turn(&sandbox, &authority, task);
        let differences = Arc::default();
        let household = self.household(&run, replay.as_ref(), &differences, secrets);
        let (args, began_with) = (self.args.clone(), authority.clone());
        let reread = move || began_with.again(&args);
        let _watched = change::watch(self.args.policy.as_deref(), reread, &household, self.args.json);
        let recorder = household.transcript(sandbox.id())?;
        report.put("run", sandbox.id().into());
        report.put("place", sandbox.place_name().into());
        report.put("transcript", recorder.path().display().to_string().into());
        let ended = self.agent(&sandbox, &authority, run, replay.map(|(replay, _)| replay), household, &recorder).await;
        self.target.set(None);
        let code = match &ended {
            Ok(finished) => finished.ended.how.exit_code(),
            Err(_) => crate::cli::MIDGE_FAILED,
        };
        let reviewed = match &ended {
            Ok(_) => self.bring_back(&sandbox, &authority.policy, &recorder, report).await,
            Err(_) => Ok(()),
        };
        agent::end(sandbox).await;
        let differences = std::mem::take(&mut *differences.lock().unwrap_or_else(PoisonError::into_inner));
        self.close(&recorder, &ended?, &differences, code, report)?;
        reviewed.map(|()| code)
    }

    fn task(&self, replay: Option<&Replay>) -> Result<String, Error> {
        let recorded = replay.and_then(Replay::started).map(|started| started.task.clone());
        let text = match (&self.args.task, &self.args.task_file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => read_task(file)?,
            (None, None) => recorded.unwrap_or_default(),
        };
        if text.trim().is_empty() {
            let accepted = "words that say what is to be done (--task, --task-file)".to_owned();
            return Err(Error::Setting { what: "the task", value: "empty".to_owned(), accepted });
        }
        Ok(text)
    }

    /// The machine that the policy describes.
    async fn sandbox(&self, policy: &Policy) -> Result<Sandbox, Error> {
        let place = Where::Auto.allowing(self.args.allow_missing.clone());
        if let Some(name) = &self.args.template {
            return Template::open(name)?.start(place, policy.children().allowed).await;
        }
        let limits = policy.limits();
        let watch: Arc<dyn Watch> = if self.args.json { Arc::new(Silent) } else { Arc::new(Bar::new()) };
        let mut builder = Sandbox::builder().place(place).watch(watch);
        builder = builder.mem_mib(limits.memory_mib).cpus(limits.vcpus).disk_mib(limits.disk_mib);
        if policy.children().allowed {
            builder = builder.forkable();
        }
        if let Some(image) = &self.args.image {
            builder = builder.image(image);
        }
        if let Some(dir) = self.args.workspace.as_ref().and_then(|workspace| workspace.dir.as_ref()) {
            builder = builder.workspace(dir);
        }
        builder.start().await
    }

    /// What the loop is told.
    fn turn(&self, sandbox: &Sandbox, authority: &Authority, task: String) -> Run {
        Run {
            task,
            instructions: String::new(),
            wire: authority.wire,
            model: authority.model.clone(),
            base_url: agent::BASE_URL.to_owned(),
            max_output_tokens: self.args.max_output_tokens,
            context_tokens: self.args.context_tokens,
            cwd: agent::cwd(sandbox).to_owned(),
            tools: agent::tools(&authority.policy),
            mcp: self.args.mcp.clone(),
            peers: agent::message_peers(&authority.policy, self.args.name.as_ref()),
            left: budgets(&authority.policy),
        }
    }

    /// What all sandboxes of the run have in common.
    fn household(
        &self,
        run: &Run,
        replay: Option<&(Replay, PathBuf)>,
        differences: &Arc<Mutex<Vec<Difference>>>,
        secrets: Secrets,
    ) -> Arc<Household> {
        let recording = |(replay, path): &(Replay, PathBuf)| Recording {
            dir: path.parent().unwrap_or(Path::new("")).to_owned(),
            run: replay.run().to_owned(),
            differs: Arc::new(told_to(differences)),
        };
        let quiet = self.args.json;
        Arc::new(Household {
            approver: approve::approver(self.args.approve, quiet),
            secrets,
            turn: Some(run.clone()),
            place: Where::Auto.allowing(self.args.allow_missing.clone()),
            replay: replay.map(recording),
            watch: Arc::new(move |name, recorder| {
                if !quiet {
                    progress::show_child(name, recorder);
                }
            }),
            life: self.life.clone(),
            change: Sender::default(),
        })
    }

    /// The broker and the loop, to the loop's end and that of all children.
    async fn agent(
        &self,
        sandbox: &Arc<Sandbox>,
        authority: &Authority,
        run: Run,
        replay: Option<Replay>,
        household: Arc<Household>,
        recorder: &Recorder,
    ) -> Result<Finished, Error> {
        let ledger = Ledger::new(&run.left);
        recorder.note(&Entry::Started(Box::new(self.started(authority, &run, replay.as_ref())))).map_err(unrecorded)?;
        let differs = household.replay.as_ref().map(|recording| Arc::clone(&recording.differs));
        let member = Member {
            name: sandbox.id().to_owned(),
            seat: self.args.name.clone(),
            policy: authority.policy.clone(),
            ledger: ledger.clone(),
            recorder: recorder.clone(),
            family: None,
            replay: replay.zip(differs).map(|(replay, differs)| Playback::new(replay, move |one| differs(one))),
        };
        let attended = household.admit(sandbox, member).await?;
        let shown = (!self.args.json).then(|| progress::show(recorder));
        let turning = agent::start(sandbox, &run, &ledger, recorder).await?;
        self.target.set(Some(turning.controls()));
        let ended = turning.ended().await;
        attended.end().await;
        if let Some(shown) = shown {
            shown.end().await;
        }
        Ok(Finished { ended: ended?, ledger })
    }

    fn started(&self, authority: &Authority, run: &Run, replay: Option<&Replay>) -> Started {
        let provider = authority.policy.model().map(|model| model.provider.name().to_owned());
        Started {
            task: run.task.clone(),
            policy: authority.policy.to_toml(),
            provider: provider.unwrap_or_default(),
            model: run.model.clone(),
            template: self.args.template.clone(),
            parent: None,
            replay_of: replay.map(|replay| replay.run().to_owned()),
            budget: run.left,
            versions: agent::versions(),
        }
    }

    /// Shows what changed in the workspace, and applies what is to be applied and the policy lets through.
    async fn bring_back(
        &self,
        sandbox: &Sandbox,
        policy: &Policy,
        recorder: &Recorder,
        report: &mut Report,
    ) -> Result<(), Error> {
        let Some(workspace) = sandbox.workspace() else { return Ok(()) };
        let wanted = self.args.workspace.as_ref().map_or(Mode::Review, |workspace| workspace.mode);
        // Without a policy the flag is the user's whole word.
        let mode = if self.args.policy.is_some() { wanted.at_most(policy.workspace().mode) } else { wanted };
        let mut changes = workspace.collect().await?;
        changes.keep(|path| policy.workspace().keeps(path.as_bytes()).is_some());
        let dir = workspace.dir().to_owned();
        let options = ApplyOptions {
            allow_git_internals: self.args.allow_git_internals,
            allow_outside_links: self.args.allow_outside_links,
            ..ApplyOptions::default()
        };
        let next = unapplied(wanted, mode, &format!("{}:apply", dir.display()));
        let asked = Asked { mode, options, next, quiet: self.args.json };
        let changed = names(&changes);
        let reviewed = review_aside(changes, dir, asked).await?;
        let entry = Entry::Changes { changed, applied: reviewed.applied.is_some() };
        recorder.note(&entry).map_err(unrecorded)?;
        report.put("changes", reviewed.changes);
        report.put("diff", reviewed.diff.into());
        report.put("applied", reviewed.applied.is_some().into());
        Ok(())
    }

    /// The last lines: of the transcript, and to the user.
    fn close(
        &self,
        recorder: &Recorder,
        finished: &Finished,
        differences: &[Difference],
        code: u8,
        report: &mut Report,
    ) -> Result<(), Error> {
        let Finished { ended, ledger } = finished;
        let (how, spent) = (agent::word_of(&ended.how), ledger.spent());
        let entry = Entry::Ended { how: how.clone(), exit_code: code, text: ended.text.clone(), spent };
        recorder.note(&entry).map_err(unrecorded)?;
        let root = recorder.finish().map_err(unrecorded)?;
        report.put("ended", how.as_str().into());
        report.put("text", printable(&ended.text).into());
        report.put("spent", json!(spent));
        report.put("root", root.to_string().into());
        if self.args.replay.is_some() {
            report.put("differences", differences.iter().map(difference_json).collect());
        }
        if !self.args.json {
            if self.args.replay.is_some() {
                progress::differences(differences);
            }
            progress::last_words(&how, &ended.text, &spent);
            say(&format!("recorded in {}; `midge log show {}`", recorder.path().display(), run_name(recorder.path())));
        }
        Ok(())
    }
}

/// Keeps differences of a replay until the run is over.
fn told_to(differences: &Arc<Mutex<Vec<Difference>>>) -> impl Fn(Difference) + Send + Sync + 'static {
    let differences = Arc::clone(differences);
    move |difference| differences.lock().unwrap_or_else(PoisonError::into_inner).push(difference)
}

fn run_name(path: &Path) -> String {
    path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The transcript that is to be played, and where it is.
fn open_replay(named: &str) -> Result<(Replay, PathBuf), Error> {
    let path =
        runs::find(Path::new(named)).map_err(|error| Error::prepare("transcript (--replay)", Fault::User, error))?;
    let failed = |error: &dyn std::error::Error| {
        Error::prepare("transcript (--replay)", Fault::User, format!("{}: {}", path.display(), chain(error)))
    };
    let file = File::open(&path).map_err(|error| failed(&error))?;
    let replay = Replay::read(BufReader::new(file)).map_err(|error| failed(&error))?;
    Ok((replay, path))
}

/// Refuses two servers whose tools would have the same names.
fn check_servers(servers: &[Mcp]) -> Result<(), Error> {
    let is_second = |at: &usize| servers[..*at].iter().any(|before| before.name == servers[*at].name);
    match (0..servers.len()).find(is_second) {
        None => Ok(()),
        Some(at) => {
            let accepted = "a name of its own for each server".to_owned();
            Err(Error::Setting { what: "--mcp", value: servers[at].name.clone(), accepted })
        }
    }
}

fn read_task(path: &Path) -> Result<String, Error> {
    let refused = |value: String| Error::Setting {
        what: "the task (--task-file)",
        value,
        accepted: format!("a file of UTF-8 text, at most {} KiB", TASK_MAX_BYTES >> 10),
    };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(TASK_MAX_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(len) if len as u64 > TASK_MAX_BYTES => Err(refused(format!("{}, which is longer", path.display()))),
        Ok(_) => Ok(text),
        Err(error) => Err(refused(format!("{}: {error}", path.display()))),
    }
}
