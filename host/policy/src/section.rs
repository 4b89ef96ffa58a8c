// SPDX-License-Identifier: Apache-2.0
//! The sections of a policy file but for the network's, as they are written. The comment on a field is its description in the
//! schema; what stands there as a range is what is enforced.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::glob::{FileGlob, Wildcard};
use crate::names::{Endpoint, Name, ToolName};
use crate::secret::SecretSource;
use crate::text::key_schema;
use crate::units::{Bytes, Money, Period, Rate};

mod meaning;

pub use meaning::Tokens;

/// The tool that runs commands: the one that `tools.ask_commands` is about.
pub const SHELL_TOOL: &str = "shell";

/// What the machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Virtual processors.
    #[schemars(range(min = 1, max = 32))]
    pub vcpus: u32,
    /// Memory in MiB.
    #[schemars(range(min = 32, max = 16_777_216))]
    pub memory_mib: u64,
    /// Disk that a run may write, in MiB.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub disk_mib: u64,
    /// Processes and threads of the guest at once.
    #[schemars(range(min = 1, max = 4_194_304))]
    pub processes: u64,
    /// How long the sandbox may live. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall: Option<Period>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { vcpus: 1, memory_mib: 1024, disk_mib: 4096, processes: 1024, wall: None }
    }
}

/// What a run may spend, its children included. Absent: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Calls of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub turns: Option<u64>,
    /// Tool calls that the model asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub tool_calls: Option<u64>,
    /// Tokens in and out, by the provider's count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub tokens: Option<u64>,
    /// Money for the model, in US dollars. Needs `model.prices` for every model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub money_usd: Option<Money>,
    /// Wall time of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall: Option<Period>,
    /// Bytes through the proxy, both ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Bytes>,
}

/// Whose API a model is asked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// Anthropic Messages; the key goes into `x-api-key`.
    Anthropic,
    /// `OpenAI` Responses and Chat Completions; the key goes into `authorization`.
    Openai,
    /// A server that speaks Chat Completions as `OpenAI` does, such as llama.cpp, vLLM or Ollama; its `endpoint` must be named.
    Compatible,
}

/// Which language models may be asked. Without this section: none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Whose API.
    pub provider: Provider,
    /// Where, without the path of the API. Absent: where the provider is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Names of models that may be asked; `*` stands for any characters.
    #[schemars(length(min = 1, max = 64))]
    pub models: Vec<Wildcard>,
    /// Where the key is. Absent: asked without a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretSource>,
    /// What tokens cost, by the name of the model; `*` stands for any characters. The name itself counts before one with `*`, a longer before a shorter.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("propertyNames" = key_schema::<Wildcard>(), "maxProperties" = 64))]
    pub prices: BTreeMap<Wildcard, Price>,
}

/// US dollars for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Tokens in.
    pub input: Money,
    /// Tokens out.
    pub output: Money,
    /// Tokens read from a cache. Absent: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read: Option<Money>,
    /// Tokens written to a cache. Absent: twice `input`, above what any provider takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<Money>,
}

/// Which tools of the loop may be called. About what is worth a question: no protection, as a shell can do what other tools do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tools {
    /// For tools that `rules` does not name.
    pub default: Action,
    /// By the tool's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("propertyNames" = key_schema::<ToolName>(), "maxProperties" = 256))]
    pub rules: BTreeMap<ToolName, Action>,
    /// A shell command that one of these matches is asked about; `*` stands for any characters. Never protection.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub ask_commands: Vec<Wildcard>,
}

/// What becomes of something that is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is not done.
    Deny,
    /// It is done when somebody says so.
    Ask,
    /// It is done.
    #[default]
    Allow,
}

/// The user's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Workspace {
    /// What may become of changes at most.
    pub mode: Mode,
    /// Files that are never changed on the host, with all that is below them, relative to the workspace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub read_only: Vec<FileGlob>,
}

/// What becomes of the changes of a workspace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They are shown and dropped.
    Discard,
    /// They are shown, and kept as far as somebody says so.
    #[default]
    Review,
    /// They are kept.
    Apply,
}

/// Sandboxes that a sandbox makes of itself, or of templates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Children {
    /// Whether there may be any.
    pub allowed: bool,
    /// How deep: 1 is children that have none of their own.
    #[schemars(range(min = 1, max = 8))]
    pub depth: u32,
    /// How many in the whole run, those of children included.
    #[schemars(range(min = 1, max = 10_000))]
    pub number: u32,
    /// How much of what is left of the budget one child may get, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub share_percent: u32,
    /// Templates that a child may be made of, by name. Itself it may always fork.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub templates: Vec<Name>,
}

impl Default for Children {
    fn default() -> Self {
        Self { allowed: false, depth: 1, number: 8, share_percent: 50, templates: Vec::new() }
    }
}

/// Another sandbox that this one may talk to, if that one's policy names this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The other's name.
    pub name: Name,
    /// Its TCP ports that a tunnel may lead to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<u16>,
    /// Whether messages may be sent.
    #[serde(default)]
    pub messages: bool,
    /// How many messages and tunnels. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

/// Questions to a human.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Approvals {
    /// How long an answer is waited for. No answer is a no.
    pub timeout: Period,
}

impl Default for Approvals {
    fn default() -> Self {
        Self { timeout: Period::from_ms(300_000) }
    }
}
