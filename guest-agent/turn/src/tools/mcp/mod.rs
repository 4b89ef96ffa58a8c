// SPDX-License-Identifier: Apache-2.0
//! Servers of the Model Context Protocol, started in the guest, spoken to on their standard streams; each of their tools is a tool of
//! the run. A server is a program like any other here: what it says is text, and it is restarted once when it dies.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use midge_protocol::broker::Mcp;
use serde_json::{Value, json};

use super::spool::Spool;
use super::{Cancel, Context, Ending, Outcome, Spec, Step, Tool};
use connection::{Connection, NoAnswer};
use content::Listed;

mod connection;
mod content;
mod wire;

/// How long a server may take to start: some install themselves first.
const START_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to list its tools.
const LIST_WITHIN: Duration = Duration::from_secs(20);
/// How long a call may take.
const CALL_WITHIN: Duration = Duration::from_secs(600);
/// Most pages of its list, in number.
const PAGES_MAX: usize = 50;
/// Times that a dead server is started again, in number.
const RESTARTS_MAX: u32 = 1;

/// Servers of this process so far, so that each has a mark of its own.
static SERVERS: AtomicU64 = AtomicU64::new(0);

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
struct Patience {
    start: Duration,
    list: Duration,
    call: Duration,
}

/// One server of the run.
pub(super) struct Server {
    config: Mcp,
    cwd: PathBuf,
    spool: Arc<Spool>,
    patience: Patience,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    restarts: u32,
    tools: Vec<Listed>,
}

impl Server {
    /// A server that is not started yet, to be started in `cwd`.
    pub(super) fn new(config: Mcp, cwd: PathBuf, spool: Arc<Spool>) -> Arc<Self> {
        let patience = Patience { start: START_WITHIN, list: LIST_WITHIN, call: CALL_WITHIN };
        Arc::new(Self { config, cwd, spool, patience, state: Mutex::default() })
    }

