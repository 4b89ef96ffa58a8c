// SPDX-License-Identifier: Apache-2.0
//! What the model is to say: values, and the same as JSON.
//!
//! ```json
//! {"steps": [
//!   {"parts": [{"text": "Let me look."}, {"call": {"name": "shell", "input": {"command": "ls"}}}]},
//!   {"fault": {"status": {"status": 529}}},
//!   {"parts": [{"text": "There is {{capture:(\\w+)\\.py}}."}]}
//! ]}
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A script: one step a request, in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// They.
    pub steps: Vec<Step>,
    /// When they are over, the last one goes on for ever; else a further request is an error.
    #[serde(default)]
    pub repeat_last: bool,
    /// The key that a request must bring (`x-api-key` or `authorization: Bearer`); absent: none is looked for.
    #[serde(default)]
    pub key: Option<String>,
}

/// The answer to one request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// What the request must contain, anywhere in its body, as it is written there.
    pub expect: Vec<String>,
    /// What is said, in order. Strings may quote the results of tools: `{{result}}`, `{{result:1}}`, `{{capture:REGEX}}`.
    pub parts: Vec<Part>,
    /// The stop reason in the format's own word; absent: the one that fits.
    pub stop: Option<String>,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// Tokens in and out; absent: a quarter of the bytes.
    pub usage: Option<(u64, u64)>,
    /// Milliseconds before the first byte.
    pub wait_ms: u64,
    /// Milliseconds between events.
    pub gap_ms: u64,
    /// Bytes that are written at once; 0: a whole event.
    pub write_bytes: usize,
    /// Odd ways of a compatible server (Chat Completions only).
    pub quirks: Quirks,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Words.
    Text(String),
    /// Thinking, with a signature or an encrypted form that is made from it.
    Thinking(String),
    /// Thinking that nobody may see.
    RedactedThinking(String),
    /// A call.
    Call {
        /// The tool.
        name: String,
        /// What with.
        input: Value,
    },
    /// A call whose arguments are this text, whatever it is.
    RawCall {
        /// The tool.
        name: String,
        /// What with.
        arguments: String,
    },
}

/// What goes wrong with an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A status that is no success.
    Status {
        /// It.
        status: u16,
        /// Beside the usual ones.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// The body; absent: an error in the format's own way.
        #[serde(default)]
        body: Option<String>,
    },
    /// The connection is closed after so many events.
    Cut {
        /// They.
        after_events: usize,
    },
    /// The stream ends in good order after so many events, but before the answer does.
    Short {
        /// They.
        after_events: usize,
    },
    /// An error event after so many events.
    ErrorEvent {
        /// They.
        after_events: usize,
        /// The format's word for it.
        kind: String,
        /// In words.
        message: String,
    },
    /// Nothing more comes after so many events, and the connection stays.
    Hang {
        /// They.
        after_events: usize,
    },
    /// The last event comes again and again, until the client has enough.
    Endless {
        /// Events that come as they should.
        after_events: usize,
    },
    /// This, in place of an answer, with status 200.
    Body {
        /// The content type.
        content_type: String,
        /// The bytes, as text.
        body: String,
        /// How often they come.
        times: usize,
    },
}

/// Odd ways of servers that are compatible with Chat Completions, more or less.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quirks {
    /// Calls have no id.
    pub no_ids: bool,
    /// Calls come whole, all with index 0.
    pub same_index: bool,
    /// Arguments are objects, not text.
    pub object_arguments: bool,
    /// The answer is one object, though a stream was asked for.
    pub whole: bool,
    /// The finish reason is `stop`, calls or not.
    pub always_stop: bool,
    /// There is no usage and no `[DONE]`.
    pub no_trailer: bool,
    /// It does not take `max_tokens`.
    pub wants_max_completion_tokens: bool,
}

impl Script {
    /// These steps.
    #[must_use]
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), ..Self::default() }
    }

    /// From JSON.
    ///
    /// # Errors
    /// What is no script, with line and column.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

impl Step {
    /// These parts.
    #[must_use]
    pub fn parts(parts: impl IntoIterator<Item = Part>) -> Self {
        Self { parts: parts.into_iter().collect(), ..Self::default() }
    }

    /// Words.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::parts([Part::Text(text.to_owned())])
    }

    /// One call.
    #[must_use]
    pub fn call(name: &str, input: Value) -> Self {
        Self::parts([Part::call(name, input)])
    }

    /// Nothing but a fault.
    #[must_use]
    pub fn fault(fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::default() }
    }

    /// A status that is no success, in the format's own way.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::fault(Fault::Status { status, headers: BTreeMap::new(), body: None })
    }

    /// The same, if the request contains `text`.
    #[must_use]
    pub fn expecting(mut self, text: &str) -> Self {
        self.expect.push(text.to_owned());
        self
    }
}

impl Part {
    /// A call.
    #[must_use]
    pub fn call(name: &str, input: Value) -> Self {
        Self::Call { name: name.to_owned(), input }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn script_reads_as_it_is_documented() {
        let text = r#"{"steps": [
            {"parts": [{"text": "Let me look."}, {"call": {"name": "shell", "input": {"command": "ls"}}}]},
            {"fault": {"status": {"status": 529}}},
            {"parts": [{"thinking": "hm"}, {"raw_call": {"name": "x", "arguments": "{"}}], "quirks": {"no_ids": true}}
        ], "repeat_last": true}"#;
        let script = Script::parse(text).unwrap();
        let look = Step::parts([Part::Text("Let me look.".into()), Part::call("shell", json!({"command": "ls"}))]);
        assert_eq!(script.steps[..2], [look, Step::status(529)]);
        assert!(script.repeat_last && script.steps[2].quirks.no_ids);
        assert_eq!(Script::parse(&serde_json::to_string(&script).unwrap()).unwrap(), script);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(Script::parse(r#"{"steps": [{"part": []}]}"#).is_err());
        assert!(Script::parse(r#"{"steps": [], "key": 3}"#).is_err());
    }
}
