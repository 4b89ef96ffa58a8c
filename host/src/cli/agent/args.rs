// SPDX-License-Identifier: Apache-2.0
//! The flags of `midge agent`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use midge_policy::Name;
use midge_protocol::broker::Mcp;

use crate::cli::run::args::Workspace;

const NOTES: &str = "Exit code: 0 when the agent says that it is done; 3 when a budget ended it; 4 when the policy or somebody denied what \
the task needs; 1 when the model could not be used or the loop failed; 130 after Ctrl-C; 125 when Midge itself failed.\n\n\
The agent does what it likes inside its machine, and has outside it what the policy gives: nothing, unless --policy says more, but for the \
model. The key of the model stays on this machine; without --policy it is $ANTHROPIC_API_KEY or $OPENAI_API_KEY.\n\n\
Everything that it asked for is recorded: `midge log show RUN`.\n\n\
Examples:\n  \
midge agent --workspace . --task 'make the failing test pass'\n  \
midge agent --workspace . --task-file task.md --policy package-install --budget tokens=2000000,wall=30m\n  \
midge agent --workspace . --task 'explain this project' --provider compatible --base-url http://127.0.0.1:8080 --model local\n  \
midge agent --workspace examples/median --replay examples/median/run.jsonl   (a recorded run: no model, no key)";

/// Longest name of a server of tools, in bytes: providers take 64 for a tool with its server.
const SERVER_NAME_MAX_BYTES: usize = 32;
/// Tokens that a model's window holds, and that one answer has at most, unless a flag says otherwise.
const CONTEXT_TOKENS: u64 = 200_000;
const OUTPUT_TOKENS: u64 = 16_384;

#[derive(Debug, Clone, Args)]
#[command(after_long_help = NOTES)]
pub(crate) struct AgentArgs {
    /// What is to be done, in words
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["task_file", "replay"], conflicts_with = "task_file")]
    pub(super) task: Option<String>,

    /// What is to be done, in a file of at most 256 KiB
    #[arg(long, value_name = "FILE")]
    pub(super) task_file: Option<PathBuf>,

    /// A directory to work on: the agent changes a copy at /workspace; see `midge run --help`
    #[arg(long, value_name = "DIR[:discard|review|apply]")]
    pub(super) workspace: Option<Workspace>,

    /// A template to start from (`midge template create`), in place of booting
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    pub(super) template: Option<String>,

    /// Root file system: a built image's name, a directory, or an erofs, ext4 or squashfs file [default: base]
    #[arg(long, value_name = "NAME|DIR|FILE")]
    pub(super) image: Option<String>,

    /// What it may do: a file, or one of `midge policy list` [default: offline, and the model]
    #[arg(long, value_name = "FILE|PROFILE")]
    pub(super) policy: Option<String>,

    /// What the policies of other sandboxes call this one; needed where its own policy names peers
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<Name>,

    /// Whose API the model has [default: by the policy, else by the key that is set]
    #[arg(long, value_enum)]
    pub(super) provider: Option<Provider>,

    /// The model, by its provider's name
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,

    /// Where the model is asked, without the path of the API
    #[arg(long, value_name = "URL")]
    pub(super) base_url: Option<String>,

    /// A transcript whose model's answers are given again: no model is asked and no key needed
    #[arg(long, value_name = "FILE|RUN", conflicts_with_all = ["provider", "model", "base_url"])]
    pub(super) replay: Option<String>,

    /// Who answers what a rule asks about, and questions of the agent
    #[arg(long, value_enum, default_value_t = Approve::Ask)]
    pub(super) approve: Approve,

    /// Most calls of the model
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(super) max_turns: Option<u64>,

    /// What it may spend, such as tokens=2000000,money=5.00,wall=30m,egress=1GiB,tool_calls=500
    #[arg(long, value_name = "NAME=AMOUNT,…", value_delimiter = ',')]
    pub(super) budget: Vec<String>,

    /// A server of the Model Context Protocol, whose command the guest's sh starts beside the loop and talks to on standard input and
    /// output; its tools are called mcp__NAME__TOOL. Can be given more than once
    #[arg(long, value_name = "NAME=COMMAND", value_parser = parse_mcp)]
    pub(super) mcp: Vec<Mcp>,

    /// Tokens that the model's window holds
    #[arg(long, value_name = "N", default_value_t = CONTEXT_TOKENS, value_parser = clap::value_parser!(u64).range(4096..=10_000_000))]
    pub(super) context_tokens: u64,

    /// Most tokens of one answer of the model
    #[arg(long, value_name = "N", default_value_t = OUTPUT_TOKENS, value_parser = clap::value_parser!(u64).range(256..=1_000_000))]
    pub(super) max_output_tokens: u64,

    /// Apply changes to git's own files too; see `midge run --help`
    #[arg(long, requires = "workspace")]
    pub(super) allow_git_internals: bool,

    /// Apply new symbolic links too that lead out of the workspace
    #[arg(long, requires = "workspace")]
    pub(super) allow_outside_links: bool,

    /// Run although this machine does not give a part of the monitor's jail; see `midge run --help`
    #[arg(long, value_name = "PART", env = "MIDGE_ALLOW_MISSING", value_delimiter = ',')]
    pub(super) allow_missing: Vec<String>,

    /// Print one JSON object about the run to standard output, and nothing while it goes on
    #[arg(long)]
    pub(super) json: bool,
}