    /// Starts it and takes its list of tools. What was left out of that.
    ///
    /// # Errors
    /// Why it is not there, in words for the model and for whoever watches.
    pub(super) fn start(&self, cancel: &Cancel) -> Result<Vec<String>, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.connect(&mut state, cancel)
    }

    fn connect(&self, state: &mut State, cancel: &Cancel) -> Result<Vec<String>, String> {
        let name = &self.config.name;
        let (program, arguments) =
            self.config.argv.split_first().ok_or_else(|| format!("server `{name}` names no program"))?;
        let mut command = Command::new(program);
        command.args(arguments).envs(&self.config.env).current_dir(&self.cwd);
        let mark = format!("mcp-{}-{}", std::process::id(), SERVERS.fetch_add(1, Ordering::Relaxed));
        let connection = Connection::start(mark, &mut command);
        let connection =
            connection.map_err(|error| format!("server `{name}` ({program}) could not be started: {error}"))?;
        let failed = |why: NoAnswer| {
            let words = if matches!(why, NoAnswer::Dead(_)) { String::new() } else { connection.last_words() };
            format!("server `{name}` did not begin: {}{words}", said(&why))
        };
        let answer =
            connection.ask("initialize", &wire::hello(), self.patience.start, cancel, &|_| {}).map_err(failed)?;
        wire::agreed(&answer).map_err(|why| format!("server `{name}` cannot be spoken to: {why}"))?;
        connection
            .tell("notifications/initialized")
            .map_err(|error| format!("server `{name}` did not begin: {error}"))?;
        let has_tools = !answer["capabilities"]["tools"].is_null();
        let (tools, troubles) = if has_tools { self.list(&connection, cancel)? } else { Default::default() };
        state.tools = tools;
        state.connection = Some(Arc::new(connection));
        Ok(troubles)
    }

    fn list(&self, connection: &Connection, cancel: &Cancel) -> Result<(Vec<Listed>, Vec<String>), String> {
        let name = &self.config.name;
        let (mut tools, mut troubles) = (Vec::new(), Vec::new());
        let mut params = json!({});
        for _ in 0..PAGES_MAX {
            let page = connection.ask("tools/list", &params, self.patience.list, cancel, &|_| {});
            let page = page.map_err(|why| format!("server `{name}` does not list its tools: {}", said(&why)))?;
            content::add_page(name, &page, &mut tools, &mut troubles);
            match page["nextCursor"].as_str() {
                Some(cursor) => params = json!({"cursor": cursor}),
                None => return Ok((tools, troubles)),
            }
        }
        troubles.push(format!("server `{name}` has more than {PAGES_MAX} pages of tools; the rest is left out"));
        Ok((tools, troubles))
    }

    /// Its tools; listed anew when it has said that they changed.
    pub(super) fn tools(self: &Arc<Self>, cancel: &Cancel) -> Vec<Arc<dyn Tool>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = state.connection.clone().filter(|connection| connection.take_tools_changed());
        if let Some(connection) = changed
            && let Ok((tools, _)) = self.list(&connection, cancel)
        {
            state.tools = tools;
        }
        let tool =
            |listed: &Listed| Arc::new(McpTool { server: self.clone(), listed: listed.clone() }) as Arc<dyn Tool>;
        state.tools.iter().map(tool).collect()
    }

    /// Its connection, and what the model is told of it: it is started once more when it has died.
    fn connected(&self, cancel: &Cancel) -> Result<(Arc<Connection>, Option<String>), String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = state.connection.clone().filter(|connection| connection.is_alive()) {
            return Ok((connection, None));
        }
        let name = &self.config.name;
        if state.restarts == RESTARTS_MAX {
            return Err(format!("server `{name}` has died and was restarted already; its tools are gone"));
        }
        state.restarts += 1;
        state.connection = None;
        self.connect(&mut state, cancel)?;
        let connection = state.connection.clone().ok_or_else(|| format!("server `{name}` is not there"))?;
        Ok((connection, Some(format!("[server `{name}` had died and was restarted; what it knew is lost]\n"))))
    }

    fn call(&self, tool: &str, input: Value, context: &Context<'_>) -> Outcome {
        let arguments = if input.is_null() { json!({}) } else { input };
        if !arguments.is_object() {
            return Outcome::failed(
                "the input is refused: it must be a JSON object of the tool's fields; nothing was done",
            );
        }
        let (connection, note) = match self.connected(context.cancel) {
            Ok(connected) => connected,
            Err(why) => return Outcome::failed(why),
        };
        let params = json!({"name": tool, "arguments": arguments});
        let words = |words: &str| context.tell(Step::Words(&format!("{words}\n")));
        let answer = connection.ask("tools/call", &params, self.patience.call, context.cancel, &words);
        let outcome = match answer {
            Ok(result) => {
                let (text, is_error) = content::flattened(&result);
                let outcome = self.spool.outcome(&text);
                if is_error { Outcome { ending: Ending::Failed, ..outcome } } else { outcome }
            }
            Err(NoAnswer::Cancelled) => {
                Outcome::cancelled("cancelled; the server was told, it may have done something already")
            }
            Err(why) => Outcome::failed(format!("server `{}`: {}", self.config.name, said(&why))),
        };
        Outcome { text: note.unwrap_or_default() + &outcome.text, ..outcome }
    }
}

/// One tool of a server.
struct McpTool {
    server: Arc<Server>,
    listed: Listed,
}

impl Tool for McpTool {
    fn spec(&self) -> Spec {
        self.listed.spec.clone()
    }

    fn reads_only(&self) -> bool {
        self.listed.reads_only
    }

    fn call(&self, input: Value, context: &Context<'_>) -> Outcome {
        self.server.call(&self.listed.name, input, context)
    }
}

/// Why there is no answer, for the model.
fn said(why: &NoAnswer) -> String {
    match why {
        NoAnswer::Refused(text) | NoAnswer::Dead(text) => text.clone(),
        NoAnswer::TimedOut => "no answer in time; the request was cancelled".into(),
        NoAnswer::Cancelled => "cancelled".into(),
    }
}

#[cfg(test)]
mod tests;
