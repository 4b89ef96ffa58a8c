// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeSet;

use midge_protocol::broker::Tools;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::talk::{Block, Kind, Stop, Trouble, Usage};

fn run(wire: Wire) -> Run {
    Run {
        task: "mend it".into(),
        instructions: String::new(),
        wire,
        model: "m".into(),
        base_url: "http://127.0.0.1:7101".into(),
        max_output_tokens: 1000,
        context_tokens: 20_000,
        cwd: "/work".into(),
        tools: Tools::default(),
        mcp: Vec::new(),
        peers: Vec::new(),
        left: Left::default(),
    }
}

fn spec() -> Spec {
    Spec { name: "shell".into(), description: "runs".into(), input_schema: json!({"type": "object"}) }
}

fn machine() -> (Machine, Vec<Effect>) {
    begun(&run(Wire::Anthropic))
}

fn begun(run: &Run) -> (Machine, Vec<Effect>) {
    let mut machine = Machine::new(run, 1);
    let effects = machine.handle(0, Event::Started(vec![spec()], Vec::new()));
    (machine, effects)
}

fn text(said: &str) -> Block {
    Block { kind: Kind::Text(said.into()), raw: json!({"type": "text", "text": said}) }
}

fn call(id: &str, command: &str) -> Block {
    let input = json!({"command": command});
    let raw = json!({"type": "tool_use", "id": id, "name": "shell", "input": input});
    Block { kind: Kind::Call(Call { id: id.into(), name: "shell".into(), input }), raw }
}

fn answer(blocks: Vec<Block>, stop: Stop) -> Answer {
    Answer { blocks, stop, usage: Usage { input: 100, output: 10 } }
}

fn answered(machine: &mut Machine, at_ms: u64, blocks: Vec<Block>, stop: Stop) -> Vec<Effect> {
    let number = machine.number;
    machine.handle(at_ms, Event::Answered(number, answer(blocks, stop)))
}

fn failed(machine: &mut Machine, at_ms: u64, kind: Trouble) -> Vec<Effect> {
    let number = machine.number;
    machine.handle(at_ms, Event::Failed(number, Failure::new(kind, "why")))
}

fn acted(machine: &mut Machine, outcomes: Vec<Outcome>) -> Vec<Effect> {
    let number = machine.number;
    machine.handle(9, Event::ToolsEnded(number, outcomes, vec![spec()]))
}

fn body(effects: &[Effect]) -> &Value {
    effects.iter().find_map(|effect| if let Effect::Call { body, .. } = effect { Some(body) } else { None }).unwrap()
}

fn end(effects: &[Effect]) -> Option<&End> {
    effects.iter().find_map(|effect| if let Effect::End(end) = effect { Some(end) } else { None })
}

fn last_words(effects: &[Effect]) -> &str {
    let told = effects.iter().find_map(|effect| match effect {
        Effect::Note(Told::Finished { text, .. }) => Some(text.as_str()),
        _ => None,
    });
    told.unwrap()
}

fn calls(effects: &[Effect]) -> Vec<&str> {
    let calls =
        effects.iter().find_map(|effect| if let Effect::Tools { calls, .. } = effect { Some(calls) } else { None });
    calls.into_iter().flatten().map(|call| call.id.as_str()).collect()
}

#[test]
fn task_is_asked_done_and_said() {
    let (mut machine, effects) = machine();
    assert_eq!(body(&effects)["messages"][0]["content"][0]["text"], json!("mend it"));
    let number = machine.number;
    assert!(machine.handle(1, Event::Piece(number, Piece::Text("Let ".into()))).is_empty());
    let effects = machine.handle(1, Event::Piece(number, Piece::Text("me.\n\nMore".into())));
    assert_eq!(effects, [Effect::Note(Told::Said { text: "Let me.".into() })]);
    let effects =
        answered(&mut machine, 2, vec![text("Let me.\n\nMore"), call("a", "ls"), call("b", "pwd")], Stop::Calls);
    assert_eq!(effects[0], Effect::Note(Told::Said { text: "More".into() }));
    assert_eq!(calls(&effects), ["a", "b"]);
    let effects = acted(&mut machine, vec![Outcome::done("x"), Outcome::failed("y")]);
    let results = &body(&effects)["messages"][2]["content"];
    assert_eq!((&results[0]["content"], &results[1]["is_error"]), (&json!("x"), &json!(true)));
    let effects = answered(&mut machine, 3, vec![text("All done.")], Stop::Finished);
    assert_eq!((end(&effects), last_words(&effects)), (Some(&End::Done), "All done."));
    assert!(machine.is_ended() && machine.handle(4, Event::Tick).is_empty());
}

