// SPDX-License-Identifier: Apache-2.0
//! `OpenAI` Responses: `POST /v1/responses`, nothing stored at the provider.
//!
//! The conversation is a list of items; those that the model made go back as they came, reasoning with its encrypted content.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{BLOCKS_MAX_COUNT, Quirks, Request, arguments, count, cut, malformed, text, too_many};
use crate::talk::{Answer, Block, Failure, Kind, Piece, Stop, Trouble, Turn, Usage};
use crate::tools::Call;

/// The body of a request.
#[must_use]
pub(super) fn body(request: &Request<'_>, quirks: Quirks) -> Value {
    let tools: Vec<Value> = request
        .tools
        .iter()
        .map(|tool| {
            json!({"type": "function", "name": tool.name, "description": tool.description, "strict": false,
                   "parameters": tool.input_schema})
        })
        .collect();
    let mut body = json!({
        "model": request.model,
        "instructions": request.system,
        "input": request.turns.iter().flat_map(|turn| items(turn, quirks)).collect::<Vec<_>>(),
        "max_output_tokens": request.max_output_tokens,
        "store": false,
        "stream": true,
    });
    if !quirks.no_encrypted_reasoning {
        body["include"] = json!(["reasoning.encrypted_content"]);
    }
    if !tools.is_empty() {
        body["tools"] = Value::Array(tools);
        body["parallel_tool_calls"] = Value::Bool(true);
        if !quirks.no_tool_choice {
            body["tool_choice"] = json!(if request.may_call { "auto" } else { "none" });
        }
    }
    body
}

fn items(turn: &Turn, quirks: Quirks) -> Vec<Value> {
    let user =
        |said: &str| json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": said}]});
    match turn {
        Turn::User(said) => vec![user(said)],
        Turn::Answer(blocks) => {
            blocks.iter().filter(|block| can_go_back(&block.raw, quirks)).map(|block| block.raw.clone()).collect()
        }
        Turn::Results { results, note } => {
            let mut items: Vec<Value> = results
                .iter()
                .map(|result| {
                    let failed = if result.is_error { "error: " } else { "" };
                    json!({"type": "function_call_output", "call_id": result.id,
                           "output": format!("{failed}{}", result.text)})
                })
                .collect();
            if !note.is_empty() {
                items.push(user(note));
            }
            items
        }
    }
}

/// Reasoning without its content is a reference to something that the provider has not stored: it refuses that. So it does with
/// encrypted content that it has no use for.
fn can_go_back(item: &Value, quirks: Quirks) -> bool {
    let has_content = item.get("content").and_then(Value::as_array).is_some_and(|content| !content.is_empty());
    let is_encrypted = !text(item, "encrypted_content").is_empty() && !quirks.no_encrypted_reasoning;
    text(item, "type") != "reasoning" || is_encrypted || has_content
}

/// Reads one answer.
#[derive(Debug, Default)]
pub struct Parser {
    items: BTreeMap<u64, Value>,
    response: Option<Value>,
}

