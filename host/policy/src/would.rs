// SPDX-License-Identifier: Apache-2.0
//! A question to a policy in a line, as a person writes it: `GET https://example.org/x`, `CONNECT example.org:22`, `tool shell`.

use std::str::FromStr;

use crate::decide::Request;
use crate::host::HostName;
use crate::network::Scheme;
use crate::text::Malformed;

/// What [`Would`] is read from, in words.
const ACCEPTED: &str =
    "\"METHOD URL\", \"CONNECT HOST:PORT\", \"tool NAME [COMMAND]\", \"model NAME\" or \"change PATH\"";

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Would {
    /// A request through the proxy.
    Request(Request),
    /// A tunnel through the proxy, in which any bytes may follow.
    Connect(HostName, u16),
    /// A call of a tool; of the shell perhaps with its command.
    Tool(String, Option<String>),
    /// A model.
    Model(String),
    /// A change of a file of the workspace.
    Change(String),
}

impl FromStr for Would {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let text = text.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim_start();
        match (word, rest) {
            ("tool", rest) if !rest.is_empty() => {
                let (name, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                let command = command.trim_start();
                Ok(Self::Tool(name.to_owned(), (!command.is_empty()).then(|| command.to_owned())))
            }
            ("model", rest) if !rest.is_empty() => Ok(Self::Model(rest.to_owned())),
            ("change", rest) if !rest.is_empty() => Ok(Self::Change(rest.trim_start_matches("./").to_owned())),
            ("CONNECT", rest) => {
                let (host, port) = authority(rest)?;
                let port = port.ok_or_else(|| Malformed::new("names no port: CONNECT HOST:PORT"))?;
                Ok(Self::Connect(host, port))
            }
            (url, "") if url.contains("://") => Self::url("GET", url),
            (method, url) if url.contains("://") => Self::url(method, url),
            _ => Err(Malformed::new(format!("is no question; accepted: {ACCEPTED}"))),
        }
    }
}

impl Would {
    /// Taken apart as a proxy does it: nothing of the path is tidied up.
    fn url(method: &str, url: &str) -> Result<Self, Malformed> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(Malformed::new("is neither http:// nor https://; for other bytes ask CONNECT HOST:PORT")),
        };
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (place, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = authority(place)?;
        let port = port.or(scheme.port()).unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self::Request(Request::call(scheme, host, port, method, &path)))
    }
}

/// Host and port.
fn authority(text: &str) -> Result<(HostName, Option<u16>), Malformed> {
    let end = text.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match text[end..].rfind(':') {
        Some(colon) => (&text[..end + colon], Some(&text[end + colon + 1..])),
        None => (text, None),
    };
    let port = port.map(|port| port.parse::<u16>().ok().filter(|port| *port != 0));
    match port {
        Some(None) => Err(Malformed::new("has a port that is none: 1 to 65535")),
        port => {
            Ok((HostName::parse(host).map_err(|why| Malformed::new(format!("has a host that {why}")))?, port.flatten()))
        }
    }
}

#[cfg(test)]
mod tests;
