// SPDX-License-Identifier: Apache-2.0
//! Refusals of providers: what they say, and what kind of trouble it is.

use serde_json::Value;

use crate::talk::{Failure, Trouble, head};

/// Most bytes of a refusal that are told.
const TEXT_MAX_BYTES: usize = 2000;

/// What a refusal says in words, whatever its server's way to say it.
#[must_use]
pub fn error_text(body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap_or(Value::Null);
    let error = value.get("error").unwrap_or(&value);
    let found = [error.get("message"), Some(error), value.get("message"), value.get("detail")];
    let text = found.into_iter().flatten().find_map(Value::as_str).unwrap_or(body).trim();
    head(text, TEXT_MAX_BYTES).to_owned()
}

/// What stands at the beginning of what the broker of a sandbox says itself, in place of a provider.
const BROKER: &str = "midge: ";

/// Fields of the head of a refusal that say when, and whether at all, to try again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Again<'a> {
    /// `retry-after`, in seconds.
    pub after: Option<&'a str>,
    /// `x-should-retry`, of official servers and of the broker: `true` or `false`.
    pub should: Option<&'a str>,
}

/// The trouble of an HTTP status with its body. The broker's own refusals are known by their first word: 402 with the name of a
/// budget in backticks, 403 for what the policy denies.
#[must_use]
pub fn failure_of_status(status: u16, body: &str, again: Again<'_>) -> Failure {
    let said = error_text(body);
    match (status, said.strip_prefix(BROKER)) {
        (402, Some(own)) => {
            let name = own.split('`').nth(1).unwrap_or("money").to_owned();
            return Failure::new(Trouble::Budget(name), own);
        }
        (403, Some(own)) => return Failure::new(Trouble::Denied, own),
        _ => {}
    }
    let text = if said.is_empty() { format!("status {status}") } else { format!("status {status}: {said}") };
    Failure {
        kind: Trouble::Status(status),
        text,
        retry_after_ms: again.after.and_then(|text| text.trim().parse::<f64>().ok()).and_then(milliseconds),
        is_final: again.should == Some("false"),
    }
}

fn milliseconds(seconds: f64) -> Option<u64> {
    const MAX_S: f64 = 86_400.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a day")]
    seconds.is_finite().then(|| (seconds.clamp(0.0, MAX_S) * 1000.0) as u64)
}

/// Whether a refusal says that the conversation is longer than the model's window.
#[must_use]
pub fn window_is_full(failure: &Failure) -> bool {
    const WORDS: [&str; 8] = [
        "prompt is too long",
        "context_length_exceeded",
        "context length",
        "context window",
        "context size",
        "maximum context",
        "exceed context limit",
        "too many tokens",
    ];
    let text = failure.text.to_lowercase();
    match failure.kind {
        Trouble::Status(413) => true,
        Trouble::Status(400 | 422 | 500) => WORDS.iter().any(|word| text.contains(word)),
        _ => false,
    }
}
