// SPDX-License-Identifier: Apache-2.0
//! Things that a provider does in a guest's place: searching and fetching in the network, running code, calling MCP servers,
//! loading pictures and documents by address. Each is a way out of the sandbox that no rule of the network is about, so each is
//! refused: a tool by its type unless it is one that the client itself carries out, an address unless the data is in it.

use midge_protocol::broker::Wire;
use serde_json::Value;

use super::Refusal;

/// Types of Anthropic's tools that the client carries out, by their beginnings; versions follow.
const ANTHROPIC_CLIENT: [&str; 5] = ["bash_", "text_editor_", "computer_", "memory_", "tool_search_tool_"];
/// The same of OpenAI's Responses.
const RESPONSES_CLIENT: [&str; 6] =
    ["function", "custom", "local_shell", "apply_patch", "computer_use_preview", "computer"];
/// The same of Chat Completions.
const CHAT_CLIENT: [&str; 2] = ["function", "custom"];
/// Fields at the top that mean such a thing, or a model other than the one that is named, whatever the format.
const FIELDS: [&str; 7] =
    ["mcp_servers", "container", "web_search_options", "plugins", "prompt", "models", "search_parameters"];

/// Refuses what a provider would do in the guest's place.
///
/// # Errors
/// It names what is asked for, and what to do.
pub(super) fn check(body: &Value, wire: Wire) -> Result<(), Refusal> {
    if let Some(field) = FIELDS.iter().find(|field| is_given(&body[**field])) {
        return Err(refused(&format!("the field `{field}`")));
    }
    for tool in body["tools"].as_array().into_iter().flatten() {
        let kind = &tool["type"];
        let by_client = match (wire, kind.as_str()) {
            (Wire::Anthropic, None) => kind.is_null(),
            (Wire::Anthropic, Some(kind)) => {
                kind == "custom" || ANTHROPIC_CLIENT.iter().any(|start| kind.starts_with(start))
            }
            (Wire::Responses, Some("shell")) => tool["environment"].is_null() || tool["environment"]["type"] == "local",
            (Wire::Responses, kind) => kind.is_some_and(|kind| RESPONSES_CLIENT.contains(&kind)),
            (Wire::Chat, kind) => kind.is_some_and(|kind| CHAT_CLIENT.contains(&kind)),
        };
        if !by_client {
            return Err(refused(&format!("the tool of type {kind}")));
        }
    }
    let turns = body[if wire == Wire::Responses { "input" } else { "messages" }].as_array();
    turns.into_iter().flatten().try_for_each(|turn| check_turn(turn, wire))
}

fn check_turn(turn: &Value, wire: Wire) -> Result<(), Refusal> {
    for content in [&turn["content"], &turn["output"]] {
        for block in content.as_array().into_iter().flatten() {
            let address = match wire {
                Wire::Anthropic if block["source"]["type"] == "url" => Some(&block["source"]["url"]),
                Wire::Anthropic => None,
                Wire::Responses if is_given(&block["file_url"]) => Some(&block["file_url"]),
                Wire::Responses | Wire::Chat => Some(&block["image_url"]).filter(|image| is_given(image)),
            };
            let address = address.map(|address| address.get("url").unwrap_or(address));
            if address.is_some_and(|address| !is_data(address)) {
                return Err(refused("a picture or document by its address; send the data itself"));
            }
            if wire == Wire::Anthropic {
                // The result of a tool has blocks of its own, and so has a document.
                check_turn(block, wire)?;
                check_turn(&block["source"], wire)?;
            }
        }
    }
    Ok(())
}

fn is_given(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

fn is_data(address: &Value) -> bool {
    address.as_str().is_some_and(|address| address.starts_with("data:"))
}

fn refused(what: &str) -> Refusal {
    Refusal::Forbidden(format!(
        "the provider would reach the network in the sandbox's place, around its policy: {what} is refused. \
         Turn it off in the client; the sandbox's own tools reach what the policy's rules allow."
    ))
}
