// SPDX-License-Identifier: Apache-2.0
//! All tools of a run: which are offered, whether a call needs a question first, and the calls of one turn done in good order.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use globset::{Glob, GlobMatcher};
use midge_protocol::Door;
use midge_protocol::broker::{Asked, Mcp, Rule, Tools, Verdict};
use serde_json::Value;
use thiserror::Error;

use super::ask::Ask;
use super::edit::EditFile;
use super::fork::Fork;
use super::list::List;
use super::mcp::Server;
use super::peer::Peer;
use super::read::ReadFile;
use super::search::Search;
use super::shell::Shell;
use super::spool::{Output, Spool};
use super::todo::Todo;
use super::write::WriteFile;
use super::{Asker, Call, Cancel, Context, Outcome, Progress, Spec, Step, Tool};

/// Calls that are done at once, most; threads in number.
const PARALLEL_MAX: usize = 8;
/// The tool whose commands are held against `ask_commands`.
const SHELL: &str = "shell";

/// Where tools work, and what they may use.
pub struct Place {
    /// Where relative paths begin and the shell starts.
    pub cwd: PathBuf,
    /// A directory of ours for output that is too long for the model; made when it is not there.
    pub spool: PathBuf,
    /// Where the sockets of the doors are.
    pub doors: PathBuf,
    /// What the policy says of tools.
    pub tools: Tools,
    /// Servers to start.
    pub mcp: Vec<Mcp>,
    /// Sandboxes that messages may go to; without any the tool `peer` is not there.
    pub peers: Vec<String>,
    /// Who answers questions.
    pub asker: Arc<dyn Asker>,
}

/// Why there is no toolbox.
#[derive(Debug, Error)]
pub enum ToolboxError {
    /// Two servers of one name, whose tools nobody could tell apart.
    #[error("mcp: there are two servers called {0:?}; give each a name of its own")]
    Server(String),
    /// The process has no descriptor left.
    #[error("tools cannot be set up")]
    Io(#[from] std::io::Error),
    /// `ask_commands` of the policy.
    #[error("ask_commands: {glob:?} is not a glob")]
    Glob {
        /// What was given.
        glob: String,
        /// What is wrong with it.
        source: globset::Error,
    },
}

/// What the policy says of a call before it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// It is done.
    Allow,
    /// Somebody is asked, with this reason.
    Ask(String),
    /// It is not done, for this reason.
    Deny(String),
}

/// The tools of a run.
pub struct Toolbox {
    tools: Vec<Arc<dyn Tool>>,
    servers: Vec<Arc<Server>>,
    /// For what is asked of servers between calls; it is never set.
    never: Cancel,
    rules: Tools,
    ask_commands: Vec<GlobMatcher>,
    asker: Arc<dyn Asker>,
    /// Reasons that somebody has allowed for the rest of the run.
    allowed: Mutex<BTreeSet<(String, String)>>,
}

