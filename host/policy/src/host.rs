// SPDX-License-Identifier: Apache-2.0
//! The name of a host, in the one spelling that rules are held against, that is resolved, and that is recorded.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::text::{Malformed, text_type};

/// Longest name of the DNS in bytes, without the last dot (RFC 1035 §2.3.4).
const NAME_MAX_BYTES: usize = 253;
/// Longest label of the DNS in bytes (RFC 1035 §2.3.4).
const LABEL_MAX_BYTES: usize = 63;
/// Longest spelling that is looked at, in bytes.
const SPELLING_MAX_BYTES: usize = 1024;

/// A host: a name of the DNS (ASCII as of IDNA, lower case, no dot at the end), or an address.
///
/// Whatever a resolver of the system would take for an IPv4 address is one here: decimal, hexadecimal, octal, short forms. An
/// IPv6 literal may stand in brackets; with a zone it is refused. Percent signs are refused: no program needs them in a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName {
    text: String,
    address: Option<IpAddr>,
}

text_type!(HostName, "midge-host", "a name of the DNS or an IP address, without scheme, port and path");

impl HostName {
    /// Reads a host as it stands in a URL, a `Host` header, a CONNECT request or a server name of TLS; without port.
    ///
    /// # Errors
    /// In words, when it is no host.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() > SPELLING_MAX_BYTES {
            return Err(Malformed::new("is too long for a host"));
        }
        if text.contains('%') {
            return Err(Malformed::new("has a percent sign: neither an encoded name nor a zone is accepted"));
        }
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if bracketed.is_some() || text.matches(':').count() > 1 {
            let address = bracketed.unwrap_or(text).parse::<Ipv6Addr>();
            return address.map(Self::from).map_err(|_| Malformed::new("is not an IPv6 address"));
        }
        if text.contains([':', '/', '@', '?', '#', '\\']) {
            return Err(Malformed::new("is not a bare host: it has a scheme, a user, a port or a path"));
        }
        match url::Host::parse(text) {
            Ok(url::Host::Domain(name)) => Self::name(&name),
            Ok(url::Host::Ipv4(address)) => Ok(address.into()),
            Ok(url::Host::Ipv6(address)) => Ok(address.into()),
            Err(error) => Err(Malformed::new(format!("is not a host: {error}"))),
        }
    }

    fn name(name: &str) -> Result<Self, Malformed> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > NAME_MAX_BYTES {
            return Err(Malformed::new("is empty, or longer than a name of the DNS"));
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > LABEL_MAX_BYTES {
                return Err(Malformed::new("has a label that is empty, or longer than 63 characters"));
            }
            if !label.bytes().all(letters) {
                return Err(Malformed::new("has characters that no host has"));
            }
        }
        Ok(Self { text: name.to_owned(), address: None })
    }

    /// In the one spelling; an IPv6 address without brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address that it is, when it is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// As it stands before the port in a URL or a `Host` header: an IPv6 address in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.address {
            Some(IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.text.clone(),
        }
    }

    /// Whether it is a name below `parent`, at any depth; not `parent` itself.
    pub(crate) fn is_below(&self, parent: &str) -> bool {
        let rest = self.text.strip_suffix(parent);
        self.address.is_none() && rest.is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl From<IpAddr> for HostName {
    fn from(address: IpAddr) -> Self {
        Self { text: address.to_string(), address: Some(address) }
    }
}

impl From<Ipv4Addr> for HostName {
    fn from(address: Ipv4Addr) -> Self {
        IpAddr::V4(address).into()
    }
}

impl From<Ipv6Addr> for HostName {
    fn from(address: Ipv6Addr) -> Self {
        IpAddr::V6(address).into()
    }
}

impl FromStr for HostName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::parse(text)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
