// SPDX-License-Identifier: Apache-2.0
//! Answers of Anthropic Messages.

use serde_json::{Value, json};

use super::{Answer, Plan, call, pieces, signature};
use crate::script::Part;

pub(super) fn answer(plan: &Plan<'_>) -> Answer {
    let content: Vec<Value> =
        plan.parts.iter().enumerate().map(|(index, part)| block(plan.number, index, part)).collect();
    let stop = plan.step.stop.as_deref().unwrap_or(if plan.has_calls() { "tool_use" } else { "end_turn" });
    let message = |content: &[Value], stop: Value, output: u64| {
        json!({"id": format!("msg_{}", plan.number), "type": "message", "role": "assistant", "model": plan.model,
               "content": content, "stop_reason": stop, "stop_sequence": null,
               "usage": {"input_tokens": plan.usage.0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                         "output_tokens": output}})
    };
    let mut events = vec![json!({"type": "message_start", "message": message(&[], Value::Null, 1)})];
    for (index, (block, part)) in content.iter().zip(&plan.parts).enumerate() {
        events.push(json!({"type": "content_block_start", "index": index, "content_block": opened(block)}));
        if index == 0 {
            events.push(json!({"type": "ping"}));
        }
        events.extend(
            deltas(part)
                .into_iter()
                .map(|delta| json!({"type": "content_block_delta", "index": index, "delta": delta})),
        );
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": null},
                       "usage": {"output_tokens": plan.usage.1}}));
    events.push(json!({"type": "message_stop"}));
    let named = |event: Value| (event["type"].as_str().unwrap_or_default().to_owned(), event.to_string());
    Answer { whole: message(&content, json!(stop), plan.usage.1), events: events.into_iter().map(named).collect() }
}

fn block(number: u64, index: usize, part: &Part) -> Value {
    match part {
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Thinking(thought) => json!({"type": "thinking", "thinking": thought, "signature": signature(thought)}),
        Part::RedactedThinking(data) => json!({"type": "redacted_thinking", "data": data}),
        Part::Call { name, input } => {
            json!({"type": "tool_use", "id": format!("toolu_{number}_{index}"), "name": name, "input": input})
        }
        Part::RawCall { name, .. } => {
            json!({"type": "tool_use", "id": format!("toolu_{number}_{index}"), "name": name, "input": {}})
        }
    }
}

/// A block as it begins: what deltas bring is empty.
fn opened(block: &Value) -> Value {
    let mut block = block.clone();
    for key in ["text", "thinking", "signature"] {
        if block.get(key).is_some() {
            block[key] = json!("");
        }
    }
    if block.get("input").is_some() {
        block["input"] = json!({});
    }
    block
}

fn deltas(part: &Part) -> Vec<Value> {
    match part {
        Part::Text(text) => {
            pieces(text).into_iter().map(|piece| json!({"type": "text_delta", "text": piece})).collect()
        }
        Part::Thinking(thought) => {
            let thoughts =
                pieces(thought).into_iter().map(|piece| json!({"type": "thinking_delta", "thinking": piece}));
            thoughts.chain([json!({"type": "signature_delta", "signature": signature(thought)})]).collect()
        }
        Part::RedactedThinking(_) => Vec::new(),
        Part::Call { .. } | Part::RawCall { .. } => {
            let arguments = call(part).map(|(_, arguments)| arguments).unwrap_or_default();
            let pieces = std::iter::once(String::new()).chain(pieces(&arguments));
            pieces.map(|piece| json!({"type": "input_json_delta", "partial_json": piece})).collect()
        }
    }
}
