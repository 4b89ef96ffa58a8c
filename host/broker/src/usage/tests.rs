// SPDX-License-Identifier: Apache-2.0

use super::*;
use serde_json::json;

fn events(wire: Wire, events: &[Value]) -> Measured {
    let text: String = events.iter().map(|event| format!("event: x\ndata: {event}\n\n")).collect();
    let mut whole = Meter::new(wire, 200, "text/event-stream; charset=utf-8", 400);
    whole.push(text.as_bytes());
    let mut cut = Meter::new(wire, 200, "text/event-stream", 400);
    text.as_bytes().chunks(3).for_each(|part| cut.push(part));
    let measured = whole.finish();
    assert_eq!(measured, cut.finish());
    measured
}

fn body(wire: Wire, body: &Value) -> Measured {
    let mut meter = Meter::new(wire, 200, "application/json", 400);
    meter.push(body.to_string().as_bytes());
    meter.finish()
}

fn counted(input: u64, output: u64, read: u64, write: u64, calls: u64) -> Measured {
    let usage = Usage {
        input_tokens: input,
        output_tokens: output,
        cache_read_tokens: read,
        cache_write_tokens: write,
        tool_calls: calls,
        ..Usage::default()
    };
    Measured { usage, estimated: false }
}

fn start() -> Value {
    json!({"type": "message_start", "message": {"usage": {
        "input_tokens": 10, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 30, "output_tokens": 1}}})
}

#[test]
fn anthropic_streams_are_counted_with_caches_and_parallel_calls() {
    let measured = events(
        Wire::Anthropic,
        &[
            start(),
            json!({"type": "ping"}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}),
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use"}}),
            json!({"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use"}}),
            json!({"type": "message_delta", "usage": {"output_tokens": 50}}),
            json!({"type": "message_stop"}),
        ],
    );
    assert_eq!(measured, counted(10, 50, 20, 30, 2));
}

#[test]
fn an_anthropic_stream_that_breaks_off_is_estimated_from_what_was_said() {
    let text = "x".repeat(400);
    let delta = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    let measured = events(Wire::Anthropic, &[start(), delta]);
    assert!(measured.estimated);
    assert_eq!((measured.usage.input_tokens, measured.usage.output_tokens), (10, 100));
}

#[test]
fn anthropic_bodies_are_counted() {
    let measured = body(
        Wire::Anthropic,
        &json!({"content": [{"type": "text"}, {"type": "tool_use"}], "usage": {"input_tokens": 1, "output_tokens": 2}}),
    );
    assert_eq!(measured, counted(1, 2, 0, 0, 1));
}

#[test]
fn responses_are_counted_and_cached_tokens_are_not_counted_twice() {
    let usage = json!({"input_tokens": 100, "input_tokens_details": {"cached_tokens": 60}, "output_tokens": 5});
    let output = json!([{"type": "message"}, {"type": "function_call"}]);
    let response = json!({"usage": usage, "output": output});
    let stream = [
        json!({"type": "response.created", "response": {"usage": null}}),
        json!({"type": "response.output_item.added", "output_index": 1, "item": {"type": "function_call"}}),
        json!({"type": "response.completed", "response": response}),
    ];
    assert_eq!(events(Wire::Responses, &stream), counted(40, 5, 60, 0, 1));
    assert_eq!(body(Wire::Responses, &response), counted(40, 5, 60, 0, 1));
}

#[test]
fn chat_is_counted_where_the_provider_counts() {
    let call = |index: u64| json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, "function": {"arguments": "{}"}}]}}]});
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}});
    let stream = [call(0), call(0), call(1), json!({"choices": [], "usage": usage})];
    assert_eq!(events(Wire::Chat, &stream), counted(5, 3, 4, 0, 2));
    let whole = json!({"choices": [{"message": {"tool_calls": [{}, {}]}}], "usage": usage});
    assert_eq!(body(Wire::Chat, &whole), counted(5, 3, 4, 0, 2));
}

#[test]
fn chat_without_counts_is_estimated_and_says_so() {
    let stream = [json!({"choices": [{"delta": {"content": "x".repeat(40)}}], "usage": null})];
    let measured = events(Wire::Chat, &stream);
    assert!(measured.estimated);
    assert_eq!((measured.usage.input_tokens, measured.usage.output_tokens), (100, 10));
}

#[test]
fn a_wrong_content_type_half_a_json_and_no_utf_8_are_estimated() {
    for (kind, data) in [
        ("text/html", &b"<html>"[..]),
        ("application/json", br#"{"usage": {"input_tokens": 1, "output_"#),
        ("text/event-stream", b"data: \xff\xfe\n\ndata: {\n\n"),
        ("", b"xxxx"),
    ] {
        for wire in [Wire::Anthropic, Wire::Responses, Wire::Chat] {
            let mut meter = Meter::new(wire, 200, kind, 400);
            meter.push(data);
            let measured = meter.finish();
            assert!(measured.estimated && measured.usage.input_tokens == 100, "{kind}");
        }
    }
}

#[test]
fn a_refusal_of_the_provider_costs_nothing() {
    let mut meter = Meter::new(Wire::Anthropic, 529, "application/json", 400);
    meter.push(br#"{"type":"error","error":{"type":"overloaded_error"}}"#);
    assert_eq!(meter.finish(), Measured::default());
}

#[test]
fn counts_of_odd_kinds_count_nothing() {
    let odd = json!({"usage": {"input_tokens": -1, "output_tokens": "9", "cache_read_input_tokens": 1.5}});
    assert!(body(Wire::Anthropic, &odd).estimated);
    assert!(body(Wire::Chat, &json!([])).estimated);
    assert!(body(Wire::Responses, &json!({"output": {}, "usage": []})).estimated);
}
