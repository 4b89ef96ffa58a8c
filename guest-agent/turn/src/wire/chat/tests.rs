// SPDX-License-Identifier: Apache-2.0

use midge_protocol::broker::Wire;

use super::*;
use crate::wire::tests::{call, kinds, made, read, result, said};

fn delta(delta: Value) -> Value {
    json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn stop(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn calls(calls: Value) -> Value {
    delta(json!({"tool_calls": calls}))
}

fn read_kinds(events: &[Value]) -> Vec<Kind> {
    kinds(&read(Wire::Chat, events).0.unwrap())
}

#[test]
fn deltas_are_put_together_by_their_index() {
    let events = [
        delta(json!({"role": "assistant", "content": null})),
        delta(json!({"content": "Two "})),
        delta(json!({"content": "calls"})),
        calls(
            json!([{"index": 0, "id": "call_a", "type": "function", "function": {"name": "shell", "arguments": ""}}]),
        ),
        calls(json!([{"index": 0, "function": {"arguments": "{\"command\":"}}])),
        calls(
            json!([{"index": 1, "id": "call_b", "type": "function", "function": {"name": "todo", "arguments": "{}"}}]),
        ),
        calls(json!([{"index": 0, "function": {"arguments": "\"ls\"}"}}])),
        stop("tool_calls"),
        json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}}),
    ];
    let (answer, pieces) = read(Wire::Chat, &events);
    let answer = answer.unwrap();
    assert_eq!(said(&pieces), "Two calls");
    assert_eq!((answer.stop.clone(), answer.usage), (Stop::Calls, Usage { input: 9, output: 4 }));
    let turns = [
        Turn::User("go".into()),
        Turn::Answer(answer.blocks),
        Turn::Results {
            results: vec![result("call_a", "x", false), result("call_b", "bad", true)],
            note: "left".into(),
        },
    ];
    let body = made(Wire::Chat, &turns, Quirks::default());
    assert_eq!(
        body["messages"],
        json!([
            {"role": "system", "content": "be good"},
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "Two calls", "tool_calls": [
                {"id": "call_a", "type": "function", "function": {"name": "shell", "arguments": "{\"command\":\"ls\"}"}},
                {"id": "call_b", "type": "function", "function": {"name": "todo", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": "call_a", "content": "x"},
            {"role": "tool", "tool_call_id": "call_b", "content": "error: bad\n\nleft"},
        ])
    );
    assert_eq!((&body["max_tokens"], &body["stream_options"]), (&json!(100), &json!({"include_usage": true})));
    assert_eq!(body["tools"][0]["function"]["name"], json!("shell"));
}

#[test]
fn calls_without_a_name_of_their_own_get_one() {
    let events = [
        calls(
            json!([{"function": {"name": "shell", "arguments": "{}"}}, {"function": {"name": "todo", "arguments": {"a": 1}}}]),
        ),
        stop("stop"),
    ];
    assert_eq!(read_kinds(&events), [call("call_7_0", "shell", json!({})), call("call_7_1", "todo", json!({"a": 1}))]);
}

#[test]
fn calls_that_share_an_index_or_a_name_are_two() {
    let events = [
        calls(json!([{"index": 0, "id": "a", "function": {"name": "shell", "arguments": "{}"}}])),
        calls(json!([{"index": 0, "id": "b", "function": {"name": "shell", "arguments": "{\"x\":1}"}}])),
        calls(json!([{"index": 1, "id": "b", "function": {"name": "todo", "arguments": "{}"}}])),
        stop("tool_calls"),
    ];
    let expected =
        [call("a", "shell", json!({})), call("b", "shell", json!({"x": 1})), call("call_7_2", "todo", json!({}))];
    assert_eq!(read_kinds(&events), expected);
}

#[test]
fn name_and_id_that_come_again_with_each_piece_are_one_call() {
    let piece = |arguments: &str| {
        calls(json!([{"index": 0, "id": "a", "function": {"name": "shell", "arguments": arguments}}]))
    };
    assert_eq!(read_kinds(&[piece("{\"x\""), piece(":1}"), stop("tool_calls")]), [call("a", "shell", json!({"x": 1}))]);
}

#[test]
fn whole_message_in_a_stream_and_as_an_object_are_read() {
    let whole = json!({"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": null,
        "reasoning_content": "hm", "tool_calls": [{"id": "a", "function": {"name": "shell", "arguments": {"x": 1}}}]},
        "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}});
    let expected = [Kind::Kept, call("a", "shell", json!({"x": 1}))];
    assert_eq!(read_kinds(std::slice::from_ref(&whole)), expected);
    let mut pieces = Vec::new();
    let answer = Parser::new(7).whole(&whole, &mut pieces).unwrap();
    assert_eq!((kinds(&answer), answer.stop), (expected.to_vec(), Stop::Calls));
    assert!(pieces.contains(&Piece::Thought("hm".into())));
    assert!(Parser::new(7).whole(&json!({"choices": []}), &mut pieces).is_err());
}

#[test]
fn reasoning_goes_back_only_to_those_who_want_it() {
    let events = [delta(json!({"reasoning": "deep"})), delta(json!({"content": "x"})), stop("stop")];
    let blocks = read(Wire::Chat, &events).0.unwrap().blocks;
    let turns = [Turn::User("a".into()), Turn::Answer(blocks)];
    assert!(made(Wire::Chat, &turns, Quirks::default())["messages"][2].get("reasoning_content").is_none());
    let mut quirks = Quirks::default();
    assert!(quirks.learn(Wire::Chat, "The `reasoning_content` in the thinking mode must be passed back to the API."));
    assert_eq!(made(Wire::Chat, &turns, quirks)["messages"][2]["reasoning_content"], json!("deep"));
}

#[test]
fn each_finish_reason_is_known() {
    for (reason, expected) in
        [("stop", Stop::Finished), ("length", Stop::Length), ("content_filter", Stop::Refused), ("eos", Stop::Finished)]
    {
        assert_eq!(read(Wire::Chat, &[stop(reason)]).0.unwrap().stop, expected, "{reason}");
    }
    let events = [delta(json!({"refusal": "no"})), stop("stop")];
    assert_eq!(read(Wire::Chat, &events).0.unwrap().stop, Stop::Refused);
}

#[test]
fn call_that_the_limit_cut_is_left_out_and_a_bad_one_is_told() {
    let half = calls(json!([{"index": 0, "id": "a", "function": {"name": "write", "arguments": "{\"path\":\"a"}}]));
    assert!(read_kinds(&[half.clone(), stop("length")]).is_empty());
    let answer = read(Wire::Chat, &[half, stop("tool_calls")]).0.unwrap();
    assert!(matches!(&answer.blocks[0].kind, Kind::BadCall(..)));
    assert_eq!(answer.blocks[0].raw["function"]["arguments"], json!("{}"));
}

#[test]
fn error_in_the_stream_is_a_failure() {
    let failure = read(Wire::Chat, &[json!({"error": {"message": "overloaded", "code": 503}})]).0.unwrap_err();
    assert_eq!((failure.kind, failure.text.as_str()), (Trouble::Status(503), "overloaded"));
    let failure = read(Wire::Chat, &[json!({"error": {"message": "x", "code": "weird"}})]).0.unwrap_err();
    assert_eq!(failure.kind, Trouble::Status(500));
}

#[test]
fn endless_calls_end() {
    let events: Vec<Value> =
        (0..2000).map(|index| calls(json!([{"index": index, "function": {"name": "x", "arguments": ""}}]))).collect();
    assert_eq!(read(Wire::Chat, &events).0.unwrap_err().kind, Trouble::TooLong);
}