#[test]
fn denial_in_the_last_round_ends_denied_and_one_before_does_not() {
    for (denied_first, expected) in [(false, End::Denied), (true, End::Done)] {
        let (mut machine, _) = machine();
        for round in 0..2 {
            answered(&mut machine, 1, vec![call("a", &round.to_string())], Stop::Calls);
            let is_denied = denied_first == (round == 0);
            acted(&mut machine, vec![if is_denied { Outcome::denied("no") } else { Outcome::done("x") }]);
        }
        assert_eq!(end(&answered(&mut machine, 2, vec![text("so")], Stop::Finished)), Some(&expected));
    }
}

#[test]
fn bad_arguments_are_answered_without_a_call() {
    let (mut machine, _) = machine();
    let mut bad = call("a", "x");
    let Kind::Call(inner) = bad.kind.clone() else { unreachable!() };
    bad.kind = Kind::BadCall(inner, "the arguments are no JSON".into());
    let effects = answered(&mut machine, 1, vec![bad.clone(), call("b", "ls")], Stop::Calls);
    assert_eq!(calls(&effects), ["b"]);
    let effects = acted(&mut machine, vec![Outcome::done("x")]);
    let content = &body(&effects)["messages"][2]["content"];
    assert!(content[0]["content"].as_str().unwrap().contains("no JSON"), "{content}");
    assert_eq!(content[1]["content"], json!("x"));
    let effects = answered(&mut machine, 1, vec![bad], Stop::Calls);
    assert_eq!(body(&effects)["messages"][4]["content"][0]["is_error"], json!(true));
}

#[test]
fn passing_trouble_is_waited_out_with_growing_waits_until_it_is_enough() {
    let (mut machine, _) = machine();
    let mut waits = Vec::new();
    let mut at_ms = 0;
    for _ in 0..retry::RETRIES_MAX_COUNT {
        let effects = failed(&mut machine, at_ms, Trouble::Status(529));
        let Effect::Note(Told::Retry { wait_ms, .. }) = &effects[0] else { panic!("{effects:?}") };
        assert!(machine.handle(at_ms + wait_ms - 1, Event::Tick).is_empty());
        at_ms += wait_ms;
        assert!(!machine.handle(at_ms, Event::Tick).is_empty());
        waits.push(*wait_ms);
    }
    assert!(waits[0] <= 500 && waits[7] >= 16_000 && waits[7] <= 32_000, "{waits:?}");
    let effects = failed(&mut machine, at_ms, Trouble::Unreachable);
    assert_eq!(end(&effects), Some(&End::Failed));
    assert!(last_words(&effects).contains("9 tries"), "{}", last_words(&effects));
}

#[test]
fn wait_that_the_provider_asks_for_is_kept_unless_it_is_too_long() {
    for (asked_ms, ends) in [(20_000, false), (700_000, true)] {
        let (mut machine, _) = machine();
        let failure = Failure { retry_after_ms: Some(asked_ms), ..Failure::new(Trouble::Status(429), "slow") };
        let number = machine.number;
        let effects = machine.handle(0, Event::Failed(number, failure));
        assert_eq!(end(&effects).is_some(), ends);
        assert!(machine.handle(asked_ms - 1, Event::Tick).is_empty());
    }
}

