// SPDX-License-Identifier: Apache-2.0
//! Patterns of hosts and paths. Of two patterns one holds the other, or they have nothing in common: that is what makes it
//! decidable which policy is narrower. So a star stands only at the beginning of a host and at the end of a path.

use std::fmt;
use std::str::FromStr;

use crate::host::HostName;
use crate::text::{Malformed, text_type};

/// Longest path pattern in bytes.
pub(crate) const PATH_MAX_BYTES: usize = 2048;

/// Which hosts: `example.org` (that host), `*.example.org` (every name below it, not itself), `*` (every name and address).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// `*`
    Any,
    /// `*.name`: the name.
    Below(HostName),
    /// One host.
    Exact(HostName),
}

/// Which paths: `/simple/` (that path), `/simple/*` (every path that begins with `/simple/`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathPattern {
    /// `/begin*`: the beginning.
    Begins(String),
    /// One path.
    Exact(String),
}

/// A method of HTTP in capitals.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method(String);

text_type!(HostPattern, "midge-host-pattern", "a host, *.name for every name below it, or * for every host");
text_type!(
    PathPattern,
    "midge-path-pattern",
    "a path that begins with /, without query, dot segments and percent signs; a * only at its end"
);
text_type!(Method, "midge-method", "a method of HTTP in capitals, other than CONNECT");

/// Second labels below which registries of countries give names away, as in `co.uk`.
const SECOND_LEVELS: [&str; 18] = [
    "ac", "biz", "co", "com", "edu", "firm", "gen", "go", "gob", "gov", "gouv", "info", "ltd", "ne", "net", "nom",
    "or", "org",
];

/// Names below which anybody may have a name of their own. No full list of public suffixes: the common ones.
const SHARED: [&str; 31] = [
    "amazonaws.com",
    "appspot.com",
    "azureedge.net",
    "azurewebsites.net",
    "blob.core.windows.net",
    "blogspot.com",
    "cloudapp.net",
    "cloudfront.net",
    "cloudfunctions.net",
    "deno.dev",
    "firebaseapp.com",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "glitch.me",
    "herokuapp.com",
    "netlify.app",
    "ngrok-free.app",
    "ngrok.io",
    "nip.io",
    "onrender.com",
    "pages.dev",
    "r2.dev",
    "repl.co",
    "run.app",
    "s3.amazonaws.com",
    "sslip.io",
    "trycloudflare.com",
    "vercel.app",
    "web.app",
    "workers.dev",
];

impl HostPattern {
    /// Whether `host` is one of them.
    #[must_use]
    pub fn matches(&self, host: &HostName) -> bool {
        match self {
            Self::Any => true,
            Self::Below(name) => host.is_below(name.as_str()),
            Self::Exact(name) => name == host,
        }
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (Self::Below(name), Self::Below(below)) => name == below || below.is_below(name.as_str()),
            (pattern, Self::Exact(host)) => pattern.matches(host),
            (Self::Exact(_), Self::Below(_)) => false,
        }
    }

    /// What both have: one of the two, or nothing.
    #[must_use]
    pub(crate) fn meet(&self, other: &Self) -> Option<Self> {
        if self.covers(other) { Some(other.clone()) } else { other.covers(self).then(|| self.clone()) }
    }

    /// Whether it gives every host, or all names below a suffix that anybody can have a name under: a rule says that on purpose.
    #[must_use]
    pub fn is_broad(&self) -> bool {
        let Self::Below(name) = self else { return *self == Self::Any };
        match name.as_str().split('.').collect::<Vec<_>>().as_slice() {
            [_] => true,
            [second, country] if country.len() == 2 && SECOND_LEVELS.contains(second) => true,
            _ => SHARED.contains(&name.as_str()),
        }
    }
}

impl PathPattern {
    /// Whether `path`, written as [`crate::path::Path`] writes it, is one of them.
    #[must_use]
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Begins(start) => path.starts_with(start.as_str()),
            Self::Exact(exact) => path == exact,
        }
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Begins(start), Self::Begins(text) | Self::Exact(text)) => text.starts_with(start.as_str()),
            (Self::Exact(exact), Self::Exact(text)) => exact == text,
            (Self::Exact(_), Self::Begins(_)) => false,
        }
    }

    /// What both have: one of the two, or nothing.
    #[must_use]
    pub(crate) fn meet(&self, other: &Self) -> Option<Self> {
        if self.covers(other) { Some(other.clone()) } else { other.covers(self).then(|| self.clone()) }
    }
}

impl Method {
    /// As it stands in a request.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostPattern {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let Some(below) = text.strip_prefix("*.") else {
            if text.contains('*') {
                return Err(Malformed::new("has a * that does not stand for whole labels at its beginning"));
            }
            return HostName::parse(text).map(Self::Exact);
        };
        let name = HostName::parse(below)?;
        match name.address() {
            None => Ok(Self::Below(name)),
            Some(_) => Err(Malformed::new("asks for names below an address")),
        }
    }
}

impl FromStr for PathPattern {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() > PATH_MAX_BYTES {
            return Err(Malformed::new(format!("is longer than {PATH_MAX_BYTES} bytes")));
        }
        let path = text.strip_suffix('*').unwrap_or(text);
        if !path.starts_with('/') {
            return Err(Malformed::new("does not begin with /"));
        }
        if path.contains('*') {
            return Err(Malformed::new("has a * that is not at its end"));
        }
        // Of a beginning the last segment may still grow: `/.` may become `/.well-known`.
        let whole = if text.ends_with('*') { format!("{path}x") } else { path.to_owned() };
        match crate::path::Path::read(&whole) {
            crate::path::Path::Clear(clear) if clear == whole => {}
            _ => return Err(Malformed::new("has a query, a dot segment, //, a backslash, a percent sign or a blank")),
        }
        Ok(if text.ends_with('*') { Self::Begins(path.to_owned()) } else { Self::Exact(path.to_owned()) })
    }
}

impl FromStr for Method {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let letters = text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-' || byte == b'_');
        if !letters || !(1..=32).contains(&text.len()) {
            return Err(Malformed::new("is not a method in capitals"));
        }
        if text == "CONNECT" {
            return Err(Malformed::new("asks a proxy, not a host"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Exact(name) => write!(f, "{name}"),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begins(start) => write!(f, "{start}*"),
            Self::Exact(exact) => f.write_str(exact),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