const REPLAY_NOTES: &str = "The model's answers come from the transcript, in their order; tools run anew, in a fresh sandbox, and where \
they give other results than those recorded that is said at the end. No model is asked and no key needed. What the recorded run was allowed \
is not allowed again by that: --policy says what this one may do, and whether it may have children, whose transcripts are looked for beside \
its own.\n\n\
Exit code: as of `midge agent`.\n\n\
Examples:\n  \
midge replay 3f2a9c01b7de --workspace .\n  \
midge replay examples/median/run.jsonl --workspace examples/median";

/// The flags of `midge replay`: `midge agent --replay` without what only a live run needs.
#[derive(Debug, Args)]
#[command(after_long_help = REPLAY_NOTES)]
pub(crate) struct ReplayArgs {
    /// The run: a name of `midge log list`, or a transcript's file
    #[arg(value_name = "RUN|FILE")]
    run: String,

    /// A directory to work on, as it was before the recorded run; see `midge run --help`
    #[arg(long, value_name = "DIR[:discard|review|apply]")]
    workspace: Option<Workspace>,

    /// A template to start from (`midge template create`), in place of booting
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    template: Option<String>,

    /// Root file system: a built image's name, a directory, or an erofs, ext4 or squashfs file [default: base]
    #[arg(long, value_name = "NAME|DIR|FILE")]
    image: Option<String>,

    /// What it may do: a file, or one of `midge policy list` [default: offline]
    #[arg(long, value_name = "FILE|PROFILE")]
    policy: Option<String>,

    /// What the policies of other sandboxes call this one; needed where its own policy names peers
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,

    /// Who answers what a rule asks about, and questions of the agent
    #[arg(long, value_enum, default_value_t = Approve::Ask)]
    approve: Approve,

    /// A server of the Model Context Protocol, whose command the guest's sh starts beside the loop and talks to on standard input and
    /// output; its tools are called mcp__NAME__TOOL. Can be given more than once
    #[arg(long, value_name = "NAME=COMMAND", value_parser = parse_mcp)]
    mcp: Vec<Mcp>,

    /// Run although this machine does not give a part of the monitor's jail; see `midge run --help`
    #[arg(long, value_name = "PART", env = "MIDGE_ALLOW_MISSING", value_delimiter = ',')]
    allow_missing: Vec<String>,

    /// Print one JSON object about the run to standard output, and nothing while it goes on
    #[arg(long)]
    json: bool,
}

impl From<ReplayArgs> for AgentArgs {
    fn from(args: ReplayArgs) -> Self {
        let ReplayArgs { run, workspace, template, image, policy, name, approve, mcp, allow_missing, json } = args;
        Self {
            task: None,
            task_file: None,
            workspace,
            template,
            image,
            policy,
            name,
            provider: None,
            model: None,
            base_url: None,
            replay: Some(run),
            approve,
            max_turns: None,
            budget: Vec::new(),
            mcp,
            context_tokens: CONTEXT_TOKENS,
            max_output_tokens: OUTPUT_TOKENS,
            allow_git_internals: false,
            allow_outside_links: false,
            allow_missing,
            json,
        }
    }
}

fn parse_mcp(text: &str) -> Result<Mcp, String> {
    let (name, command) = text.split_once('=').unwrap_or((text, ""));
    let is_name = (1..=SERVER_NAME_MAX_BYTES).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if !is_name || command.trim().is_empty() {
        return Err(format!("accepted: 1 to {SERVER_NAME_MAX_BYTES} letters, digits and _ -, then = and a command"));
    }
    let argv = ["sh", "-c", command].map(str::to_owned).to_vec();
    Ok(Mcp { name: name.to_owned(), argv, env: BTreeMap::new() })
}

/// Whose API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Provider {
    /// Anthropic Messages
    Anthropic,
    /// OpenAI Responses
    Openai,
    /// OpenAI Chat Completions
    OpenaiChat,
    /// Any server that speaks Chat Completions, such as llama.cpp, vLLM or Ollama; needs --base-url and --model
    Compatible,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Approve {
    /// Somebody at the terminal; where there is none, the answer is no
    Ask,
    /// Nobody: the answer is no
    Deny,
    /// Nobody: the answer is yes, but to what only a human can answer
    Auto,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_tools_have_a_name_and_a_command() {
        let server = parse_mcp("files=npx -y server --root='/a b'").unwrap();
        assert_eq!((server.name.as_str(), server.argv[2].as_str()), ("files", "npx -y server --root='/a b'"));
        assert_eq!(server.argv[..2], ["sh", "-c"]);
        let longest = "x".repeat(SERVER_NAME_MAX_BYTES);
        assert!(parse_mcp(&format!("{longest}=c")).is_ok());
        for bad in ["files", "files=", "files= ", "=c", "a b=c", "a.b=c", &format!("{longest}x=c")] {
            assert!(parse_mcp(bad).unwrap_err().contains("then = and a command"), "{bad}");
        }
    }
}
