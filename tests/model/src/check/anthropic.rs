// SPDX-License-Identifier: Apache-2.0
//! Requests of Anthropic Messages.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Problem, array, known_fields, plain_name, positive, string, tools};

const FIELDS: [&str; 21] = [
    "model",
    "max_tokens",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "metadata",
    "thinking",
    "service_tier",
    "container",
    "context_management",
    "mcp_servers",
    "output_config",
    "inference_geo",
    "cache_control",
    "speed",
];
const CACHE_MARKS_MAX_COUNT: usize = 4;

pub(super) fn check(body: &Value, sent: &[Value]) -> Result<(), Problem> {
    known_fields(body, "body", &FIELDS)?;
    string(body, "model", "body")?;
    positive(body, "max_tokens")?;
    if body.to_string().matches("\"cache_control\":{").count() > CACHE_MARKS_MAX_COUNT {
        return Err(format!("A maximum of {CACHE_MARKS_MAX_COUNT} blocks with cache_control may be provided"));
    }
    if let Some(all) = body.get("tools").and_then(Value::as_array) {
        tools(all.iter().map(|tool| (tool, tool.get("input_schema").unwrap_or(&Value::Null))))?;
    }
    let messages = array(body, "messages", "body")?;
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for (index, message) in messages.iter().enumerate() {
        let at = format!("messages.{index}");
        known_fields(message, &at, &["role", "content"])?;
        let expected = if index % 2 == 0 { "user" } else { "assistant" };
        if string(message, "role", &at)? != expected {
            return Err(format!("{at}: roles must alternate, and this one must be {expected:?}"));
        }
        if expected == "user" {
            results(message, &at, &open)?;
            open = BTreeSet::new();
        } else {
            open = calls(message, &at)?;
            unchanged(message, &at, sent)?;
        }
        for block in blocks(message) {
            block_is_well(block, &at)?;
        }
    }
    if open.is_empty() { Ok(()) } else { Err(missing(messages.len() - 1, &open)) }
}

fn missing(index: usize, ids: &BTreeSet<&str>) -> Problem {
    let ids: Vec<&str> = ids.iter().copied().collect();
    format!(
        "messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after: {}. Each `tool_use` \
         block must have a corresponding `tool_result` block in the next message.",
        ids.join(", ")
    )
}

fn blocks(message: &Value) -> &[Value] {
    message.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn kind(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn block_is_well(block: &Value, at: &str) -> Result<(), Problem> {
    match kind(block) {
        "text" => {
            known_fields(block, &format!("{at}.text"), &["type", "text", "cache_control", "citations"])?;
            let text = string(block, "text", at).map_err(|_| format!("{at}: text content blocks must be non-empty"))?;
            let blank = text.trim().is_empty();
            if blank { Err(format!("{at}: text content blocks must contain non-whitespace text")) } else { Ok(()) }
        }
        "thinking" => {
            known_fields(block, &format!("{at}.thinking"), &["type", "thinking", "signature"])?;
            string(block, "signature", &format!("{at}.thinking")).map(|_| ())
        }
        "redacted_thinking" => {
            known_fields(block, &format!("{at}.redacted_thinking"), &["type", "data"])?;
            string(block, "data", &format!("{at}.redacted_thinking")).map(|_| ())
        }
        "tool_use" | "tool_result" | "image" | "document" => Ok(()),
        other => Err(format!("{at}: Input tag {other:?} does not match any of the expected tags")),
    }
}

fn calls<'a>(message: &'a Value, at: &str) -> Result<BTreeSet<&'a str>, Problem> {
    if message
        .get("content")
        .is_none_or(|content| content.as_str() == Some("") || content.as_array().is_some_and(Vec::is_empty))
    {
        return Err(format!(
            "{at}: all messages must have non-empty content except for the optional final assistant message"
        ));
    }
    let mut ids = BTreeSet::new();
    for block in blocks(message).iter().filter(|block| kind(block) == "tool_use") {
        known_fields(block, &format!("{at}.tool_use"), &["type", "id", "name", "input", "cache_control", "caller"])?;
        let id = plain_name(string(block, "id", at)?, "tool_use.id")?;
        plain_name(string(block, "name", at)?, "tool_use.name")?;
        if !block.get("input").is_some_and(Value::is_object) {
            return Err(format!("{at}.tool_use.input: Input should be a valid dictionary"));
        }
        if !ids.insert(id) {
            return Err(format!("{at}: `tool_use` ids must be unique"));
        }
    }
    Ok(ids)
}

fn results(message: &Value, at: &str, open: &BTreeSet<&str>) -> Result<(), Problem> {
    let content = message.get("content").unwrap_or(&Value::Null);
    let is_empty = content.as_str().is_none_or(str::is_empty) && blocks(message).is_empty();
    if is_empty {
        return Err(format!("{at}: user messages must have non-empty content"));
    }
    let mut found = BTreeSet::new();
    let mut other_came = false;
    for block in blocks(message) {
        if kind(block) != "tool_result" {
            other_came = true;
            continue;
        }
        if other_came {
            return Err(format!("{at}: tool_result blocks must come first in the content"));
        }
        known_fields(
            block,
            &format!("{at}.tool_result"),
            &["type", "tool_use_id", "content", "is_error", "cache_control"],
        )?;
        let id = string(block, "tool_use_id", at)?;
        if !open.contains(id) {
            return Err(format!("{at}: unexpected `tool_use_id` found in `tool_result` blocks: {id}"));
        }
        if !found.insert(id) {
            return Err(format!("{at}: each tool_use must have a single result, {id} has several"));
        }
    }
    let rest: BTreeSet<&str> = open.difference(&found).copied().collect();
    let index = at.strip_prefix("messages.").and_then(|index| index.parse::<usize>().ok()).unwrap_or(0);
    if rest.is_empty() { Ok(()) } else { Err(missing(index.saturating_sub(1), &rest)) }
}

/// Thinking must come back as it was sent, all of it, with the calls that it led to.
fn unchanged(message: &Value, at: &str, sent: &[Value]) -> Result<(), Problem> {
    let thinking = |content: &[Value]| -> Vec<Value> {
        content.iter().filter(|block| kind(block).ends_with("thinking")).cloned().collect()
    };
    let ids = |content: &[Value]| -> Vec<String> {
        let ids =
            content.iter().filter(|block| kind(block) == "tool_use").filter_map(|block| block.get("id")?.as_str());
        ids.map(str::to_owned).collect()
    };
    let here = blocks(message);
    let answers = || sent.iter().map(blocks);
    let wanted = ids(here);
    let answer = answers().find(|answer| !wanted.is_empty() && ids(answer) == wanted);
    if answer.is_some_and(|answer| thinking(answer) != thinking(here)) {
        return Err(format!(
            "{at}: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified. These \
             blocks must remain as they were in the original response."
        ));
    }
    let all: Vec<Value> = answers().flat_map(thinking).collect();
    let forged = thinking(here).into_iter().find(|block| !sent.is_empty() && !all.contains(block));
    forged.map_or(Ok(()), |_| Err(format!("{at}: Invalid `signature` in `thinking` block")))
}

pub(super) fn last_results(body: &Value) -> Vec<String> {
    let messages = body.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |block: &Value| match block.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text")?.as_str()).collect::<Vec<_>>().join("")
        }
        _ => String::new(),
    };
    let rounds = messages.iter().rev().map(|message| -> Vec<String> {
        blocks(message).iter().filter(|block| kind(block) == "tool_result").map(text).collect()
    });
    rounds.into_iter().find(|results| !results.is_empty()).unwrap_or_default()
}
