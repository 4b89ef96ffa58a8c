// SPDX-License-Identifier: Apache-2.0
//! What a policy says of a question, which rule decides, and why the others do not.

use std::fmt;

use serde::Serialize;

use crate::address;
use crate::decide::{Differs, Match, Request, Verdict};
use crate::network::{Rule, Scheme};
use crate::policy::Policy;
use crate::problem::sentence;
use crate::region::list;
use crate::section::{Action, SHELL_TOOL};
use crate::would::Would;

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// What becomes of it.
    pub verdict: Verdict,
    /// The rule that decides, by name.
    pub rule: Option<String>,
    /// Why, in words.
    pub why: String,
    /// The network's rules in their order, and what each has to do with it.
    pub rules: Vec<Considered>,
    /// What else happens, or must hold.
    pub notes: Vec<String>,
}

/// What one rule has to do with a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Considered {
    /// Its name.
    pub rule: String,
    /// In words.
    pub says: String,
}

impl Policy {
    /// What becomes of it, and why. Resolves nothing: of names it says what their addresses must be.
    #[must_use]
    pub fn explain(&self, would: &Would) -> Explanation {
        match would {
            Would::Request(request) => self.explain_request(request),
            Would::Connect(host, port) => self.explain_tunnel(&Request::connect(Scheme::Https, host.clone(), *port)),
            Would::Tool(name, command) => self.explain_tool(name, command.as_deref()),
            Would::Model(name) => self.explain_model(name),
            Would::Change(path) => self.explain_change(path),
        }
    }

    fn explain_request(&self, request: &Request) -> Explanation {
        let egress = self.network();
        let decision = egress.decide(request);
        let mut rules = Vec::new();
        let mut decided = false;
        for rule in egress.rules() {
            let matched = egress.matches(rule, request);
            let says = match (&matched, decided) {
                (_, true) => "is not reached".to_owned(),
                (Match::No(differs), _) => sentence(&in_words(*differs, request)),
                (Match::Depends, _) => format!("depends on method and path, then: {}", rule.action),
                (Match::Yes, _) => format!("decides: {}", rule.action),
                (Match::Ambiguous(why), _) => format!("decides: deny, as the path {why}"),
            };
            decided |= matches!(matched, Match::Yes | Match::Ambiguous(_));
            rules.push(Considered { rule: rule.name.to_string(), says });
        }
        let mut explanation = Explanation {
            verdict: decision.verdict,
            why: sentence(&decision.why),
            rule: decision.rule,
            rules,
            notes: Vec::new(),
        };
        let by = explanation.rule.as_deref().and_then(|name| egress.rule(name));
        if let Some(address) = request.host.address().filter(|_| explanation.verdict != Verdict::Deny) {
            let ranges = by.map_or(&[][..], |rule| &rule.ranges);
            if let Err(refused) = address::admit(address, ranges).map_err(|refused| refused.to_string()) {
                explanation.why = format!("{}, but {refused}", explanation.why);
                explanation.verdict = Verdict::Deny;
            }
        }
        if explanation.verdict != Verdict::Deny {
            explanation.notes = self.notes(request, by);
        }
        explanation
    }

    /// Both ways of a tunnel: TLS, or bytes that nobody sees.
    fn explain_tunnel(&self, request: &Request) -> Explanation {
        let mut tls = self.explain_request(request);
        let raw = self.explain_request(&Request { scheme: Scheme::Tcp, ..request.clone() });
        let nearer = raw.rule.is_some() && tls.rule.is_none();
        if tls.verdict == Verdict::Deny && (raw.verdict != Verdict::Deny || nearer) {
            return Explanation { notes: [vec!["not for TLS".to_owned()], raw.notes.clone()].concat(), ..raw };
        }
        if tls.verdict != Verdict::Deny {
            let word = if raw.verdict == Verdict::Deny { "refused" } else { "let through too" };
            tls.notes.push(format!("what is not TLS in the tunnel is {word}"));
        }
        tls
    }

