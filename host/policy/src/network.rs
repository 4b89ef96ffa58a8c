// SPDX-License-Identifier: Apache-2.0
//! The network's sections as they are written: rules, first match wins, nothing else is let out; and credentials.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::Range;
use crate::host::HostName;
use crate::names::{HeaderName, Name};
use crate::pattern::{HostPattern, Method, PathPattern};
use crate::secret::{Secret, SecretSource};
use crate::section::Action;
use crate::units::{Bytes, Rate};

/// What stands for the secret in [`Credential::value`].
pub const SECRET_MARK: &str = "{secret}";

/// What the sandbox may reach through the proxy: what the first rule that matches says. What no rule matches is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    /// Rules, the first that matches wins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub(crate) rules: Vec<Rule>,
}

/// What is spoken with a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// HTTP in clear text.
    Http,
    /// HTTP over TLS.
    Https,
    /// Any bytes in a CONNECT tunnel, unseen: SSH, databases.
    Tcp,
}

/// Some requests, and what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name, in questions and in the transcript; no two rules have the same.
    pub name: Name,
    /// What becomes of the requests.
    #[serde(default)]
    pub action: Action,
    /// To which hosts.
    #[schemars(length(min = 1, max = 256))]
    pub hosts: Vec<HostPattern>,
    /// Says that `*`, `*.com` and the like are meant in `hosts`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub any: bool,
    /// Over what.
    #[serde(default = "https_only")]
    #[schemars(length(min = 1, max = 3))]
    pub schemes: Vec<Scheme>,
    /// To which ports. Absent: those of the schemes, 80 and 443.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<u16>,
    /// With which methods. Absent: any. Over TLS it is ended for that, as by `inspect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub methods: Option<Vec<Method>>,
    /// For which paths; `*` at the end stands for any characters. Absent: any. Over TLS it is ended for that, as by `inspect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub paths: Option<Vec<PathPattern>>,
    /// Whether TLS is ended by the broker, so that each request is seen. Absent: where `methods`, `paths` or a credential need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inspect: Option<bool>,
    /// Networks that are not of the public Internet and that a host may resolve to. Absent: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ranges: Vec<Range>,
    /// How many requests, or connections that are not inspected. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How many connections at once. Absent: no limit of the rule's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub connections: Option<u32>,
    /// How many bytes in the whole run, both ways. Absent: no limit of the rule's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Bytes>,
}

/// A header that the broker puts into requests to some hosts over HTTPS, so that the guest need not hold its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Its name in the transcript; no two credentials have the same.
    pub name: Name,
    /// To which hosts. TLS to them is ended by the broker.
    #[schemars(length(min = 1, max = 64))]
    pub hosts: Vec<HostPattern>,
    /// In which header; what the guest sent there is dropped.
    #[serde(default = "HeaderName::authorization")]
    pub header: HeaderName,
    /// The header's value, `{secret}` in it standing for the secret. Absent: `Bearer {secret}`; with `basic_user` it must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub value: Option<String>,
    /// The user of HTTP's Basic scheme, whose password the secret is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub basic_user: Option<String>,
    /// Where the secret is.
    pub secret: SecretSource,
}

fn https_only() -> Vec<Scheme> {
    vec![Scheme::Https]
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Scheme {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
        }
    }

    /// The port that a URL of it need not name.
    #[must_use]
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Tcp => None,
        }
    }
}

impl Rule {
    /// Whether it is about `host`.
    #[must_use]
    pub fn names(&self, host: &HostName) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// Whether it is about this scheme at this port.
    #[must_use]
    pub fn is_at(&self, scheme: Scheme, port: u16) -> bool {
        let ports = if self.ports.is_empty() { scheme.port() == Some(port) } else { self.ports.contains(&port) };
        self.schemes.contains(&scheme) && ports
    }

    /// Whether a request's method or path matters to it.
    #[must_use]
    pub fn is_about_requests(&self) -> bool {
        self.methods.is_some() || self.paths.is_some()
    }

    /// Whether it says by itself that TLS is ended.
    #[must_use]
    pub fn wants_inspection(&self) -> bool {
        self.is_about_requests() || self.inspect == Some(true)
    }
}

impl Credential {
    /// Whether it is put into requests to `host`.
    #[must_use]
    pub fn names(&self, host: &HostName) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// The value of its header with the secret in it.
    #[must_use]
    pub fn header_value(&self, secret: &Secret) -> Secret {
        if let Some(user) = &self.basic_user {
            return secret.basic(user);
        }
        let value = self.value.as_deref().unwrap_or("Bearer {secret}");
        let (before, after) = value.split_once(SECRET_MARK).unwrap_or((value, ""));
        secret.within(before, after)
    }
}

#[cfg(test)]
mod tests;
