// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap;

use midge_protocol::broker::{Base, ChildRequest, End, Item, ItemState, Keep, Left, Told, Verdict, Work};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Body, Decider, Decision, Entry, Masker, Recorder, Started, Usage};

/// One of each kind, with `text` wherever a guest, a model or a server could put it.
pub(crate) fn one_of_each(text: &str) -> Vec<Entry> {
    let s = || text.to_owned();
    let told = |told| Entry::Told { told };
    vec![
        Entry::Started(Box::new(Started {
            task: s(),
            policy: s(),
            model: s(),
            template: Some(s()),
            ..Started::default()
        })),
        Entry::Narrowed { policy: s() },
        Entry::ModelRequest { exchange: 1, path: s(), model: s(), body: json!({"messages": [{"content": text}]}) },
        Entry::ModelAnswer {
            exchange: 1,
            status: 200,
            headers: BTreeMap::from([(s(), s())]),
            body: Body { text: s(), cut_bytes: 3 },
            usage: Usage { input_tokens: 7, output_tokens: 5, ..Usage::default() },
            money_micros: 1_500_000,
            elapsed_ms: 9,
            broken: Some(s()),
        },
        Entry::ModelRefused { exchange: 2, path: s(), why: s() },
        Entry::EgressDecided {
            connection: 1,
            method: s(),
            scheme: s(),
            host: s(),
            port: 443,
            path: Some(s()),
            rule: Some(s()),
            decision: Decision::Deny,
            why: s(),
            address: Some([127, 0, 0, 1].into()),
        },
        Entry::EgressEnded {
            connection: 1,
            status: Some(200),
            sent_bytes: 1,
            received_bytes: 2,
            elapsed_ms: 3,
            broken: Some(s()),
        },
        Entry::Asked { question: 1, asked: json!({"text": text}), why: s() },
        Entry::Decided { question: 1, verdict: Verdict::Deny { why: s() }, by: Decider::TimeOut },
        Entry::Decided { question: 2, verdict: Verdict::Edited { input: json!(text) }, by: Decider::Approver },
        Entry::ChildAsked {
            child: 1,
            request: Box::new(ChildRequest {
                base: Base::Myself,
                work: Work::Task(s()),
                policy: Some(s()),
                share: None,
            }),
        },
        Entry::ChildRefused { child: 1, why: vec![s()] },
        Entry::ChildStarted { child: 1, name: s(), policy: s(), share: Left { turns: Some(2), ..Left::default() } },
        Entry::ChildEnded { child: 1, code: None, spent: Left::default(), changed: vec![s()] },
        Entry::ChildKept { child: 1, keep: Keep::Take, tar_bytes: 5 },
        Entry::PeerOpened { tunnel: 1, peer: s(), port: Some(80), inward: true },
        Entry::PeerRefused { tunnel: 1, peer: s(), why: s() },
        Entry::PeerMessage { peer: s(), received: true, text: s() },
        Entry::PeerClosed { tunnel: 1, peer: s(), sent_bytes: 1, received_bytes: 2 },
        told(Told::Said { text: s() }),
        told(Told::Thought { text: s() }),
        told(Told::ToolCall { id: s(), name: s(), input: json!(text) }),
        told(Told::ToolResult { id: s(), is_error: true, output: s(), elided_bytes: 1, elapsed_ms: 2 }),
        told(Told::Todo { items: vec![Item { text: s(), state: ItemState::Doing }] }),
        told(Told::Retry { why: s(), wait_ms: 1 }),
        told(Told::Compacted { what: s() }),
        told(Told::Finished { end: End::Budget(s()), text: s() }),
        Entry::Malformed { door: s(), why: s(), excerpt: s() },
        Entry::Exhausted { budget: s() },
        Entry::Changes { changed: vec![s()], applied: true },
        Entry::Ended { how: s(), exit_code: 3, text: s(), spent: Left::default() },
    ]
}

pub(crate) fn transcript(text: &str) -> Vec<u8> {
    let (recorder, memory) = Recorder::in_memory("run", Masker::default()).unwrap();
    one_of_each(text).iter().for_each(|entry| assert!(recorder.note(entry).is_ok()));
    recorder.finish().unwrap();
    memory.bytes()
}

fn shown(bytes: &[u8], all: bool) -> String {
    let mut out = Vec::new();
    show(bytes, &mut out, all).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn every_kind_has_words_of_its_own() {
    let text = shown(&transcript("some words"), false);
    let heads: Vec<&str> = text.lines().filter(|line| !line.starts_with("      | ")).collect();
    assert_eq!(heads.len(), one_of_each("").len() + 2, "{text}");
    assert!(!text.contains(" entry") && !text.contains("later version"), "{text}");
    for part in [
        "asks model some words #1",
        "$1.500000",
        "denied by rule some words",
        "nobody answered in time",
        "guest  says",
        "[>] some words",
        "root of 32 lines",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn terminal_gets_nothing_to_obey_and_no_line_that_looks_like_ours() {
    let evil = "\u{1b}[2J\u{9b}31m\r\u{8}\u{7}\u{202e}\u{200b}\n    9    0:00.000 host   run ends: done";
    for all in [false, true] {
        let text = shown(&transcript(evil), all);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(!text.contains(['\u{202e}', '\u{200b}', '\u{1b}']), "{text:?}");
        let forged = text.lines().filter(|line| line.starts_with("    9    0:00.000 host   run ends"));
        assert_eq!(forged.count(), 0, "{text}");
    }
}

#[test]
fn long_text_is_shortened_unless_all_is_asked_for() {
    let long = "line\n".repeat(100) + &"x".repeat(5000);
    let bytes = transcript(&long);
    assert!(shown(&bytes, false).contains("... 89 more lines"));
    assert!(shown(&bytes, true).len() > shown(&bytes, false).len() + 5000);
}

#[test]
fn unknown_entries_are_shown_as_they_are() {
    let entry = json!({"kind": "\u{1b}new", "what": "x"});
    let line = Line {
        seq: 1,
        t_ms: 61_002,
        unix_ms: 0,
        by: Speaker::Host,
        entry,
        prev: crate::Hash::ZERO,
        hash: crate::Hash::ZERO,
    };
    let mut out = Vec::new();
    write_line(&mut out, &line, false).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("    1    1:01.002 host   \u{fffd}new (of a later version, or masked)\n"), "{text}");
}

#[test]
fn what_stands_before_a_broken_line_is_shown() {
    let mut bytes = transcript("x");
    let at = bytes.len() - 200;
    bytes[at] ^= 1;
    let mut out = Vec::new();
    assert!(matches!(show(bytes.as_slice(), &mut out, false), Err(ShowError::Read(ReadError::Broken { .. }))));
    assert!(String::from_utf8(out).unwrap().lines().count() > 10);
}

proptest! {
    #[test]
    fn printable_is_printable(text: String) {
        let safe = printable(&text);
        prop_assert!(safe.chars().all(|c| matches!(c, '\n' | '\t') || !c.is_control()));
        prop_assert_eq!(safe.chars().count(), text.chars().count());
    }
}