    fn notes(&self, request: &Request, rule: Option<&Rule>) -> Vec<String> {
        let egress = self.network();
        let mut notes = Vec::new();
        if request.scheme == Scheme::Https && egress.inspects(&request.host, request.port) {
            notes.push("TLS is ended by the broker".to_owned());
            for credential in egress.credentials_for(&request.host) {
                notes.push(format!("credential `{}` is put into the header {}", credential.name, credential.header));
            }
        }
        if request.host.address().is_none() {
            let ranges = rule.map_or(&[][..], |rule| &rule.ranges);
            let also = if ranges.is_empty() { String::new() } else { format!(", or in {}", list(ranges)) };
            notes.push(format!("every address of {} must be public{also}", request.host));
        }
        let Some(rule) = rule else { return notes };
        notes.extend(rule.rate.map(|rate| format!("at most {rate}")));
        notes.extend(rule.connections.map(|number| format!("at most {number} connections at once")));
        notes.extend(rule.bytes.map(|bytes| format!("at most {bytes} in the whole run")));
        notes
    }

    fn explain_tool(&self, name: &str, command: Option<&str>) -> Explanation {
        let tools = self.tools();
        let named = tools.rules.keys().any(|key| key.as_str() == name);
        let action = tools.action(name);
        let from = if named { format!("tools.rules.{name}") } else { "tools.default".to_owned() };
        let mut answer = plain(action.into(), format!("{} says {action}", sentence(&from)));
        let asks = command.filter(|_| name == SHELL_TOOL).and_then(|command| tools.asks_about(command));
        if let Some(glob) = asks.filter(|_| action == Action::Allow) {
            answer.verdict = Verdict::Ask;
            answer.why = format!("tools.ask_commands has {glob:?}");
        }
        answer.notes.push(
            "tool rules are questions, not protection: what a tool may do is held by the other sections".to_owned(),
        );
        answer
    }

    fn explain_model(&self, name: &str) -> Explanation {
        let Some(model) = self.model() else {
            return plain(Verdict::Deny, "there is no section [model]".to_owned());
        };
        let pattern = model.models.iter().find(|pattern| pattern.matches(name));
        let mut answer = match pattern {
            Some(pattern) => plain(Verdict::Allow, format!("model.models has {:?}", pattern.as_str())),
            None => {
                plain(Verdict::Deny, format!("no pattern of model.models matches; there are: {}", list(&model.models)))
            }
        };
        if answer.verdict == Verdict::Allow {
            answer.notes.extend(model.endpoint().map(|endpoint| format!("asked at {endpoint}")));
        }
        answer
    }

    fn explain_change(&self, path: &str) -> Explanation {
        let workspace = self.workspace();
        if let Some(glob) = workspace.keeps(path.as_bytes()) {
            return plain(Verdict::Deny, format!("workspace.read_only has {glob:?}"));
        }
        let verdict = match workspace.mode {
            crate::section::Mode::Discard => Verdict::Deny,
            crate::section::Mode::Review => Verdict::Ask,
            crate::section::Mode::Apply => Verdict::Allow,
        };
        plain(verdict, format!("workspace.mode is {}", workspace.mode))
    }
}

/// Why a rule is not about a request.
fn in_words(differs: Differs, request: &Request) -> String {
    let call = |of: fn(&crate::decide::Call) -> &str| request.call.as_ref().map_or("", of).to_owned();
    match differs {
        Differs::Host => format!("is not about the host {}", request.host),
        Differs::Door => format!("is not about {} at port {}", request.scheme.name(), request.port),
        Differs::Method => format!("is not about the method {:?}", call(|call| &call.method)),
        Differs::Path => format!("is not about the path {:?}", call(|call| &call.path)),
    }
}

fn plain(verdict: Verdict, why: String) -> Explanation {
    Explanation { verdict, rule: None, why, rules: Vec::new(), notes: Vec::new() }
}

impl From<Action> for Verdict {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Ask => Self::Ask,
            Action::Deny => Self::Deny,
        }
    }
}

impl Verdict {
    /// In a word or two.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allowed",
            Self::IfInspected => "allowed if inspected",
            Self::Ask => "asked about",
            Self::Deny => "denied",
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.verdict.name(), self.why)?;
        for note in &self.notes {
            write!(f, "\n  - {note}")?;
        }
        for Considered { rule, says } in &self.rules {
            write!(f, "\n  rule `{rule}`: {says}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
