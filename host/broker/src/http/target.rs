// SPDX-License-Identifier: Apache-2.0
//! Targets of request lines, in the three forms that are understood (RFC 9112 §3.2); the fourth, `*`, is not.

use super::head::BadHead;

/// What a request line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `CONNECT host:port`.
    Tunnel { host: String, port: u16 },
    /// `GET http://host:port/path`: what a proxy is asked for in clear.
    Absolute { host: String, port: u16, path: String },
    /// `GET /path`: what a server is asked for.
    Origin { path: String },
}

/// Reads the target of a request line by its method.
pub(super) fn parse_target(method: &str, target: &str) -> Result<Target, BadHead> {
    if !target.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'#') {
        return Err(BadHead::Target);
    }
    if method == "CONNECT" {
        let (host, port) = split_authority(target).ok_or(BadHead::Target)?;
        return Ok(Target::Tunnel { host: host.to_owned(), port: port.ok_or(BadHead::Target)? });
    }
    if target.starts_with('/') {
        check_dots(target)?;
        return Ok(Target::Origin { path: target.to_owned() });
    }
    let is_http = target.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let rest = target.get(7..).filter(|_| is_http).ok_or(BadHead::Target)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, port) = split_authority(&rest[..end]).ok_or(BadHead::Target)?;
    let path = match &rest[end..] {
        "" => "/".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        query => format!("/{query}"),
    };
    check_dots(&path)?;
    Ok(Target::Absolute { host: host.to_owned(), port: port.unwrap_or(80), path })
}

/// A path whose meaning a server could change by resolving it is no path that a rule can be held against.
fn check_dots(path: &str) -> Result<(), BadHead> {
    let path = path.split('?').next().unwrap_or_default();
    let plain =
        path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    // `%252e` would be dots for a server that decodes twice.
    let twice = plain.contains("%252e");
    let dots = plain.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")));
    if dots || twice { Err(BadHead::DotSegments) } else { Ok(()) }
}

/// Host and port of `host`, `host:port`, `[v6]` or `[v6]:port`; no user, no empty host, no port 0, brackets kept off.
pub(crate) fn split_authority(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let bad = |byte: u8| byte <= b' ' || matches!(byte, b'@' | b'/' | b'?' | b'#' | b'[' | b']' | b'\\' | b'%' | b',');
    if host.is_empty() || host.len() > 255 || host.bytes().any(bad) {
        return None;
    }
    let port = match port {
        None => None,
        Some(digits) if digits.len() <= 5 && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse::<u16>().ok().filter(|port| *port != 0)?)
        }
        Some(_) => return None,
    };
    Some((host, port))
}
