// SPDX-License-Identifier: Apache-2.0

use std::sync::Mutex as StdMutex;

use midge_record::{Line, Masker, Memory, verify};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::task::JoinHandle;

use super::*;

/// A guest's ports: each connection gives the test its other end.
#[derive(Default)]
struct Ports {
    open: Vec<u16>,
    accepted: StdMutex<Vec<DuplexStream>>,
}

impl Inward for Ports {
    fn dial(&self, port: u16) -> Later<'_, io::Result<AnyStream>> {
        Box::pin(std::future::ready(if self.open.contains(&port) {
            let (near, far) = tokio::io::duplex(1 << 16);
            self.accepted.lock().unwrap().push(far);
            Ok(Box::new(near) as AnyStream)
        } else {
            Err(io::ErrorKind::ConnectionRefused.into())
        }))
    }
}

struct Sandbox {
    door: Arc<PeerDoor>,
    record: Memory,
    policy: watch::Sender<Arc<Policy>>,
    ports: Arc<Ports>,
}

fn policy(peers: &str) -> Arc<Policy> {
    let text = format!("version = 1\n{peers}");
    Arc::new(Policy::parse(text, "test").unwrap_or_else(|problems| panic!("{problems}")))
}

fn sandbox(board: &Switchboard, name: &str, peers: &str) -> Sandbox {
    let (sender, receiver) = watch::channel(policy(peers));
    let (recorder, record) = Recorder::in_memory(name, Masker::default()).unwrap();
    let ports = Arc::new(Ports { open: vec![80], ..Ports::default() });
    let door = PeerDoor::new(board, name, receiver, recorder, ports.clone()).unwrap();
    Sandbox { door, record, policy: sender, ports }
}

fn names(name: &str, more: &str) -> String {
    format!("[[peers]]\nname = \"{name}\"\n{more}\n")
}

struct Guest {
    stream: BufReader<DuplexStream>,
    served: JoinHandle<io::Result<()>>,
}

impl Guest {
    async fn opens(sandbox: &Sandbox, open: Value) -> Self {
        let (guest, host) = tokio::io::duplex(1 << 16);
        let door = Arc::clone(&sandbox.door);
        let served = tokio::spawn(async move { door.serve(host).await });
        let mut guest = Self { stream: BufReader::new(guest), served };
        guest.says(open).await;
        guest
    }

    async fn mailbox(sandbox: &Sandbox) -> Self {
        let mut guest = Self::opens(sandbox, json!({"open": "mailbox"})).await;
        assert_eq!(guest.hears().await, PeerEvent::Opened);
        guest
    }

