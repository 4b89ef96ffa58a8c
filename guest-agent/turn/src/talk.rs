// SPDX-License-Identifier: Apache-2.0
//! A conversation with a model: what was said, called and answered, in the order of its turns. Values only.
//!
//! What the provider sent goes back as it came: each [`Block`] keeps the provider's own JSON beside what we read in it, because
//! signatures, encrypted reasoning and fields of the future must not change on their way back.

use serde_json::Value;

use crate::tools::Call;

/// One entry of the conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// Words to the model: the task, or a hint of the loop.
    User(String),
    /// One answer of the model, never empty.
    Answer(Vec<Block>),
    /// What came of the calls of the answer right before: one result a call, in its order.
    Results {
        /// They.
        results: Vec<CallResult>,
        /// Words of the loop that go with them; empty when there are none.
        note: String,
    },
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// What it is to us.
    pub kind: Kind,
    /// What goes back to the provider, as it came.
    pub raw: Value,
}

/// What a part of an answer is to us.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Words.
    Text(String),
    /// A call of a tool.
    Call(Call),
    /// A call whose arguments are no JSON object, and what is wrong with them.
    BadCall(Call, String),
    /// Thinking, or something that we do not know: goes back unchanged.
    Kept,
}

/// What came of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallResult {
    /// The provider's name for the call.
    pub id: String,
    /// The tool.
    pub name: String,
    /// What the model is told.
    pub text: String,
    /// Whether it failed.
    pub is_error: bool,
    /// Its output was taken out to save room.
    pub is_elided: bool,
}

/// Why a model stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It has said what it wanted to say.
    Finished,
    /// It wants tools called.
    Calls,
    /// The answer was as long as it may be.
    Length,
    /// The provider wants the same conversation again, to go on.
    Paused,
    /// It will not answer this.
    Refused,
    /// The conversation does not fit its window.
    WindowFull,
    /// Something else, in the provider's word.
    Other(String),
}

/// Tokens, by the provider's count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All that went in, cached or not.
    pub input: u64,
    /// All that came out.
    pub output: u64,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its parts in order, none of them empty.
    pub blocks: Vec<Block>,
    /// Why it ends here.
    pub stop: Stop,
    /// What it cost.
    pub usage: Usage,
}

impl Answer {
    /// Its words, one paragraph a block.
    #[must_use]
    pub fn text(&self) -> String {
        let texts = self.blocks.iter().filter_map(|block| match &block.kind {
            Kind::Text(text) => Some(text.trim()),
            _ => None,
        });
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
    }
}

impl Block {
    /// The call that it is, however bad.
    #[must_use]
    pub fn call(&self) -> Option<&Call> {
        match &self.kind {
            Kind::Call(call) | Kind::BadCall(call, _) => Some(call),
            Kind::Text(_) | Kind::Kept => None,
        }
    }
}

/// What a stream gives while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Words.
    Text(String),
    /// Thoughts, where the provider shows them.
    Thought(String),
    /// Something came that nobody sees, such as a call's arguments: the stream is alive.
    Other,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of trouble.
    pub kind: Trouble,
    /// In words, for a person.
    pub text: String,
    /// How long the provider asks to wait, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// Whether the provider says that the same request will fail again.
    pub is_final: bool,
}

/// Kinds of trouble with a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No connection, or it broke before the end of the answer.
    Unreachable,
    /// An HTTP status that is no success, or an error within the stream that stands for one.
    Status(u16),
    /// What came is no answer of this wire format.
    Malformed,
    /// Nothing came for too long.
    TimedOut,
    /// More came than an answer may have.
    TooLong,
    /// The broker of this sandbox refuses: a budget, by its name.
    Budget(String),
    /// The broker of this sandbox refuses: the policy.
    Denied,
}

impl Failure {
    /// Trouble of this kind.
    #[must_use]
    pub fn new(kind: Trouble, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), retry_after_ms: None, is_final: false }
    }
}

/// The beginning of `text`, at most `most_bytes`, cut between characters.
#[must_use]
pub fn head(text: &str, most_bytes: usize) -> &str {
    let ends = (0..=most_bytes.min(text.len())).rev();
    ends.into_iter().find_map(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_is_cut_between_characters() {
        for (most_bytes, expected) in [(0, ""), (1, "a"), (2, "a"), (3, "aä"), (4, "aäb"), (9, "aäb")] {
            assert_eq!(head("aäb", most_bytes), expected);
        }
    }
}