impl std::fmt::Debug for Toolbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toolbox").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Toolbox {
    /// The tools of the guest. Nothing is started yet.
    ///
    /// # Errors
    /// A glob of the policy that is none, two servers of one name, or a process without a free descriptor.
    pub fn new(place: Place) -> Result<Self, ToolboxError> {
        let spool = Spool::new(place.spool.clone());
        let cwd = || place.cwd.clone();
        let mut tools: Vec<Arc<dyn Tool>> = vec![
            Arc::new(Shell::new(cwd(), place.spool.clone(), spool.clone())),
            Arc::new(Output(spool.clone())),
            Arc::new(ReadFile { cwd: cwd() }),
            Arc::new(WriteFile { cwd: cwd() }),
            Arc::new(EditFile { cwd: cwd() }),
            Arc::new(List { cwd: cwd() }),
            Arc::new(Search { cwd: cwd() }),
            Arc::new(Todo),
            Arc::new(Ask(place.asker.clone())),
            Arc::new(Fork { cwd: cwd(), door: place.doors.join(Door::Child.name()), spool: spool.clone() }),
        ];
        if !place.peers.is_empty() {
            let door = place.doors.join(Door::Peer.name());
            tools.push(Arc::new(Peer { door, peers: place.peers, spool: spool.clone() }));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = place.mcp.iter().find(|mcp| !names.insert(&mcp.name)) {
            return Err(ToolboxError::Server(twice.name.clone()));
        }
        let servers = place.mcp.iter().map(|mcp| Server::new(mcp.clone(), cwd(), spool.clone())).collect();
        Self::of(tools, servers, place.tools, place.asker)
    }

    /// A toolbox of just these.
    fn of(
        tools: Vec<Arc<dyn Tool>>,
        servers: Vec<Arc<Server>>,
        rules: Tools,
        asker: Arc<dyn Asker>,
    ) -> Result<Self, ToolboxError> {
        let glob = |glob: &String| match Glob::new(glob) {
            Ok(parsed) => Ok(parsed.compile_matcher()),
            Err(source) => Err(ToolboxError::Glob { glob: glob.clone(), source }),
        };
        let ask_commands = rules.ask_commands.iter().map(glob).collect::<Result<_, _>>()?;
        let never = Cancel::new()?;
        Ok(Self { tools, servers, never, rules, ask_commands, asker, allowed: Mutex::default() })
    }

    /// Starts the servers of the run, all at once, and waits until each has listed its tools or failed. What could not be started,
    /// one line each, for the model and for whoever watches; the run goes on without it.
    #[must_use]
    pub fn start(&self, cancel: &Cancel) -> Vec<String> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.servers.iter().map(|server| scope.spawn(|| server.start(cancel))).collect();
            let ends = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a server's start failed".into())));
            ends.flat_map(|end| end.unwrap_or_else(|why| vec![why])).collect()
        })
    }

    /// What the model is offered now. Servers may add and remove tools while they run: ask before each turn.
    #[must_use]
    pub fn specs(&self) -> Vec<Spec> {
        let specs = self.all().into_iter().map(|tool| tool.spec());
        specs.filter(|spec| self.rule(&spec.name) != Rule::Deny).collect()
    }

    /// What the policy says of this call.
    #[must_use]
    pub fn ruling(&self, name: &str, input: &Value) -> Ruling {
        match self.rule(name) {
            Rule::Deny => return Ruling::Deny(format!("the policy denies the tool `{name}`")),
            Rule::Ask => return self.unless_allowed(name, format!("the policy asks before each `{name}`")),
            Rule::Allow => {}
        }
        let command = input["command"].as_str().filter(|_| name == SHELL).unwrap_or_default();
        let matches = |glob: &&GlobMatcher| parts(command).any(|part| glob.is_match(part));
        match self.ask_commands.iter().find(matches) {
            Some(glob) => self.unless_allowed(name, format!("the command matches `{}` of ask_commands", glob.glob())),
            None => Ruling::Allow,
        }
    }

    /// Does the calls of one turn: runs of calls that only read at once, all others one after the other, in the model's order. The
    /// outcomes come in that order too, one for each call, whatever happened.
    #[must_use]
    pub fn call_all(&self, calls: &[Call], cancel: &Cancel, progress: Progress<'_>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(calls.len());
        while let Some(first) = calls.get(outcomes.len()) {
            let rest = &calls[outcomes.len()..];
            let reading = rest.iter().take(PARALLEL_MAX).take_while(|call| self.reads_only(&call.name)).count();
            if reading > 1 {
                outcomes.extend(self.at_once(&rest[..reading], cancel, progress));
            } else {
                outcomes.push(self.call(first, cancel, progress));
            }
        }
        outcomes
    }

    fn at_once(&self, calls: &[Call], cancel: &Cancel, progress: Progress<'_>) -> Vec<Outcome> {
        std::thread::scope(|scope| {
            let begin = |call| {
                let thread = std::thread::Builder::new().name("tool".into());
                (call, thread.spawn_scoped(scope, move || self.call(call, cancel, progress)))
            };
            let threads: Vec<_> = calls.iter().map(begin).collect();
            let ends = threads.into_iter().map(|(call, thread)| match thread {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|_| Outcome::failed("the tool failed for a reason of its own"))
                }
                Err(_) => self.call(call, cancel, progress),
            });
            ends.collect()
        })
    }

    /// Does one call, after whatever question it needs.
    fn call(&self, call: &Call, cancel: &Cancel, progress: Progress<'_>) -> Outcome {
        let context = Context { call_id: &call.id, cancel, progress };
        let outcome = match self.admitted(call, &context) {
            _ if cancel.is_cancelled() => Outcome::cancelled("the run was cancelled before this call began"),
            Ok((tool, input)) => {
                context.tell(Step::Began(&input));
                tool.call(input, &context)
            }
            Err(outcome) => outcome,
        };
        context.tell(Step::Ended(&outcome));
        outcome
    }

    /// The tool and the input that it is called with, or why it is not called.
    fn admitted(&self, call: &Call, context: &Context<'_>) -> Result<(Arc<dyn Tool>, Value), Outcome> {
        let tool = self.find(&call.name).ok_or_else(|| self.unknown(&call.name))?;
        let why = match self.ruling(&call.name, &call.input) {
            Ruling::Allow => return Ok((tool, call.input.clone())),
            Ruling::Deny(why) => return Err(Outcome::denied(format!("not done: {why}"))),
            Ruling::Ask(why) => why,
        };
        let asked = Asked::Tool { name: call.name.clone(), input: call.input.clone(), why: why.clone() };
        match self.asker.ask(&asked, context.cancel) {
            Ok(Verdict::Allow) => Ok((tool, call.input.clone())),
            Ok(Verdict::AllowForRun) => {
                self.allowed.lock().unwrap_or_else(PoisonError::into_inner).insert((call.name.clone(), why));
                Ok((tool, call.input.clone()))
            }
            Ok(Verdict::Edited { input }) => Ok((tool, input)),
            Ok(Verdict::Deny { why }) => Err(Outcome::denied(format!("not done: denied: {why}"))),
            Ok(Verdict::Text { text }) => Err(Outcome::denied(format!("not done; the answer was: {text}"))),
            Err(_) if context.cancel.is_cancelled() => Err(Outcome::cancelled("the run was cancelled")),
            Err(why) => Err(Outcome::denied(format!("not done: nobody could be asked: {why}"))),
        }
    }

    fn unknown(&self, name: &str) -> Outcome {
        let names: Vec<String> = self.specs().into_iter().map(|spec| spec.name).collect();
        Outcome::failed(format!("there is no tool {name:?}; there are: {}", names.join(", ")))
    }

    fn all(&self) -> Vec<Arc<dyn Tool>> {
        let served = self.servers.iter().flat_map(|server| server.tools(&self.never));
        self.tools.iter().cloned().chain(served).collect()
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Tool>> {
        self.all().into_iter().find(|tool| tool.spec().name == name)
    }

    fn reads_only(&self, name: &str) -> bool {
        self.find(name).is_some_and(|tool| tool.reads_only())
    }

    fn rule(&self, name: &str) -> Rule {
        self.rules.rules.get(name).copied().unwrap_or(self.rules.default)
    }

    fn unless_allowed(&self, name: &str, why: String) -> Ruling {
        let key = (name.to_owned(), why);
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if allowed.contains(&key) { Ruling::Allow } else { Ruling::Ask(key.1) }
    }
}

/// A command, and the simple ones that it is made of as far as a look without parsing can tell. For questions, never for protection.
fn parts(command: &str) -> impl Iterator<Item = &str> {
    let split = command.split(['\n', ';', '|', '&', '(', ')', '{', '}', '`']);
    std::iter::once(command).chain(split).map(str::trim).filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests;