#[test]
fn lasting_trouble_ends_at_once() {
    let (mut machine, _) = machine();
    let failure = Failure { is_final: true, ..Failure::new(Trouble::Status(500), "never") };
    let number = machine.number;
    assert_eq!(end(&machine.handle(0, Event::Failed(number, failure))), Some(&End::Failed));
    for status in [301, 400, 401, 403, 404] {
        let (mut machine, _) = self::machine();
        assert_eq!(end(&failed(&mut machine, 0, Trouble::Status(status))), Some(&End::Failed), "{status}");
    }
    let (mut machine, _) = self::machine();
    assert_eq!(end(&failed(&mut machine, 0, Trouble::Budget("tokens".into()))), Some(&End::Budget("tokens".into())));
    let (mut machine, _) = self::machine();
    assert_eq!(end(&failed(&mut machine, 0, Trouble::Denied)), Some(&End::Denied));
}

#[test]
fn quirk_of_a_server_costs_one_request() {
    let (mut machine, _) = begun(&run(Wire::Chat));
    let number = machine.number;
    let refusal = Failure::new(Trouble::Status(400), "Use 'max_completion_tokens' instead.");
    let effects = machine.handle(1, Event::Failed(number, refusal.clone()));
    assert_eq!(body(&effects)["max_completion_tokens"], json!(1000));
    let number = machine.number;
    assert_eq!(end(&machine.handle(2, Event::Failed(number, refusal))), Some(&End::Failed));
}

#[test]
fn silent_and_endless_models_are_left() {
    let (mut machine, _) = machine();
    assert!(machine.handle(SILENCE_MAX_MS - 1, Event::Tick).is_empty());
    let number = machine.number;
    let _ = machine.handle(SILENCE_MAX_MS - 1, Event::Piece(number, Piece::Other));
    assert!(machine.handle(SILENCE_MAX_MS, Event::Tick).is_empty());
    let effects = machine.handle(2 * SILENCE_MAX_MS, Event::Tick);
    assert!(effects[0] == Effect::DropCall && matches!(effects[1], Effect::Note(Told::Retry { .. })), "{effects:?}");
    assert!(
        machine
            .handle(2 * SILENCE_MAX_MS, Event::Answered(number, answer(vec![text("late")], Stop::Finished)))
            .is_empty()
    );
}

#[test]
fn tools_that_do_not_end_are_told_to_and_then_given_up() {
    let (mut machine, _) = machine();
    answered(&mut machine, 0, vec![call("a", "sleep")], Stop::Calls);
    let round = machine.number;
    assert!(machine.handle(TOOLS_MAX_MS - 1, Event::Tick).is_empty());
    assert_eq!(machine.handle(TOOLS_MAX_MS, Event::Tick), [Effect::DropTools]);
    assert!(machine.handle(TOOLS_MAX_MS + 1, Event::Tick).is_empty());
    let effects = machine.handle(TOOLS_MAX_MS + TOOLS_GRACE_MS, Event::Tick);
    let said = body(&effects)["messages"][2]["content"][0]["content"].as_str().unwrap();
    assert!(said.contains("did not end"), "{said}");
    assert!(
        machine.handle(TOOLS_MAX_MS + 9, Event::ToolsEnded(round, vec![Outcome::done("late")], Vec::new())).is_empty()
    );
}

#[test]
fn empty_and_cut_answers_are_told_and_end_when_nothing_else_comes() {
    for (blocks, stop, hint) in [
        (Vec::new(), Stop::Finished, "was empty"),
        (vec![Block { kind: Kind::Kept, raw: json!({}) }], Stop::Finished, "was empty"),
        (vec![text("and then")], Stop::Length, "was cut"),
    ] {
        let (mut machine, _) = machine();
        for _ in 0..4 {
            let effects = answered(&mut machine, 1, blocks.clone(), stop.clone());
            assert!(body(&effects).to_string().contains(hint), "{effects:?}");
        }
        assert_eq!(end(&answered(&mut machine, 1, blocks, stop)), Some(&End::Failed));
    }
}

#[test]
fn same_call_for_ever_is_told_and_ends() {
    let (mut machine, _) = machine();
    let mut hinted = None;
    for round in 0..100 {
        answered(&mut machine, 1, vec![call(&round.to_string(), "ls")], Stop::Calls);
        let effects = acted(&mut machine, vec![Outcome::done("same")]);
        if let Some(end) = end(&effects) {
            assert_eq!((end, hinted, round), (&End::Failed, Some(4), 24));
            return;
        }
        if hinted.is_none() && body(&effects).to_string().contains("Do something else") {
            hinted = Some(round);
        }
    }
    panic!("it did not end");
}

