// SPDX-License-Identifier: Apache-2.0

use midge_protocol::broker::Wire;

use super::*;
use crate::wire::tests::{call, kinds, made, read, result, said};

fn start(index: u64, block: Value) -> Value {
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

fn grow(index: u64, delta: Value) -> Value {
    json!({"type": "content_block_delta", "index": index, "delta": delta})
}

fn stop(index: u64) -> Value {
    json!({"type": "content_block_stop", "index": index})
}

fn ended(reason: &str) -> [Value; 2] {
    [
        json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 15}}),
        json!({"type": "message_stop"}),
    ]
}

/// A stream with all kinds of blocks, in the order of the provider's documentation.
fn stream() -> Vec<Value> {
    let mut events = vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [],
               "usage": {"input_tokens": 25, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 5, "output_tokens": 1}}}),
        start(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
        grow(0, json!({"type": "thinking_delta", "thinking": "Let me"})),
        json!({"type": "ping"}),
        grow(0, json!({"type": "thinking_delta", "thinking": " see"})),
        grow(0, json!({"type": "signature_delta", "signature": "EqQB=="})),
        stop(0),
        start(1, json!({"type": "redacted_thinking", "data": "opaque"})),
        stop(1),
        start(2, json!({"type": "text", "text": ""})),
        grow(2, json!({"type": "text_delta", "text": "Two "})),
        grow(2, json!({"type": "text_delta", "text": "calls"})),
        stop(2),
        start(3, json!({"type": "tool_use", "id": "toolu_1", "name": "shell", "input": {}})),
        grow(3, json!({"type": "input_json_delta", "partial_json": ""})),
        grow(3, json!({"type": "input_json_delta", "partial_json": "{\"command\": \"l"})),
        grow(3, json!({"type": "input_json_delta", "partial_json": "s\"}"})),
        stop(3),
        start(4, json!({"type": "tool_use", "id": "toolu_2", "name": "todo", "input": {}})),
        stop(4),
        json!({"type": "event_of_the_future", "index": 9}),
    ];
    events.extend(ended("tool_use"));
    events
}

#[test]
fn all_blocks_of_a_stream_are_read_and_go_back_unchanged() {
    let (answer, pieces) = read(Wire::Anthropic, &stream());
    let answer = answer.unwrap();
    assert_eq!(said(&pieces), "Two calls");
    assert!(pieces.contains(&Piece::Thought("Let me".into())));
    let input = json!({"command": "ls"});
    assert_eq!(
        kinds(&answer),
        [
            Kind::Kept,
            Kind::Kept,
            Kind::Text("Two calls".into()),
            call("toolu_1", "shell", input.clone()),
            call("toolu_2", "todo", json!({}))
        ]
    );
    assert_eq!((answer.stop.clone(), answer.usage), (Stop::Calls, Usage { input: 130, output: 15 }));
    let turns = [
        Turn::User("go".into()),
        Turn::Answer(answer.blocks),
        Turn::Results {
            results: vec![result("toolu_1", "", false), result("toolu_2", "bad", true)],
            note: "left".into(),
        },
    ];
    let body = made(Wire::Anthropic, &turns, Quirks::default());
    assert_eq!(
        body["messages"][1]["content"],
        json!([
            {"type": "thinking", "thinking": "Let me see", "signature": "EqQB=="},
            {"type": "redacted_thinking", "data": "opaque"},
            {"type": "text", "text": "Two calls"},
            {"type": "tool_use", "id": "toolu_1", "name": "shell", "input": input},
            {"type": "tool_use", "id": "toolu_2", "name": "todo", "input": {}},
        ])
    );
    assert_eq!(
        body["messages"][2],
        json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "(no output)"},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "bad", "is_error": true},
            {"type": "text", "text": "left", "cache_control": {"type": "ephemeral"}},
        ]})
    );
    assert_eq!((&body["max_tokens"], &body["stream"]), (&json!(100), &json!(true)));
}

#[test]
fn marks_for_the_cache_are_few_and_roles_alternate() {
    let answer =
        || Turn::Answer(vec![Block { kind: Kind::Text("a".into()), raw: json!({"type": "text", "text": "a"}) }]);
    let user = |text: &str| Turn::User(text.into());
    let turns = [user("1"), user("2"), answer(), user("3"), answer(), user("4")];
    let body = made(Wire::Anthropic, &turns, Quirks::default());
    let messages = body["messages"].as_array().unwrap();
    let roles: Vec<&str> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant", "user"]);
    assert_eq!(messages[0]["content"].as_array().unwrap().len(), 2);
    assert_eq!(body.to_string().matches("cache_control").count(), 3);
    for message in [2, 4] {
        assert!(messages[message]["content"][0].get("cache_control").is_some());
    }
    assert!(body["system"][0].get("cache_control").is_some());
}

