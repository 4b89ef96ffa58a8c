// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::talk::{Block, Kind};
use crate::tools::Call;

fn answer(id: &str) -> Turn {
    let call = Call { id: id.into(), name: "shell".into(), input: json!({"command": "ls"}) };
    let kept = Block { kind: Kind::Kept, raw: json!({"type": "thinking", "thinking": "hm", "signature": "s"}) };
    Turn::Answer(vec![kept, Block { kind: Kind::Call(call), raw: json!({"type": "tool_use", "id": id}) }])
}

fn results(id: &str, text: &str) -> Turn {
    let result =
        CallResult { id: id.into(), name: "shell".into(), text: text.into(), is_error: false, is_elided: false };
    Turn::Results { results: vec![result], note: "n".into() }
}

fn talk(rounds: usize, bytes: usize) -> Vec<Turn> {
    let mut turns = vec![Turn::User("task".into())];
    for round in 0..rounds {
        turns.extend([answer(&round.to_string()), results(&round.to_string(), &"x".repeat(bytes))]);
    }
    turns
}

/// Each call has its result right after it, and nothing else has one.
fn is_paired(turns: &[Turn]) -> bool {
    let calls = |turn: &Turn| match turn {
        Turn::Answer(blocks) => blocks.iter().filter_map(|block| Some(block.call()?.id.clone())).collect(),
        _ => Vec::new(),
    };
    let results = |turn: &Turn| match turn {
        Turn::Results { results, .. } => results.iter().map(|result| result.id.clone()).collect(),
        _ => Vec::new(),
    };
    let firsts_are_well = turns.first().is_none_or(|first| matches!(first, Turn::User(_)));
    firsts_are_well && turns.windows(2).all(|pair| calls(&pair[0]) == results(&pair[1]))
}

#[test]
fn meter_adds_what_came_since_the_provider_counted() {
    let mut meter = Meter::default();
    meter.added(300);
    assert_eq!(meter.tokens(), 100);
    meter.counted(500);
    meter.added(30);
    assert_eq!(meter.tokens(), 510);
    meter.removed(60);
    assert_eq!(meter.tokens(), 490);
    meter.removed(u64::MAX);
    assert_eq!(meter.tokens(), 0);
    meter.restart(9);
    assert_eq!(meter.tokens(), 3);
}

#[test]
fn room_is_what_an_answer_leaves_but_never_less_than_half() {
    assert_eq!(room_tokens(100_000, 20_000), 80_000);
    assert_eq!(room_tokens(100_000, 90_000), 50_000);
    assert!(!is_full(8000, 10_000) && is_full(8001, 10_000));
    assert_eq!(excess_bytes(6000, 10_000), 3000);
    assert_eq!(excess_bytes(4000, 10_000), 0);
}

#[test]
fn oldest_output_goes_first_and_the_last_rounds_stay() {
    let mut turns = talk(6, 1000);
    let gone = elide(&mut turns, 1);
    assert!(gone > 700, "{gone}");
    let is_elided = |turn: &Turn| matches!(turn, Turn::Results { results, .. } if results[0].is_elided);
    assert_eq!(turns.iter().filter(|turn| is_elided(turn)).count(), 1);
    assert!(is_elided(&turns[2]));
    elide(&mut turns, u64::MAX);
    assert_eq!(turns.iter().filter(|turn| is_elided(turn)).count(), 3);
    assert_eq!(elide(&mut turns, u64::MAX), 0);
    elide_all(&mut turns);
    assert_eq!(turns.iter().filter(|turn| is_elided(turn)).count(), 6);
    assert!(is_paired(&turns));
}

#[test]
fn what_is_taken_out_says_how_to_see_it_again() {
    let mut turns = talk(1, 0);
    turns[2] =
        results("0", &format!("first line\n{}\n[1000 bytes more: read /spool/7 from offset 32]", "x".repeat(1000)));
    elide_all(&mut turns);
    let Turn::Results { results, .. } = &turns[2] else { unreachable!() };
    let text = &results[0].text;
    assert!(
        text.starts_with("first line") && text.contains("taken out") && text.contains("/spool/7 from offset 32"),
        "{text}"
    );
    let mut turns = talk(1, 500);
    elide_all(&mut turns);
    assert!(matches!(&turns[2], Turn::Results { results, .. } if results[0].text.contains("call the tool again")));
}

#[test]
fn small_output_is_not_worth_it() {
    let mut turns = talk(9, SMALL_BYTES);
    assert_eq!(elide_all(&mut turns), 0);
}

#[test]
fn summary_replaces_the_old_part_and_keeps_the_last_rounds_whole() {
    let turns = talk(5, 10);
    let replaced_turns = replaced(&turns, "the task", "the summary", 2).unwrap();
    assert_eq!(replaced_turns.len(), 5);
    assert!(
        matches!(&replaced_turns[0], Turn::User(text) if text.contains("the task") && text.contains("the summary"))
    );
    assert_eq!(replaced_turns[1..], turns[7..]);
    assert_eq!(replaced(&turns, "t", "s", 0).unwrap().len(), 1);
    assert!(replaced(&talk(2, 10), "t", "s", 2).is_none());
    assert!(replaced(&talk(0, 10), "t", "s", 2).is_none());
}

proptest! {
    #[test]
    fn no_pair_is_broken(rounds in 0usize..9, bytes in 0usize..3000, want in any::<u64>(), keep in 0usize..4) {
        let mut turns = talk(rounds, bytes);
        let before: u64 = turns.iter().map(super::bytes).sum();
        let gone = elide(&mut turns, want);
        prop_assert!(is_paired(&turns));
        prop_assert!(gone <= before);
        if let Some(turns) = replaced(&turns, "t", "s", keep) {
            prop_assert!(is_paired(&turns));
        }
    }
}
