// SPDX-License-Identifier: Apache-2.0
//! What the machine does with an answer: its words are told, its calls are done, and when there are none, the run ends.

use std::hash::{DefaultHasher, Hash, Hasher};

use midge_protocol::broker::{End, Told};

use super::{Effect, Machine, Phase, Purpose};
use crate::prompt;
use crate::talk::{Answer, CallResult, Kind, Piece, Stop, Turn};
use crate::tools::{Call, Ending, Outcome};

/// Most calls of one answer that are done.
pub(super) const CALLS_MAX_COUNT: usize = 128;
/// Answers in a row with nothing in them, or cut, that end a run.
const USELESS_MAX_COUNT: u32 = 4;
/// Rounds in a row with the same calls and the same results after which the model is told.
const REPEATED_HINT_COUNT: u32 = 4;
/// And after which the run ends.
const REPEATED_MAX_COUNT: u32 = 24;
/// Most bytes of words that wait for the end of their paragraph.
const UNSAID_MAX_BYTES: usize = 4 << 10;

/// What has gone on for a while.
#[derive(Debug, Default)]
pub(super) struct Streak {
    useless: u32,
    repeated: u32,
    last_round: u64,
    denied: bool,
}

/// Words that came and were not told yet: they are told by the paragraph.
#[derive(Debug, Default)]
pub(super) struct Unsaid {
    text: String,
    is_thought: bool,
}

impl Unsaid {
    fn add(&mut self, text: &str, is_thought: bool, todo: &mut Vec<Effect>) {
        if self.is_thought != is_thought {
            self.flush(todo);
            self.is_thought = is_thought;
        }
        self.text.push_str(text);
        let end = self.text.rfind("\n\n").map(|at| at + 2);
        let end = end.or_else(|| (self.text.len() > UNSAID_MAX_BYTES).then_some(self.text.len()));
        if let Some(end) = end {
            let rest = self.text.split_off(end);
            self.flush(todo);
            self.text = rest;
        }
    }

    pub(super) fn flush(&mut self, todo: &mut Vec<Effect>) {
        let text = std::mem::take(&mut self.text).trim().to_owned();
        if !text.is_empty() {
            let told = if self.is_thought { Told::Thought { text } } else { Told::Said { text } };
            todo.push(Effect::Note(told));
        }
    }
}

/// The calls of one answer: a result for each, or none where a tool is at work on it.
#[derive(Debug, Default)]
pub(super) struct Round {
    calls: Vec<(Call, Option<Outcome>)>,
    was_cut: bool,
}

impl Machine {
    pub(super) fn piece(&mut self, piece: Piece, todo: &mut Vec<Effect>) {
        match piece {
            Piece::Text(text) if self.purpose == Purpose::Work => self.unsaid.add(&text, false, todo),
            Piece::Thought(text) if self.purpose == Purpose::Work => self.unsaid.add(&text, true, todo),
            _ => {}
        }
    }

    pub(super) fn answered(&mut self, at_ms: u64, answer: Answer, todo: &mut Vec<Effect>) {
        self.unsaid.flush(todo);
        self.retry.succeeded();
        // The call is over by itself.
        self.phase = Phase::Waiting { until_ms: at_ms };
        let tokens = answer.usage.input.saturating_add(answer.usage.output);
        self.left.tokens = self.left.tokens.map(|left| left.saturating_sub(tokens));
        match (&answer.stop, self.purpose) {
            (Stop::WindowFull, _) => return self.squeeze(at_ms, todo),
            (Stop::Refused, _) => {
                let text = format!("the model refused to answer. {}", answer.text());
                return self.end(End::Failed, text.trim().to_owned(), todo);
            }
            (_, Purpose::Summary) => {
                let summary = answer.text();
                return if summary.is_empty() {
                    self.squeeze(at_ms, todo)
                } else {
                    self.summarised(at_ms, &summary, todo)
                };
            }
            (_, Purpose::Work) => self.squeezes = 0,
        }
        let says_nothing = answer.blocks.iter().all(|block| block.kind == Kind::Kept) && answer.stop != Stop::Paused;
        if says_nothing || answer.blocks.is_empty() {
            let hint = if answer.stop == Stop::Length { prompt::CUT } else { prompt::EMPTY };
            return self.useless(at_ms, hint, todo);
        }
        let calls: Vec<(Call, Option<String>)> = answer
            .blocks
            .iter()
            .filter_map(|block| match &block.kind {
                Kind::Call(call) => Some((call.clone(), None)),
                Kind::BadCall(call, problem) => Some((call.clone(), Some(problem.clone()))),
                _ => None,
            })
            .collect();
        let said = answer.text();
        let stop = answer.stop.clone();
        self.push(Turn::Answer(answer.blocks));
        if tokens > 0 {
            self.meter.counted(tokens);
        }
        if !calls.is_empty() {
            self.streak.useless = 0;
            return self.act(at_ms, calls, stop == Stop::Length, todo);
        }
        match stop {
            Stop::Length => self.useless(at_ms, prompt::CUT, todo),
            Stop::Paused => self.paused(at_ms, todo),
            _ if self.streak.denied => self.end(End::Denied, said, todo),
            _ => self.end(End::Done, said, todo),
        }
    }

