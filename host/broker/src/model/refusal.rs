// SPDX-License-Identifier: Apache-2.0
//! What the door `model` says instead of the provider, in the provider's own format, so that every client understands it.
//!
//! Official clients try again on 408, 409, 429 and 5xx. What would be refused again has another status, and says
//! `x-should-retry: false` as well: a budget that is used up is 402, a rule 403, a path 404. Only trouble with the provider
//! itself is 502 or 504.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use midge_protocol::broker::Wire;
use serde_json::json;

use super::Body;
use crate::ledger::Exhausted;

/// Why there is no answer of a provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the budget `{budget}` of this sandbox is used up: {0}. Raise it in [budget] of the policy, and run again.", budget = .0.budget)]
    Exhausted(Exhausted),
    #[error("{0}")]
    Forbidden(String),
    #[error(
        "this door does not know {0}: it passes on POST /v1/messages, /v1/responses, /v1/chat/completions, their token counts, and GET /v1/models"
    )]
    Unknown(String),
    #[error("{0}")]
    Malformed(String),
    #[error("the request is longer than {0} bytes")]
    TooLarge(usize),
    #[error("the request's body did not come in time")]
    Slow,
    #[error("the model provider cannot be reached: {0}")]
    Unreachable(String),
    #[error("the model provider did not answer in {0} s")]
    TimedOut(u64),
    #[error("{0}")]
    Replay(String),
    #[error("the transcript of this run cannot be written, and nothing is done unrecorded")]
    Unrecorded,
}

impl Refusal {
    fn status(&self) -> u16 {
        match self {
            Self::Exhausted(_) => 402,
            Self::Forbidden(_) => 403,
            Self::Unknown(_) => 404,
            Self::Malformed(_) => 400,
            Self::TooLarge(_) => 413,
            Self::Slow => 408,
            Self::Unreachable(_) => 502,
            Self::TimedOut(_) => 504,
            Self::Replay(_) => 410,
            Self::Unrecorded => 403,
        }
    }

    /// The kind of error, as Anthropic and as OpenAI name it.
    fn kinds(&self) -> (&'static str, &'static str) {
        match self {
            Self::Exhausted(_) => ("billing_error", "insufficient_quota"),
            Self::Forbidden(_) | Self::Unrecorded => ("permission_error", "permission_error"),
            Self::Unknown(_) => ("not_found_error", "invalid_request_error"),
            Self::TooLarge(_) => ("request_too_large", "invalid_request_error"),
            Self::Malformed(_) | Self::Replay(_) => ("invalid_request_error", "invalid_request_error"),
            Self::Slow | Self::TimedOut(_) => ("timeout_error", "server_error"),
            Self::Unreachable(_) => ("api_error", "server_error"),
        }
    }

    /// As an answer in the format of `wire`.
    pub(super) fn answer(&self, wire: Wire) -> Response<Body> {
        let (anthropic, openai) = self.kinds();
        let message = format!("midge: {self}");
        let body = match wire {
            Wire::Anthropic => json!({"type": "error", "error": {"type": anthropic, "message": message}}),
            Wire::Responses | Wire::Chat => {
                let code = if matches!(self, Self::Exhausted(_)) { Some(openai) } else { None };
                json!({"error": {"message": message, "type": openai, "param": null, "code": code}})
            }
        };
        let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed();
        let mut answer = Response::new(body);
        *answer.status_mut() = hyper::StatusCode::from_u16(self.status()).unwrap_or_default();
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if !matches!(self, Self::Slow | Self::Unreachable(_) | Self::TimedOut(_)) {
            answer.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_refused_again_is_nothing_that_clients_try_again() {
        let exhausted = Exhausted { budget: "tokens", wanted: 5, left: 0 };
        for refusal in [
            Refusal::Exhausted(exhausted),
            Refusal::Forbidden(String::new()),
            Refusal::Unknown(String::new()),
            Refusal::Malformed(String::new()),
            Refusal::TooLarge(1),
            Refusal::Replay(String::new()),
            Refusal::Unrecorded,
        ] {
            let answer = refusal.answer(Wire::Chat);
            assert!(!matches!(answer.status().as_u16(), 408 | 409 | 429 | 500..), "{refusal:?}");
            assert_eq!(answer.headers()["x-should-retry"], "false");
        }
    }
}
