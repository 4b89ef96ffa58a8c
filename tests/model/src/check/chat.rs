// SPDX-License-Identifier: Apache-2.0
//! Requests of Chat Completions, in the strict form of its inventor.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Problem, array, known_fields, plain_name, string, tools};

const FIELDS: [&str; 28] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "user",
    "response_format",
    "reasoning_effort",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "metadata",
    "store",
    "service_tier",
    "modalities",
    "prompt_cache_key",
    "safety_identifier",
];

pub(super) fn check(body: &Value) -> Result<(), Problem> {
    known_fields(body, "body", &FIELDS)?;
    string(body, "model", "body")?;
    if body.get("max_tokens").is_some() && body.get("max_completion_tokens").is_some() {
        return Err("max_tokens and max_completion_tokens cannot both be set".into());
    }
    if body.get("stream_options").is_some() && body.get("stream").and_then(Value::as_bool) != Some(true) {
        return Err("The 'stream_options' parameter is only allowed when 'stream' is enabled.".into());
    }
    if let Some(all) = body.get("tools").and_then(Value::as_array) {
        if all.is_empty() {
            return Err("[] is too short - 'tools'".into());
        }
        let function = |tool: &'_ Value| tool.get("function").cloned().unwrap_or(Value::Null);
        let functions: Vec<Value> = all.iter().map(function).collect();
        tools(functions.iter().map(|function| (function, function.get("parameters").unwrap_or(&Value::Null))))?;
    }
    messages(array(body, "messages", "body")?)
}

fn messages(messages: &[Value]) -> Result<(), Problem> {
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for (index, message) in messages.iter().enumerate() {
        let at = format!("messages.[{index}]");
        let role = string(message, "role", &at)?;
        if role != "tool" && !open.is_empty() {
            return Err(unanswered(&open));
        }
        let content = message.get("content").unwrap_or(&Value::Null);
        match role {
            "system" | "developer" | "user" if content.is_string() || content.is_array() => {}
            "tool" if content.is_string() || content.is_array() => {
                let id = string(message, "tool_call_id", &at)?;
                if !open.remove(id) {
                    return Err(format!(
                        "Invalid parameter: messages with role 'tool' must be a response to a preceding message with \
                         'tool_calls' ({at}, {id})."
                    ));
                }
            }
            "assistant" => open = calls(message, &at)?,
            "system" | "developer" | "user" | "tool" => {
                return Err(format!("{at}.content: expected a string or a list"));
            }
            other => return Err(format!("{at}.role: Invalid value: {other:?}")),
        }
    }
    if open.is_empty() { Ok(()) } else { Err(unanswered(&open)) }
}

fn unanswered(ids: &BTreeSet<&str>) -> Problem {
    let ids: Vec<&str> = ids.iter().copied().collect();
    format!(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The \
         following tool_call_ids did not have response messages: {}",
        ids.join(", ")
    )
}

fn calls<'a>(message: &'a Value, at: &str) -> Result<BTreeSet<&'a str>, Problem> {
    let content = message.get("content").unwrap_or(&Value::Null);
    let calls = message.get("tool_calls").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if message.get("tool_calls").is_some() && calls.is_empty() {
        return Err(format!("{at}.tool_calls: [] is too short"));
    }
    if !(content.is_string() || content.is_array() || content.is_null() && !calls.is_empty()) {
        return Err(format!("{at}.content: expected a string, got null"));
    }
    let mut ids = BTreeSet::new();
    for call in calls {
        known_fields(call, &format!("{at}.tool_calls"), &["id", "type", "function", "index"])?;
        if call.get("type").and_then(Value::as_str) != Some("function") {
            return Err(format!("{at}.tool_calls.type: expected \"function\""));
        }
        let function = call.get("function").unwrap_or(&Value::Null);
        plain_name(string(function, "name", at)?, "tool_calls.function.name")?;
        let arguments = function.get("arguments").and_then(Value::as_str);
        let arguments = arguments.ok_or_else(|| format!("{at}.tool_calls.function.arguments: expected a string"))?;
        // Templates of local servers read them as JSON and fail without a word about why.
        serde_json::from_str::<Value>(arguments)
            .map_err(|error| format!("{at}: the arguments are no JSON: {error}"))?;
        if !ids.insert(string(call, "id", at)?) {
            return Err(format!("{at}.tool_calls: ids must be unique"));
        }
    }
    Ok(ids)
}

pub(super) fn last_results(body: &Value) -> Vec<String> {
    let messages = body.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_tool = |message: &&Value| message.get("role").and_then(Value::as_str) == Some("tool");
    let mut results: Vec<String> = messages
        .iter()
        .rev()
        .skip_while(|message| !is_tool(message))
        .take_while(is_tool)
        .map(|message| message.get("content").and_then(Value::as_str).unwrap_or_default().to_owned())
        .collect();
    results.reverse();
    results
}
