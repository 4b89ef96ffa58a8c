// SPDX-License-Identifier: Apache-2.0
//! The tool `fork`: a child sandbox through the door `child`, its result, and its changes when they are wanted. Whether there may be
//! one, with which policy and budget, is the host's to say.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use midge_protocol::broker::{Base, ChildEvent, ChildRequest, Keep, Left, Work};
use serde::Deserialize;
use serde_json::{Value, json};

use super::lines::{LineError, Lines};
use super::spool::Spool;
use super::{Context, Outcome, Spec, Step, Tool, input};

mod unpack;

/// Seconds that a child may take when the model does not say.
const TIMEOUT_DEFAULT_S: u64 = 3600;
/// Most seconds that it may ask for.
const TIMEOUT_MAX_S: u64 = 86_400;
/// Longest task or command, in bytes.
const WORK_MAX_BYTES: usize = 64 << 10;
/// Most bytes of an archive of changes.
const CHANGES_MAX_BYTES: u64 = 4 << 30;
/// Changed paths that are told, in number; the rest is counted.
const CHANGED_SHOWN: usize = 200;

/// The tool.
#[derive(Debug)]
pub(super) struct Fork {
    /// Where changes are put.
    pub(super) cwd: PathBuf,
    /// The socket of the door.
    pub(super) door: PathBuf,
    /// Keeps a result that is too long.
    pub(super) spool: Arc<Spool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default)]
    task: Option<String>,
    #[serde(default)]
    command: Option<String>,
    #[serde(default)]
    template: Option<String>,
    #[serde(default)]
    take: bool,
    #[serde(default)]
    timeout_s: Option<u64>,
    #[serde(default)]
    share: Option<Left>,
    #[serde(default)]
    policy: Option<String>,
}

impl Input {
    fn request(self) -> Result<ChildRequest, Outcome> {
        let refused = |why: &str| Err(Outcome::failed(format!("{why}; no child was made")));
        let (length, work) = match (self.task, self.command) {
            (Some(task), None) => (task.len(), Work::Task(task)),
            (None, Some(command)) => (command.len(), Work::Command(vec!["sh".into(), "-c".into(), command])),
            _ => return refused("give either `task` or `command`"),
        };
        if length == 0 || length > WORK_MAX_BYTES {
            return refused(&format!("`task` or `command` has {length} bytes, accepted are 1 to {WORK_MAX_BYTES}"));
        }
        let base = self.template.map_or(Base::Myself, Base::Template);
        Ok(ChildRequest { base, work, policy: self.policy, share: self.share })
    }
}

impl Tool for Fork {
    fn spec(&self) -> Spec {
        let amount = |unit: &str| json!({"type": "integer", "minimum": 0, "description": unit});
        let input_schema = json!({
            "type": "object",
            "properties": {
                "task": {"type": "string", "description": "what another agent is to do there, in words; or command"},
                "command": {"type": "string", "description": "what sh is to run there; or task"},
                "template": {"type": "string", "description": "a template's name; default a copy of this sandbox as it is now"},
                "take": {
                    "type": "boolean",
                    "description": "put its changes into the working directory if it exits with 0; default false, they are dropped",
                },
                "timeout_s": {
                    "type": "integer", "minimum": 1, "maximum": TIMEOUT_MAX_S,
                    "description": format!("seconds, default {TIMEOUT_DEFAULT_S}"),
                },
                "share": {
                    "type": "object",
                    "description": "what it may spend of what is left to you; default as the policy says",
                    "properties": {
                        "turns": amount("model calls"),
                        "tool_calls": amount("tool calls"),
                        "tokens": amount("tokens"),
                        "money_micros": amount("millionths of a US dollar"),
                        "wall_ms": amount("milliseconds"),
                        "egress_bytes": amount("bytes"),
                    },
                    "additionalProperties": false,
                },
                "policy": {
                    "type": "string",
                    "description": "what it may do, a policy as TOML that is no wider than yours; default yours, one level less deep",
                },
            },
            "additionalProperties": false,
        });
        let description = "Makes a child sandbox, a copy of this one with all of its files and none of its processes, and lets it \
                           work on a task or a command; waits for its end. Gives its exit code, its result, and the paths that it \
                           changed. Nothing here changes unless take. Good for what may break things and for trying one of several \
                           ways. The policy may refuse it.";
        Spec { name: "fork".into(), description: description.into(), input_schema }
    }

    fn call(&self, input: Value, context: &Context<'_>) -> Outcome {
        self.fork(input, context).unwrap_or_else(|outcome| outcome)
    }
}

