// SPDX-License-Identifier: Apache-2.0
//! What an answer of a model used, read from a copy of it as it passes. The answer itself is not touched, and nothing in it can
//! make the reading fail: what is not understood is not counted, and where the provider's own count is missing, an estimate
//! stands in, marked as such.

mod anthropic;
mod chat;
mod responses;
mod sse;

use midge_protocol::broker::Wire;
use midge_record::Usage;
use serde_json::Value;

use sse::Lines;

/// Bytes that are taken for one token where the provider does not count.
const BYTES_PER_TOKEN: u64 = 4;
/// Longest answer that is not a stream and is still read, in bytes; a longer one is estimated.
const JSON_MAX_BYTES: usize = 32 << 20;

/// What an answer used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    /// The counts.
    pub(crate) usage: Usage,
    /// Whether some of them are no count of the provider's.
    pub(crate) estimated: bool,
}

/// What is known while an answer passes.
#[derive(Debug, Default)]
struct Tally {
    /// The provider's count, as far as it came.
    usage: Usage,
    /// Whether tokens in were counted by the provider.
    input_counted: bool,
    /// Whether tokens out were, up to the end.
    output_counted: bool,
    /// Bytes of what the model said, for an estimate.
    said_bytes: u64,
    /// Calls seen, by place in the answer.
    calls: std::collections::BTreeSet<(u64, u64)>,
}

#[derive(Debug)]
enum Form {
    /// Server-sent events.
    Events(Lines),
    /// One JSON object.
    Json(Vec<u8>),
    /// Nothing that is read.
    Other,
}

/// Reads one answer.
#[derive(Debug)]
pub(crate) struct Meter {
    wire: Wire,
    form: Form,
    tally: Tally,
    request_bytes: u64,
    answer_bytes: u64,
    failed: bool,
}

impl Meter {
    /// For an answer with `status` and `content_type` to a request whose body had `request_bytes`.
    pub(crate) fn new(wire: Wire, status: u16, content_type: &str, request_bytes: u64) -> Self {
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let form = match kind.as_str() {
            "text/event-stream" => Form::Events(Lines::default()),
            kind if kind.ends_with("json") => Form::Json(Vec::new()),
            _ => Form::Other,
        };
        let failed = !(200..300).contains(&status);
        Self { wire, form, tally: Tally::default(), request_bytes, answer_bytes: 0, failed }
    }

    /// A piece of the answer's body.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.answer_bytes = self.answer_bytes.saturating_add(data.len() as u64);
        match &mut self.form {
            Form::Events(lines) => {
                let (wire, tally) = (self.wire, &mut self.tally);
                lines.push(data, |event| {
                    if let Ok(event) = serde_json::from_slice::<Value>(event) {
                        tally.event(wire, &event);
                    }
                });
            }
            Form::Json(body) => {
                if body.len() + data.len() <= JSON_MAX_BYTES {
                    body.extend_from_slice(data);
                } else {
                    self.form = Form::Other;
                }
            }
            Form::Other => {}
        }
    }

    /// What it used, now that no more of it comes.
    pub(crate) fn finish(mut self) -> Measured {
        match &self.form {
            Form::Json(body) => {
                if let Ok(body) = serde_json::from_slice::<Value>(body) {
                    self.tally.whole(self.wire, &body);
                }
            }
            Form::Events(lines) if lines.overlong() => self.tally.output_counted = false,
            _ => {}
        }
        let Tally { mut usage, input_counted, output_counted, said_bytes, calls } = self.tally;
        usage.tool_calls = calls.len() as u64;
        if self.failed {
            return Measured { usage, estimated: false };
        }
        if !input_counted {
            usage.input_tokens = self.request_bytes.div_ceil(BYTES_PER_TOKEN);
        }
        if !output_counted {
            let said = if matches!(self.form, Form::Events(_)) { said_bytes } else { self.answer_bytes };
            usage.output_tokens = usage.output_tokens.max(said.div_ceil(BYTES_PER_TOKEN));
        }
        Measured { usage, estimated: !(input_counted && output_counted) }
    }
}

/// What a request of `bytes` will use at least, before it is sent.
pub(crate) fn estimate(bytes: u64, output_tokens: u64) -> Usage {
    Usage { input_tokens: bytes.div_ceil(BYTES_PER_TOKEN), output_tokens, ..Usage::default() }
}

impl Tally {
    fn event(&mut self, wire: Wire, event: &Value) {
        match wire {
            Wire::Anthropic => anthropic::event(self, event),
            Wire::Responses => responses::event(self, event),
            Wire::Chat => chat::event(self, event),
        }
    }

    fn whole(&mut self, wire: Wire, body: &Value) {
        match wire {
            Wire::Anthropic => anthropic::whole(self, body),
            Wire::Responses => responses::whole(self, body),
            Wire::Chat => chat::whole(self, body),
        }
    }

    /// Counts text that the model said.
    fn said(&mut self, text: &Value) {
        self.said_bytes = self.said_bytes.saturating_add(text.as_str().map_or(0, str::len) as u64);
    }
}

/// Takes a count over, where there is one.
fn take(into: &mut u64, count: &Value) -> bool {
    let Some(count) = count.as_u64() else { return false };
    *into = count;
    true
}

#[cfg(test)]
mod tests;
