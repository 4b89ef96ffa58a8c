// SPDX-License-Identifier: Apache-2.0
//! Chat Completions: `POST /v1/chat/completions`, of its inventor and of every server that is compatible with it, more or less.
//!
//! Servers differ: whole objects in place of deltas, calls without a name or an index, arguments as objects, no last usage.
//! All of that is read; what goes back is the strict form.

use serde_json::{Map, Value, json};

use super::{BLOCKS_MAX_COUNT, Quirks, Request, arguments, count, cut, error_text, malformed, text, too_many};
use crate::talk::{Answer, Block, CallResult, Failure, Kind, Piece, Stop, Trouble, Turn, Usage};
use crate::tools::Call;

/// The body of a request.
#[must_use]
pub(super) fn body(request: &Request<'_>, quirks: Quirks) -> Value {
    let tools: Vec<Value> = request
        .tools
        .iter()
        .map(|tool| {
            json!({"type": "function", "function":
                   {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}})
        })
        .collect();
    let system = Some(json!({"role": "system", "content": request.system})).filter(|_| !request.system.is_empty());
    let turns = request.turns.iter().flat_map(|turn| messages(turn, quirks));
    let mut body = json!({
        "model": request.model,
        "messages": system.into_iter().chain(turns).collect::<Vec<_>>(),
        "stream": true,
    });
    let limit = if quirks.max_completion_tokens { "max_completion_tokens" } else { "max_tokens" };
    body[limit] = json!(request.max_output_tokens);
    if !quirks.no_stream_options {
        body["stream_options"] = json!({"include_usage": true});
    }
    if !tools.is_empty() {
        body["tools"] = Value::Array(tools);
        if !request.may_call && !quirks.no_tool_choice {
            body["tool_choice"] = json!("none");
        }
    }
    body
}

fn messages(turn: &Turn, quirks: Quirks) -> Vec<Value> {
    match turn {
        Turn::User(said) => vec![json!({"role": "user", "content": said})],
        Turn::Answer(blocks) => vec![assistant(blocks, quirks)],
        Turn::Results { results, note } => {
            let last = results.len().saturating_sub(1);
            // The note goes into the last result: not every server's template takes a user's words right after a tool's.
            let with_note = |(index, result)| tool(result, if index == last { note } else { "" });
            results.iter().enumerate().map(with_note).collect()
        }
    }
}

fn assistant(blocks: &[Block], quirks: Quirks) -> Value {
    let said = blocks.iter().filter_map(|block| match &block.kind {
        Kind::Text(said) => Some(said.as_str()),
        _ => None,
    });
    let said: String = said.collect();
    let calls: Vec<Value> =
        blocks.iter().filter(|block| block.call().is_some()).map(|block| block.raw.clone()).collect();
    let mut message = json!({"role": "assistant", "content": if said.is_empty() { Value::Null } else { json!(said) }});
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    } else if said.is_empty() {
        message["content"] = json!("");
    }
    if let Some(kept) = blocks.iter().find(|block| quirks.reasoning_back && block.kind == Kind::Kept) {
        message["reasoning_content"] = kept.raw.clone();
    }
    message
}

fn tool(result: &CallResult, note: &str) -> Value {
    let failed = if result.is_error { "error: " } else { "" };
    let space = if note.is_empty() { "" } else { "\n\n" };
    json!({"role": "tool", "tool_call_id": result.id, "content": format!("{failed}{}{space}{note}", result.text)})
}

#[derive(Debug, Default)]
struct CallSoFar {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

/// Reads one answer.
#[derive(Debug)]
pub struct Parser {
    number: u64,
    said: String,
    thought: String,
    calls: Vec<CallSoFar>,
    refused: bool,
    stop: Option<String>,
    usage: Usage,
}

impl Parser {
    pub(super) fn new(number: u64) -> Self {
        let (said, thought) = (String::new(), String::new());
        Self { number, said, thought, calls: Vec::new(), refused: false, stop: None, usage: Usage::default() }
    }

    pub(super) fn event(&mut self, data: &Value, out: &mut Vec<Piece>) -> Result<bool, Failure> {
        if let Some(error) = data.get("error").filter(|error| !error.is_null()) {
            let status = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
            let status = status.filter(|status| (400..600).contains(status)).unwrap_or(500);
            return Err(Failure::new(Trouble::Status(status), error_text(&data.to_string())));
        }
        if let Some(usage) = data.get("usage").filter(|usage| usage.is_object()) {
            self.usage = Usage { input: count(usage, "prompt_tokens"), output: count(usage, "completion_tokens") };
        }
        let Some(choice) = data.pointer("/choices/0") else {
            out.push(Piece::Other);
            return Ok(false);
        };
        let delta = ["delta", "message"].into_iter().find_map(|key| choice.get(key).filter(|value| value.is_object()));
        if let Some(delta) = delta {
            self.delta(delta, out)?;
        }
        let stop = choice.get("finish_reason").and_then(Value::as_str).filter(|stop| !stop.is_empty());
        self.stop = stop.map(str::to_owned).or(self.stop.take());
        Ok(false)
    }