/// How a child ended.
struct Ended {
    code: i32,
    text: String,
    changed: Vec<String>,
}

impl Fork {
    fn fork(&self, input: Value, context: &Context<'_>) -> Result<Outcome, Outcome> {
        let input: Input = input::parse(input)?;
        let seconds = input::within("timeout_s", input.timeout_s, TIMEOUT_DEFAULT_S, 1..=TIMEOUT_MAX_S, "seconds")?;
        let take = input.take;
        let request = input.request()?;
        let failed = |error: LineError| match error {
            LineError::Cancelled => Outcome::cancelled("cancelled; the child is given up"),
            LineError::TimedOut => Outcome::failed(format!("the child did not end within {seconds} s and is given up")),
            LineError::Shut(error) => Outcome::failed(format!("there are no child sandboxes here: {error}")),
            error => Outcome::failed(format!("the child's end is not known: {error}")),
        };
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut lines = Lines::open(&self.door, context.cancel, deadline).map_err(failed)?;
        lines.say(&request).map_err(failed)?;
        let ended = match follow(&mut lines, context).map_err(failed)? {
            Ok(ended) => ended,
            Err(why) => return Err(Outcome::denied(format!("there is no child: {}", input::shortened(&why)))),
        };
        let wanted = take && ended.code == 0 && !ended.changed.is_empty();
        lines.say(&if wanted { Keep::Take } else { Keep::Drop }).map_err(failed)?;
        let mut text = format!("{}\n[exit code {}]\n", ended.text.trim_end(), ended.code);
        text += &changes(&ended.changed);
        text += &match (wanted, take) {
            (true, _) => self.take(&mut lines, context),
            (false, true) if ended.code != 0 => "[its changes were dropped: it did not exit with 0]".into(),
            (false, _) if ended.changed.is_empty() => String::new(),
            (false, _) => "[its changes were dropped: take was not set]".into(),
        };
        Ok(self.spool.outcome(text.trim_end()))
    }

    /// Puts the child's changes into the working directory; what came of it.
    fn take(&self, lines: &mut Lines<'_>, context: &Context<'_>) -> String {
        let (tar_bytes, removed) = match lines.hear() {
            Ok(ChildEvent::Changes { tar_bytes, removed }) if tar_bytes <= CHANGES_MAX_BYTES => (tar_bytes, removed),
            Ok(ChildEvent::Changes { tar_bytes, .. }) => {
                return format!("[its changes were not taken: {tar_bytes} bytes, accepted are {CHANGES_MAX_BYTES}]");
            }
            Ok(ChildEvent::Refused { why }) => {
                return format!("[its changes were not taken: {}]", input::shortened(&why));
            }
            Ok(_) => return "[its changes were not taken: the host said something else]".into(),
            Err(error) => return format!("[its changes were not taken: {error}]"),
        };
        match unpack::unpack(&self.cwd, lines.take(tar_bytes), &removed, context.cancel) {
            Ok(taken) => {
                let mut text = format!("[taken: {} paths written, {} removed]", taken.written, taken.removed);
                for trouble in &taken.troubles {
                    text += &format!("\n[not taken: {trouble}]");
                }
                if taken.more_troubles > 0 {
                    text += &format!("\n[not taken: {} more]", taken.more_troubles);
                }
                text
            }
            Err(error) => format!("[its changes were taken only in part: {error}]"),
        }
    }
}

/// Follows a child to its end, or to the host's refusal.
fn follow(lines: &mut Lines<'_>, context: &Context<'_>) -> Result<Result<Ended, String>, LineError> {
    loop {
        match lines.hear()? {
            ChildEvent::Started { name } => context.tell(Step::Words(&format!("child {name} runs\n"))),
            ChildEvent::Output { text } => context.tell(Step::Words(&text)),
            ChildEvent::Ended { code, text, changed } => return Ok(Ok(Ended { code, text, changed })),
            ChildEvent::Refused { why } => return Ok(Err(why)),
            ChildEvent::Changes { .. } => return Err(LineError::Ended),
        }
    }
}

/// The changed paths, some or all.
fn changes(changed: &[String]) -> String {
    if changed.is_empty() {
        return "[it changed nothing]\n".into();
    }
    let shown: String = changed.iter().take(CHANGED_SHOWN).map(|path| super::files::shown(path) + "\n").collect();
    let more = changed.len().saturating_sub(CHANGED_SHOWN);
    let more = if more > 0 { format!("[and {more} more]\n") } else { String::new() };
    format!("[it changed {} paths]\n{shown}{more}", changed.len())
}

#[cfg(test)]
mod tests;
