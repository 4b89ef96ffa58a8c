// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::talk::{Block, CallResult, Kind, Stop};
use crate::tools::Call;

pub(super) const ALL: [Wire; 3] = [Wire::Anthropic, Wire::Responses, Wire::Chat];

/// Feeds the data of events to a parser as a stream would.
pub(super) fn read(wire: Wire, events: &[Value]) -> (Result<Answer, Failure>, Vec<Piece>) {
    let (mut parser, mut pieces) = (Parser::new(wire, 7), Vec::new());
    for event in events {
        let event = SseEvent { name: String::new(), data: event.to_string() };
        match parser.event(&event, &mut pieces) {
            Ok(true) => break,
            Ok(false) => {}
            Err(failure) => return (Err(failure), pieces),
        }
    }
    (parser.finish(), pieces)
}

pub(super) fn spec() -> Spec {
    Spec { name: "shell".into(), description: "runs".into(), input_schema: json!({"type": "object"}) }
}

pub(super) fn made(wire: Wire, turns: &[Turn], quirks: Quirks) -> Value {
    let tools = [spec()];
    let request =
        Request { model: "m", system: "be good", tools: &tools, may_call: true, turns, max_output_tokens: 100 };
    body(wire, &request, quirks)
}

pub(super) fn result(id: &str, text: &str, is_error: bool) -> CallResult {
    CallResult { id: id.into(), name: "shell".into(), text: text.into(), is_error, is_elided: false }
}

pub(super) fn said(pieces: &[Piece]) -> String {
    pieces.iter().filter_map(|piece| if let Piece::Text(text) = piece { Some(text.as_str()) } else { None }).collect()
}

pub(super) fn kinds(answer: &Answer) -> Vec<Kind> {
    answer.blocks.iter().map(|block| block.kind.clone()).collect()
}

pub(super) fn call(id: &str, name: &str, input: Value) -> Kind {
    Kind::Call(Call { id: id.into(), name: name.into(), input })
}

#[test]
fn events_that_are_no_objects_are_malformed_and_no_panic() {
    for wire in ALL {
        for data in ["", "nonsense", "{\"type\": \"message_sta", "[1]", "null", "3"] {
            let event = SseEvent { name: String::new(), data: data.into() };
            let failure = Parser::new(wire, 1).event(&event, &mut Vec::new()).unwrap_err();
            assert_eq!(failure.kind, Trouble::Malformed, "{wire:?} {data}");
        }
    }
}

#[test]
fn stream_that_ends_before_the_answer_is_cut() {
    for wire in ALL {
        assert_eq!(read(wire, &[]).0.unwrap_err().kind, Trouble::Unreachable, "{wire:?}");
    }
}

#[test]
fn arguments_are_an_object_or_a_problem() {
    assert_eq!(arguments(" "), Ok(json!({})));
    assert_eq!(arguments("null"), Ok(json!({})));
    assert_eq!(arguments("{\"a\":1}"), Ok(json!({"a": 1})));
    assert!(arguments("[1]").unwrap_err().contains("no JSON object"));
    assert!(arguments("{\"a\":").unwrap_err().contains("no JSON:"));
}

#[test]
fn refusals_are_read_in_each_servers_way() {
    for body in [
        r#"{"type":"error","error":{"type":"x","message":"why"}}"#,
        r#"{"error":{"message":"why","code":null}}"#,
        r#"{"error":"why"}"#,
        r#"{"object":"error","message":"why"}"#,
        r#"{"detail":"why"}"#,
        " why\n",
    ] {
        assert_eq!(error_text(body), "why", "{body}");
    }
    assert!(error_text(&"ä".repeat(5000)).len() <= 2000);
}

#[test]
fn refusal_has_a_kind_and_a_time() {
    let after = |after| Again { after: Some(after), should: None };
    let failure = failure_of_status(429, "{}", after("1.5"));
    assert_eq!((failure.kind, failure.retry_after_ms, failure.is_final), (Trouble::Status(429), Some(1500), false));
    for (header, ms) in [("-3", Some(0)), ("1e300", Some(86_400_000)), ("NaN", None), ("Wed, 21 Oct", None)] {
        assert_eq!(failure_of_status(503, "", after(header)).retry_after_ms, ms, "{header}");
    }
    assert!(failure_of_status(500, "", Again { after: None, should: Some("false") }).is_final);
}

#[test]
fn brokers_own_refusals_are_known_from_those_of_a_provider() {
    let said = |text: &str| json!({"error": {"message": text}}).to_string();
    let kind = |status, text: &str| failure_of_status(status, &said(text), Again::default()).kind;
    assert_eq!(
        kind(402, "midge: the budget `tokens` of this sandbox is used up: 5 wanted, 0 left."),
        Trouble::Budget("tokens".into())
    );
    assert_eq!(kind(403, "midge: the policy does not allow the model x"), Trouble::Denied);
    assert_eq!(kind(402, "Your credit balance is too low"), Trouble::Status(402));
    assert_eq!(kind(403, "Your organisation may not"), Trouble::Status(403));
    assert_eq!(kind(502, "midge: the model provider cannot be reached"), Trouble::Status(502));
}

#[test]
fn full_window_is_known_by_each_servers_words() {
    for (status, text, full) in [
        (400, "prompt is too long: 210000 tokens > 200000 maximum", true),
        (400, "context_length_exceeded: Your input exceeds the context window of this model", true),
        (400, "This model's maximum context length is 8192 tokens", true),
        (400, "the request exceeds the available context size", true),
        (413, "", true),
        (400, "tools: unknown field", false),
        (429, "context window", false),
    ] {
        assert_eq!(window_is_full(&Failure::new(Trouble::Status(status), text)), full, "{status} {text}");
    }
}

#[test]
fn quirk_is_learned_once() {
    let mut quirks = Quirks::default();
    let text =
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.";
    assert!(quirks.learn(Wire::Chat, text));
    assert!(!quirks.learn(Wire::Chat, text));
    assert!(!quirks.learn(Wire::Anthropic, "max_completion_tokens"));
    let body = made(Wire::Chat, &[Turn::User("x".into())], quirks);
    assert_eq!((body.get("max_tokens"), &body["max_completion_tokens"]), (None, &json!(100)));
    assert!(quirks.learn(Wire::Responses, "Encrypted content is not supported with this model."));
    assert!(made(Wire::Responses, &[], quirks).get("include").is_none());
}

fn any_json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "type",
        "index",
        "delta",
        "content_block",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "text_delta",
        "input_json_delta",
        "partial_json",
        "tool_use",
        "message_start",
        "message_delta",
        "message",
        "usage",
        "choices",
        "tool_calls",
        "function",
        "arguments",
        "finish_reason",
        "id",
        "name",
        "response.output_item.done",
        "item",
        "response.completed",
        "response",
        "output",
        "function_call",
        "content",
        "thinking",
        "text",
        "stop_reason",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0u64..4).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        words.clone().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(words.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever JSON comes, it is an answer or a failure; and whatever answer comes, a request can be made of it.
    #[test]
    fn any_json_is_survived(events in prop::collection::vec(any_json(), 0..8), whole in any_json()) {
        for wire in ALL {
            let streamed = read(wire, &events).0.ok();
            let whole = Parser::new(wire, 1).whole(&whole, &mut Vec::new()).ok();
            for answer in streamed.into_iter().chain(whole) {
                let blocks: Vec<Block> = answer.blocks;
                made(wire, &[Turn::User("a".into()), Turn::Answer(blocks), Turn::User("b".into())], Quirks::default());
                prop_assert!(answer.stop != Stop::Other("impossible".into()));
            }
        }
    }
}
