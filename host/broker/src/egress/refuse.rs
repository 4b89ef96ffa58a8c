// SPDX-License-Identifier: Apache-2.0
//! What the proxy says in place of a server: which rule decided, why, and what to do. Never a secret: none is in a rule.

use serde_json::json;

use crate::http::BadHead;

/// Why a request is not sent, or has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(super) struct Refused {
    /// HTTP status.
    pub(super) status: u16,
    /// The rule that decided; absent: none matched, or it is not about rules.
    pub(super) rule: Option<String>,
    /// In words.
    pub(super) why: String,
}

impl Refused {
    /// The policy says no.
    pub(super) fn policy(rule: Option<String>, why: impl Into<String>) -> Self {
        Self { status: 403, rule, why: why.into() }
    }

    /// A budget or a limit says no.
    pub(super) fn limit(status: u16, rule: Option<&str>, why: impl Into<String>) -> Self {
        Self { status, rule: rule.map(str::to_owned), why: why.into() }
    }

    /// The request itself is refused.
    pub(super) fn head(bad: BadHead) -> Self {
        Self { status: bad.status(), rule: None, why: bad.to_string() }
    }

    /// The server cannot be reached, or makes no sense.
    pub(super) fn server(error: &std::io::Error, what: &str) -> Self {
        let status = if error.kind() == std::io::ErrorKind::TimedOut { 504 } else { 502 };
        Self { status, rule: None, why: format!("{what}: {error}") }
    }

    fn what_to_do(&self) -> &'static str {
        match self.status {
            403 => {
                "The sandbox's policy decides this, not the server; trying again does not help. Whoever runs the sandbox can allow \
                 it with a rule in [[network.rules]] of the policy (`midge policy explain` says which)."
            }
            429 | 503 => "Try again later, or with fewer requests at once.",
            502 | 504 => "The policy allows this; the server or the way to it is at fault.",
            _ => {
                "The client's request is at fault: this is an HTTP/1.1 proxy that takes CONNECT and http:// addresses."
            }
        }
    }

    /// As an answer; with `close` the connection ends after it.
    pub(super) fn answer(&self, method: &str, close: bool) -> Vec<u8> {
        let body = json!({"error": {
            "from": "midge", "status": self.status, "rule": self.rule, "message": self.why, "do": self.what_to_do(),
        }});
        let body = format!("{body}\n");
        let reason = match self.status {
            403 => "Forbidden by policy",
            429 => "Too Many Requests",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            _ => "Bad Request",
        };
        let more = if close { "Connection: close\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{more}\r\n",
            self.status,
            body.len()
        );
        if method == "HEAD" { head.into_bytes() } else { [head, body].concat().into_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_at_fault_can_be_told() {
        let denied = Refused::policy(Some("no-uploads".into()), "rule `no-uploads` denies it").answer("GET", true);
        let denied = String::from_utf8(denied).unwrap();
        assert!(
            denied.starts_with("HTTP/1.1 403 ")
                && denied.contains("\"rule\":\"no-uploads\"")
                && denied.contains("close")
        );
        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
        assert_eq!(Refused::server(&late, "x").status, 504);
        assert_eq!(Refused::server(&std::io::Error::other("x"), "x").status, 502);
        assert!(Refused::head(BadHead::Host).answer("HEAD", false).ends_with(b"\r\n\r\n"));
    }
}
