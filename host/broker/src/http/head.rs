// SPDX-License-Identifier: Apache-2.0
//! Heads of requests and responses. What two parsers could read in two ways is refused here, never repaired.

use std::fmt::Write as _;

use super::framing::{Framing, request_framing, response_framing};
use super::headers::Headers;
use super::target::{Target, parse_target, split_authority};

/// Longest head, in bytes, with its empty line.
pub(crate) const HEAD_MAX_BYTES: usize = 64 << 10;
/// Most header lines of a head.
const HEADERS_MAX: usize = 128;
/// The first line of what an HTTP/2 client says without asking.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHead {
    #[error("the head is longer than {HEAD_MAX_BYTES} bytes")]
    TooLong,
    #[error("the head has more than {HEADERS_MAX} header lines")]
    TooMany,
    #[error("a line does not end with CR LF")]
    BareLineEnd,
    #[error("a control character stands in the head")]
    Control,
    #[error("a header is continued on a second line")]
    Folded,
    #[error("the head does not begin with a request line or a status line")]
    Start,
    #[error("the request's target is not an address this proxy knows: use CONNECT host:port, or http://host/path")]
    Target,
    #[error("a header line is malformed")]
    Header,
    #[error("HTTP/2 and other versions are not spoken here: use HTTP/1.1")]
    Version,
    #[error("a request needs exactly one Host header")]
    Host,
    #[error("the Host header does not name the host of the request's target")]
    HostMismatch,
    #[error("Content-Length and Transfer-Encoding are both given")]
    TwoFramings,
    #[error("Content-Length is repeated or is no number")]
    Length,
    #[error("Transfer-Encoding is something other than one `chunked`")]
    Coding,
    #[error("a CONNECT request has no body")]
    ConnectBody,
    #[error("protocols other than HTTP/1.1 cannot be switched to")]
    Upgrade,
    #[error("Expect is something other than `100-continue`")]
    Expect,
    #[error("the path has `.` or `..` segments: send it resolved")]
    DotSegments,
}

impl BadHead {
    /// The status to refuse a request with.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::TooLong | Self::TooMany => 431,
            Self::Version => 505,
            Self::Coding | Self::Upgrade => 501,
            Self::Expect => 417,
            _ => 400,
        }
    }
}

/// The head of a request that has one reading only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// The method, in its own case.
    pub(crate) method: String,
    /// What it is for.
    pub(crate) target: Target,
    /// Its headers.
    pub(crate) headers: Headers,
    /// Where its body ends.
    pub(crate) framing: Framing,
    /// Whether the guest waits for `100 Continue`.
    pub(crate) expects: bool,
    /// Whether the guest wants the connection closed after it.
    pub(crate) close: bool,
}

impl Head {
    /// Reads a head, empty line included.
    ///
    /// # Errors
    /// Whatever is wrong or could be read in two ways; see [`BadHead`].
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, BadHead> {
        if raw.starts_with(H2_PREFACE) {
            return Err(BadHead::Version);
        }
        check_lines(raw)?;
        let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut lines);
        complete(parsed.parse(raw))?;
        let (method, target, version) = (
            parsed.method.ok_or(BadHead::Start)?,
            parsed.path.ok_or(BadHead::Start)?,
            parsed.version.ok_or(BadHead::Start)?,
        );
        let headers = Headers::of(parsed.headers);
        let target = parse_target(method, target)?;
        // Many clients still open their tunnels with HTTP/1.0 (Python before 3.12); nothing else needs it.
        if version != 1 && !matches!(target, Target::Tunnel { .. }) {
            return Err(BadHead::Version);
        }
        check_host(&headers, &target, version)?;
        let framing = request_framing(&headers)?;
        if matches!(target, Target::Tunnel { .. }) && framing != Framing::Length(0) {
            return Err(BadHead::ConnectBody);
        }
        check_switches(&headers)?;
        Ok(Self {
            method: method.to_owned(),
            expects: headers.has_token("expect", "100-continue"),
            close: headers.has_token("connection", "close") || headers.has_token("proxy-connection", "close"),
            target,
            headers,
            framing,
        })
    }

    /// The head as it goes to a server: origin form, `host` (with its port where that is not the scheme's), framing as it is.
    pub(crate) fn to_origin(&self, path: &str, host: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(format!("{} {path} HTTP/1.1\r\nHost: {host}\r\n", self.method).as_bytes());
        let mut headers = self.headers.clone();
        headers.remove("host");
        headers.remove("content-length");
        headers.strip_hop_by_hop();
        headers.remove("transfer-encoding");
        match self.framing {
            Framing::Length(0) if matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "DELETE" | "TRACE") => {}
            Framing::Length(length) => headers.set("Content-Length", length.to_string()),
            Framing::Chunked => headers.set("Transfer-Encoding", "chunked"),
            Framing::UntilClose => {}
        }
        headers.write(&mut out);
        out
    }
}