    async fn says(&mut self, line: Value) {
        self.stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hears(&mut self) -> PeerEvent {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    async fn sends(&mut self, to: &str, text: &str) -> PeerEvent {
        self.says(json!({"id": 1, "to": to, "text": text})).await;
        self.hears().await
    }
}

fn entries(record: &Memory) -> Vec<Entry> {
    let bytes = record.bytes();
    verify(bytes.as_slice()).unwrap();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.filter_map(|line| serde_json::from_slice::<Line>(line).unwrap().entry()).skip(1).collect()
}

fn why(event: PeerEvent) -> String {
    match event {
        PeerEvent::Refused { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_go_where_both_policies_say_so_and_are_in_both_transcripts() {
    let board = Switchboard::default();
    let a = sandbox(&board, "a", &names("b", "messages = true"));
    let b = sandbox(&board, "b", &names("a", "messages = true"));
    let mut from = Guest::mailbox(&a).await;
    assert_eq!(from.sends("b", "hello").await, PeerEvent::Sent { id: 1 }, "it waits for a reader");
    let mut to = Guest::mailbox(&b).await;
    assert_eq!(to.hears().await, PeerEvent::Message { from: "a".into(), text: "hello".into() });
    assert_eq!(to.sends("a", "you too").await, PeerEvent::Sent { id: 1 });
    assert_eq!(from.hears().await, PeerEvent::Message { from: "b".into(), text: "you too".into() });
    let message =
        |peer: &str, received, text: &str| Entry::PeerMessage { peer: peer.into(), received, text: text.into() };
    assert_eq!(entries(&a.record), [message("b", false, "hello"), message("b", true, "you too")]);
    assert_eq!(entries(&b.record), [message("a", true, "hello"), message("a", false, "you too")]);
}

#[tokio::test]
async fn one_sided_names_are_refused() {
    let board = Switchboard::default();
    let a = sandbox(
        &board,
        "a",
        &(names("b", "messages = true") + &names("c", "ports = [80]") + &names("d", "messages = true")),
    );
    let _b = sandbox(&board, "b", "");
    let _c = sandbox(&board, "c", &names("a", "messages = true"));
    let _e = sandbox(&board, "e", &names("a", "messages = true"));
    let mut from = Guest::mailbox(&a).await;
    for (to, reason) in [
        ("b", "b is not there, or its policy does not name a"),
        ("c", "does not allow messages to c"),
        ("d", "d is not there"),
        ("e", "does not allow messages to e"),
        ("a", "does not allow"),
        ("", "does not allow"),
    ] {
        let why = why(from.sends(to, "x").await);
        assert!(why.contains(reason), "{to}: {why}");
    }
    let refused = entries(&a.record).into_iter().filter(|entry| matches!(entry, Entry::PeerRefused { .. })).count();
    assert_eq!(refused, 6);
}

#[tokio::test(start_paused = true)]
async fn messages_are_bounded_in_size_number_and_rate() {
    let board = Switchboard::default();
    let a = sandbox(&board, "a", &(names("b", "messages = true") + &names("c", "messages = true\nrate = \"2/s\"")));
    let _b = sandbox(&board, "b", &names("a", "messages = true"));
    let _c = sandbox(&board, "c", &names("a", "messages = true"));
    let mut from = Guest::mailbox(&a).await;
    assert_eq!(from.sends("b", &"x".repeat(MESSAGE_MAX_BYTES)).await, PeerEvent::Sent { id: 1 });
    assert!(why(from.sends("b", &"x".repeat(MESSAGE_MAX_BYTES + 1)).await).contains("at most"));
    let mut full = 0;
    for _ in 0..2 * mailbox::MESSAGES_MAX {
        full += usize::from(from.sends("b", "x").await != PeerEvent::Sent { id: 1 });
    }
    assert_eq!(full, mailbox::MESSAGES_MAX + 1);
    assert_eq!(from.sends("c", "1").await, PeerEvent::Sent { id: 1 });
    assert_eq!(from.sends("c", "2").await, PeerEvent::Sent { id: 1 });
    let refused = why(from.sends("c", "3").await);
    assert!(refused.contains("try again in"), "{refused}");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(from.sends("c", "4").await, PeerEvent::Sent { id: 1 });
}

#[tokio::test]
async fn later_mailbox_takes_over() {
    let board = Switchboard::default();
    let a = sandbox(&board, "a", &names("b", "messages = true"));
    let b = sandbox(&board, "b", &names("a", "messages = true"));
    let mut first = Guest::mailbox(&b).await;
    let mut second = Guest::mailbox(&b).await;
    assert!(why(first.hears().await).contains("a later connection"));
    Guest::mailbox(&a).await.sends("b", "x").await;
    assert_eq!(second.hears().await, PeerEvent::Message { from: "a".into(), text: "x".into() });
}

#[tokio::test]
async fn tunnel_carries_bytes_both_ways_and_half_closes() {
    let board = Switchboard::default();
    let a = sandbox(&board, "a", &names("b", "ports = [80]"));
    let b = sandbox(&board, "b", &names("a", "messages = true"));
    let mut guest = Guest::opens(&a, json!({"open": "tunnel", "to": "b", "port": 80})).await;
    assert_eq!(guest.hears().await, PeerEvent::Opened);
    let mut far = b.ports.accepted.lock().unwrap().pop().unwrap();
    guest.stream.write_all(b"request").await.unwrap();
    guest.stream.shutdown().await.unwrap();
    let mut request = Vec::new();
    far.read_to_end(&mut request).await.unwrap();
    far.write_all(b"the answer").await.unwrap();
    drop(far);
    let mut answer = String::new();
    guest.stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!((request.as_slice(), answer.as_str()), (&b"request"[..], "the answer"));
    guest.served.await.unwrap().unwrap();
    let opened = |peer: &str, inward| Entry::PeerOpened { tunnel: 1, peer: peer.into(), port: Some(80), inward };
    let closed = |peer: &str, sent_bytes, received_bytes| Entry::PeerClosed {
        tunnel: 1,
        peer: peer.into(),
        sent_bytes,
        received_bytes,
    };
    assert_eq!(entries(&a.record), [opened("b", false), closed("b", 7, 10)]);
    assert_eq!(entries(&b.record), [opened("a", true), closed("a", 10, 7)]);
}

#[tokio::test]
async fn tunnels_are_refused_with_the_reason() {
    let board = Switchboard::default();
    let a = sandbox(&board, "a", &names("b", "ports = [80, 81]\nmessages = true"));
    let b = sandbox(&board, "b", &names("a", "messages = true"));
    for (port, reason) in [(22, "does not allow a tunnel to port 22"), (81, "port 81 of b cannot be reached")] {
        let mut guest = Guest::opens(&a, json!({"open": "tunnel", "to": "b", "port": port})).await;
        let why = why(guest.hears().await);
        assert!(why.contains(reason), "{why}");
    }
    let mut guest = Guest::opens(&b, json!({"open": "tunnel", "to": "a", "port": 80})).await;
    assert!(why(guest.hears().await).contains("does not allow"), "a name alone opens nothing in the other direction");
}

#[tokio::test]
async fn narrower_policies_end_tunnels_at_once() {
    let board = Switchboard::default();
    for narrows in ["a", "b"] {
        let a = sandbox(&board, "a", &names("b", "ports = [80]"));
        let b = sandbox(&board, "b", &names("a", "messages = true"));
        let mut guest = Guest::opens(&a, json!({"open": "tunnel", "to": "b", "port": 80})).await;
        assert_eq!(guest.hears().await, PeerEvent::Opened);
        let changed = if narrows == "a" { &a } else { &b };
        changed.policy.send_replace(policy(""));
        let mut rest = Vec::new();
        guest.stream.read_to_end(&mut rest).await.unwrap();
        assert!(guest.served.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn sandbox_that_is_gone_is_gone() {
    let board = Switchboard::default();
    let a = sandbox(&board, "a", &names("b", "ports = [80]\nmessages = true"));
    let b = sandbox(&board, "b", &names("a", "messages = true"));
    let taken = {
        let (_sender, receiver) = watch::channel(policy(""));
        let (recorder, _) = Recorder::in_memory("b", Masker::default()).unwrap();
        PeerDoor::new(&board, "b", receiver, recorder, Arc::new(Ports::default())).unwrap_err()
    };
    assert_eq!(taken, NameTaken("b".into()));
    let mut tunnel = Guest::opens(&a, json!({"open": "tunnel", "to": "b", "port": 80})).await;
    assert_eq!(tunnel.hears().await, PeerEvent::Opened);
    drop(b.door);
    assert!(tunnel.served.await.unwrap().is_err());
    let mut from = Guest::mailbox(&a).await;
    assert!(why(from.sends("b", "x").await).contains("not there"));
}

#[tokio::test]
async fn nothing_is_sent_unrecorded() {
    let board = Switchboard::default();
    let a = sandbox(&board, "a", &names("b", "messages = true"));
    let b = sandbox(&board, "b", &names("a", "messages = true"));
    let mut to = Guest::mailbox(&b).await;
    let mut from = Guest::mailbox(&a).await;
    b.door.seat.recorder.finish().unwrap();
    assert!(why(from.sends("b", "x").await).contains("cannot be reached"));
    a.door.seat.recorder.finish().unwrap();
    from.says(json!({"id": 1, "to": "b", "text": "y"})).await;
    assert!(from.served.await.unwrap().is_err());
    assert!(tokio::time::timeout(Duration::from_millis(50), to.hears()).await.is_err());
}

#[tokio::test]
async fn nonsense_ends_the_connection_with_an_entry() {
    for line in [
        json!(1),
        json!({"open": "root"}),
        json!({"open": "mailbox", "of": "b"}),
        json!({"open": "tunnel", "to": "b", "port": 70000}),
    ] {
        let a = sandbox(&Switchboard::default(), "a", "");
        let guest = Guest::opens(&a, line).await;
        assert!(guest.served.await.unwrap().is_err());
        assert!(matches!(entries(&a.record).as_slice(), [Entry::Malformed { .. }]));
    }
    let a = sandbox(&Switchboard::default(), "a", "");
    let mut guest = Guest::mailbox(&a).await;
    guest.says(json!({"to": "b"})).await;
    assert!(guest.served.await.unwrap().is_err());
}