#[test]
fn refusal_ends() {
    let (mut machine, _) = machine();
    let effects = answered(&mut machine, 1, vec![text("I cannot.")], Stop::Refused);
    assert_eq!((end(&effects), last_words(&effects)), (Some(&End::Failed), "the model refused to answer. I cannot."));
}

#[test]
fn paused_answer_goes_on_as_it_is() {
    let (mut machine, _) = machine();
    let effects = answered(&mut machine, 1, vec![text("part")], Stop::Paused);
    assert_eq!(body(&effects)["messages"][1]["role"], json!("assistant"));
}

#[test]
fn budgets_are_told_and_end_the_run() {
    let mut limited = run(Wire::Anthropic);
    limited.left = Left { turns: Some(2), tool_calls: Some(3), ..Left::default() };
    let (mut machine, effects) = begun(&limited);
    assert!(body(&effects).to_string().contains("[budget left: 2 turns, 3 tool calls]"));
    let effects = answered(&mut machine, 1, ["a", "b", "c", "d"].map(|id| call(id, id)).to_vec(), Stop::Calls);
    assert_eq!(calls(&effects), ["a", "b", "c"]);
    let effects = acted(&mut machine, vec![Outcome::done("x"); 3]);
    assert_eq!(end(&effects), Some(&End::Budget("tool_calls".into())));

    limited.left = Left { turns: Some(1), ..Left::default() };
    let (mut machine, _) = begun(&limited);
    answered(&mut machine, 1, vec![call("a", "ls")], Stop::Calls);
    assert_eq!(end(&acted(&mut machine, vec![Outcome::done("x")])), Some(&End::Budget("turns".into())));
}

#[test]
fn host_has_the_last_word_on_what_is_left() {
    let (mut machine, _) = machine();
    answered(&mut machine, 1, vec![call("a", "ls")], Stop::Calls);
    assert!(machine.handle(2, Event::Left(Left { tokens: Some(0), ..Left::default() })).is_empty());
    assert_eq!(end(&acted(&mut machine, vec![Outcome::done("x")])), Some(&End::Budget("tokens".into())));
    // What was charged while the answer came does not take its own calls away.
    let mut limited = run(Wire::Anthropic);
    limited.left = Left { tool_calls: Some(1), ..Left::default() };
    let (mut machine, _) = begun(&limited);
    let _ = machine.handle(2, Event::Left(Left { tool_calls: Some(0), ..Left::default() }));
    assert_eq!(calls(&answered(&mut machine, 3, vec![call("a", "ls")], Stop::Calls)), ["a"]);
}

#[test]
fn wall_time_ends_whatever_goes_on() {
    let mut limited = run(Wire::Anthropic);
    limited.left = Left { wall_ms: Some(1000), ..Left::default() };
    let (mut machine, _) = begun(&limited);
    answered(&mut machine, 10, vec![call("a", "sleep")], Stop::Calls);
    assert!(machine.handle(999, Event::Tick).is_empty());
    let effects = machine.handle(1000, Event::Tick);
    assert_eq!((&effects[0], end(&effects)), (&Effect::DropTools, Some(&End::Budget("wall".into()))));
}

#[test]
fn network_that_is_used_up_does_not_end_the_run() {
    let mut limited = run(Wire::Anthropic);
    limited.left = Left { egress_bytes: Some(0), ..Left::default() };
    let (_, effects) = begun(&limited);
    assert!(end(&effects).is_none());
}

#[test]
fn lost_record_ends_the_run() {
    let (mut machine, _) = machine();
    let effects = machine.handle(1, Event::RecordLost("gone".into()));
    assert_eq!((&effects[0], end(&effects)), (&Effect::DropCall, Some(&End::Failed)));
}

