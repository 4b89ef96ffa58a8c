// SPDX-License-Identifier: Apache-2.0
//! What becomes of a request: the first rule that matches decides; what none matches is denied. Pure: no names are resolved here.

use std::net::IpAddr;

use serde::Serialize;

use crate::address::{self, AddressRefused};
use crate::host::HostName;
use crate::network::{Credential, Rule, Scheme};
use crate::path::Path;
use crate::section::Action;

/// The network's part of a policy, with all that decides about a request.
#[derive(Debug, Clone, Copy)]
pub struct Egress<'a> {
    rules: &'a [Rule],
    credentials: &'a [Credential],
}

/// What a guest asks the proxy for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is spoken.
    pub scheme: Scheme,
    /// With whom.
    pub host: HostName,
    /// At which port.
    pub port: u16,
    /// Method and path; `None` while they are not known: CONNECT, before TLS is ended.
    pub call: Option<Call>,
}

/// What is known of a request when it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The method as the guest wrote it.
    pub method: String,
    /// Path and query as the guest wrote them.
    pub path: String,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is sent.
    Allow,
    /// A tunnel is opened, TLS in it ended, and each request in it decided by itself. Only of a request without [`Call`].
    IfInspected,
    /// It is sent when somebody says so.
    Ask,
    /// It is not sent.
    Deny,
}

/// A verdict and where it is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// What becomes of the request.
    pub verdict: Verdict,
    /// The name of the rule that decided. `None`: no rule matched, or (of [`Verdict::IfInspected`]) it is not known yet.
    pub rule: Option<String>,
    /// Why, in words for a human or a model.
    pub why: String,
}

/// What one rule has to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// It is about something else.
    No(Differs),
    /// It is about that host, and what it says of the request depends on what is not known yet.
    Depends,
    /// It is about this request.
    Yes,
    /// It has paths, and the request's path can be read in more than one way; why.
    Ambiguous(&'static str),
}

/// In what a request is none of a rule's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Differs {
    Host,
    Door,
    Method,
    Path,
}

impl Request {
    /// A tunnel, before anything of what is in it is known.
    #[must_use]
    pub fn connect(scheme: Scheme, host: HostName, port: u16) -> Self {
        Self { scheme, host, port, call: None }
    }

    /// A request that can be read; `path` with its query.
    #[must_use]
    pub fn call(scheme: Scheme, host: HostName, port: u16, method: &str, path: &str) -> Self {
        Self { scheme, host, port, call: Some(Call { method: method.to_owned(), path: path.to_owned() }) }
    }
}

impl<'a> Egress<'a> {
    pub(crate) fn new(rules: &'a [Rule], credentials: &'a [Credential]) -> Self {
        Self { rules, credentials }
    }

