// SPDX-License-Identifier: Apache-2.0
//! The turn machine: what has happened goes in, what is to be done comes out. No I/O and no clock: the time is a part of each event.
//!
//! ```text
//!  Started ─► calling ──answer with calls──► acting ──results──► calling …
//!               │  ▲                                              answer without calls ─► ended (done)
//!        failure│  │tick
//!               ▼  │
//!             waiting ──too often─► ended (failed)         cancel, budget, lost record, from anywhere ─► ended
//! ```
//! What holds at any time: each call of the model has exactly one result in the next request; a number stands on each request and
//! each round of tools, and what comes late for another is passed over; after the end nothing happens.

use midge_protocol::broker::{End, Left, Run, Told, Wire};
use serde_json::Value;

use crate::context::{self, Meter};
use crate::prompt;
use crate::talk::{Answer, Failure, Piece, Turn};
use crate::tools::{Call, Outcome, PEER, Spec};
use crate::wire::{self, Quirks, Request};

mod answer;
mod retry;
mod window;

/// Longest silence of a model, in milliseconds: local servers read a long prompt for minutes before the first word.
pub const SILENCE_MAX_MS: u64 = 10 * 60 * 1000;
/// Longest answer, in milliseconds.
pub const ANSWER_MAX_MS: u64 = 60 * 60 * 1000;
/// Longest round of tools, in milliseconds. Tools have limits of their own; this is for those that do not keep them.
pub const TOOLS_MAX_MS: u64 = 2 * 60 * 60 * 1000;
/// How long tools have to end when they are told to, in milliseconds.
pub const TOOLS_GRACE_MS: u64 = 10 * 1000;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The tools are ready, and what went wrong on the way, for the model.
    Started(Vec<Spec>, Vec<String>),
    /// A piece of the answer to this request.
    Piece(u64, Piece),
    /// The whole answer to this request.
    Answered(u64, Answer),
    /// No answer to this request.
    Failed(u64, Failure),
    /// This round of tools is over: one outcome a call in their order, and the tools that there are now.
    ToolsEnded(u64, Vec<Outcome>, Vec<Spec>),
    /// What the host says is left.
    Left(Left),
    /// The transcript cannot be written.
    RecordLost(String),
    /// Time has passed.
    Tick,
    /// Somebody ends the run.
    Cancel,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask the model.
    Call {
        /// Comes back with what belongs to it.
        number: u64,
        /// The body of the request.
        body: Value,
    },
    /// The request in flight is not wanted any more.
    DropCall,
    /// Call these, those at once that may be.
    Tools {
        /// Comes back with the outcomes.
        number: u64,
        /// In the model's order.
        calls: Vec<Call>,
    },
    /// The calls that go on are to end early.
    DropTools,
    /// Say this to the record.
    Note(Told),
    /// The run is over; the last effect.
    End(End),
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    /// Nothing has happened yet.
    New,
    /// A request is in flight.
    Calling { since_ms: u64, heard_ms: u64 },
    /// The next request is made at this time.
    Waiting { until_ms: u64 },
    /// Tools work; when they were told to end.
    Acting { since_ms: u64, dropped_ms: Option<u64> },
    /// Over.
    Ended,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The task.
    Work,
    /// A summary of the conversation.
    Summary,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    wire: Wire,
    model: String,
    task: String,
    cwd: String,
    instructions: String,
    /// Empty until the tools are known.
    system: String,
    max_output_tokens: u64,
    context_tokens: u64,
    tools: Vec<Spec>,
    turns: Vec<Turn>,
    phase: Phase,
    purpose: Purpose,
    quirks: Quirks,
    meter: Meter,
    /// What is left, and what was left of tool calls before the answer that is on its way was charged.
    left: Left,
    calls_left: Option<u64>,
    wall_until_ms: Option<u64>,
    /// Number of the request or round in flight; each has its own.
    number: u64,
    retry: retry::Retry,
    streak: answer::Streak,
    squeezes: u32,
    unsaid: answer::Unsaid,
    /// The calls of the last answer that were given to the tools, and the results of those that were not.
    round: answer::Round,
}

impl Machine {
    /// For a run; `seed` is for the jitter of waits, nothing else.
    #[must_use]
    pub fn new(run: &Run, seed: u64) -> Self {
        Self {
            wire: run.wire,
            model: run.model.clone(),
            task: run.task.clone(),
            cwd: run.cwd.clone(),
            instructions: run.instructions.clone(),
            system: String::new(),
            max_output_tokens: run.max_output_tokens,
            context_tokens: run.context_tokens,
            tools: Vec::new(),
            turns: Vec::new(),
            phase: Phase::New,
            purpose: Purpose::Work,
            quirks: Quirks::default(),
            meter: Meter::default(),
            left: run.left,
            calls_left: None,
            // The clock of the events begins with the run.
            wall_until_ms: run.left.wall_ms,
            number: 0,
            retry: retry::Retry::new(seed),
            streak: answer::Streak::default(),
            squeezes: 0,
            unsaid: answer::Unsaid::default(),
            round: answer::Round::default(),
        }
    }

