// SPDX-License-Identifier: Apache-2.0
//! Answers of `OpenAI` Responses.

use serde_json::{Value, json};

use super::{Answer, Plan, call, pieces, signature};
use crate::script::Part;

pub(super) fn answer(plan: &Plan<'_>) -> Answer {
    let items: Vec<Value> = plan.parts.iter().enumerate().map(|(index, part)| item(plan.number, index, part)).collect();
    let incomplete = plan.step.stop.as_deref().filter(|stop| *stop != "completed");
    let status = if incomplete.is_some() { "incomplete" } else { "completed" };
    let response = |status: &str, output: &[Value]| {
        json!({"id": format!("resp_{}", plan.number), "object": "response", "created_at": 1_700_000_000, "status": status,
               "model": plan.model, "output": output, "error": null, "parallel_tool_calls": true, "tool_choice": "auto", "tools": [],
               "instructions": null, "metadata": {}, "temperature": 1.0, "top_p": 1.0,
               "incomplete_details": if status == "incomplete" { json!({"reason": incomplete}) } else { Value::Null },
               "usage": {"input_tokens": plan.usage.0, "input_tokens_details": {"cached_tokens": 0},
                         "output_tokens": plan.usage.1, "output_tokens_details": {"reasoning_tokens": 0},
                         "total_tokens": plan.usage.0 + plan.usage.1}})
    };
    let mut events = vec![
        json!({"type": "response.created", "response": response("in_progress", &[])}),
        json!({"type": "response.in_progress", "response": response("in_progress", &[])}),
    ];
    for (index, (item, part)) in items.iter().zip(&plan.parts).enumerate() {
        events.push(json!({"type": "response.output_item.added", "output_index": index, "item": opened(item)}));
        events.extend(inner(part, index, item["id"].as_str().unwrap_or_default()));
        events.push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
    }
    let whole = response(status, &items);
    events.push(json!({"type": format!("response.{status}"), "response": whole}));
    let numbered = |(number, mut event): (usize, Value)| {
        event["sequence_number"] = json!(number);
        (event["type"].as_str().unwrap_or_default().to_owned(), event.to_string())
    };
    Answer { whole, events: events.into_iter().enumerate().map(numbered).collect() }
}

fn item(number: u64, index: usize, part: &Part) -> Value {
    match part {
        Part::Text(text) => {
            json!({"type": "message", "id": format!("msg_{number}_{index}"), "role": "assistant", "status": "completed",
                   "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]})
        }
        Part::Thinking(thought) => {
            json!({"type": "reasoning", "id": format!("rs_{number}_{index}"),
                   "summary": [{"type": "summary_text", "text": thought}], "encrypted_content": signature(thought)})
        }
        Part::RedactedThinking(data) => {
            json!({"type": "reasoning", "id": format!("rs_{number}_{index}"), "summary": [], "encrypted_content": data})
        }
        Part::Call { .. } | Part::RawCall { .. } => {
            let (name, arguments) = call(part).unwrap_or_default();
            json!({"type": "function_call", "id": format!("fc_{number}_{index}"), "call_id": format!("call_{number}_{index}"),
                   "name": name, "arguments": arguments, "status": "completed"})
        }
    }
}

/// An item as it begins: what its deltas bring is empty.
fn opened(item: &Value) -> Value {
    let mut item = item.clone();
    for (key, empty) in
        [("content", json!([])), ("summary", json!([])), ("arguments", json!("")), ("status", json!("in_progress"))]
    {
        if item.get(key).is_some() {
            item[key] = empty;
        }
    }
    item
}

fn inner(part: &Part, output_index: usize, item_id: &str) -> Vec<Value> {
    let at = |kind: &str, more: Value| {
        let mut event = json!({"type": kind, "item_id": item_id, "output_index": output_index});
        for (key, value) in more.as_object().into_iter().flatten() {
            event[key] = value.clone();
        }
        event
    };
    match part {
        Part::Text(text) => {
            let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
            let mut events = vec![at("response.content_part.added", json!({"content_index": 0, "part": part("")}))];
            let delta =
                |piece| at("response.output_text.delta", json!({"content_index": 0, "delta": piece, "logprobs": []}));
            events.extend(pieces(text).into_iter().map(delta));
            events.push(at("response.output_text.done", json!({"content_index": 0, "text": text, "logprobs": []})));
            events.push(at("response.content_part.done", json!({"content_index": 0, "part": part(text)})));
            events
        }
        Part::Thinking(thought) => {
            let part = |text: &str| json!({"type": "summary_text", "text": text});
            let mut events =
                vec![at("response.reasoning_summary_part.added", json!({"summary_index": 0, "part": part("")}))];
            let delta =
                |piece| at("response.reasoning_summary_text.delta", json!({"summary_index": 0, "delta": piece}));
            events.extend(pieces(thought).into_iter().map(delta));
            events.push(at("response.reasoning_summary_text.done", json!({"summary_index": 0, "text": thought})));
            events.push(at("response.reasoning_summary_part.done", json!({"summary_index": 0, "part": part(thought)})));
            events
        }
        Part::RedactedThinking(_) => Vec::new(),
        Part::Call { .. } | Part::RawCall { .. } => {
            let (name, arguments) = call(part).unwrap_or_default();
            let delta = |piece| at("response.function_call_arguments.delta", json!({"delta": piece}));
            let mut events: Vec<Value> = pieces(&arguments).into_iter().map(delta).collect();
            events.push(at("response.function_call_arguments.done", json!({"arguments": arguments, "name": name})));
            events
        }
    }
}
