// SPDX-License-Identifier: Apache-2.0
//! The tool `shell`: commands in one session, each with a time-out after which it and all that it started are ended. Nothing here
//! judges a command.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::spool::Spool;
use super::tree::{self, Tree};
use super::{Context, Ending, OUTCOME_MAX_BYTES, Outcome, Spec, Step, Tool, input};
use capture::Capture;
use session::{Ended, Flavour, Session};

mod capture;
mod session;

/// Seconds that a command may take when the model does not say.
const TIMEOUT_DEFAULT_S: u64 = 120;
/// Most seconds that it may ask for.
const TIMEOUT_MAX_S: u64 = 3600;
/// Longest command, in bytes.
const COMMAND_MAX_BYTES: usize = 1 << 20;
/// Between two looks at what a running command has printed, for whoever watches.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Shells of this process so far, so that each has a mark of its own.
static SHELLS: AtomicU64 = AtomicU64::new(0);

/// The tool.
#[derive(Debug)]
pub(super) struct Shell {
    flavour: Flavour,
    cwd: PathBuf,
    dir: PathBuf,
    tree: Tree,
    /// One command at a time.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    spool: Arc<Spool>,
    capture: Option<Capture>,
    session: Option<Session>,
    /// Where the model knows the session to be.
    told_cwd: Option<PathBuf>,
    commands: u64,
    /// What the model is told with the next outcome.
    notes: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    command: String,
    #[serde(default)]
    timeout_s: Option<u64>,
    #[serde(default)]
    restart: bool,
}

impl Shell {
    /// A shell that starts in `cwd` at its first command. Its own files are in `dir`.
    pub(super) fn new(cwd: PathBuf, dir: PathBuf, spool: Arc<Spool>) -> Self {
        Self::of(Flavour::found(), cwd, dir, spool)
    }

    fn of(flavour: Flavour, cwd: PathBuf, dir: PathBuf, spool: Arc<Spool>) -> Self {
        let mark = format!("shell-{}-{}", std::process::id(), SHELLS.fetch_add(1, Ordering::Relaxed));
        let inner = Inner { spool, capture: None, session: None, told_cwd: None, commands: 0, notes: Vec::new() };
        Self { flavour, cwd, dir, tree: Tree::new(mark), inner: Mutex::new(inner) }
    }

    fn run(&self, input: &Input, timeout: Duration, context: &Context<'_>) -> io::Result<Outcome> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if input.restart {
            self.restart(&mut inner);
        }
        self.ready(&mut inner)?;
        let Inner { session, capture, commands, .. } = &mut *inner;
        let (Some(shell), Some(capture)) = (session.as_mut(), capture.as_ref()) else {
            return Err(io::Error::other("there is no session"));
        };
        *commands += 1;
        let number = *commands;
        let before = self.tree.living(shell.child());
        capture.begin();
        shell.begin(number, &input.command)?;
        let ended = follow(shell, capture, number, timeout, context)?;
        let mut outcome = self.close(&mut inner, ended, timeout, &before)?;
        let Inner { session, capture, .. } = &mut *inner;
        let printed = capture.as_ref().map(Capture::end);
        // A session that was just renewed is still on its way to where the one before it was.
        let settled = session.as_ref().filter(|_| matches!(ended, Ended::Code(_)));
        let cwd = settled.and_then(Session::cwd);
        if cwd.is_some() && cwd != inner.told_cwd {
            inner.notes.push(format!("[working directory: {}]", cwd.clone().unwrap_or_default().display()));
            inner.told_cwd = cwd;
        }
        let mut text = String::new();
        if let Some(printed) = printed {
            outcome.elided_bytes = printed.elided_bytes;
            text = printed.text;
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &outcome.text;
        for note in inner.notes.drain(..) {
            text = text + "\n" + &note;
        }
        tree::reap_orphans();
        Ok(Outcome { text: super::clip::tail(&text, OUTCOME_MAX_BYTES).to_owned(), ..outcome })
    }

    /// A session that lives, started where there is none.
    fn ready(&self, inner: &mut Inner) -> io::Result<()> {
        if inner.capture.is_none() {
            inner.capture = Some(Capture::new(inner.spool.clone())?);
        }
        let ended = match &mut inner.session {
            None => true,
            Some(session) => session.has_ended()?,
        };
        if ended {
            if let Some(dead) = inner.session.take() {
                dead.wait()?;
                inner.notes.push(self.renewed("it was found ended"));
            }
            let Some(capture) = &inner.capture else { return Ok(()) };
            let cwd = if self.cwd.is_dir() { self.cwd.clone() } else { PathBuf::from("/") };
            inner.session = Some(Session::start(self.flavour, &self.tree, &cwd, &self.dir, capture.writer()?)?);
            inner.told_cwd.get_or_insert(cwd);
        }
        Ok(())
    }

    /// Ends the session and everything in it, with what it knew.
    fn restart(&self, inner: &mut Inner) {
        self.tree.end(inner.session.as_ref().map(Session::child), &BTreeSet::new());
        if let Some(session) = inner.session.take() {
            session.forget_state();
            // It has been killed: whatever it says, it is gone.
            let _ = session.wait();
        }
        inner.told_cwd = None;
        inner.notes.push("[a new session was started; nothing of the one before is left]".into());
    }

