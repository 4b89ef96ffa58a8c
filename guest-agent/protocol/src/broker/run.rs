// SPDX-License-Identifier: Apache-2.0
//! What the tool loop is started with: one [`Run`], as JSON on its standard input. Signals end it: SIGINT in good order.

use std::collections::BTreeMap;

use super::{Deserialize, Left, Serialize};

/// A task for the loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What is to be done, in words.
    pub task: String,
    /// What is added to the loop's own instructions to the model.
    #[serde(default)]
    pub instructions: String,
    /// The provider's wire format.
    pub wire: Wire,
    /// The model's name, as its provider knows it.
    pub model: String,
    /// Where the model is asked, without the path of the API: the guest's end of the door `model`.
    pub base_url: String,
    /// Most tokens of one answer.
    pub max_output_tokens: u64,
    /// Tokens that the model's window holds.
    pub context_tokens: u64,
    /// Directory in the guest where tools work.
    pub cwd: String,
    /// What the policy says of tools.
    pub tools: Tools,
    /// Servers to start in the guest.
    #[serde(default)]
    pub mcp: Vec<Mcp>,
    /// Sandboxes that messages may go to, by name; empty: the door `peer` is closed to messages, and its tool is not offered.
    #[serde(default)]
    pub peers: Vec<String>,
    /// What may be spent at the beginning.
    pub left: Left,
}

/// A provider's wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// Anthropic Messages: `POST /v1/messages`.
    Anthropic,
    /// OpenAI Responses: `POST /v1/responses`.
    Responses,
    /// OpenAI Chat Completions: `POST /v1/chat/completions`, and every server that is compatible with it.
    Chat,
}

impl Wire {
    /// All.
    pub const ALL: [Self; 3] = [Self::Anthropic, Self::Responses, Self::Chat];

    /// The format whose calls go to `path`, without its query.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wire| wire.path() == path)
    }

    /// The path of the API.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Anthropic => "/v1/messages",
            Self::Responses => "/v1/responses",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

/// Which tools the model may call. Effects are held by the sandbox and its broker; this is about what is worth a question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tools {
    /// For tools that are not named.
    pub default: Rule,
    /// By the tool's name.
    pub rules: BTreeMap<String, Rule>,
    /// Globs; a shell command that one of them matches is asked about.
    pub ask_commands: Vec<String>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// It is done.
    #[default]
    Allow,
    /// It is done when somebody says so.
    Ask,
    /// It is not done, and the tool is not offered.
    Deny,
}

/// A server that speaks the Model Context Protocol on its standard streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mcp {
    /// Its tools are called `mcp__<name>__<tool>`.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}