#[test]
fn each_stop_reason_is_known() {
    for (reason, expected) in [
        ("end_turn", Stop::Finished),
        ("stop_sequence", Stop::Finished),
        ("tool_use", Stop::Calls),
        ("max_tokens", Stop::Length),
        ("pause_turn", Stop::Paused),
        ("refusal", Stop::Refused),
        ("model_context_window_exceeded", Stop::WindowFull),
        ("new_reason", Stop::Other("new_reason".into())),
    ] {
        assert_eq!(read(Wire::Anthropic, &ended(reason)).0.unwrap().stop, expected);
    }
}

#[test]
fn cut_answer_keeps_whole_blocks_only() {
    let mut events = vec![
        start(0, json!({"type": "text", "text": ""})),
        grow(0, json!({"type": "text_delta", "text": "so far"})),
        stop(0),
        start(1, json!({"type": "tool_use", "id": "t", "name": "write", "input": {}})),
        grow(1, json!({"type": "input_json_delta", "partial_json": "{\"path\": \"a"})),
    ];
    events.extend(ended("max_tokens"));
    let answer = read(Wire::Anthropic, &events).0.unwrap();
    assert_eq!((kinds(&answer), answer.stop), (vec![Kind::Text("so far".into())], Stop::Length));
}

#[test]
fn bad_arguments_are_a_bad_call_with_an_object_to_go_back() {
    let mut events = vec![
        start(0, json!({"type": "tool_use", "id": "t", "name": "write", "input": {}})),
        grow(0, json!({"type": "input_json_delta", "partial_json": "{\"path\": "})),
        stop(0),
    ];
    events.extend(ended("tool_use"));
    let answer = read(Wire::Anthropic, &events).0.unwrap();
    assert!(matches!(&answer.blocks[0].kind, Kind::BadCall(call, why) if call.id == "t" && why.contains("no JSON")));
    assert_eq!(answer.blocks[0].raw["input"], json!({}));
}

#[test]
fn error_within_the_stream_stands_for_its_status() {
    for (kind, status) in
        [("overloaded_error", 529), ("rate_limit_error", 429), ("api_error", 500), ("invalid_request_error", 400)]
    {
        let error = json!({"type": "error", "error": {"type": kind, "message": "Overloaded"}});
        let (answer, _) = read(Wire::Anthropic, &[stream()[0].clone(), error]);
        let failure = answer.unwrap_err();
        assert_eq!(failure.kind, Trouble::Status(status));
        assert_eq!(failure.text, format!("{kind}: Overloaded"));
    }
}

#[test]
fn delta_without_its_block_is_malformed() {
    let (answer, _) = read(Wire::Anthropic, &[grow(0, json!({"type": "text_delta", "text": "x"}))]);
    assert_eq!(answer.unwrap_err().kind, Trouble::Malformed);
    assert_eq!(read(Wire::Anthropic, &[stop(0)]).0.unwrap_err().kind, Trouble::Malformed);
}

#[test]
fn endless_blocks_end() {
    let events: Vec<Value> = (0..2000).map(|index| start(index, json!({"type": "text", "text": ""}))).collect();
    assert_eq!(read(Wire::Anthropic, &events).0.unwrap_err().kind, Trouble::TooLong);
}

#[test]
fn whole_object_is_an_answer() {
    let whole = json!({"type": "message", "content": [{"type": "text", "text": "hi"},
        {"type": "tool_use", "id": "t", "name": "shell", "input": {"command": "ls"}}], "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 4}});
    let mut pieces = Vec::new();
    let answer = Parser::default().whole(&whole, &mut pieces).unwrap();
    assert_eq!(kinds(&answer), [Kind::Text("hi".into()), call("t", "shell", json!({"command": "ls"}))]);
    assert_eq!((said(&pieces).as_str(), answer.usage), ("hi", Usage { input: 3, output: 4 }));
}

#[test]
fn summary_is_asked_for_without_calls() {
    let tools = [crate::wire::tests::spec()];
    let turns = [Turn::User("x".into())];
    let request =
        Request { model: "m", system: "", tools: &tools, may_call: false, turns: &turns, max_output_tokens: 1 };
    let made = body(&request, Quirks::default());
    assert_eq!(made["tool_choice"], json!({"type": "none"}));
    assert!(made.get("system").is_none());
    assert!(body(&request, Quirks { no_tool_choice: true, ..Quirks::default() }).get("tool_choice").is_none());
}