    /// Takes what happened at `at_ms` of a clock that never goes back; gives what is to be done, in order.
    #[must_use]
    pub fn handle(&mut self, at_ms: u64, event: Event) -> Vec<Effect> {
        let mut todo = Vec::new();
        match (event, &self.phase) {
            (_, Phase::Ended) => {}
            (Event::Cancel, _) => self.end(End::Cancelled, "the run was cancelled".into(), &mut todo),
            (Event::RecordLost(why), _) => {
                self.end(End::Failed, format!("the record of the run was lost, so it ends: {why}"), &mut todo);
            }
            (Event::Left(left), _) => self.budget(at_ms, left),
            (Event::Started(tools, hints), Phase::New) => self.started(at_ms, tools, &hints, &mut todo),
            (Event::Piece(number, piece), Phase::Calling { since_ms, .. }) if number == self.number => {
                self.phase = Phase::Calling { since_ms: *since_ms, heard_ms: at_ms };
                self.piece(piece, &mut todo);
            }
            (Event::Answered(number, answer), Phase::Calling { .. }) if number == self.number => {
                self.answered(at_ms, answer, &mut todo);
            }
            (Event::Failed(number, failure), Phase::Calling { .. }) if number == self.number => {
                self.failed(at_ms, &failure, &mut todo);
            }
            (Event::ToolsEnded(number, outcomes, tools), Phase::Acting { .. }) if number == self.number => {
                self.tools = tools;
                self.acted(at_ms, outcomes, &mut todo);
            }
            (Event::Tick, _) => self.tick(at_ms, &mut todo),
            // Late, or out of order: nothing to do.
            _ => {}
        }
        todo
    }

    /// Whether the run is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    fn started(&mut self, at_ms: u64, tools: Vec<Spec>, hints: &[String], todo: &mut Vec<Effect>) {
        let has_peers = tools.iter().any(|tool| tool.name == PEER);
        self.system = prompt::system(&self.cwd, has_peers, &self.instructions);
        self.tools = tools;
        let parts = [self.task.clone(), hints.join("\n"), prompt::left(&self.left)];
        let said = parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("\n\n");
        let specs: usize =
            self.tools.iter().map(|tool| tool.description.len() + tool.input_schema.to_string().len()).sum();
        self.meter.restart(u64::try_from(self.system.len() + specs).unwrap_or(u64::MAX));
        self.push(Turn::User(said));
        self.ask(at_ms, todo);
    }

    fn budget(&mut self, at_ms: u64, left: Left) {
        self.left = left;
        self.wall_until_ms = left.wall_ms.map(|left_ms| at_ms.saturating_add(left_ms));
    }

    fn push(&mut self, turn: Turn) {
        self.meter.added(context::bytes(&turn));
        self.turns.push(turn);
    }

    /// Asks the model what is next, unless a budget is used up.
    fn ask(&mut self, at_ms: u64, todo: &mut Vec<Effect>) {
        if let Some(name) = self.used_up(at_ms) {
            return self.end(End::Budget(name.into()), format!("the budget of {name} is used up"), todo);
        }
        if self.purpose == Purpose::Work {
            self.make_room(todo);
        }
        let hint = Turn::User(prompt::SUMMARISE.into());
        let mut turns = std::borrow::Cow::Borrowed(&self.turns);
        if self.purpose == Purpose::Summary {
            turns.to_mut().push(hint);
        }
        let request = Request {
            model: &self.model,
            system: &self.system,
            tools: &self.tools,
            may_call: self.purpose == Purpose::Work,
            turns: &turns,
            max_output_tokens: self.max_output_tokens,
        };
        let body = wire::body(self.wire, &request, self.quirks);
        self.number += 1;
        self.calls_left = self.left.tool_calls;
        self.left.turns = self.left.turns.map(|turns| turns.saturating_sub(1));
        self.phase = Phase::Calling { since_ms: at_ms, heard_ms: at_ms };
        todo.push(Effect::Call { number: self.number, body });
    }

    /// The budget of which nothing is left. That of the network only ends what needs the network.
    fn used_up(&self, at_ms: u64) -> Option<&'static str> {
        let wall_is_over = self.wall_until_ms.is_some_and(|until_ms| at_ms >= until_ms);
        let left = Left { egress_bytes: None, wall_ms: wall_is_over.then_some(0), ..self.left };
        left.exhausted()
    }

    fn tick(&mut self, at_ms: u64, todo: &mut Vec<Effect>) {
        if self.wall_until_ms.is_some_and(|until_ms| at_ms >= until_ms) {
            return self.end(End::Budget("wall".into()), "the budget of wall is used up".into(), todo);
        }
        match self.phase {
            Phase::Waiting { until_ms } if at_ms >= until_ms => self.ask(at_ms, todo),
            Phase::Calling { since_ms, heard_ms } => self.watch_call(at_ms, since_ms, heard_ms, todo),
            Phase::Acting { since_ms, dropped_ms } => self.watch_tools(at_ms, since_ms, dropped_ms, todo),
            _ => {}
        }
    }

    fn watch_tools(&mut self, at_ms: u64, since_ms: u64, dropped_ms: Option<u64>, todo: &mut Vec<Effect>) {
        match dropped_ms {
            None if at_ms.saturating_sub(since_ms) >= TOOLS_MAX_MS => {
                self.phase = Phase::Acting { since_ms, dropped_ms: Some(at_ms) };
                todo.push(Effect::DropTools);
            }
            Some(dropped_ms) if at_ms.saturating_sub(dropped_ms) >= TOOLS_GRACE_MS => {
                self.acted(at_ms, Vec::new(), todo);
            }
            _ => {}
        }
    }

    /// Ends the run: what goes on is dropped, the last words are said.
    fn end(&mut self, end: End, text: String, todo: &mut Vec<Effect>) {
        self.unsaid.flush(todo);
        match self.phase {
            Phase::Calling { .. } => todo.push(Effect::DropCall),
            Phase::Acting { .. } => todo.push(Effect::DropTools),
            _ => {}
        }
        self.phase = Phase::Ended;
        todo.push(Effect::Note(Told::Finished { end: end.clone(), text }));
        todo.push(Effect::End(end));
    }
}

#[cfg(test)]
mod tests;