    /// The rules in their order.
    #[must_use]
    pub fn rules(self) -> &'a [Rule] {
        self.rules
    }

    /// The rule of that name.
    #[must_use]
    pub fn rule(self, name: &str) -> Option<&'a Rule> {
        self.rules.iter().find(|rule| rule.name.as_str() == name)
    }

    /// Decides. For CONNECT ask with [`Scheme::Https`] when what comes first in the tunnel is TLS, else with [`Scheme::Tcp`].
    #[must_use]
    pub fn decide(self, request: &Request) -> Decision {
        // Of rules that depend on what is not known yet: any, and one that does not deny.
        let (mut depends, mut open) = (false, None);
        for rule in self.rules {
            match self.matches(rule, request) {
                Match::No(_) => {}
                Match::Depends => {
                    depends = true;
                    open = open.or((rule.action != Action::Deny).then_some(rule));
                }
                Match::Yes if rule.action == Action::Deny => {
                    return open.map_or_else(|| Decision::by(rule), |rule| Decision::if_inspected(rule, request));
                }
                Match::Yes if depends || self.is_inspected(rule, request) => {
                    return Decision::if_inspected(rule, request);
                }
                Match::Yes => return Decision::by(rule),
                Match::Ambiguous(why) => return Decision::ambiguous(rule, why),
            }
        }
        open.map_or_else(|| Decision::by_none(request, self.rules), |rule| Decision::if_inspected(rule, request))
    }

    /// Whether TLS to `host` at `port` is ended for a request that some rule does not deny.
    #[must_use]
    pub fn inspects(self, host: &HostName, port: u16) -> bool {
        self.decide(&Request::connect(Scheme::Https, host.clone(), port)).verdict == Verdict::IfInspected
    }

    /// The credentials that are put into requests to `host`: over HTTPS only.
    pub fn credentials_for(self, host: &HostName) -> impl Iterator<Item = &'a Credential> {
        self.credentials.iter().filter({
            let host = host.clone();
            move |credential| credential.names(&host)
        })
    }

    /// Whether a connection to `address` may be made for a request that the rule named `rule` let out. Call it with every address
    /// that is connected to, literal or resolved, at the time of the connection.
    ///
    /// # Errors
    /// The address is none of the public Internet's, and the rule does not name it.
    pub fn address(self, address: IpAddr, rule: Option<&str>) -> Result<(), AddressRefused> {
        let ranges = rule.and_then(|name| self.rule(name)).map_or(&[][..], |rule| &rule.ranges);
        address::admit(address, ranges)
    }

    /// Whether a tunnel that `rule` is about is opened for its requests to be seen.
    fn is_inspected(self, rule: &Rule, request: &Request) -> bool {
        let tunnel = request.call.is_none() && request.scheme == Scheme::Https;
        tunnel && (rule.wants_inspection() || self.credentials.iter().any(|credential| credential.names(&request.host)))
    }

    /// Holds one rule against a request.
    pub(crate) fn matches(self, rule: &Rule, request: &Request) -> Match {
        let Request { scheme, host, port, call } = request;
        if !rule.names(host) {
            return Match::No(Differs::Host);
        }
        if !rule.is_at(*scheme, *port) {
            return Match::No(Differs::Door);
        }
        let Some(call) = call else {
            return if rule.is_about_requests() { Match::Depends } else { Match::Yes };
        };
        if rule.methods.as_ref().is_some_and(|methods| methods.iter().all(|method| method.as_str() != call.method)) {
            return Match::No(Differs::Method);
        }
        let Some(paths) = &rule.paths else { return Match::Yes };
        match Path::read(&call.path) {
            Path::Ambiguous(why) => Match::Ambiguous(why),
            Path::Clear(path) if paths.iter().any(|pattern| pattern.matches(&path)) => Match::Yes,
            Path::Clear(_) => Match::No(Differs::Path),
        }
    }
}

impl Decision {
    fn by(rule: &Rule) -> Self {
        let why = format!("rule `{}` says {}", rule.name, rule.action);
        Self { verdict: rule.action.into(), rule: Some(rule.name.to_string()), why }
    }

    fn if_inspected(rule: &Rule, request: &Request) -> Self {
        let why = format!(
            "rule `{}` is about requests to {}: TLS is ended, and each request is decided by itself",
            rule.name, request.host
        );
        Self { verdict: Verdict::IfInspected, rule: None, why }
    }

    fn ambiguous(rule: &Rule, why: &str) -> Self {
        let why = format!("rule `{}` has paths, and servers read this path in different ways: it {why}", rule.name);
        Self { verdict: Verdict::Deny, rule: Some(rule.name.to_string()), why }
    }

    fn by_none(request: &Request, rules: &[Rule]) -> Self {
        let Request { scheme, host, port, call } = request;
        let near: Vec<&str> = rules.iter().filter(|rule| rule.names(host)).map(|rule| rule.name.as_str()).collect();
        let what = match call {
            Some(call) => format!("{:?} to {} ({}, port {port})", call.method, host, scheme.name()),
            None => format!("{host} ({}, port {port})", scheme.name()),
        };
        let why = if near.is_empty() {
            format!("no rule is about the host {host}")
        } else {
            format!("no rule allows {what}; about that host are: {}", near.join(", "))
        };
        Self { verdict: Verdict::Deny, rule: None, why }
    }
}

#[cfg(test)]
mod tests;
