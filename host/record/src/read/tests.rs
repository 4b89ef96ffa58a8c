// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;
use crate::{Masker, Recorder, verify};
use midge_protocol::broker::Told;

fn recorded(lines: usize, root: bool) -> Vec<u8> {
    recorded_as("r1", lines, root)
}

fn recorded_as(run: &str, lines: usize, root: bool) -> Vec<u8> {
    let (recorder, memory) = Recorder::in_memory(run, Masker::default()).unwrap();
    for n in 0..lines {
        recorder.note(&Entry::Told { told: Told::Said { text: format!("line {n}") } }).unwrap();
    }
    if root {
        recorder.finish().unwrap();
    }
    memory.bytes()
}

fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// The line that is told to be the first broken one.
fn broken_at(bytes: &[u8]) -> u64 {
    match verify(bytes) {
        Err(ReadError::Broken { line, .. }) => line,
        other => panic!("{other:?}"),
    }
}

#[test]
fn whole_transcript_is_verified() {
    let found = verify(recorded(3, true).as_slice()).unwrap();
    assert_eq!((found.run.as_str(), found.lines), ("r1", 5));
    let State::Finished { root } = found.state else { panic!("{found:?}") };
    let last = split(&recorded(3, true)).pop().unwrap();
    assert_ne!(root, Hash::ZERO);
    assert!(String::from_utf8(last).unwrap().contains("\"root\""));
}

#[test]
fn without_root_it_is_unfinished_and_a_torn_line_is_counted() {
    let bytes = recorded(3, false);
    assert_eq!(verify(bytes.as_slice()).unwrap().state, State::Unfinished { torn_bytes: 0 });
    let torn = &bytes[..bytes.len() - 10];
    let found = verify(torn).unwrap();
    let last = split(&bytes).pop().unwrap().len();
    assert_eq!((found.lines, found.state), (3, State::Unfinished { torn_bytes: last - 10 }));
}

#[test]
fn what_is_moved_taken_out_put_in_or_added_is_found_where_it_is() {
    let lines = split(&recorded(4, true));
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    assert_eq!(broken_at(&swapped.concat()), 3);
    let mut shorter = lines.clone();
    shorter.remove(2);
    assert_eq!(broken_at(&shorter.concat()), 3);
    let mut doubled = lines.clone();
    doubled.insert(2, lines[2].clone());
    assert_eq!(broken_at(&doubled.concat()), 4);
    let mut more = lines.clone();
    more.push(lines[1].clone());
    assert_eq!(broken_at(&more.concat()), 7);
    assert_eq!(broken_at(&lines[1..].concat()), 1, "the beginning was cut off");
    assert_eq!(broken_at(&[lines.concat(), b"x".to_vec()].concat()), 7, "even half a line after the root");
    let other = split(&recorded_as("r2", 4, false));
    assert_eq!(broken_at(&[lines[..3].concat(), other[3].clone()].concat()), 4, "a line of another transcript");
}

#[test]
fn root_that_somebody_made_for_a_shorter_file_is_found() {
    let lines = split(&recorded(4, true));
    // Cut after line 2 and close the chain again, as somebody would who knows the format but leaves the number.
    let last = Line::read(lines[1].trim_ascii_end()).unwrap();
    let entry = serde_json::json!({"kind": "root", "lines": 5});
    let forged =
        Line { seq: 2, t_ms: 0, unix_ms: 0, by: crate::Speaker::Host, entry, prev: last.hash, hash: Hash::ZERO };
    let (_, forged) = forged.write().unwrap();
    assert_eq!(broken_at(&[lines[..2].concat(), forged].concat()), 3);
}

#[test]
fn what_is_no_transcript_is_refused() {
    assert!(matches!(verify(&b""[..]), Err(ReadError::Empty)));
    assert_eq!(broken_at(b"hello\n"), 1);
    assert_eq!(broken_at(b"\n"), 1);
    assert_eq!(broken_at(&[0xff, b'\n']), 1);
    assert_eq!(verify(&b"{\"half"[..]).unwrap().state, State::Unfinished { torn_bytes: 6 });
}

#[test]
fn later_formats_are_named() {
    let entry = serde_json::json!({"kind": "opened", "format": 2, "run": "r"});
    let line =
        Line { seq: 0, t_ms: 0, unix_ms: 0, by: crate::Speaker::Host, entry, prev: Hash::ZERO, hash: Hash::ZERO };
    let (_, bytes) = line.write().unwrap();
    assert!(matches!(verify(bytes.as_slice()), Err(ReadError::Format { format: 2 })));
}

#[test]
fn endless_line_costs_no_more_than_the_limit() {
    let mut lines = Lines::up_to(io::BufReader::new(io::repeat(b'a')), 1000);
    assert!(matches!(lines.next(), Some(Err(ReadError::Broken { line: 1, .. }))));
    assert!(lines.next().is_none(), "nothing after an error");
    let deep = "[".repeat(100_000) + "\n";
    assert_eq!(broken_at(deep.as_bytes()), 1);
}

#[test]
fn lines_at_the_limit_are_read() {
    let bytes = recorded(0, false);
    assert!(Lines::up_to(bytes.as_slice(), bytes.len()).next().unwrap().is_ok());
    assert!(Lines::up_to(bytes.as_slice(), bytes.len() - 1).next().unwrap().is_err());
}

proptest! {
    #[test]
    fn any_edit_of_any_byte_is_found(at in 0..10_000_usize, byte: u8) {
        let mut bytes = recorded(3, true);
        let at = at % bytes.len();
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        // The last line feed is the one byte whose loss only makes the end torn.
        match verify(bytes.as_slice()) {
            Err(ReadError::Broken { .. } | ReadError::Format { .. }) => {}
            Ok(found) => {
                let torn = State::Unfinished { torn_bytes: found_torn(&bytes) };
                prop_assert_eq!((at, found.state), (bytes.len() - 1, torn));
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn any_prefix_is_unfinished_and_never_finished(len in 1..10_000_usize) {
        let bytes = recorded(3, true);
        let len = len % bytes.len();
        prop_assume!(len > 0);
        let found = verify(&bytes[..len]).unwrap();
        let unfinished = matches!(found.state, State::Unfinished { .. });
        prop_assert!(unfinished);
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        let _ = verify(bytes.as_slice());
    }
}

fn found_torn(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\n').next_back().unwrap().len()
}