    pub(super) fn whole(mut self, data: &Value, out: &mut Vec<Piece>) -> Result<Answer, Failure> {
        self.event(data, out)?;
        if data.pointer("/choices/0/message").is_none() {
            return Err(malformed("no choices"));
        }
        self.stop.get_or_insert_with(|| "stop".to_owned());
        self.finish()
    }

    fn delta(&mut self, delta: &Value, out: &mut Vec<Piece>) -> Result<(), Failure> {
        let said = match delta.get("content") {
            Some(Value::String(said)) => said.clone(),
            // Some servers give the parts of a request back.
            Some(Value::Array(parts)) => parts.iter().map(|part| text(part, "text")).collect(),
            _ => String::new(),
        };
        let refusal = text(delta, "refusal");
        self.refused |= !refusal.is_empty();
        let thought =
            ["reasoning_content", "reasoning"].into_iter().map(|key| text(delta, key)).find(|t| !t.is_empty());
        if let Some(thought) = thought {
            self.thought.push_str(thought);
            out.push(Piece::Thought(thought.to_owned()));
        }
        for said in [said.as_str(), refusal].into_iter().filter(|said| !said.is_empty()) {
            self.said.push_str(said);
            out.push(Piece::Text(said.to_owned()));
        }
        for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            self.call(call)?;
            out.push(Piece::Other);
        }
        Ok(())
    }

    fn call(&mut self, delta: &Value) -> Result<(), Failure> {
        let index = delta.get("index").and_then(Value::as_u64);
        let function = delta.get("function").unwrap_or(&Value::Null);
        let (id, name) = (text(delta, "id"), text(function, "name"));
        let same_index = |call: &CallSoFar| index.is_none() || call.index == index;
        // A piece belongs to the call of its index; one with a name and another id begins a call, whatever its index.
        let begins = |call: &CallSoFar| {
            !name.is_empty() && ((!id.is_empty() && id != call.id) || (id.is_empty() && index.is_none()))
        };
        let at = self.calls.iter().rposition(same_index).filter(|at| self.calls.get(*at).is_some_and(|c| !begins(c)));
        let at = at.unwrap_or(self.calls.len());
        if at >= BLOCKS_MAX_COUNT {
            return Err(too_many());
        }
        if at == self.calls.len() {
            self.calls.push(CallSoFar { index, ..CallSoFar::default() });
        }
        let Some(call) = self.calls.get_mut(at) else { return Ok(()) };
        if call.id.is_empty() {
            id.clone_into(&mut call.id);
        }
        if call.name != name {
            call.name.push_str(name);
        }
        match function.get("arguments") {
            Some(Value::String(more)) => call.arguments.push_str(more),
            Some(whole @ Value::Object(_)) => call.arguments = whole.to_string(),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Answer, Failure> {
        let stop = self.stop.ok_or_else(cut)?;
        let is_cut = stop == "length";
        let mut blocks = Vec::new();
        if !self.thought.is_empty() {
            blocks.push(Block { kind: Kind::Kept, raw: Value::String(self.thought) });
        }
        if !self.said.trim().is_empty() {
            blocks.push(Block { kind: Kind::Text(self.said), raw: Value::Null });
        }
        let last = self.calls.len().saturating_sub(1);
        let mut ids: Vec<String> = Vec::new();
        for (index, call) in self.calls.into_iter().enumerate() {
            let missing = call.id.is_empty() || ids.contains(&call.id);
            let id = if missing { format!("call_{}_{index}", self.number) } else { call.id };
            ids.push(id.clone());
            let read = arguments(&call.arguments);
            if !(is_cut && index == last && read.is_err()) {
                blocks.push(call_block(id, call.name, read));
            }
        }
        let has_calls = blocks.iter().any(|block| block.call().is_some());
        let stop = match stop.as_str() {
            "length" => Stop::Length,
            "content_filter" => Stop::Refused,
            _ if self.refused => Stop::Refused,
            _ if has_calls => Stop::Calls,
            _ => Stop::Finished,
        };
        Ok(Answer { blocks, stop, usage: self.usage })
    }
}

fn call_block(id: String, name: String, read: Result<Value, String>) -> Block {
    let input = read.as_ref().cloned().unwrap_or_else(|_| Value::Object(Map::new()));
    let raw = json!({"id": id, "type": "function", "function": {"name": name, "arguments": input.to_string()}});
    let call = Call { id, name, input };
    let kind = match read {
        Ok(_) => Kind::Call(call),
        Err(problem) => Kind::BadCall(call, problem),
    };
    Block { kind, raw }
}

#[cfg(test)]
mod tests;