/// Rounds of output until something is compacted; the effects of that.
fn filled(machine: &mut Machine, bytes: usize, input: u64) -> Vec<Effect> {
    for round in 0..200 {
        let number = machine.number;
        let mut big = answer(vec![call(&format!("c{round}"), &round.to_string())], Stop::Calls);
        big.usage = Usage { input, output: 0 };
        let _ = machine.handle(1, Event::Answered(number, big));
        let effects = acted(machine, vec![Outcome::done("y".repeat(bytes))]);
        if effects.iter().any(|effect| matches!(effect, Effect::Note(Told::Compacted { .. }))) {
            return effects;
        }
    }
    panic!("nothing was compacted");
}

#[test]
fn old_output_is_taken_out_before_the_window_is_full() {
    let (mut machine, _) = machine();
    let effects = filled(&mut machine, 6000, 0);
    let body = body(&effects).to_string();
    assert!(body.contains("was taken out to save room") && !body.contains("Do not call tools"), "{body}");
}

#[test]
fn old_part_becomes_a_summary_when_output_is_not_enough() {
    let (mut machine, _) = machine();
    filled(&mut machine, 6000, 0);
    // The provider counts more than the output explains: nothing but a summary helps.
    let number = machine.number;
    let mut big = answer(vec![call("z", "z")], Stop::Calls);
    big.usage.input = 60_000;
    let _ = machine.handle(1, Event::Answered(number, big));
    let effects = acted(&mut machine, vec![Outcome::done("small")]);
    assert!(body(&effects).to_string().contains("Do not call tools"), "{effects:?}");
    assert_eq!(body(&effects)["tool_choice"], json!({"type": "none"}));
    let effects = answered(&mut machine, 2, vec![text("what was done")], Stop::Finished);
    let messages = body(&effects)["messages"].as_array().unwrap();
    assert!(messages[0].to_string().contains("what was done") && messages.len() == 5, "{messages:?}");
    assert!(end(&effects).is_none());
}

#[test]
fn full_window_is_squeezed_a_few_times_and_then_fails() {
    let (mut machine, _) = machine();
    for round in 0..3 {
        answered(&mut machine, 1, vec![call(&round.to_string(), &round.to_string())], Stop::Calls);
        acted(&mut machine, vec![Outcome::done("y".repeat(2000))]);
    }
    let mut ends = None;
    let mut tries = 0;
    while ends.is_none() {
        let number = machine.number;
        let failure = Failure::new(Trouble::Status(400), "prompt is too long: 9 > 8");
        let effects = machine.handle(1, Event::Failed(number, failure));
        ends = end(&effects).cloned();
        tries += 1;
    }
    assert_eq!(ends, Some(End::Failed));
    assert!((2..=5).contains(&tries), "{tries}");
}

