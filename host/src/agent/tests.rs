// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::exec::{Outcome, Usage};

fn left_with(code: u8) -> ExitStatus {
    let usage = Usage { wall_us: 0, user_us: 0, system_us: 0, max_rss_kib: 0 };
    ExitStatus { outcome: Outcome::Code(code), timed_out: false, usage }
}

fn told(how: End) -> Option<Ended> {
    Some(Ended { how, text: "words".to_owned() })
}

#[test]
fn ends_are_told_by_word_and_code_together() {
    assert_eq!(judge(&left_with(0), told(End::Done), "", None), told(End::Done).unwrap());
    assert_eq!(judge(&left_with(4), told(End::Denied), "", None), told(End::Denied).unwrap());
    assert_eq!(judge(&left_with(1), told(End::Failed), "", None), told(End::Failed).unwrap());
    // A word that its code contradicts is none.
    let odd = judge(&left_with(1), told(End::Done), "", None);
    assert!(odd.how == End::Failed && odd.text.contains("left with 1"), "{odd:?}");
}

#[test]
fn budgets_are_the_hosts_to_tell() {
    let ended = judge(&left_with(0), told(End::Done), "", Some("tokens"));
    assert_eq!(ended, Ended { how: End::Budget("tokens".to_owned()), text: "words".to_owned() });
    assert_eq!(judge(&left_with(137), None, "", Some("wall")).how, End::Budget("wall".to_owned()));
}

#[test]
fn loop_without_a_last_word_is_quoted_harmlessly() {
    let ended = judge(&left_with(101), None, "panicked\u{1b}[2J", None);
    assert_eq!(ended.how, End::Failed);
    assert!(ended.text.contains("101") && ended.text.contains("panicked\u{fffd}"), "{}", ended.text);
}

#[tokio::test(start_paused = true)]
async fn wall_time_is_waited_for() {
    let budget = midge_protocol::broker::Left { wall_ms: Some(0), ..Default::default() };
    time_is_up(Ledger::new(&budget)).await;
    let endless = Ledger::new(&midge_protocol::broker::Left::default());
    assert!(tokio::time::timeout(Duration::from_secs(9), time_is_up(endless)).await.is_err());
}