/// The head of a response that has one reading only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    /// 100 to 599.
    pub(crate) status: u16,
    /// The words after it.
    pub(crate) reason: String,
    /// Its headers.
    pub(crate) headers: Headers,
    /// Where its body ends.
    pub(crate) framing: Framing,
    /// Whether the server closes after it.
    pub(crate) close: bool,
}

impl ResponseHead {
    /// Reads the head of the response to a request by `method`.
    ///
    /// # Errors
    /// Whatever is wrong or could be read in two ways; see [`BadHead`].
    pub(crate) fn parse(raw: &[u8], method: &str) -> Result<Self, BadHead> {
        check_lines(raw)?;
        let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut lines);
        complete(parsed.parse(raw))?;
        let status = parsed.code.filter(|code| (100..600).contains(code)).ok_or(BadHead::Start)?;
        if status == 101 {
            return Err(BadHead::Upgrade);
        }
        let reason = parsed.reason.unwrap_or_default().to_owned();
        let old = parsed.version == Some(0);
        let headers = Headers::of(parsed.headers);
        let framing = response_framing(&headers, status, method)?;
        let close = framing == Framing::UntilClose
            || headers.has_token("connection", "close")
            || (old && !headers.has_token("connection", "keep-alive"));
        Ok(Self { status, reason, headers, framing, close })
    }

    /// The head as it goes to the guest; `close`: the connection ends after it.
    pub(crate) fn to_guest(&self, close: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        let mut line = String::new();
        // Writing to a String cannot fail.
        let _ = write!(line, "HTTP/1.1 {} {}\r\n", self.status, self.reason);
        out.extend_from_slice(line.as_bytes());
        let mut headers = self.headers.clone();
        headers.strip_hop_by_hop();
        headers.remove("transfer-encoding");
        if self.framing == Framing::Chunked {
            headers.set("Transfer-Encoding", "chunked");
        }
        if close {
            headers.set("Connection", "close");
        }
        headers.write(&mut out);
        out
    }
}

/// Line ends, folding and control characters, before any parser sees the bytes.
fn check_lines(raw: &[u8]) -> Result<(), BadHead> {
    if raw.len() > HEAD_MAX_BYTES {
        return Err(BadHead::TooLong);
    }
    if matches!(raw.first(), None | Some(b'\r' | b'\n' | b' ' | b'\t')) {
        return Err(BadHead::Start);
    }
    for (at, byte) in raw.iter().enumerate() {
        match byte {
            b'\n' if at == 0 || raw[at - 1] != b'\r' => return Err(BadHead::BareLineEnd),
            b'\r' if raw.get(at + 1) != Some(&b'\n') => return Err(BadHead::BareLineEnd),
            b'\n' if matches!(raw.get(at + 1), Some(b' ' | b'\t')) => return Err(BadHead::Folded),
            b'\t' | b'\r' | b'\n' => {}
            0..=31 | 127 => return Err(BadHead::Control),
            _ => {}
        }
    }
    Ok(())
}

fn complete(parsed: Result<httparse::Status<usize>, httparse::Error>) -> Result<(), BadHead> {
    match parsed {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        Ok(httparse::Status::Partial) => Err(BadHead::Start),
        Err(httparse::Error::TooManyHeaders) => Err(BadHead::TooMany),
        Err(httparse::Error::Version) => Err(BadHead::Version),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => Err(BadHead::Header),
        Err(_) => Err(BadHead::Start),
    }
}

/// `Upgrade` and `Expect`: what is not understood is refused; an offer of HTTP/2 in clear is only not taken up.
fn check_switches(headers: &Headers) -> Result<(), BadHead> {
    if headers.all("upgrade").any(|value| !value.trim_ascii().eq_ignore_ascii_case(b"h2c")) {
        return Err(BadHead::Upgrade);
    }
    if headers.all("expect").any(|value| !value.trim_ascii().eq_ignore_ascii_case(b"100-continue")) {
        return Err(BadHead::Expect);
    }
    Ok(())
}

fn check_host(headers: &Headers, target: &Target, version: u8) -> Result<(), BadHead> {
    let count = headers.all("host").count();
    let old_tunnel = version == 0 && matches!(target, Target::Tunnel { .. });
    if count != 1 && !(count == 0 && old_tunnel) {
        return Err(BadHead::Host);
    }
    let Some(value) = headers.one("host") else { return Ok(()) };
    let value = std::str::from_utf8(value).map_err(|_| BadHead::Host)?;
    let (given, given_port) = split_authority(value).ok_or(BadHead::Host)?;
    let (host, port, default) = match target {
        Target::Tunnel { host, port } => (host, *port, *port),
        Target::Absolute { host, port, .. } => (host, *port, 80),
        Target::Origin { .. } => return Ok(()),
    };
    let same = given.eq_ignore_ascii_case(host) && given_port.unwrap_or(default) == port;
    if same { Ok(()) } else { Err(BadHead::HostMismatch) }
}

#[cfg(test)]
mod tests;
