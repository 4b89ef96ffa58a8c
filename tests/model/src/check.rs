// SPDX-License-Identifier: Apache-2.0
//! Whether a request is one that the real server would take: written from the providers' documentation and from what they
//! refuse, not from what our own client sends.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Wire;

mod anthropic;
mod chat;
mod responses;

/// What a request must not do, in words.
pub type Problem = String;

/// Checks the body of a request; `sent` are the server's earlier answers, as it has sent them.
///
/// # Errors
/// The first thing that the real server would refuse.
pub fn request(wire: Wire, body: &Value, sent: &[Value]) -> Result<(), Problem> {
    if !body.is_object() {
        return Err("the body is no JSON object".into());
    }
    match wire {
        Wire::Anthropic => anthropic::check(body, sent),
        Wire::Responses => responses::check(body, sent),
        Wire::Chat => chat::check(body),
    }
}

/// The results of the last round of tools in a request, as text.
#[must_use]
pub fn last_results(wire: Wire, body: &Value) -> Vec<String> {
    match wire {
        Wire::Anthropic => anthropic::last_results(body),
        Wire::Responses => responses::last_results(body),
        Wire::Chat => chat::last_results(body),
    }
}

fn known_fields(value: &Value, what: &str, known: &[&str]) -> Result<(), Problem> {
    let unknown = value.as_object().and_then(|map| map.keys().find(|key| !known.contains(&key.as_str())));
    unknown.map_or(Ok(()), |key| Err(format!("{what}.{key}: Extra inputs are not permitted")))
}

fn string<'a>(value: &'a Value, key: &str, what: &str) -> Result<&'a str, Problem> {
    let text = value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| format!("{what}.{key}: a string that is not empty is required"))
}

fn array<'a>(value: &'a Value, key: &str, what: &str) -> Result<&'a [Value], Problem> {
    let array = value.get(key).and_then(Value::as_array).filter(|array| !array.is_empty());
    array.map(Vec::as_slice).ok_or_else(|| format!("{what}.{key}: a list that is not empty is required"))
}

fn positive(value: &Value, key: &str) -> Result<(), Problem> {
    let number = value.get(key).and_then(Value::as_u64).filter(|number| *number > 0);
    number.map(|_| ()).ok_or_else(|| format!("{key}: a positive number is required"))
}

/// Names of tools and calls: letters, digits, `_` and `-`.
fn plain_name<'a>(name: &'a str, what: &str) -> Result<&'a str, Problem> {
    let plain = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if plain { Ok(name) } else { Err(format!("{what}: {name:?} does not match ^[a-zA-Z0-9_-]{{1,64}}$")) }
}

/// Tools are functions with different names and an object as input.
fn tools<'a>(tools: impl Iterator<Item = (&'a Value, &'a Value)>) -> Result<(), Problem> {
    let mut names = BTreeSet::new();
    for (tool, schema) in tools {
        let name = plain_name(string(tool, "name", "tools")?, "tools.name")?;
        if !names.insert(name) {
            return Err(format!("tools: the name {name:?} is there twice"));
        }
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err(format!("tools.{name}: the schema of the input must have type \"object\""));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
