// SPDX-License-Identifier: Apache-2.0
//! Names that a policy gives: of rules, credentials, peers, templates, tools, headers, and where a model is asked.

use std::fmt;
use std::str::FromStr;

use crate::host::HostName;
use crate::text::{Malformed, text_type};

/// Longest name in bytes.
pub(crate) const NAME_MAX_BYTES: usize = 64;

/// The name of a rule, a credential, a peer or a template.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// The name of a tool, as models call it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ToolName(String);

/// The name of a header, in lower case; none that the broker itself has to set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderName(String);

/// Where a model is asked: `https://host[:port][/path]`, or `http` for a server of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    https: bool,
    host: HostName,
    port: u16,
    path: String,
}

text_type!(Name, "midge-name", "1 to 64 letters, digits and . _ - +, the first a letter or digit");
text_type!(ToolName, "midge-tool", "1 to 128 letters, digits and _ - .");
text_type!(HeaderName, "midge-header", "a header of HTTP that is not about the connection, the host or the body");
text_type!(Endpoint, "midge-endpoint", "http:// or https://, a host, and perhaps a port and a path");

/// Headers that decide where a request goes or where it ends: no credential is put there.
const NOT_FOR_CREDENTIALS: [&str; 13] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

macro_rules! as_str {
    ($($name:ident)*) => {$(
        impl $name {
            /// As it is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
as_str!(Name ToolName HeaderName);

fn made_of(text: &str, max: usize, others: &str) -> Result<(), Malformed> {
    if text.is_empty() || text.len() > max {
        return Err(Malformed::new(format!("is empty, or longer than {max} bytes")));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !others.contains(*c)) {
        Some(c) => Err(Malformed::new(format!("has the character {c:?}"))),
        None => Ok(()),
    }
}

impl FromStr for Name {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        made_of(text, NAME_MAX_BYTES, "._-+")?;
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(Malformed::new("does not begin with a letter or digit"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for ToolName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        made_of(text, 128, "_-.")?;
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for HeaderName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        made_of(text, NAME_MAX_BYTES, "-_")?;
        let name = text.to_ascii_lowercase();
        if NOT_FOR_CREDENTIALS.contains(&name.as_str()) {
            return Err(Malformed::new("is a header that decides where a request goes or ends"));
        }
        Ok(Self(name))
    }
}

impl HeaderName {
    /// `authorization`.
    pub(crate) fn authorization() -> Self {
        Self("authorization".to_owned())
    }
}

impl Endpoint {
    /// Whether it is asked over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What stands before the path of the API: empty, or begins with `/` and does not end with it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for Endpoint {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let url = url::Url::parse(text).map_err(|error| Malformed::new(format!("is no URL: {error}")))?;
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(Malformed::new("is neither http nor https")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Malformed::new("has a user or password; name the key in model.key"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(Malformed::new("has a query or fragment"));
        }
        let host = HostName::parse(url.host_str().unwrap_or_default())?;
        let port = url.port_or_known_default().filter(|port| *port != 0);
        let port = port.ok_or_else(|| Malformed::new("has port 0"))?;
        Ok(Self { https, host, port, path: url.path().trim_end_matches('/').to_owned() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.https { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host.authority())?;
        if self.port != usual {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.path)
    }
}

#[cfg(test)]
mod tests;
