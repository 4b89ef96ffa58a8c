// SPDX-License-Identifier: Apache-2.0
//! Anthropic Messages: `POST /v1/messages`.
//!
//! Blocks are kept by their index as the provider built them up; thinking goes back with its signature, unchanged. Marks for the
//! prompt cache stand on the instructions (which follow the tools in the cached prefix) and on the last two messages of the user.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{BLOCKS_MAX_COUNT, Quirks, Request, arguments, count, cut, malformed, text, too_many};
use crate::talk::{Answer, Block, CallResult, Failure, Kind, Piece, Stop, Trouble, Turn, Usage};
use crate::tools::Call;

/// Marks on messages; with the one on the instructions they stay below the provider's limit of four.
const CACHED_MESSAGES: usize = 2;

/// The body of a request.
#[must_use]
pub(super) fn body(request: &Request<'_>, quirks: Quirks) -> Value {
    let tools: Vec<Value> = request
        .tools
        .iter()
        .map(|tool| json!({"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}))
        .collect();
    let mut body = json!({
        "model": request.model,
        "max_tokens": request.max_output_tokens,
        "stream": true,
        "messages": messages(request.turns),
    });
    if !request.system.is_empty() {
        body["system"] = json!([{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}]);
    }
    if !tools.is_empty() {
        body["tools"] = Value::Array(tools);
        if !request.may_call && !quirks.no_tool_choice {
            body["tool_choice"] = json!({"type": "none"});
        }
    }
    body
}

fn messages(turns: &[Turn]) -> Vec<Value> {
    let mut messages: Vec<(&str, Vec<Value>)> = Vec::new();
    for turn in turns {
        let (role, content) = match turn {
            Turn::User(said) => ("user", vec![json!({"type": "text", "text": said})]),
            Turn::Answer(blocks) => ("assistant", blocks.iter().map(|block| block.raw.clone()).collect()),
            Turn::Results { results, note } => {
                let mut content: Vec<Value> = results.iter().map(tool_result).collect();
                if !note.is_empty() {
                    content.push(json!({"type": "text", "text": note}));
                }
                ("user", content)
            }
        };
        match messages.last_mut() {
            Some((last, all)) if *last == role => all.extend(content),
            _ => messages.push((role, content)),
        }
    }
    let users = messages.iter_mut().rev().filter(|(role, _)| *role == "user").take(CACHED_MESSAGES);
    for block in users.filter_map(|(_, content)| content.last_mut()) {
        block["cache_control"] = json!({"type": "ephemeral"});
    }
    messages.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

fn tool_result(result: &CallResult) -> Value {
    let said = if result.text.is_empty() { "(no output)" } else { &result.text };
    let mut value = json!({"type": "tool_result", "tool_use_id": result.id, "content": said});
    if result.is_error {
        value["is_error"] = Value::Bool(true);
    }
    value
}

/// Reads one answer.
#[derive(Debug, Default)]
pub struct Parser {
    open: BTreeMap<u64, (Value, String)>,
    closed: BTreeMap<u64, Block>,
    stop: Option<String>,
    usage: Usage,
}

impl Parser {
    pub(super) fn event(&mut self, data: &Value, out: &mut Vec<Piece>) -> Result<bool, Failure> {
        let index = count(data, "index");
        match text(data, "type") {
            "message_start" => {
                self.usage(data.pointer("/message/usage"));
                out.push(Piece::Other);
            }
            "content_block_start" => {
                let block = data.get("content_block").filter(|block| block.is_object());
                let block = block.ok_or_else(|| malformed("content_block_start has no content_block"))?;
                if self.open.len() + self.closed.len() >= BLOCKS_MAX_COUNT {
                    return Err(too_many());
                }
                match (text(block, "text"), text(block, "thinking")) {
                    ("", "") => {}
                    ("", thought) => out.push(Piece::Thought(thought.to_owned())),
                    (said, _) => out.push(Piece::Text(said.to_owned())),
                }
                self.open.insert(index, (block.clone(), String::new()));
            }
            "content_block_delta" => {
                let (block, json) =
                    self.open.get_mut(&index).ok_or_else(|| malformed("a delta of a block that is not open"))?;
                delta(block, json, data.get("delta").unwrap_or(&Value::Null), out);
            }
            "content_block_stop" => {
                let (block, json) =
                    self.open.remove(&index).ok_or_else(|| malformed("the end of a block that is not open"))?;
                self.closed.extend(close(block, &json).map(|block| (index, block)));
            }
            "message_delta" => {
                self.usage(data.get("usage"));
                let stop = data.pointer("/delta/stop_reason").and_then(Value::as_str);
                self.stop = stop.map(str::to_owned).or(self.stop.take());
            }
            "message_stop" => return Ok(true),
            "error" => return Err(error(data)),
            // `ping`, and events of the future.
            _ => out.push(Piece::Other),
        }
        Ok(false)
    }

    pub(super) fn whole(mut self, data: &Value, out: &mut Vec<Piece>) -> Result<Answer, Failure> {
        if text(data, "type") == "error" {
            return Err(error(data));
        }
        let content = data.get("content").and_then(Value::as_array).ok_or_else(|| malformed("no content"))?;
        for (index, block) in (0..).zip(content.iter().take(BLOCKS_MAX_COUNT)) {
            if let Some(block) = block.is_object().then(|| close(block.clone(), "")).flatten() {
                if let Kind::Text(said) = &block.kind {
                    out.push(Piece::Text(said.clone()));
                }
                self.closed.insert(index, block);
            }
        }
        self.usage(data.get("usage"));
        self.stop = Some(text(data, "stop_reason").to_owned());
        self.finish()
    }

    /// An answer that its stop reason ends is whole, `message_stop` or not. Blocks that were not ended are left out: thinking
    /// without its signature would be refused, and half a call is none.
    pub(super) fn finish(self) -> Result<Answer, Failure> {
        let stop = match self.stop.as_deref() {
            None => return Err(cut()),
            Some("end_turn" | "stop_sequence") => Stop::Finished,
            Some("tool_use") => Stop::Calls,
            Some("max_tokens") => Stop::Length,
            Some("pause_turn") => Stop::Paused,
            Some("refusal") => Stop::Refused,
            Some("model_context_window_exceeded") => Stop::WindowFull,
            Some(other) => Stop::Other(other.to_owned()),
        };
        Ok(Answer { blocks: self.closed.into_values().collect(), stop, usage: self.usage })
    }

    fn usage(&mut self, usage: Option<&Value>) {
        let Some(usage) = usage else { return };
        let input = ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
        let input = input.iter().fold(0u64, |sum, key| sum.saturating_add(count(usage, key)));
        // Each is a count so far, and may be left out or 0 where it has not changed.
        self.usage.input = self.usage.input.max(input);
        self.usage.output = self.usage.output.max(count(usage, "output_tokens"));
    }
}

fn delta(block: &mut Value, json: &mut String, delta: &Value, out: &mut Vec<Piece>) {
    let mut append = |key: &str| {
        let more = text(delta, key);
        match block.get_mut(key) {
            Some(Value::String(so_far)) => so_far.push_str(more),
            _ => block[key] = Value::String(more.to_owned()),
        }
        more.to_owned()
    };
    match text(delta, "type") {
        "text_delta" => out.push(Piece::Text(append("text"))),
        "thinking_delta" => out.push(Piece::Thought(append("thinking"))),
        "signature_delta" => {
            append("signature");
        }
        "input_json_delta" => {
            json.push_str(text(delta, "partial_json"));
            out.push(Piece::Other);
        }
        "citations_delta" => {
            let citation = delta.get("citation").cloned().unwrap_or(Value::Null);
            match block.get_mut("citations") {
                Some(Value::Array(all)) => all.push(citation),
                _ => block["citations"] = json!([citation]),
            }
        }
        _ => out.push(Piece::Other),
    }
}

/// A block at its end; none when there is nothing in it.
fn close(mut raw: Value, json: &str) -> Option<Block> {
    let kind = match text(&raw, "type") {
        "text" if text(&raw, "text").trim().is_empty() => return None,
        "text" => Kind::Text(text(&raw, "text").to_owned()),
        "tool_use" => {
            let (id, name) = (text(&raw, "id").to_owned(), text(&raw, "name").to_owned());
            let given = raw.get("input").filter(|input| json.is_empty() && input.is_object()).cloned();
            let read = given.map_or_else(|| arguments(json), Ok);
            let input = read.as_ref().cloned().unwrap_or_else(|_| Value::Object(Map::new()));
            raw["input"] = input.clone();
            let call = Call { id, name, input };
            match read {
                Ok(_) => Kind::Call(call),
                Err(problem) => Kind::BadCall(call, problem),
            }
        }
        _ => {
            if !json.is_empty() {
                raw["input"] = arguments(json).unwrap_or_else(|_| Value::Object(Map::new()));
            }
            Kind::Kept
        }
    };
    Some(Block { kind, raw })
}

/// An error within a stream stands for the status that it would have had before it.
fn error(data: &Value) -> Failure {
    let error = data.get("error").unwrap_or(data);
    let status = match text(error, "type") {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "overloaded_error" => 529,
        _ => 500,
    };
    Failure::new(Trouble::Status(status), format!("{}: {}", text(error, "type"), text(error, "message")))
}

#[cfg(test)]
mod tests;
