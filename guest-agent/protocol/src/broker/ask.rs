// SPDX-License-Identifier: Apache-2.0
//! The door `ask`: a question to whoever answers for this run. Lines: [`Question`] from the guest, [`Answer`] from the host.

use super::{Deserialize, Serialize, Value};

/// A question of the guest. Questions of one connection are answered in any order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The guest's number for it; comes back with the answer.
    pub id: u64,
    /// What is asked.
    pub asked: Asked,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Asked {
    /// May this tool be called?
    Tool {
        /// The tool's name.
        name: String,
        /// What it is to be called with.
        input: Value,
        /// Which rule asks, in words.
        why: String,
    },
    /// Something that only a human knows.
    Human {
        /// The question.
        text: String,
        /// Answers to choose from; empty when any text will do.
        choices: Vec<String>,
    },
}

/// The host's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The question's number.
    pub id: u64,
    /// What was decided.
    pub verdict: Verdict,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Yes, this once.
    Allow,
    /// Yes, and the same need not be asked again in this run.
    AllowForRun,
    /// Yes, but with this input.
    Edited {
        /// What the tool is to be called with.
        input: Value,
    },
    /// No.
    Deny {
        /// Why, for the model to read.
        why: String,
    },
    /// The answer to a question.
    Text {
        /// The human's words.
        text: String,
    },
}