    /// What the model is told of a command's end, after what that end needs.
    fn close(
        &self,
        inner: &mut Inner,
        ended: Ended,
        timeout: Duration,
        before: &BTreeSet<tree::Known>,
    ) -> io::Result<Outcome> {
        if let Ended::Code(code) = ended {
            return Ok(Outcome::done(format!("[exit code {code}]")));
        }
        let session = inner.session.take();
        let living = match ended {
            Ended::Session(_) => 0,
            _ => self.tree.end(session.as_ref().map(Session::child), before),
        };
        if let Some(session) = session {
            // Killed or ended: it is waited for so that it is gone.
            let _ = session.wait();
        }
        let mut outcome = match ended {
            Ended::Session(status) => {
                inner.notes.push(self.renewed("the command ended it (exit, exec, or a failure under set -e)"));
                Outcome::done(status.map_or("[exit code unknown]".into(), exit_text))
            }
            Ended::Cancelled => Outcome::cancelled("[cancelled; the command and all that it started were ended]"),
            Ended::NotYet | Ended::Code(_) => Outcome::failed(format!(
                "[timed out after {} s; the command and all that it started were ended. Ask for a longer timeout_s, or start it in \
                 the background with its output in a file]",
                timeout.as_secs()
            )),
        };
        if outcome.ending != Ending::Done {
            inner.notes.push(self.renewed("it was ended with the command"));
        }
        if living > 0 {
            outcome.text += &format!("\n[{living} processes could not be ended]");
        }
        self.ready(inner)?;
        Ok(outcome)
    }

    /// What a new session keeps of the one before.
    fn renewed(&self, why: &str) -> String {
        let kept = match self.flavour {
            Flavour::Bash => "working directory, exported variables, functions and aliases",
            Flavour::Posix => "working directory and exported variables",
        };
        format!(
            "[new shell session: {why}. Kept: {kept}, and background jobs that earlier calls began; other shell variables are lost]"
        )
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        let session = inner.session.take();
        if session.is_some() {
            self.tree.end(session.as_ref().map(Session::child), &BTreeSet::new());
        }
        // It has been killed: whatever it says, it is gone.
        let _ = session.map(Session::wait);
    }
}

impl Tool for Shell {
    fn spec(&self) -> Spec {
        let description = format!(
            "Runs a command in a {} session that lives on between calls: working directory, variables, functions and background jobs \
             (&) stay. Standard input is empty and there is no terminal. Gives standard output and error as they came, then the exit \
             code. At most {} KiB are shown: the beginning and the end, the rest is read with the tool output. After timeout_s the \
             command and all that it started are killed. set -e, -u, -v and -x end with the call.",
            self.flavour.name(),
            OUTCOME_MAX_BYTES >> 10,
        );
        let timeout = format!("seconds, default {TIMEOUT_DEFAULT_S}, at most {TIMEOUT_MAX_S}");
        let input_schema = json!({
            "type": "object",
            "properties": {
                "command": {"type": "string", "description": format!("at most {} KiB", COMMAND_MAX_BYTES >> 10)},
                "timeout_s": {"type": "integer", "minimum": 1, "maximum": TIMEOUT_MAX_S, "description": timeout},
                "restart": {"type": "boolean", "description": "first end the session with all its jobs and start afresh; default false"},
            },
            "required": ["command"],
            "additionalProperties": false,
        });
        Spec { name: "shell".into(), description, input_schema }
    }

    fn call(&self, input: Value, context: &Context<'_>) -> Outcome {
        let input: Input = match input::parse(input) {
            Ok(input) => input,
            Err(outcome) => return outcome,
        };
        let timeout = match input::within("timeout_s", input.timeout_s, TIMEOUT_DEFAULT_S, 1..=TIMEOUT_MAX_S, "seconds")
        {
            Ok(timeout) => Duration::from_secs(timeout),
            Err(outcome) => return outcome,
        };
        if input.command.len() > COMMAND_MAX_BYTES {
            let length = input.command.len();
            return Outcome::failed(format!(
                "`command` has {length} bytes, accepted are {COMMAND_MAX_BYTES}; write a file first"
            ));
        }
        if let Some(at) = input.command.find('\0') {
            return Outcome::failed(format!(
                "`command` holds a NUL byte at {at}, which no shell takes; nothing was done"
            ));
        }
        self.run(&input, timeout, context).unwrap_or_else(|error| {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            self.restart(&mut inner);
            Outcome::failed(format!("the {} session could not be used: {error}", self.flavour.name()))
        })
    }
}

/// Follows a command to its end, telling whoever watches what it prints.
fn follow(
    shell: &mut Session,
    capture: &Capture,
    number: u64,
    timeout: Duration,
    context: &Context<'_>,
) -> io::Result<Ended> {
    let deadline = Instant::now() + timeout;
    let mut known_bytes = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = shell.look(number, left.min(LOOK_EVERY), context.cancel)?;
        if let Some((words, bytes)) = capture.news(known_bytes) {
            known_bytes = bytes;
            context.tell(Step::Words(&words));
        }
        if ended != Ended::NotYet || left.is_zero() {
            return Ok(ended);
        }
    }
}

/// How a shell ended, for the model.
fn exit_text(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("[exit code {code}]"),
        (None, Some(signal)) => format!("[the shell was killed by signal {signal}]"),
        (None, None) => "[exit code unknown]".into(),
    }
}

#[cfg(test)]
mod tests;
