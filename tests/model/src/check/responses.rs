// SPDX-License-Identifier: Apache-2.0
//! Requests of `OpenAI` Responses.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Problem, array, known_fields, plain_name, string, tools};

const FIELDS: [&str; 26] = [
    "model",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "store",
    "stream",
    "stream_options",
    "include",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "text",
    "temperature",
    "top_p",
    "truncation",
    "metadata",
    "previous_response_id",
    "conversation",
    "background",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
    "user",
    "top_logprobs",
];

pub(super) fn check(body: &Value, sent: &[Value]) -> Result<(), Problem> {
    known_fields(body, "body", &FIELDS)?;
    string(body, "model", "body")?;
    if let Some(all) = body.get("tools").and_then(Value::as_array) {
        let functions = all.iter().filter(|tool| tool.get("type").and_then(Value::as_str) == Some("function"));
        tools(functions.map(|tool| (tool, tool.get("parameters").unwrap_or(&Value::Null))))?;
    }
    if body.get("input").is_some_and(Value::is_string) {
        return Ok(());
    }
    let is_stored = body.get("store").and_then(Value::as_bool).unwrap_or(true);
    let mut open: BTreeSet<&str> = BTreeSet::new();
    let items = array(body, "input", "body")?;
    for (index, item) in items.iter().enumerate() {
        let at = format!("input[{index}]");
        match item.get("type").and_then(Value::as_str) {
            None | Some("message") => message(item, &at)?,
            Some("function_call") => {
                let id = string(item, "call_id", &at)?;
                plain_name(string(item, "name", &at)?, "function_call.name")?;
                if !item.get("arguments").is_some_and(Value::is_string) {
                    return Err(format!("{at}.arguments: expected a string"));
                }
                reasoning_before(items, index, sent)?;
                open.insert(id);
            }
            Some("function_call_output") => {
                known_fields(item, &at, &["type", "call_id", "output", "id", "status"])?;
                let id = string(item, "call_id", &at)?;
                if !item.get("output").is_some_and(|output| output.is_string() || output.is_array()) {
                    return Err(format!("{at}.output: expected a string or a list"));
                }
                if !open.remove(id) {
                    return Err(format!("No tool call found for function call output with call_id {id}."));
                }
            }
            Some("reasoning") => reasoning(item, &at, is_stored, sent)?,
            Some(other) => return Err(format!("{at}.type: Invalid value: {other:?}")),
        }
    }
    open.first().map_or(Ok(()), |id| Err(format!("No tool output found for function call {id}.")))
}

fn message(item: &Value, at: &str) -> Result<(), Problem> {
    let role = string(item, "role", at)?;
    if !matches!(role, "user" | "assistant" | "system" | "developer") {
        return Err(format!("{at}.role: Invalid value: {role:?}"));
    }
    let expected: &[&str] =
        if role == "assistant" { &["output_text", "refusal"] } else { &["input_text", "input_image", "input_file"] };
    let parts = item.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let kinds = parts.iter().map(|part| part.get("type").and_then(Value::as_str).unwrap_or_default());
    let wrong = kinds.into_iter().find(|kind| !expected.contains(kind));
    wrong.map_or(Ok(()), |kind| {
        Err(format!("{at}.content: Invalid value: {kind:?}. Supported values are: {expected:?}"))
    })
}

fn sent_items(sent: &[Value]) -> impl Iterator<Item = &Vec<Value>> {
    sent.iter().filter_map(|answer| answer.get("output")?.as_array())
}

fn is_reasoning(item: &Value) -> bool {
    item.get("type").and_then(Value::as_str) == Some("reasoning")
}

fn reasoning(item: &Value, at: &str, is_stored: bool, sent: &[Value]) -> Result<(), Problem> {
    let encrypted = item.get("encrypted_content").and_then(Value::as_str).filter(|text| !text.is_empty());
    let Some(encrypted) = encrypted else {
        let id = string(item, "id", at)?;
        let text = format!("Item with id '{id}' not found. Items are not persisted when `store` is set to false.");
        return if is_stored { Ok(()) } else { Err(text) };
    };
    let known = |items: &Vec<Value>| {
        items.iter().any(|known| known.get("encrypted_content").and_then(Value::as_str) == Some(encrypted))
    };
    if sent.is_empty() || sent_items(sent).any(known) {
        Ok(())
    } else {
        Err(format!("{at}: The encrypted content could not be verified."))
    }
}

/// A call comes with the reasoning that led to it.
fn reasoning_before(items: &[Value], index: usize, sent: &[Value]) -> Result<(), Problem> {
    let call_id = |item: &Value| item.get("call_id").cloned();
    let is_call = |item: &&Value| item.get("type").and_then(Value::as_str) == Some("function_call");
    let Some(call) = items.get(index) else { return Ok(()) };
    let same = |known: &Value| is_call(&known) && call_id(known) == call_id(call);
    let Some(answer) = sent_items(sent).find(|answer| answer.iter().any(same)) else { return Ok(()) };
    for needed in answer.iter().take_while(|known| !same(known)).filter(|known| is_reasoning(known)) {
        let key = |item: &Value| item.get("encrypted_content").cloned();
        if needed.get("encrypted_content").is_some() && !items.iter().take(index).any(|item| key(item) == key(needed)) {
            let (call, id) = (call.get("id").unwrap_or(&Value::Null), needed.get("id").unwrap_or(&Value::Null));
            return Err(format!(
                "Item {call} of type 'function_call' was provided without its required 'reasoning' item: {id}."
            ));
        }
    }
    Ok(())
}

pub(super) fn last_results(body: &Value) -> Vec<String> {
    let items = body.get("input").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_output = |item: &&Value| item.get("type").and_then(Value::as_str) == Some("function_call_output");
    let mut results: Vec<String> = items
        .iter()
        .rev()
        .skip_while(|item| !is_output(item))
        .take_while(is_output)
        .map(|item| item.get("output").and_then(Value::as_str).unwrap_or_default().to_owned())
        .collect();
    results.reverse();
    results
}
