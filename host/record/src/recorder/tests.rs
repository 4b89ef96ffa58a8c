// SPDX-License-Identifier: Apache-2.0

use std::sync::atomic::{AtomicUsize, Ordering};

use midge_protocol::broker::{Told, Verdict};

use super::*;
use crate::{Decider, SecretError, State, verify};

fn said(text: &str) -> Entry {
    Entry::Told { told: Told::Said { text: text.to_owned() } }
}

fn allowed() -> Entry {
    Entry::Decided { question: 1, verdict: Verdict::Allow, by: Decider::Approver }
}

/// A disk with room for so many bytes, that counts what was asked of it.
struct Small {
    memory: Memory,
    room: usize,
    syncs: Arc<AtomicUsize>,
    sync_fails: bool,
}

impl Sink for Small {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let fits = bytes.len().min(self.room);
        self.room -= fits;
        self.memory.append(&bytes[..fits])?;
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if self.sync_fails { Err(io::Error::other("bad block")) } else { Ok(()) }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.memory.truncate(len)
    }
}

fn small(room: usize, sync_fails: bool) -> (Recorder, Memory, Arc<AtomicUsize>) {
    let (memory, syncs) = (Memory::default(), Arc::new(AtomicUsize::new(0)));
    let sink = Small { memory: memory.clone(), room, syncs: Arc::clone(&syncs), sync_fails };
    (Recorder::on(Box::new(sink), Path::new("small"), "r", Masker::default()).unwrap(), memory, syncs)
}

#[test]
fn file_is_new_private_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.jsonl");
    let recorder = Recorder::create(&path, "r", Masker::default()).unwrap();
    assert_eq!(recorder.note(&said("x")).unwrap(), 1);
    let root = recorder.finish().unwrap();
    let found = verify(std::fs::read(&path).unwrap().as_slice()).unwrap();
    assert_eq!((found.lines, found.state), (3, State::Finished { root }));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let error = Recorder::create(&path, "r", Masker::default()).unwrap_err();
    assert!(matches!(error, RecordError::Create { .. }), "a transcript is never written over: {error}");
}

#[tokio::test]
async fn full_disk_latches_and_wakes_who_waits() {
    let (recorder, memory, _) = small(600, false);
    let waiting = tokio::spawn({
        let recorder = recorder.clone();
        async move { recorder.failed().await }
    });
    let error = loop {
        if let Err(error) = recorder.note(&said("some words")) {
            break error;
        }
    };
    let RecordError::Write { seq, .. } = &error else { panic!("{error:?}") };
    assert!(error.to_string().contains("make room"), "{error}");
    assert_eq!(waiting.await.unwrap().to_string(), error.to_string());
    for later in [recorder.note(&said("y")).unwrap_err(), recorder.finish().unwrap_err(), recorder.error().unwrap()] {
        assert_eq!(later.to_string(), error.to_string(), "everybody gets the first error");
    }
    let found = verify(memory.bytes().as_slice()).unwrap();
    assert_eq!((found.lines, found.state), (*seq, State::Unfinished { torn_bytes: 0 }), "half a line is not left");
}

#[test]
fn transcript_has_an_end_though_a_guest_has_none() {
    let memory = Memory::default();
    let recorder = Recorder::up_to(Box::new(memory.clone()), Path::new("m"), "r", Masker::default(), 1000).unwrap();
    let error = (0..100).find_map(|_| recorder.note(&said("more")).err()).unwrap();
    assert!(matches!(error, RecordError::Full { max: 1000, .. }), "{error}");
    assert!(memory.bytes().len() <= 1000 && verify(memory.bytes().as_slice()).is_ok());
    assert!(recorder.error().is_some());
}

#[test]
fn real_full_disk_is_one_too() {
    let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
    let error = Recorder::on(Box::new(full), Path::new("/dev/full"), "r", Masker::default()).unwrap_err();
    assert!(matches!(error, RecordError::Write { seq: 0, .. }), "{error:?}");
}

