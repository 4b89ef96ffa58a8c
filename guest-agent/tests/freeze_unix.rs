// SPDX-License-Identifier: Apache-2.0
//! The real binary, frozen and resumed over Unix sockets. A connection that is closed while it is frozen stands for one
//! that a copied machine has lost.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use midge_protocol::{Attach, ErrorCode, Exec, Failure, Freeze, MAX_CONVERSATIONS, Stat, ToAgent, ToHost, Welcome};
use rustix::process::{Resource, Rlimit, setrlimit};

use support::{Agent, Line, script, start, welcome};

const FREEZE: ToAgent = ToAgent::Freeze(Freeze { leave: false });
/// Long enough for anything that should not happen.
const A_WHILE: Duration = Duration::from_millis(100);

struct Guest {
    dir: tempfile::TempDir,
    ready: UnixListener,
    control: Line,
    _agent: Agent,
}

impl Guest {
    fn welcomed() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (agent, ready, mut control) = start(dir.path());
        assert!(matches!(control.next(), Some(ToHost::Hello(_))));
        control.send(&ToAgent::Welcome(welcome()));
        let mut guest = Self { dir, ready, control, _agent: agent };
        assert_eq!(guest.run("echo ready"), "ready\n");
        guest
    }

    fn frozen() -> Self {
        let mut guest = Self::welcomed();
        assert_eq!(guest.control.ask(&FREEZE), Some(ToHost::Done));
        guest
    }

    fn open(&self, first: &ToAgent) -> Line {
        let mut line = Line::open(self.dir.path());
        line.send(first);
        line
    }

    /// What a command says on standard output.
    fn run(&mut self, text: &str) -> String {
        said(self.open(&ToAgent::Exec(script(text))))
    }

    /// Resumes it; answers its new control conversation.
    fn resume(&self) -> Line {
        let mut line = self.open(&ToAgent::Resume(welcome()));
        assert_eq!(line.next(), Some(ToHost::Done));
        line
    }

    fn does_not_call(&self) {
        self.ready.set_nonblocking(true).unwrap();
        thread::sleep(A_WHILE);
        assert!(self.ready.accept().is_err(), "the agent calls while it is frozen");
        self.ready.set_nonblocking(false).unwrap();
    }
}

