// SPDX-License-Identifier: Apache-2.0
//! The door `record`: what the tool loop says that it does. Lines: [`Noted`] from the guest, [`super::Left`] from the host after
//! each, so that the loop knows its budgets.

use super::{Deserialize, Serialize, Value};

/// One line of the loop's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noted {
    /// What it says.
    pub told: Told,
}

/// What the loop says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Told {
    /// Words of the model.
    Said {
        /// They.
        text: String,
    },
    /// What the model thought, where its provider shows it.
    Thought {
        /// Its words.
        text: String,
    },
    /// A tool is called.
    ToolCall {
        /// The provider's name for the call.
        id: String,
        /// The tool.
        name: String,
        /// What it is called with.
        input: Value,
    },
    /// A tool has answered.
    ToolResult {
        /// The call.
        id: String,
        /// Whether it failed.
        is_error: bool,
        /// What the model is told.
        output: String,
        /// Bytes of output that the model is not told, but can read by offset.
        elided_bytes: u64,
        /// How long it took.
        elapsed_ms: u64,
    },
    /// The list of what is to be done, whole.
    Todo {
        /// Its items.
        items: Vec<Item>,
    },
    /// The loop waits before it asks the model again.
    Retry {
        /// Why.
        why: String,
        /// For how long.
        wait_ms: u64,
    },
    /// Old output was taken out of the conversation, to stay inside the model's window.
    Compacted {
        /// What was done, in words.
        what: String,
    },
    /// The loop is at its end; the last line.
    Finished {
        /// How it ended.
        end: End,
        /// The model's last words, or what went wrong.
        text: String,
    },
}

/// How a loop ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The model says that it is done.
    Done,
    /// A budget is used up, by its name in [`super::Left::exhausted`].
    Budget(String),
    /// A human or the policy denied what the task needs.
    Denied,
    /// Somebody ended it.
    Cancelled,
    /// The model could not be reached, or made no sense, for too long.
    Failed,
}

impl End {
    /// What the loop leaves with, and `midge agent` after it; 130 is what shells say for SIGINT.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Budget(_) => 3,
            Self::Denied => 4,
            Self::Cancelled => 130,
        }
    }
}

/// One thing to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// What.
    pub text: String,
    /// How far it is.
    pub state: ItemState,
}

/// How far a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemState {
    /// Not begun.
    Pending,
    /// In work.
    Doing,
    /// Done.
    Done,
}
