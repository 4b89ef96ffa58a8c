// SPDX-License-Identifier: Apache-2.0
//! The control conversation from the host's side.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use midge_protocol::{Decoder, MIN_ENTROPY_BYTES, Stats, encode};

use super::*;

fn welcome() -> Welcome {
    Welcome {
        version: NEWEST_VERSION,
        unix_time_ns: 1,
        entropy: vec![7; MIN_ENTROPY_BYTES],
        hostname: "sandbox-1".into(),
        machine_id: [1; 16],
    }
}

/// A host that an agent calls.
struct Caller {
    listener: UnixListener,
    _dir: tempfile::TempDir,
}

/// Lets an agent call us; its gate is `gate`.
fn agent(gate: &'static Gate) -> Caller {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("ready.sock")).unwrap();
    let host = Host::Unix(dir.path().to_owned());
    let conversations = host.listen().unwrap();
    let report = Report { stages: vec![Stage { name: "ready".into(), at_us: 7 }], warnings: Vec::new() };
    // Calls for as long as the tests run; nobody listens after this one.
    let agent = Agent::new(host, conversations, Power::Process, gate, report);
    thread::spawn(move || agent.serve(Some(|| vec!["late".to_owned()])));
    Caller { listener, _dir: dir }
}

struct Line {
    stream: UnixStream,
    decoder: Decoder<ToHost>,
}

impl Line {
    fn accept(caller: &Caller) -> Self {
        let (stream, _) = caller.listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, decoder: Decoder::new() }
    }

    /// The next message: the agent sends one at a time here.
    fn next(&mut self) -> Option<ToHost> {
        let mut byte = [0];
        loop {
            if self.stream.read(&mut byte).unwrap() == 0 {
                return None;
            }
            if let Some(message) = self.decoder.decode(&mut &byte[..]).unwrap() {
                return Some(message);
            }
        }
    }

    fn ask(&mut self, message: &ToAgent) -> Option<ToHost> {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
        self.next()
    }

    fn hello(&mut self) -> Hello {
        match self.next() {
            Some(ToHost::Hello(hello)) => hello,
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn the_agent_calls_says_hello_and_answers() {
    static GATE: Gate = Gate::new();
    let caller = agent(&GATE);
    let mut line = Line::accept(&caller);
    let hello = line.hello();
    assert_eq!((hello.oldest_version, hello.newest_version), (OLDEST_VERSION, NEWEST_VERSION));
    assert_eq!((hello.stages.len(), hello.warnings.len()), (1, 0));
    assert_eq!(line.ask(&ToAgent::Ping(42)), Some(ToHost::Pong(42)));
    let stats = line.ask(&ToAgent::GetStats);
    assert!(matches!(stats, Some(ToHost::Stats(Stats { memory_total_kib: 1.., .. }))), "{stats:?}");
    assert_eq!(line.ask(&ToAgent::Quiesce), Some(ToHost::Done));
}

#[test]
fn commands_wait_for_a_welcome_that_is_accepted() {
    static GATE: Gate = Gate::new();
    let caller = agent(&GATE);
    let mut line = Line::accept(&caller);
    line.hello();
    let refused = line.ask(&ToAgent::Welcome(Welcome { entropy: Vec::new(), ..welcome() }));
    assert!(matches!(refused, Some(ToHost::Error(_))), "{refused:?}");
    assert!(GATE.pass(Duration::from_millis(20)).is_none());
    let mut bytes = Vec::new();
    encode(&ToAgent::Welcome(welcome()), &mut bytes).unwrap();
    line.stream.write_all(&bytes).unwrap();
    assert!(GATE.pass(Duration::from_secs(10)).is_some());
}

#[test]
fn memory_is_gathered_only_while_the_guest_stands_still() {
    static GATE: Gate = Gate::new();
    let caller = agent(&GATE);
    let mut line = Line::accept(&caller);
    line.hello();
    let mut bytes = Vec::new();
    encode(&ToAgent::Welcome(welcome()), &mut bytes).unwrap();
    line.stream.write_all(&bytes).unwrap();
    let is_refused =
        |answer: Option<ToHost>| matches!(answer, Some(ToHost::Error(Failure { code: ErrorCode::Protocol, .. })));
    assert!(is_refused(line.ask(&ToAgent::Gather)));
    assert_eq!(line.ask(&ToAgent::Freeze(Freeze { leave: false })), Some(ToHost::Done));
    // A process among others takes nothing from its machine.
    assert_eq!(line.ask(&ToAgent::Gather), Some(ToHost::Gathered(Gathered { ranges: Vec::new() })));
    assert_eq!(line.ask(&ToAgent::Thaw), Some(ToHost::Done));
    assert!(is_refused(line.ask(&ToAgent::Gather)));
}

#[test]
fn a_lost_host_is_called_again_with_what_was_learnt_since() {
    static GATE: Gate = Gate::new();
    let caller = agent(&GATE);
    let mut line = Line::accept(&caller);
    assert_eq!(line.hello().warnings, Vec::<String>::new());
    drop(line);
    assert_eq!(Line::accept(&caller).hello().warnings, ["late"]);
}

#[test]
fn a_message_of_another_conversation_ends_the_call_by_name_and_the_agent_calls_again() {
    static GATE: Gate = Gate::new();
    let caller = agent(&GATE);
    let mut line = Line::accept(&caller);
    line.hello();
    match line.ask(&ToAgent::StdinEof) {
        Some(ToHost::Error(failure)) => assert!(failure.text.contains("`StdinEof`"), "{}", failure.text),
        other => panic!("unexpected {other:?}"),
    }
    assert_eq!(line.next(), None);
    Line::accept(&caller).hello();
}