/// What may happen to a machine, without the numbers that make it fit.
#[derive(Debug, Clone)]
enum Happening {
    Answer(u8, Stop, u64),
    Fail(Trouble, &'static str),
    Act(Vec<Outcome>),
    Piece(String),
    Left(Left),
    Late(u64),
    Tick(u64),
    Cancel,
}

fn happening() -> impl Strategy<Value = Happening> {
    let stops = prop::sample::select(vec![
        Stop::Finished,
        Stop::Calls,
        Stop::Length,
        Stop::Paused,
        Stop::Other("x".into()),
        Stop::WindowFull,
    ]);
    let troubles = prop::sample::select(vec![
        (Trouble::Unreachable, "x"),
        (Trouble::Status(529), "x"),
        (Trouble::Status(400), "context window"),
        (Trouble::Status(400), "tool_choice"),
        (Trouble::TooLong, "x"),
    ]);
    let outcome = prop_oneof![
        "[a-z]{0,9}".prop_map(Outcome::done),
        Just(Outcome::denied("no")),
        (0usize..20_000).prop_map(|bytes| Outcome::done("y".repeat(bytes))),
    ];
    let limit = || prop::option::weighted(0.2, 0u64..9);
    let left = (limit(), limit(), limit()).prop_map(|(turns, tool_calls, tokens)| Left {
        turns,
        tool_calls,
        tokens,
        ..Left::default()
    });
    prop_oneof![
        8 => (0u8..5, stops, 0u64..30_000).prop_map(|(calls, stop, input)| Happening::Answer(calls, stop, input)),
        2 => troubles.prop_map(|(kind, text)| Happening::Fail(kind, text)),
        8 => prop::collection::vec(outcome, 0..6).prop_map(Happening::Act),
        1 => ".{0,4}".prop_map(Happening::Piece),
        1 => left.prop_map(Happening::Left),
        1 => (0u64..4).prop_map(Happening::Late),
        6 => (0u64..100_000).prop_map(Happening::Tick),
        1 => Just(Happening::Cancel),
    ]
}

/// In an Anthropic request: roles alternate, and each call has exactly one result, in the next message.
fn is_well(body: &Value) -> bool {
    let messages = body["messages"].as_array().unwrap();
    let ids = |message: &Value, kind: &str, key: &str| -> Vec<String> {
        let blocks = message["content"].as_array().unwrap().iter().filter(|block| block["type"] == kind);
        blocks.map(|block| block[key].as_str().unwrap().to_owned()).collect()
    };
    let pairs = messages.windows(2).all(|pair| {
        pair[0]["role"] != pair[1]["role"]
            && ids(&pair[0], "tool_use", "id") == ids(&pair[1], "tool_result", "tool_use_id")
    });
    let ends_well = messages.last().is_some_and(|last| ids(last, "tool_use", "id").is_empty());
    pairs && ends_well && messages[0]["role"] == "user" && ids(&messages[0], "tool_result", "tool_use_id").is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_happens_requests_are_well_and_the_end_comes(happenings in prop::collection::vec(happening(), 0..80), turns in 1u64..20) {
        let mut limited = run(Wire::Anthropic);
        limited.left.turns = Some(turns);
        let mut machine = Machine::new(&limited, 3);
        let mut at_ms = 0;
        let mut effects = machine.handle(0, Event::Started(vec![spec()], Vec::new()));
        let (mut requests, mut answers, mut ended) = (0u64, 0u32, 0);
        let mut raised = 0u64;
        let mut open: BTreeSet<u64> = BTreeSet::new();
        let last = [Happening::Cancel, Happening::Tick(0)];
        for happening in happenings.into_iter().chain(last) {
            for effect in &effects {
                match effect {
                    Effect::Call { number, body } => {
                        prop_assert!(is_well(body), "{body:#}");
                        prop_assert!(open.insert(*number));
                        requests += 1;
                    }
                    Effect::Tools { number, calls } => {
                        prop_assert!(open.insert(*number) && !calls.is_empty());
                    }
                    Effect::End(_) => ended += 1,
                    _ => {}
                }
            }
            prop_assert!(ended == 0 || machine.is_ended());
            let number = machine.number;
            let event = match happening {
                Happening::Answer(calls, stop, input) => {
                    answers += 1;
                    let blocks = (0..calls).map(|n| if n == 0 { text("words") } else { call(&format!("c{answers}_{n}"), &format!("{answers}")) });
                    Event::Answered(number, Answer { blocks: blocks.collect(), stop, usage: Usage { input, output: 1 } })
                }
                Happening::Fail(kind, text) => Event::Failed(number, Failure::new(kind, text)),
                Happening::Act(outcomes) => Event::ToolsEnded(number, outcomes, vec![spec()]),
                Happening::Piece(said) => Event::Piece(number, Piece::Text(said)),
                Happening::Left(left) => {
                    let left = Left { turns: left.turns.or(Some(3)), ..left };
                    raised += left.turns.unwrap();
                    Event::Left(left)
                }
                Happening::Late(ago) => Event::ToolsEnded(number.saturating_sub(ago + 1), Vec::new(), Vec::new()),
                Happening::Tick(ms) => { at_ms += ms; Event::Tick }
                Happening::Cancel => Event::Cancel,
            };
            effects = machine.handle(at_ms, event);
        }
        prop_assert!(machine.is_ended() && ended + effects.len() <= 1 + effects.len());
        prop_assert!(requests <= turns + raised, "{requests} requests for {turns} turns and {raised}");
    }
}