impl Parser {
    pub(super) fn event(&mut self, data: &Value, out: &mut Vec<Piece>) -> Result<bool, Failure> {
        match text(data, "type") {
            "response.output_text.delta" | "response.refusal.delta" => {
                out.push(Piece::Text(text(data, "delta").to_owned()));
            }
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                out.push(Piece::Thought(text(data, "delta").to_owned()));
            }
            "response.output_item.done" => {
                let item = data.get("item").filter(|item| item.is_object());
                let item = item.ok_or_else(|| malformed("response.output_item.done has no item"))?;
                if self.items.len() >= BLOCKS_MAX_COUNT {
                    return Err(too_many());
                }
                self.items.insert(count(data, "output_index"), item.clone());
            }
            "response.completed" | "response.incomplete" => {
                let response = data.get("response").filter(|response| response.is_object());
                self.response = Some(response.ok_or_else(|| malformed("the last event has no response"))?.clone());
                return Ok(true);
            }
            "response.failed" => {
                return Err(error(data.pointer("/response/error").unwrap_or(&Value::Null)));
            }
            "error" => return Err(error(data.get("error").unwrap_or(data))),
            // `response.created`, beginnings and ends of parts, deltas of arguments, and events of the future.
            _ => out.push(Piece::Other),
        }
        Ok(false)
    }

    pub(super) fn whole(mut self, data: &Value, out: &mut Vec<Piece>) -> Result<Answer, Failure> {
        if let Some(said) = data.get("error").filter(|error| !error.is_null()) {
            return Err(error(said));
        }
        if !data.get("output").is_some_and(Value::is_array) {
            return Err(malformed("no output"));
        }
        self.response = Some(data.clone());
        let answer = self.finish()?;
        if !answer.text().is_empty() {
            out.push(Piece::Text(answer.text()));
        }
        Ok(answer)
    }

    pub(super) fn finish(self) -> Result<Answer, Failure> {
        let response = self.response.ok_or_else(cut)?;
        let mut items: Vec<Value> = self.items.into_values().collect();
        if items.is_empty() {
            // A server may leave the items to the last event.
            let output = response.get("output").and_then(Value::as_array);
            items = output.map(|output| output.iter().take(BLOCKS_MAX_COUNT).cloned().collect()).unwrap_or_default();
        }
        let blocks: Vec<Block> = items.into_iter().filter_map(block).collect();
        let refused = blocks.iter().any(|block| {
            let parts = block.raw.get("content").and_then(Value::as_array);
            parts.is_some_and(|parts| parts.iter().any(|part| text(part, "type") == "refusal"))
        });
        let why = response.pointer("/incomplete_details/reason").and_then(Value::as_str);
        let stop = match (text(&response, "status"), why) {
            ("incomplete", Some("max_output_tokens")) => Stop::Length,
            ("incomplete", Some("content_filter")) => Stop::Refused,
            ("incomplete", why) => Stop::Other(why.unwrap_or("incomplete").to_owned()),
            _ if refused => Stop::Refused,
            _ if blocks.iter().any(|block| block.call().is_some()) => Stop::Calls,
            _ => Stop::Finished,
        };
        let usage = response.get("usage").unwrap_or(&Value::Null);
        let usage = Usage { input: count(usage, "input_tokens"), output: count(usage, "output_tokens") };
        Ok(Answer { blocks, stop, usage })
    }
}

/// An item as a block; none for what is not whole or has nothing in it.
fn block(raw: Value) -> Option<Block> {
    if text(&raw, "status") == "incomplete" && text(&raw, "type") == "function_call" {
        return None;
    }
    let kind = match text(&raw, "type") {
        "message" => {
            let parts = raw.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let said = |part: &Value| format!("{}{}", text(part, "text"), text(part, "refusal"));
            let said: String = parts.iter().map(said).collect();
            if said.trim().is_empty() {
                return None;
            }
            Kind::Text(said)
        }
        "function_call" => {
            let read = arguments(text(&raw, "arguments"));
            let call = Call {
                id: text(&raw, "call_id").to_owned(),
                name: text(&raw, "name").to_owned(),
                input: read.as_ref().cloned().unwrap_or_else(|_| Value::Object(Map::new())),
            };
            match read {
                Ok(_) => Kind::Call(call),
                Err(problem) => Kind::BadCall(call, problem),
            }
        }
        "" => return None,
        _ => Kind::Kept,
    };
    Some(Block { kind, raw })
}

/// An error within a stream stands for the status that it would have had before it.
fn error(error: &Value) -> Failure {
    let code = [text(error, "code"), text(error, "type")].into_iter().find(|code| !code.is_empty()).unwrap_or("error");
    let status = match code {
        "rate_limit_exceeded" => 429,
        "insufficient_quota" => 403,
        "context_length_exceeded" | "invalid_prompt" | "invalid_request_error" => 400,
        _ => 500,
    };
    Failure::new(Trouble::Status(status), format!("{code}: {}", text(error, "message")))
}

#[cfg(test)]
mod tests;
