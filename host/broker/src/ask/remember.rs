// SPDX-License-Identifier: Apache-2.0
//! What "for this run" means, and which verdicts fit which question. Pure but for one small lock.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use midge_protocol::broker::Verdict;
use serde_json::{Value, json};

/// Bytes of questions that are remembered; what does not fit is asked again.
const REMEMBERED_MAX_BYTES: usize = 4 << 20;

/// What was allowed for the whole run: the very questions, not their hashes, so that none can be made to look like another.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<(BTreeSet<String>, usize)>);

impl Memory {
    pub(super) fn knows(&self, key: Option<&str>) -> bool {
        key.is_some_and(|key| self.0.lock().unwrap_or_else(PoisonError::into_inner).0.contains(key))
    }

    pub(super) fn learn(&self, key: Option<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = key.filter(|key| key.len() + known.1 <= REMEMBERED_MAX_BYTES) else { return };
        known.1 += key.len();
        if !known.0.insert(key.clone()) {
            known.1 -= key.len();
        }
    }
}

/// What has to be the same for a question to be the same; none for questions that are never remembered.
pub(super) fn key(asked: &Value, why: &str) -> Option<String> {
    let of = |name: &str| asked.get(name).cloned().unwrap_or_default();
    match asked.get("kind")?.as_str()? {
        "tool" => Some(json!(["tool", of("name"), of("input")]).to_string()),
        "egress" => Some(json!(["egress", why, of("scheme"), of("host"), of("port")]).to_string()),
        _ => None,
    }
}

/// The verdict, or a no where it makes no sense: words are no permission for a tool, only a tool's input can be edited, and only
/// what is remembered can be allowed for the run.
pub(super) fn fits(asked: &Value, verdict: Verdict) -> Verdict {
    let kind = asked.get("kind").and_then(Value::as_str).unwrap_or_default();
    let deny = |why: String| Verdict::Deny { why };
    match (kind, verdict) {
        (_, verdict @ Verdict::Deny { .. }) => verdict,
        ("human", verdict @ Verdict::Text { .. }) => verdict,
        ("human", _) => deny("the question was not answered".to_owned()),
        (_, Verdict::Text { text }) => deny(text),
        ("tool", verdict) => verdict,
        (_, Verdict::Edited { .. }) => deny("this cannot be edited, only allowed or denied".to_owned()),
        ("egress", verdict) => verdict,
        (_, Verdict::AllowForRun) => Verdict::Allow,
        (_, verdict) => verdict,
    }
}
