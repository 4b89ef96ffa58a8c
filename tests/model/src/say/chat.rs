// SPDX-License-Identifier: Apache-2.0
//! Answers of Chat Completions, and the odd ways of servers that are compatible with it.

use serde_json::{Value, json};

use super::{Answer, Plan, call, pieces};
use crate::script::Part;

pub(super) fn answer(plan: &Plan<'_>) -> Answer {
    let quirks = plan.step.quirks;
    let fitting = if plan.has_calls() && !quirks.always_stop { "tool_calls" } else { "stop" };
    let stop = plan.step.stop.as_deref().unwrap_or(fitting);
    let usage = json!({"prompt_tokens": plan.usage.0, "completion_tokens": plan.usage.1, "total_tokens": plan.usage.0 + plan.usage.1});
    let chunk = |delta: Value, stop: Value| {
        json!({"id": format!("chatcmpl-{}", plan.number), "object": "chat.completion.chunk", "created": 1_700_000_000,
               "model": plan.model, "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": stop}]})
    };
    let mut events = vec![chunk(json!({"role": "assistant", "content": null}), Value::Null)];
    let (mut said, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
    for part in &plan.parts {
        match part {
            Part::Text(text) => {
                said.push_str(text);
                events.extend(pieces(text).into_iter().map(|piece| chunk(json!({"content": piece}), Value::Null)));
            }
            Part::Thinking(text) => {
                thought.push_str(text);
                events.extend(
                    pieces(text).into_iter().map(|piece| chunk(json!({"reasoning_content": piece}), Value::Null)),
                );
            }
            Part::RedactedThinking(_) => {}
            Part::Call { .. } | Part::RawCall { .. } => {
                let index = calls.len();
                let whole = whole_call(plan, index, part);
                events.extend(call_deltas(plan, index, &whole).into_iter().map(|delta| chunk(delta, Value::Null)));
                calls.push(whole);
            }
        }
    }
    events.push(chunk(json!({}), json!(stop)));
    let mut message = json!({"role": "assistant", "content": if said.is_empty() { Value::Null } else { json!(said) }, "refusal": null});
    if !thought.is_empty() {
        message["reasoning_content"] = json!(thought);
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    let whole = json!({"id": format!("chatcmpl-{}", plan.number), "object": "chat.completion", "created": 1_700_000_000,
                       "model": plan.model, "usage": usage,
                       "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": stop}]});
    let mut events: Vec<(String, String)> =
        events.into_iter().map(|event| (String::new(), event.to_string())).collect();
    if !quirks.no_trailer {
        let mut last = chunk(json!({}), Value::Null);
        last["choices"] = json!([]);
        last["usage"] = usage;
        events.push((String::new(), last.to_string()));
        events.push((String::new(), "[DONE]".to_owned()));
    }
    Answer { whole, events }
}

fn whole_call(plan: &Plan<'_>, index: usize, part: &Part) -> Value {
    let (name, arguments) = call(part).unwrap_or_default();
    let read = serde_json::from_str::<Value>(&arguments).ok().filter(|_| plan.step.quirks.object_arguments);
    let mut whole =
        json!({"type": "function", "function": {"name": name, "arguments": read.unwrap_or(json!(arguments))}});
    if !plan.step.quirks.no_ids {
        whole["id"] = json!(format!("call_{}_{index}", plan.number));
    }
    whole
}

fn call_deltas(plan: &Plan<'_>, index: usize, whole: &Value) -> Vec<Value> {
    let quirks = plan.step.quirks;
    let mut first = whole.clone();
    first["index"] = json!(if quirks.same_index { 0 } else { index });
    let arguments = whole["function"]["arguments"].as_str();
    let Some(arguments) = arguments.filter(|_| !quirks.same_index && !quirks.no_ids) else {
        return vec![json!({"tool_calls": [first]})];
    };
    first["function"]["arguments"] = json!("");
    let mut deltas = vec![json!({"tool_calls": [first]})];
    let more = |piece| json!({"tool_calls": [{"index": index, "function": {"arguments": piece}}]});
    deltas.extend(pieces(arguments).into_iter().map(more));
    deltas
}
