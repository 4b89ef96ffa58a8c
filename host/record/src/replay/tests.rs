// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Masker, Memory, Recorder, Usage};

fn request(exchange: u64, results: &[(&str, &str)]) -> Entry {
    Entry::ModelRequest { exchange, path: "/v1/messages".into(), model: "m".into(), body: anthropic(results) }
}

fn anthropic(results: &[(&str, &str)]) -> Value {
    let block = |(id, text): &(&str, &str)| json!({"type": "tool_result", "tool_use_id": id, "content": text});
    json!({"messages": [
        {"role": "user", "content": "do it"},
        {"role": "user", "content": results.iter().map(block).collect::<Vec<_>>()},
    ]})
}

fn answer(exchange: u64, text: &str, cut_bytes: u64) -> Entry {
    Entry::ModelAnswer {
        exchange,
        status: 200,
        headers: BTreeMap::from([("content-type".into(), "text/event-stream".into())]),
        body: Body { text: text.into(), cut_bytes },
        usage: Usage::default(),
        money_micros: 0,
        elapsed_ms: 1,
        broken: None,
    }
}

fn transcript(entries: &[Entry]) -> Memory {
    let (recorder, memory) = Recorder::in_memory("old", Masker::default()).unwrap();
    entries.iter().for_each(|entry| assert!(recorder.note(entry).is_ok()));
    memory
}

fn replay(entries: &[Entry]) -> Replay {
    Replay::read(transcript(entries).bytes().as_slice()).unwrap()
}

#[test]
fn answers_come_in_order_with_what_differs() {
    let mut replay = replay(&[
        Entry::Started(Box::new(Started { task: "t".into(), ..Started::default() })),
        request(1, &[]),
        answer(1, "first", 0),
        request(2, &[("a", "one"), ("b", "two")]),
        answer(2, "second", 0),
    ]);
    assert_eq!((replay.run(), replay.started().unwrap().task.as_str(), replay.exchanges().len()), ("old", "t", 2));
    let (first, differ) = replay.answer("/v1/messages", &anthropic(&[])).unwrap();
    assert_eq!((first.body.text.as_str(), differ.len()), ("first", 0));
    let (second, differ) =
        replay.answer("/v1/messages", &anthropic(&[("a", "one"), ("b", "2"), ("c", "more")])).unwrap();
    assert_eq!(second.body.text, "second");
    let difference = |id: &str, recorded: Option<&str>, now: Option<&str>| Difference {
        id: id.into(),
        recorded: recorded.map(Into::into),
        now: now.map(Into::into),
    };
    assert_eq!(differ, [difference("b", Some("two"), Some("2")), difference("c", None, Some("more"))]);
    assert!(matches!(replay.answer("/v1/messages", &json!({})), Err(ReplayError::Over { number: 3, count: 2 })));
}

#[test]
fn results_are_compared_once_though_every_request_repeats_them() {
    let mut replay = replay(&[
        request(1, &[("a", "one")]),
        answer(1, "x", 0),
        request(2, &[("a", "one"), ("b", "two")]),
        answer(2, "y", 0),
    ]);
    assert_eq!(replay.answer("/v1/messages", &anthropic(&[("a", "ONE")])).unwrap().1.len(), 1);
    assert_eq!(replay.answer("/v1/messages", &anthropic(&[("a", "ONE"), ("b", "two")])).unwrap().1, []);
}

#[test]
fn answers_find_their_requests_when_calls_were_parallel() {
    let replay = replay(&[request(1, &[]), request(2, &[]), answer(2, "two", 0), answer(1, "one", 0)]);
    let texts: Vec<&str> = replay.exchanges().iter().map(|e| e.answer.as_ref().unwrap().body.text.as_str()).collect();
    assert_eq!(texts, ["one", "two"]);
}

#[test]
fn another_api_is_refused_and_the_call_still_waits() {
    let mut replay = replay(&[request(1, &[]), answer(1, "x", 0)]);
    assert!(matches!(replay.answer("/v1/responses", &json!({})), Err(ReplayError::Other { number: 1, .. })));
    assert!(replay.answer("/v1/messages", &json!({})).is_ok());
}

#[test]
fn what_was_not_recorded_whole_is_not_made_up() {
    let mut killed = replay(&[request(1, &[])]);
    assert!(matches!(killed.answer("/v1/messages", &json!({})), Err(ReplayError::Missing { number: 1, .. })));
    let mut cut = replay(&[request(1, &[]), answer(1, "x", 7)]);
    let error = cut.answer("/v1/messages", &json!({})).unwrap_err().to_string();
    assert!(error.contains("7 bytes"), "{error}");
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let none = Replay::read(transcript(&[]).bytes().as_slice()).unwrap_err();
    assert!(matches!(none, ReplayError::NoExchange));
    assert!(matches!(Replay::read(&b"x\n"[..]), Err(ReplayError::Read(ReadError::Broken { line: 1, .. }))));
}

#[test]
fn results_of_all_three_wire_formats_are_read() {
    let result = |id: &str, text: &str| ToolResult { id: id.into(), text: text.into() };
    let chat = json!({"messages": [{"role": "tool", "tool_call_id": "c1", "content": "out"}, {"role": "user", "content": "x"}]});
    assert_eq!(tool_results(&chat), [result("c1", "out")]);
    let responses =
        json!({"input": [{"type": "function_call_output", "call_id": "r1", "output": "out"}, {"type": "message"}]});
    assert_eq!(tool_results(&responses), [result("r1", "out")]);
    let blocks = json!({"messages": [{"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "a1", "content": [{"type": "text", "text": "x"}, {"type": "image"}]},
        {"type": "tool_result", "tool_use_id": "a2"},
        {"type": "tool_result"},
    ]}]});
    assert_eq!(tool_results(&blocks), [result("a1", "x\n{\"type\":\"image\"}"), result("a2", "")]);
    for odd in [
        json!(null),
        json!([]),
        json!({"messages": 1}),
        json!({"input": "text"}),
        json!({"messages": [1, {"content": 2}]}),
    ] {
        assert_eq!(tool_results(&odd), []);
    }
}

proptest! {
    #[test]
    fn same_results_never_differ(ids in prop::collection::btree_set("[a-z]{1,4}", 0..8), text: String) {
        let results: Vec<ToolResult> = ids.into_iter().map(|id| ToolResult { id, text: text.clone() }).collect();
        prop_assert_eq!(differences(&results, &results), []);
        prop_assert_eq!(differences(&results, &[]).len(), results.len());
        prop_assert_eq!(differences(&[], &results).len(), results.len());
    }
}
