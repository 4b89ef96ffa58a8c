// SPDX-License-Identifier: Apache-2.0

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use super::super::testing::{self, call, call_with};
use super::super::{Cancel, Ending};
use super::*;
use proptest::prelude::*;

struct Bench {
    dir: tempfile::TempDir,
    fork: Fork,
    host: JoinHandle<(Option<ChildRequest>, Option<Keep>)>,
}

/// A host that hears a request, says `events`, hears whether changes are wanted, and then says `rest`.
fn bench(events: Vec<Value>, rest: Vec<u8>) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let (cwd, door) = (dir.path().join("cwd"), dir.path().join("child"));
    fs::create_dir(&cwd).unwrap();
    let listener = UnixListener::bind(&door).unwrap();
    let host = std::thread::spawn(move || serve(&listener, &events, &rest));
    let spool = Spool::new(dir.path().join("spool"));
    Bench { fork: Fork { cwd, door, spool }, dir, host }
}

fn serve(listener: &UnixListener, events: &[Value], rest: &[u8]) -> (Option<ChildRequest>, Option<Keep>) {
    let stream = listener.accept().unwrap().0;
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let request = heard(&mut reader);
    let mut writer = stream;
    for event in events {
        let _ = writeln!(writer, "{event}");
    }
    let keep = heard(&mut reader);
    let _ = writer.write_all(rest);
    (request, keep)
}

fn heard<T: serde::de::DeserializeOwned>(reader: &mut BufReader<UnixStream>) -> Option<T> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

fn ended(code: i32, changed: &[&str]) -> Vec<Value> {
    vec![
        json!({"event": "started", "name": "c1"}),
        json!({"event": "output", "text": "working\n"}),
        json!({"event": "ended", "code": code, "text": "result", "changed": changed}),
    ]
}

fn changes_of(path: &str, content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    let tar = builder.into_inner().unwrap();
    let line = json!({"event": "changes", "tar_bytes": tar.len(), "removed": ["old"]});
    [format!("{line}\n").into_bytes(), tar].concat()
}

#[test]
fn a_childs_result_and_changes_are_told_and_taken_when_wanted() {
    let bench = bench(ended(0, &["A new", "D old"]), changes_of("new", "from the child"));
    fs::write(bench.fork.cwd.join("old"), "x").unwrap();
    let outcome = call(&bench.fork, json!({"command": "make", "take": true, "share": {"turns": 3}}));
    assert_eq!(
        outcome.text,
        "result\n[exit code 0]\n[it changed 2 paths]\nA new\nD old\n[taken: 1 paths written, 1 removed]"
    );
    assert_eq!(fs::read(bench.fork.cwd.join("new")).unwrap(), b"from the child");
    assert!(!bench.fork.cwd.join("old").exists());
    let (request, keep) = bench.host.join().unwrap();
    let request = request.unwrap();
    assert_eq!(request.work, Work::Command(vec!["sh".into(), "-c".into(), "make".into()]));
    assert_eq!((request.base, request.share.unwrap().turns, keep), (Base::Myself, Some(3), Some(Keep::Take)));
}

#[test]
fn changes_are_dropped_unless_wanted_and_good() {
    for (code, take, word) in [(0, false, "take was not set"), (1, true, "did not exit with 0")] {
        let bench = bench(ended(code, &["A new"]), Vec::new());
        let outcome = call(&bench.fork, json!({"task": "try", "template": "base", "take": take}));
        assert!(outcome.text.contains(word), "{}", outcome.text);
        let (request, keep) = bench.host.join().unwrap();
        assert_eq!((request.unwrap().base, keep), (Base::Template("base".into()), Some(Keep::Drop)));
    }
}

#[test]
fn a_host_that_refuses_ends_or_talks_nonsense_is_told() {
    let refused = bench(vec![json!({"event": "refused", "why": "no children"})], Vec::new());
    let outcome = call(&refused.fork, json!({"task": "x"}));
    assert!(outcome.ending == Ending::Denied && outcome.text.contains("no children"));
    for events in [vec![json!({"event": "changes", "tar_bytes": 1, "removed": []})], vec![json!({"event": "new"})]] {
        let bench = bench(events, Vec::new());
        assert_eq!(call(&bench.fork, json!({"task": "x"})).ending, Ending::Failed);
    }
    for rest in [&b""[..], b"{}\n", b"{\"event\":\"changes\",\"tar_bytes\":99999999999999,\"removed\":[]}\n"] {
        let bench = bench(ended(0, &["A a"]), rest.to_vec());
        let outcome = call(&bench.fork, json!({"task": "x", "take": true}));
        assert!(outcome.text.contains("not taken"), "{}", outcome.text);
    }
    let cut = bench(ended(0, &["A new"]), changes_of("new", &"x".repeat(4000))[..1500].to_vec());
    let outcome = call(&cut.fork, json!({"task": "x", "take": true}));
    assert!(outcome.text.contains("taken"), "{}", outcome.text);
    assert!(!cut.fork.cwd.join("new").exists() && cut.dir.path().exists());
}

#[test]
fn a_child_that_never_ends_is_given_up() {
    let slow = bench(vec![json!({"event": "started", "name": "c"})], Vec::new());
    let outcome = call(&slow.fork, json!({"task": "x", "timeout_s": 1}));
    assert!(outcome.text.contains("within 1 s"), "{}", outcome.text);
    let cancelled = bench(Vec::new(), Vec::new());
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    assert_eq!(call_with(&cancelled.fork, json!({"task": "x"}), &cancel).ending, Ending::Cancelled);
}

fn shut() -> Fork {
    Fork { cwd: "/nonexistent".into(), door: "/nonexistent/child".into(), spool: Spool::new("/nonexistent".into()) }
}

#[test]
fn what_cannot_be_asked_for_is_told() {
    for (input, word) in [
        (json!({}), "either `task` or `command`"),
        (json!({"task": "a", "command": "b"}), "either"),
        (json!({"task": ""}), "1 to 65536"),
        (json!({"task": "x".repeat(WORK_MAX_BYTES + 1)}), "accepted are 1 to 65536"),
        (json!({"task": "x", "share": {"turn": 1}}), "`share.turn`"),
        (json!({"task": "x", "timeout_s": 0}), "1 to 86400 seconds"),
        (json!({"task": "x"}), "no child sandboxes here"),
    ] {
        let outcome = call(&shut(), input.clone());
        assert!(outcome.is_error() && outcome.text.contains(word), "{input}: {}", outcome.text);
    }
    assert!(input::parse::<Input>(testing::sample(&shut().spec().input_schema)).is_ok());
}

proptest! {
    #[test]
    fn no_input_panics(input in testing::any_json()) {
        prop_assert!(call(&shut(), input).is_error());
    }
}
