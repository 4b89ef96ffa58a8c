// SPDX-License-Identifier: Apache-2.0

use midge_protocol::broker::Wire;

use super::*;
use crate::wire::tests::{call, kinds, made, read, result, said};

fn done(index: u64, item: Value) -> Value {
    json!({"type": "response.output_item.done", "output_index": index, "sequence_number": 1, "item": item})
}

fn reasoning() -> Value {
    json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA", "status": null})
}

fn function_call(id: &str, arguments: &str) -> Value {
    json!({"type": "function_call", "id": format!("fc_{id}"), "call_id": id, "name": "shell", "arguments": arguments,
           "status": "completed"})
}

fn message(part: Value) -> Value {
    json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
}

fn completed(output: Value) -> Value {
    json!({"type": "response.completed", "response": {"status": "completed", "output": output,
           "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}}})
}

#[test]
fn items_of_a_stream_are_read_and_go_back_unchanged() {
    let text = message(json!({"type": "output_text", "text": "Look", "annotations": []}));
    let events = [
        json!({"type": "response.created", "response": {"status": "in_progress"}}),
        json!({"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "summary": []}}),
        json!({"type": "response.reasoning_summary_text.delta", "delta": "hm"}),
        done(0, reasoning()),
        json!({"type": "response.output_text.delta", "output_index": 1, "delta": "Lo"}),
        json!({"type": "response.output_text.delta", "output_index": 1, "delta": "ok"}),
        done(1, text.clone()),
        json!({"type": "response.function_call_arguments.delta", "delta": "{"}),
        done(2, function_call("call_1", "{\"command\":\"ls\"}")),
        done(3, function_call("call_2", "")),
        completed(json!([])),
    ];
    let (answer, pieces) = read(Wire::Responses, &events);
    let answer = answer.unwrap();
    assert_eq!(said(&pieces), "Look");
    assert!(pieces.contains(&Piece::Thought("hm".into())));
    assert_eq!(
        kinds(&answer),
        [
            Kind::Kept,
            Kind::Text("Look".into()),
            call("call_1", "shell", json!({"command": "ls"})),
            call("call_2", "shell", json!({}))
        ]
    );
    assert_eq!((answer.stop.clone(), answer.usage), (Stop::Calls, Usage { input: 10, output: 5 }));
    let turns = [
        Turn::User("go".into()),
        Turn::Answer(answer.blocks),
        Turn::Results {
            results: vec![result("call_1", "x", false), result("call_2", "bad", true)],
            note: "left".into(),
        },
    ];
    let body = made(Wire::Responses, &turns, Quirks::default());
    assert_eq!(
        body["input"],
        json!([
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
            reasoning(),
            text,
            function_call("call_1", "{\"command\":\"ls\"}"),
            function_call("call_2", ""),
            {"type": "function_call_output", "call_id": "call_1", "output": "x"},
            {"type": "function_call_output", "call_id": "call_2", "output": "error: bad"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "left"}]},
        ])
    );
    assert_eq!((&body["store"], &body["include"]), (&json!(false), &json!(["reasoning.encrypted_content"])));
    assert_eq!(body["tools"][0]["name"], json!("shell"));
}

#[test]
fn reasoning_that_is_only_a_reference_does_not_go_back() {
    let reference = json!({"type": "reasoning", "id": "rs_1", "summary": []});
    let blocks = vec![
        Block { kind: Kind::Kept, raw: reference },
        Block { kind: Kind::Text("x".into()), raw: message(json!({"type": "output_text", "text": "x"})) },
    ];
    let body = made(Wire::Responses, &[Turn::User("a".into()), Turn::Answer(blocks)], Quirks::default());
    assert_eq!(body["input"].as_array().unwrap().len(), 2);
    let encrypted = [Turn::Answer(vec![Block { kind: Kind::Kept, raw: reasoning() }])];
    let quirks = Quirks { no_encrypted_reasoning: true, ..Quirks::default() };
    assert_eq!(made(Wire::Responses, &encrypted, Quirks::default())["input"].as_array().unwrap().len(), 1);
    assert!(made(Wire::Responses, &encrypted, quirks)["input"].as_array().unwrap().is_empty());
}

#[test]
fn items_may_come_with_the_last_event_only() {
    let (answer, _) = read(Wire::Responses, &[completed(json!([function_call("c", "{}")]))]);
    assert_eq!(kinds(&answer.unwrap()), [call("c", "shell", json!({}))]);
}

#[test]
fn each_end_is_known() {
    let incomplete = |reason: &str| {
        json!({"type": "response.incomplete", "response":
               {"status": "incomplete", "incomplete_details": {"reason": reason}, "output": []}})
    };
    let stop = |event: Value| read(Wire::Responses, &[event]).0.unwrap().stop;
    assert_eq!(stop(incomplete("max_output_tokens")), Stop::Length);
    assert_eq!(stop(incomplete("content_filter")), Stop::Refused);
    assert_eq!(stop(incomplete("tired")), Stop::Other("tired".into()));
    assert_eq!(stop(completed(json!([]))), Stop::Finished);
    let refusal = message(json!({"type": "refusal", "refusal": "no"}));
    assert_eq!(stop(completed(json!([refusal]))), Stop::Refused);
    let cut =
        json!({"type": "function_call", "call_id": "c", "name": "x", "arguments": "{\"a", "status": "incomplete"});
    let (answer, _) = read(Wire::Responses, &[done(0, cut), incomplete("max_output_tokens")]);
    assert!(answer.unwrap().blocks.is_empty());
}

#[test]
fn failures_are_told_by_their_code() {
    let failed = json!({"type": "response.failed", "response": {"status": "failed", "error":
                        {"code": "rate_limit_exceeded", "message": "slow down"}}});
    let error = json!({"type": "error", "code": "server_error", "message": "oops", "param": null});
    let nested = json!({"type": "error", "error": {"type": "context_length_exceeded", "message": "long"}});
    for (event, status, text) in [
        (failed, 429, "rate_limit_exceeded: slow down"),
        (error, 500, "server_error: oops"),
        (nested, 400, "context_length_exceeded: long"),
    ] {
        let failure = read(Wire::Responses, &[event]).0.unwrap_err();
        assert_eq!((failure.kind, failure.text.as_str()), (Trouble::Status(status), text));
    }
}

#[test]
fn bad_arguments_go_back_as_they_came() {
    let (answer, _) = read(Wire::Responses, &[done(0, function_call("c", "{\"a")), completed(json!([]))]);
    let answer = answer.unwrap();
    assert!(matches!(&answer.blocks[0].kind, Kind::BadCall(call, _) if call.input == json!({})));
    assert_eq!(answer.blocks[0].raw["arguments"], json!("{\"a"));
}

#[test]
fn whole_object_is_an_answer_or_an_error() {
    let mut pieces = Vec::new();
    let whole = json!({"status": "completed", "error": null, "output": [message(json!({"type": "output_text", "text": "hi"}))]});
    assert_eq!(Parser::default().whole(&whole, &mut pieces).unwrap().text(), "hi");
    assert_eq!(said(&pieces), "hi");
    assert!(Parser::default().whole(&json!({"error": {"message": "x"}}), &mut pieces).is_err());
    assert!(Parser::default().whole(&json!({}), &mut pieces).is_err());
}
