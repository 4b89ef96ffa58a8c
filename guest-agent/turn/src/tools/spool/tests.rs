// SPDX-License-Identifier: Apache-2.0

use super::super::testing;
use super::*;

fn long() -> String {
    (0..20_000).map(|n| format!("line {n}\n")).collect()
}

#[test]
fn what_is_left_out_can_be_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("made/when/needed"));
    let text = long();
    let outcome = spool.outcome(&text);
    assert!(outcome.text.len() <= OUTCOME_MAX_BYTES);
    assert!(outcome.text.contains(r#"{"id":"o0","offset":"#), "{}", outcome.text);
    let (head, rest) = outcome.text.split_once("\n[").unwrap();
    let mut whole = head.to_owned();
    let (_, tail) = rest.split_once("]\n").unwrap();
    let mut left = outcome.elided_bytes + tail.len() as u64;
    while left > 0 {
        let outcome = testing::call(&Output(spool.clone()), json!({"id": "o0", "offset": whole.len()}));
        whole += outcome.text.rsplit_once("\n[").unwrap().0;
        left = outcome.elided_bytes;
    }
    assert!(whole == text, "{} of {}", whole.len(), text.len());
}

#[test]
fn short_text_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("spool"));
    assert_eq!(spool.outcome("short"), Outcome::done("short"));
    assert!(!dir.path().join("spool").exists());
}

#[test]
fn files_are_bounded_in_size_and_number() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().into());
    for _ in 0..KEPT_MAX_FILES + 3 {
        let mut kept = spool.begin();
        for _ in 0..3 {
            kept.write(&vec![b'x'; usize::try_from(KEPT_MAX_BYTES).unwrap() / 2]);
        }
        assert_eq!(kept.written_bytes, KEPT_MAX_BYTES);
        assert!(kept.mark(KEPT_MAX_BYTES - 1, 2).contains("only the first 8388608 bytes"));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT_MAX_FILES);
    let gone = testing::call(&Output(spool.clone()), json!({"id": "o0"}));
    assert!(gone.is_error() && gone.text.contains("kept are: o3, o4"), "{}", gone.text);
    drop(spool);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_told_in_the_mark() {
    let spool = Spool::new("/dev/null/nothing".into());
    let outcome = spool.outcome(&long());
    assert!(outcome.text.contains("only the first 0 bytes of all were kept"), "{}", outcome.text);
}

#[test]
fn bytes_that_grow_as_text_stay_within_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().into());
    spool.begin().write(&b"a\xff".repeat(40_000));
    let mut offset = 0;
    loop {
        let outcome = testing::call(&Output(spool.clone()), json!({"id": "o0", "offset": offset}));
        assert!(outcome.text.len() <= OUTCOME_MAX_BYTES);
        offset = 80_000 - outcome.elided_bytes;
        if offset == 80_000 {
            break;
        }
    }
    let beyond = testing::call(&Output(spool), json!({"id": "o0", "offset": u64::MAX}));
    assert!(beyond.is_error() || beyond.text.contains("nothing at"), "{}", beyond.text);
}