#[test]
fn what_lets_something_out_is_on_the_disk_first() {
    let (recorder, _, syncs) = small(10_000, false);
    recorder.note(&said("x")).unwrap();
    assert_eq!(syncs.load(Ordering::Relaxed), 0);
    recorder.note(&allowed()).unwrap();
    assert_eq!(syncs.load(Ordering::Relaxed), 1);
    recorder.finish().unwrap();
    assert_eq!(syncs.load(Ordering::Relaxed), 2);
    let (recorder, ..) = small(10_000, true);
    recorder.note(&said("x")).unwrap();
    assert!(recorder.note(&allowed()).is_err(), "a disk that loses data stops the run");
    assert!(recorder.note(&said("x")).is_err());
}

#[tokio::test]
async fn end_is_an_end_and_no_failure() {
    let (recorder, memory) = Recorder::in_memory("r", Masker::default()).unwrap();
    recorder.finish().unwrap();
    let before = memory.bytes();
    assert!(matches!(recorder.note(&said("late")), Err(RecordError::Finished)));
    assert!(matches!(recorder.finish(), Err(RecordError::Finished)));
    assert_eq!(memory.bytes(), before);
    assert!(recorder.error().is_none());
    let waited = tokio::time::timeout(Duration::from_millis(20), recorder.failed()).await;
    assert!(waited.is_err(), "nothing has failed");
}

#[test]
fn many_writers_make_one_chain() {
    let (recorder, memory) = Recorder::in_memory("r", Masker::default()).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let recorder = recorder.clone();
            scope.spawn(move || (0..200).for_each(|n| assert!(recorder.note(&said(&format!("{writer} {n}"))).is_ok())));
        }
    });
    recorder.finish().unwrap();
    let found = verify(memory.bytes().as_slice()).unwrap();
    assert_eq!(found.lines, 802);
}

#[tokio::test]
async fn listeners_get_what_was_written() {
    let masker = Masker::new(["topsecret-token"]).unwrap();
    let (recorder, _memory) = Recorder::in_memory("r", masker).unwrap();
    let mut lines = recorder.listen();
    recorder.note(&said("it is topsecret-token")).unwrap();
    let line = lines.recv().await.unwrap();
    assert_eq!((line.seq, line.kind()), (1, "told"));
    assert!(line.entry.to_string().contains("it is [secret 1]"));
}

#[test]
fn secrets_never_reach_the_file_wherever_they_stand() {
    let secret = "hunter2-\"quoted\"\\";
    let (recorder, memory) = Recorder::in_memory("r", Masker::new([secret]).unwrap()).unwrap();
    let mut body = serde_json::Map::new();
    body.insert(
        format!("key {secret}"),
        serde_json::json!([secret, {"inner": serde_json::json!({"x": secret}).to_string()}]),
    );
    let request = Entry::ModelRequest { exchange: 1, path: secret.into(), model: "m".into(), body: body.into() };
    recorder.note(&request).unwrap();
    recorder.note(&said(&format!("{secret} {secret}"))).unwrap();
    let text = String::from_utf8(memory.bytes()).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(text.matches("[secret 1]").count(), 6, "{text}");
    assert!(verify(text.as_bytes()).is_ok());
}

#[test]
fn nesting_cannot_make_a_transcript_unreadable() {
    let deep = (0..120).fold(serde_json::json!("topsecret-token"), |inner, _| serde_json::json!([inner]));
    let (recorder, memory) = Recorder::in_memory("r", Masker::new(["topsecret-token"]).unwrap()).unwrap();
    recorder.note(&Entry::ModelRequest { exchange: 1, path: "/".into(), model: "m".into(), body: deep }).unwrap();
    recorder.finish().unwrap();
    let bytes = memory.bytes();
    assert_eq!(verify(bytes.as_slice()).unwrap().lines, 3);
    assert!(!String::from_utf8(bytes).unwrap().contains("topsecret"));
}

#[test]
fn short_secrets_are_refused_before_anything_is_written() {
    assert_eq!(Masker::new(["sevenby"]).unwrap_err(), SecretError::Short { number: 1, len: 7 });
    assert!(Masker::new(["eightbyt"]).is_ok());
}
