// SPDX-License-Identifier: Apache-2.0
//! An agent whose model says what a test wants it to say: commands for its shell, one a turn, and what their results must show.

use std::time::Duration;

use midge_scripted_model::Server;
use midge_scripted_model::script::Script;
use serde_json::{Value, json};

use crate::context::{Call, Context, Running};
use crate::https::Authority;

/// The key of the model, which it insists on.
pub(crate) const KEY: &str = "sk-directed-2f8c61d09ab7e354";
/// Longest a command may take, in seconds.
const COMMAND_MAX_SECONDS: u64 = 280;
const LIMIT: Duration = Duration::from_secs(390);
/// What the model says last.
pub(crate) const LAST_WORDS: &str = "That is all.";

/// A run to come.
pub(crate) struct Directed {
    /// The policy, as TOML.
    policy: String,
    /// What other sandboxes call it.
    name: Option<String>,
    steps: Vec<Value>,
    expected: Vec<String>,
    variables: Vec<(String, String)>,
    /// Certificates, as PEM.
    roots: Option<String>,
}

/// A run that goes on, with what it needs; dropping it takes the model away.
pub(crate) struct Going {
    running: Running,
    pub(crate) model: Server,
    _dir: tempfile::TempDir,
}

impl Directed {
    pub(crate) fn under(policy: impl Into<String>) -> Self {
        let policy = policy.into();
        Self { policy, name: None, steps: Vec::new(), expected: Vec::new(), variables: Vec::new(), roots: None }
    }

    /// What other sandboxes call it.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The next command, whose result must have all of `results` in it.
    pub(crate) fn command(self, command: &str, results: &[&str]) -> Self {
        self.call("shell", &json!({"command": command, "timeout_s": COMMAND_MAX_SECONDS}), results)
    }

    /// The next call of a tool, as [`Directed::command`].
    pub(crate) fn call(mut self, tool: &str, input: &Value, results: &[&str]) -> Self {
        let call = json!({"call": {"name": tool, "input": input}});
        self.steps.push(json!({"expect": self.expected, "parts": [call]}));
        self.expected = results.iter().map(|text| (*text).to_owned()).collect();
        self
    }

    /// What a program that the last command started hears of the model.
    pub(crate) fn answer(mut self, part: &Value) -> Self {
        self.steps.push(json!({"parts": [part]}));
        self
    }

    /// A variable of `midge`'s environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The broker trusts the sites of `authority` and no others.
    pub(crate) fn trusting(mut self, authority: &Authority) -> Self {
        self.roots = Some(authority.pem.clone());
        self
    }

    /// Starts it.
    pub(crate) fn start(mut self, context: &Context) -> Going {
        self.steps.push(json!({"expect": self.expected, "parts": [{"text": LAST_WORDS}]}));
        let script = Script::parse(&json!({"key": KEY, "steps": self.steps}).to_string()).expect("a script");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let model = Server::listen(listener, script).expect("serves");
        let dir = tempfile::tempdir().expect("a directory");
        let policy = dir.path().join("policy.toml");
        std::fs::write(&policy, &self.policy).expect("writes");
        if let Some(pem) = &self.roots {
            let roots = dir.path().join("roots.pem");
            std::fs::write(&roots, pem).expect("writes");
            self = self.env("SSL_CERT_FILE", &roots.display().to_string());
        }
        let (policy, url) = (policy.display().to_string(), model.base_url());
        let provider = ["--provider", "anthropic", "--model", "m", "--base-url", &url];
        let name = self.name.iter().flat_map(|name| ["--name", name]);
        let run =
            ["agent", "--task", "do as you are told", "--policy", &policy].into_iter().chain(provider).chain(name);
        let call = context.midge(run).env("MIDGE_STATE", dir.path()).env("ANTHROPIC_API_KEY", KEY).limit(LIMIT);
        let call = self.variables.iter().fold(call, |call: Call, (name, value)| call.env(name, value));
        Going { running: call.start(), model, _dir: dir }
    }
}

impl Going {
    /// Waits for the end, which is a good one; gives what was said on standard error.
    pub(crate) fn done(self) -> String {
        let outcome = self.running.finish();
        for request in self.model.asked() {
            assert!(request.problem.is_none(), "{:?}: {outcome}", request.problem);
        }
        let outcome = outcome.code(0).out(&format!("{LAST_WORDS}\n"));
        outcome.stderr
    }
}
