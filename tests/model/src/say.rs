// SPDX-License-Identifier: Apache-2.0
//! An answer in each wire format: as one object, and as the events of a stream.

use serde_json::Value;

use crate::Wire;
use crate::script::{Part, Step};
use crate::template;

mod anthropic;
mod chat;
mod responses;

/// Characters of a delta.
const DELTA_CHARS: usize = 12;

/// An answer, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// As one object: what a request without a stream gets, and what later requests are held against.
    pub whole: Value,
    /// As events: name (may be empty) and data.
    pub events: Vec<(String, String)>,
}

/// What an answer is made of.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Number of the answer, from 1.
    pub number: u64,
    /// The model that was asked.
    pub model: &'a str,
    /// What is said, with its quotations filled in.
    pub parts: Vec<Part>,
    /// The step.
    pub step: &'a Step,
    /// Tokens in and out.
    pub usage: (u64, u64),
}

impl<'a> Plan<'a> {
    /// For a request with `body`, whose last tool results are `results`.
    ///
    /// # Errors
    /// A quotation of what is not there.
    pub(crate) fn new(number: u64, body: &'a Value, step: &'a Step, results: &[String]) -> Result<Self, String> {
        let parts: Vec<Part> = step.parts.iter().map(|part| fill(part, results)).collect::<Result<_, _>>()?;
        let bytes = |text: &str| u64::try_from(text.len() / 4).unwrap_or(u64::MAX).max(1);
        let said: usize = parts.iter().map(|part| serde_json::to_string(part).map_or(0, |text| text.len())).sum();
        let usage = (bytes(&body.to_string()), u64::try_from(said / 4).unwrap_or(u64::MAX).max(1));
        let model = body.get("model").and_then(Value::as_str).unwrap_or("scripted");
        Ok(Self { number, model, parts, step, usage: step.usage.unwrap_or(usage) })
    }

    fn has_calls(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Call { .. } | Part::RawCall { .. }))
    }
}

fn fill(part: &Part, results: &[String]) -> Result<Part, String> {
    Ok(match part {
        Part::Text(text) => Part::Text(template::fill(text, results)?),
        Part::Call { name, input } => Part::Call { name: name.clone(), input: template::fill_value(input, results)? },
        other => other.clone(),
    })
}

/// The answer in `wire`.
pub(crate) fn answer(wire: Wire, plan: &Plan<'_>) -> Answer {
    match wire {
        Wire::Anthropic => anthropic::answer(plan),
        Wire::Responses => responses::answer(plan),
        Wire::Chat => chat::answer(plan),
    }
}

/// An error within a stream: name of the event and data.
pub(crate) fn error_event(wire: Wire, kind: &str, message: &str) -> (String, String) {
    match wire {
        Wire::Anthropic => ("error".into(), wire.error(kind, message).to_string()),
        Wire::Responses => {
            let error = serde_json::json!({"type": "error", "code": kind, "message": message, "param": null, "sequence_number": 1});
            ("error".into(), error.to_string())
        }
        Wire::Chat => (String::new(), wire.error(kind, message).to_string()),
    }
}

/// `text` in pieces of some characters; none for an empty text.
fn pieces(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(DELTA_CHARS).map(|piece| piece.iter().collect()).collect()
}

/// Name and arguments of a part that is a call.
fn call(part: &Part) -> Option<(&str, String)> {
    match part {
        Part::Call { name, input } => Some((name, input.to_string())),
        Part::RawCall { name, arguments } => Some((name, arguments.clone())),
        _ => None,
    }
}

/// A text that looks signed: the same for the same thought, another for another.
fn signature(thought: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    thought.hash(&mut hasher);
    format!("Eq{:016x}==", hasher.finish())
}
