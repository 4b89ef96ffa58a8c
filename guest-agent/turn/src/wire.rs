// SPDX-License-Identifier: Apache-2.0
//! The providers' wire formats: a conversation into the body of a request, and the events of a stream into an answer. No I/O.
//!
//! One file a format, each with the same two halves. What differs between servers of one format is a [`Quirks`], learned from
//! their refusals; no list of models or versions is kept.

use midge_protocol::broker::Wire;
use serde_json::{Map, Value};

use crate::sse::SseEvent;
use crate::talk::{Answer, Failure, Piece, Trouble, Turn};
use crate::tools::Spec;

pub mod anthropic;
pub mod chat;
mod error;
pub mod responses;

pub use error::{Again, error_text, failure_of_status, window_is_full};

/// Most parts of one answer.
pub const BLOCKS_MAX_COUNT: usize = 1024;

/// What a model is asked.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The model's name.
    pub model: &'a str,
    /// Instructions.
    pub system: &'a str,
    /// Tools on offer.
    pub tools: &'a [Spec],
    /// Whether it may call them.
    pub may_call: bool,
    /// The conversation; its last entry is not an answer, but after [`crate::talk::Stop::Paused`].
    pub turns: &'a [Turn],
    /// Most tokens of the answer.
    pub max_output_tokens: u64,
}

/// What a server does not take, or wants: learned when it refuses a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quirks {
    /// Responses: it has no encrypted reasoning.
    pub no_encrypted_reasoning: bool,
    /// Chat: the limit is called `max_completion_tokens`.
    pub max_completion_tokens: bool,
    /// Chat: it does not know `stream_options`.
    pub no_stream_options: bool,
    /// Chat: it wants its reasoning back.
    pub reasoning_back: bool,
    /// It does not know `tool_choice`.
    pub no_tool_choice: bool,
}

impl Quirks {
    /// Learns from a refusal of status 400 or 422: whether the same request is worth another try.
    #[must_use]
    pub fn learn(&mut self, wire: Wire, text: &str) -> bool {
        let before = *self;
        let has = |word: &str| text.contains(word);
        match wire {
            Wire::Anthropic => {}
            Wire::Responses => {
                self.no_encrypted_reasoning |= has("ncrypted content") || has("encrypted_content");
            }
            Wire::Chat => {
                self.max_completion_tokens |= has("max_completion_tokens");
                self.no_stream_options |= has("stream_options");
                self.reasoning_back |= has("reasoning_content");
            }
        }
        self.no_tool_choice |= has("tool_choice");
        before != *self
    }
}

/// The body of a request, always for a stream.
#[must_use]
pub fn body(wire: Wire, request: &Request<'_>, quirks: Quirks) -> Value {
    match wire {
        Wire::Anthropic => anthropic::body(request, quirks),
        Wire::Responses => responses::body(request, quirks),
        Wire::Chat => chat::body(request, quirks),
    }
}

/// Reads one answer of a stream.
#[derive(Debug)]
pub enum Parser {
    /// Anthropic Messages.
    Anthropic(anthropic::Parser),
    /// `OpenAI` Responses.
    Responses(responses::Parser),
    /// Chat Completions.
    Chat(chat::Parser),
}

impl Parser {
    /// For an answer in `wire`; `number` is a different one for each answer of a run, for calls that their server gives no name.
    #[must_use]
    pub fn new(wire: Wire, number: u64) -> Self {
        match wire {
            Wire::Anthropic => Self::Anthropic(anthropic::Parser::default()),
            Wire::Responses => Self::Responses(responses::Parser::default()),
            Wire::Chat => Self::Chat(chat::Parser::new(number)),
        }
    }

    /// Takes one event; true when it was the last of the answer.
    ///
    /// # Errors
    /// The [`Failure`] that the event tells of, or that it is.
    pub fn event(&mut self, event: &SseEvent, out: &mut Vec<Piece>) -> Result<bool, Failure> {
        if event.data.trim() == "[DONE]" {
            return Ok(true);
        }
        let data: Value = serde_json::from_str(&event.data)
            .map_err(|error| malformed(format!("an event of the model's stream is no JSON ({error})")))?;
        if !data.is_object() {
            return Err(malformed("an event of the model's stream is no JSON object"));
        }
        match self {
            Self::Anthropic(parser) => parser.event(&data, out),
            Self::Responses(parser) => parser.event(&data, out),
            Self::Chat(parser) => parser.event(&data, out),
        }
    }

    /// Takes an answer that came as one JSON object, from a server that does not stream.
    ///
    /// # Errors
    /// The [`Failure`] that it is.
    pub fn whole(self, data: &Value, out: &mut Vec<Piece>) -> Result<Answer, Failure> {
        if !data.is_object() {
            return Err(malformed("the model's answer is no JSON object"));
        }
        match self {
            Self::Anthropic(parser) => parser.whole(data, out),
            Self::Responses(parser) => parser.whole(data, out),
            Self::Chat(parser) => parser.whole(data, out),
        }
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// [`Trouble::Unreachable`] when the answer had not.
    pub fn finish(self) -> Result<Answer, Failure> {
        match self {
            Self::Anthropic(parser) => parser.finish(),
            Self::Responses(parser) => parser.finish(),
            Self::Chat(parser) => parser.finish(),
        }
    }
}

fn malformed(text: impl Into<String>) -> Failure {
    Failure::new(Trouble::Malformed, text)
}

fn cut() -> Failure {
    Failure::new(Trouble::Unreachable, "the model's stream ended before its answer did")
}

fn too_many() -> Failure {
    Failure::new(Trouble::TooLong, format!("the model's answer has more than {BLOCKS_MAX_COUNT} parts"))
}

/// The string at `key`, or an empty one.
fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The number at `key`, or 0.
fn count(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}

/// Arguments as a model wrote them: an object, or what is wrong. None at all is an empty object.
fn arguments(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match serde_json::from_str::<Value>(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(_) => Err("the arguments are no JSON object".to_owned()),
        Err(error) => Err(format!("the arguments are no JSON: {error}")),
    }
}

#[cfg(test)]
mod tests;
