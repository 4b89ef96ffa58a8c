// SPDX-License-Identifier: Apache-2.0
//! What tools answered, as requests of the three wire formats carry it. Looks for what it knows and passes over the rest.

use serde_json::Value;

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    /// The provider's name for the call.
    pub id: String,
    /// The answer as text; parts that are no text are their JSON.
    pub text: String,
}

/// The results in a request: Anthropic's `tool_result` blocks, `function_call_output` items (and those of other
/// kinds of call) of OpenAI Responses, messages of the role
/// `tool` of Chat Completions.
#[must_use]
pub fn tool_results(body: &Value) -> Vec<ToolResult> {
    let items = ["messages", "input"].into_iter().filter_map(|name| body.get(name)?.as_array()).flatten();
    let mut found = Vec::new();
    for item in items {
        if item.get("role").is_some_and(|role| role == "tool") {
            found.extend(result(item, "tool_call_id", "content"));
        } else if item.get("type").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("_call_output")) {
            found.extend(result(item, "call_id", "output"));
        } else if let Some(blocks) = item.get("content").and_then(Value::as_array) {
            let results = blocks.iter().filter(|block| block.get("type").is_some_and(|kind| kind == "tool_result"));
            found.extend(results.filter_map(|block| result(block, "tool_use_id", "content")));
        }
    }
    found
}

fn result(item: &Value, id: &str, content: &str) -> Option<ToolResult> {
    let id = item.get(id)?.as_str()?.to_owned();
    Some(ToolResult { id, text: item.get(content).map(text).unwrap_or_default() })
}

fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let part =
                |part: &Value| part.get("text").and_then(Value::as_str).map_or_else(|| part.to_string(), str::to_owned);
            parts.iter().map(part).collect::<Vec<_>>().join("\n")
        }
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