/// The output of the command that runs on `line`.
fn said(mut line: Line) -> String {
    let mut text = String::new();
    loop {
        match line.next() {
            Some(ToHost::Stdout(output)) => text.push_str(std::str::from_utf8(&output.data).unwrap()),
            Some(ToHost::Started(_)) => {}
            Some(ToHost::Exited(_)) | None => return text,
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn says_nothing(line: &mut Line) {
    use std::io::Read as _;
    line.stream.set_read_timeout(Some(A_WHILE)).unwrap();
    let read = line.stream.read(&mut [0]);
    assert!(read.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "{read:?}");
    line.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
}

fn refused(answer: Option<ToHost>, word: &str) {
    match answer {
        Some(ToHost::Error(Failure { text, .. })) => assert!(text.contains(word), "{text}"),
        other => panic!("unexpected {other:?}"),
    }
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(10), "{what} never happened");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_that_was_left_frozen_calls_nobody_and_serves_again_once_it_is_resumed() {
    let mut guest = Guest::welcomed();
    assert_eq!(guest.control.ask(&ToAgent::Freeze(Freeze { leave: true })), Some(ToHost::Done));
    assert_eq!(guest.control.next(), None);
    guest.does_not_call();
    let mut waiting = guest.open(&ToAgent::Exec(script("echo $((6 * 7))")));
    says_nothing(&mut waiting);
    let mut control = guest.resume();
    assert_eq!(said(waiting), "42\n");
    assert_eq!(control.ask(&ToAgent::Ping(5)), Some(ToHost::Pong(5)));
    assert!(matches!(control.ask(&ToAgent::GetStats), Some(ToHost::Stats(_))));
    assert_eq!(guest.run("echo again"), "again\n");
    // It is a control conversation like any other: it can freeze, and when it is lost the agent calls.
    assert_eq!(control.ask(&FREEZE), Some(ToHost::Done));
    assert_eq!(control.ask(&ToAgent::Thaw), Some(ToHost::Done));
    drop(control);
    let mut called = Line::new(guest.ready.accept().unwrap().0);
    assert!(matches!(called.next(), Some(ToHost::Hello(_))));
}

#[test]
fn what_follows_a_resume_in_one_piece_is_heard() {
    use std::io::Write as _;
    let guest = Guest::frozen();
    let mut bytes = Vec::new();
    midge_protocol::encode(&ToAgent::Resume(welcome()), &mut bytes).unwrap();
    midge_protocol::encode(&ToAgent::Ping(1), &mut bytes).unwrap();
    let (head, tail) = bytes.split_at(11);
    let mut line = Line::open(guest.dir.path());
    line.stream.write_all(head).unwrap();
    thread::sleep(Duration::from_millis(5));
    line.stream.write_all(tail).unwrap();
    assert_eq!(line.next(), Some(ToHost::Done));
    assert_eq!(line.next(), Some(ToHost::Pong(1)));
}

#[test]
fn a_guest_that_is_not_frozen_refuses_to_resume_or_thaw() {
    let mut guest = Guest::welcomed();
    let mut line = guest.open(&ToAgent::Resume(welcome()));
    refused(line.next(), "frozen");
    assert_eq!(line.next(), None);
    refused(guest.control.ask(&ToAgent::Thaw), "not frozen");
    // Also one that has been.
    assert_eq!(guest.control.ask(&FREEZE), Some(ToHost::Done));
    assert_eq!(guest.control.ask(&ToAgent::Thaw), Some(ToHost::Done));
    refused(guest.open(&ToAgent::Resume(welcome())).next(), "frozen");
    assert_eq!(guest.run("echo still here"), "still here\n");
}

#[test]
fn only_a_welcomed_guest_freezes_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_agent, _ready, mut control) = start(dir.path());
    assert!(matches!(control.next(), Some(ToHost::Hello(_))));
    refused(control.ask(&FREEZE), "Welcome");
    control.send(&ToAgent::Welcome(welcome()));
    assert_eq!(control.ask(&FREEZE), Some(ToHost::Done));
    refused(control.ask(&FREEZE), "while frozen");
    // No second way out of it.
    refused(control.ask(&ToAgent::Welcome(welcome())), "Resume");
    let mut waiting = Line::open(dir.path());
    waiting.send(&ToAgent::Exec(script("echo too early")));
    says_nothing(&mut waiting);
}

#[test]
fn thawed_guest_goes_on_as_if_nothing_had_been() {
    let mut guest = Guest::frozen();
    let mut waiting = guest.open(&ToAgent::Exec(script("echo late")));
    let mut silent = Line::open(guest.dir.path());
    says_nothing(&mut waiting);
    assert_eq!(guest.control.ask(&ToAgent::Ping(1)), Some(ToHost::Pong(1)));
    assert_eq!(guest.control.ask(&ToAgent::Thaw), Some(ToHost::Done));
    assert_eq!(said(waiting), "late\n");
    silent.send(&ToAgent::Exec(script("echo later")));
    assert_eq!(said(silent), "later\n");
    assert_eq!(guest.control.ask(&ToAgent::Ping(2)), Some(ToHost::Pong(2)));
}

#[test]
fn a_resume_that_cannot_be_accepted_leaves_the_guest_frozen() {
    let mut guest = Guest::frozen();
    let mut waiting = guest.open(&ToAgent::Exec(script("echo after")));
    for (bad, word) in [
        (Welcome { entropy: vec![1; 31], ..welcome() }, "at least 32"),
        (Welcome { hostname: "a b".into(), ..welcome() }, "letters"),
        (Welcome { version: 999, ..welcome() }, "version 999"),
    ] {
        let mut line = guest.open(&ToAgent::Resume(bad));
        refused(line.next(), word);
        assert_eq!(line.next(), None);
        says_nothing(&mut waiting);
    }
    assert_eq!(guest.control.ask(&ToAgent::Ping(1)), Some(ToHost::Pong(1)));
    // Its new control conversation takes the place of the old one.
    let mut control = guest.resume();
    assert_eq!(guest.control.next(), None);
    assert_eq!(said(waiting), "after\n");
    assert_eq!(control.ask(&ToAgent::Ping(2)), Some(ToHost::Pong(2)));
}

#[test]
fn a_frozen_guest_that_loses_its_host_waits_to_be_resumed() {
    let guest = Guest::frozen();
    guest.control.stream.shutdown(Shutdown::Both).unwrap();
    guest.does_not_call();
    let mut control = guest.resume();
    assert_eq!(control.ask(&ToAgent::Ping(1)), Some(ToHost::Pong(1)));
}

#[test]
fn what_was_asked_for_by_a_client_of_the_other_guest_is_not_done_here() {
    let mut guest = Guest::frozen();
    let file = guest.dir.path().join("started");
    let mut lost = guest.open(&ToAgent::Exec(script(&format!("echo x > {}", file.display()))));
    says_nothing(&mut lost);
    drop(lost);
    drop(guest.resume());
    assert_eq!(guest.run("echo done"), "done\n");
    thread::sleep(A_WHILE);
    assert!(!file.exists());
}

#[test]
fn a_command_goes_on_in_a_copy_without_its_client_and_ends_with_it_elsewhere() {
    let forever = |file: &Path| format!("while :; do echo x >> {}; sleep 0.01; done", file.display());
    for is_copied in [true, false] {
        let mut guest = Guest::welcomed();
        let file = guest.dir.path().join("out");
        let mut client = guest.open(&ToAgent::Exec(script(&forever(&file))));
        assert!(matches!(client.next(), Some(ToHost::Started(_))));
        assert_eq!(guest.control.ask(&FREEZE), Some(ToHost::Done));
        drop(client);
        thread::sleep(A_WHILE);
        if is_copied {
            let mut control = guest.resume();
            thread::sleep(A_WHILE);
            let before = lines(&file);
            eventually("more output", || lines(&file) > before + 3);
            let Some(ToHost::Stats(stats)) = control.ask(&ToAgent::GetStats) else { panic!("no stats") };
            assert_eq!(stats.execs, 1);
        } else {
            assert_eq!(guest.control.ask(&ToAgent::Thaw), Some(ToHost::Done));
            eventually(
                "the command's end",
                || matches!(guest.control.ask(&ToAgent::GetStats), Some(ToHost::Stats(stats)) if stats.execs == 0),
            );
        }
    }
}

#[test]
fn a_command_with_a_replay_is_found_again_in_a_copy() {
    let mut guest = Guest::welcomed();
    let exec = Exec { replay_bytes: 1024, ..script("echo before; sleep 0.3; echo after") };
    let mut client = guest.open(&ToAgent::Exec(exec));
    let Some(ToHost::Started(started)) = client.next() else { panic!("not started") };
    assert!(matches!(client.next(), Some(ToHost::Stdout(_))));
    assert_eq!(guest.control.ask(&FREEZE), Some(ToHost::Done));
    drop(client);
    let _control = guest.resume();
    let attach = Attach { exec_id: started.exec_id, stdout_offset: 0, stderr_offset: 0 };
    assert_eq!(said(guest.open(&ToAgent::Attach(attach))), "before\nafter\n");
    assert_eq!(guest.run("echo new"), "new\n");
}

#[test]
fn however_many_wait_resume_is_heard() {
    let files = Rlimit { current: Some(4096), maximum: Some(4096) };
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        return eprintln!("skipped: this test needs 4096 open files: {error}");
    }
    let guest = Guest::frozen();
    let request = ToAgent::Stat(Stat { path: "/".into(), follow: false });
    let mut speaking: Vec<Line> = (0..MAX_CONVERSATIONS).map(|_| guest.open(&request)).collect();
    let mut one_more = guest.open(&request);
    match one_more.next() {
        Some(ToHost::Error(failure)) => assert_eq!(failure.code, ErrorCode::Busy),
        other => panic!("unexpected {other:?}"),
    }
    // More than may be silent at a time: the first of them make room.
    let silent: Vec<Line> = (0..200).map(|_| Line::open(guest.dir.path())).collect();
    let mut control = guest.resume();
    drop(silent);
    assert_eq!(control.ask(&ToAgent::Ping(1)), Some(ToHost::Pong(1)));
    for line in &mut speaking {
        assert!(matches!(line.next(), Some(ToHost::Metadata(_))));
    }
}