    fn paused(&mut self, at_ms: u64, todo: &mut Vec<Effect>) {
        self.streak.useless += 1;
        if self.streak.useless > USELESS_MAX_COUNT {
            return self.end(End::Failed, "the provider pauses the same answer again and again".into(), todo);
        }
        self.ask(at_ms, todo);
    }

    /// An answer that leads nowhere: the model is told, and the run ends when that is all that comes.
    fn useless(&mut self, at_ms: u64, hint: &str, todo: &mut Vec<Effect>) {
        self.streak.useless += 1;
        if self.streak.useless > USELESS_MAX_COUNT {
            let text = format!("{USELESS_MAX_COUNT} answers of the model in a row were empty or cut");
            return self.end(End::Failed, text, todo);
        }
        self.push(Turn::User(hint.to_owned()));
        self.ask(at_ms, todo);
    }

    /// Gives the calls to the tools, but for those that can have no result but an error.
    fn act(&mut self, at_ms: u64, calls: Vec<(Call, Option<String>)>, was_cut: bool, todo: &mut Vec<Effect>) {
        let count = u64::try_from(calls.len()).unwrap_or(u64::MAX);
        let most = self.calls_left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        if let (Some(left), Some(before)) = (self.left.tool_calls, self.calls_left) {
            self.left.tool_calls = Some(left.min(before.saturating_sub(count)));
        }
        let judge = |(index, (call, problem)): (usize, (Call, Option<String>))| {
            let outcome = match problem {
                Some(problem) => Some(Outcome::failed(format!("not called: {problem}"))),
                None if index >= most => Some(Outcome::failed("not called: the budget of tool calls is used up")),
                None if index >= CALLS_MAX_COUNT => {
                    Some(Outcome::failed(format!("not called: one answer may have {CALLS_MAX_COUNT} calls")))
                }
                None => None,
            };
            (call, outcome)
        };
        self.round = Round { calls: calls.into_iter().enumerate().map(judge).collect(), was_cut };
        for (call, outcome) in self.round.calls.iter().filter_map(|(call, outcome)| Some((call, outcome.as_ref()?))) {
            todo.push(Effect::Note(called(call)));
            todo.push(Effect::Note(resulted(call, outcome)));
        }
        let wanted = self.round.calls.iter().filter(|(_, outcome)| outcome.is_none());
        let calls: Vec<Call> = wanted.map(|(call, _)| call.clone()).collect();
        if calls.is_empty() {
            return self.acted(at_ms, Vec::new(), todo);
        }
        self.number += 1;
        self.phase = Phase::Acting { since_ms: at_ms, dropped_ms: None };
        todo.push(Effect::Tools { number: self.number, calls });
    }

    /// The round is over: each call gets its result, whatever came back.
    pub(super) fn acted(&mut self, at_ms: u64, outcomes: Vec<Outcome>, todo: &mut Vec<Effect>) {
        // The tools are over, or given up.
        self.phase = Phase::Waiting { until_ms: at_ms };
        let round = std::mem::take(&mut self.round);
        let mut outcomes = outcomes.into_iter();
        let mut results = Vec::with_capacity(round.calls.len());
        let mut hash = DefaultHasher::new();
        self.streak.denied = false;
        for (call, outcome) in round.calls {
            let outcome = outcome.or_else(|| outcomes.next()).unwrap_or_else(|| {
                let outcome =
                    Outcome::failed("the tool did not end when it was told to; what it did so far is not known");
                todo.push(Effect::Note(resulted(&call, &outcome)));
                outcome
            });
            self.streak.denied |= outcome.ending == Ending::Denied;
            (&call.name, call.input.to_string(), &outcome.text).hash(&mut hash);
            let is_error = outcome.is_error();
            results.push(CallResult { id: call.id, name: call.name, text: outcome.text, is_error, is_elided: false });
        }
        let hash = hash.finish();
        self.streak.repeated = if hash == self.streak.last_round { self.streak.repeated + 1 } else { 0 };
        self.streak.last_round = hash;
        if self.streak.repeated >= REPEATED_MAX_COUNT {
            let text = format!("the model made the same call {REPEATED_MAX_COUNT} times, with the same result");
            return self.end(End::Failed, text, todo);
        }
        let is_repeated = self.streak.repeated >= REPEATED_HINT_COUNT;
        let left = self.left_now(at_ms);
        let hints = [
            if round.was_cut { prompt::CUT } else { "" },
            if is_repeated { prompt::REPEATED } else { "" },
            &prompt::left(&left),
        ];
        let note = hints.into_iter().filter(|hint| !hint.is_empty()).collect::<Vec<_>>().join("\n");
        self.push(Turn::Results { results, note });
        self.ask(at_ms, todo);
    }

    fn left_now(&self, at_ms: u64) -> midge_protocol::broker::Left {
        let wall_ms = self.wall_until_ms.map(|until_ms| until_ms.saturating_sub(at_ms));
        midge_protocol::broker::Left { wall_ms, ..self.left }
    }
}

fn called(call: &Call) -> Told {
    Told::ToolCall { id: call.id.clone(), name: call.name.clone(), input: call.input.clone() }
}

fn resulted(call: &Call, outcome: &Outcome) -> Told {
    Told::ToolResult {
        id: call.id.clone(),
        is_error: outcome.is_error(),
        output: outcome.text.clone(),
        elided_bytes: outcome.elided_bytes,
        elapsed_ms: 0,
    }
}
