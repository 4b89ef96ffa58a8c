// SPDX-License-Identifier: Apache-2.0

use std::sync::Mutex as StdMutex;

use midge_record::{Line, Masker, Memory, verify};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, JoinSet};

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
    recorder: Recorder,
    policy: watch::Sender<Arc<Policy>>,
    ports: Arc<Ports>,
    /// Its end ends what others have of it.
    answering: JoinHandle<()>,
}

fn policy(peers: &str) -> Arc<Policy> {
    let text = format!("version = 1\n{peers}");
    Arc::new(Policy::parse(text, "test").unwrap_or_else(|problems| panic!("{problems}")))
}

/// A place as of two processes: each sandbox opens the directory for itself.
#[derive(Clone)]
struct Street(Arc<tempfile::TempDir>);

impl Street {
    fn new() -> Self {
        Self(Arc::new(tempfile::tempdir().unwrap()))
    }

    fn place(&self) -> Place {
        Place::open(self.0.path()).unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(format!("{name}.peer"))
    }
}

async fn answer(door: Arc<PeerDoor>) {
    let mut answered = JoinSet::new();
    loop {
        let called = door.called().await;
        let door = Arc::clone(&door);
        answered.spawn(async move {
            let _ = door.answer(called).await;
        });
    }
}

fn sandbox(street: &Street, name: &str, peers: &str) -> Sandbox {
    let (sender, receiver) = watch::channel(policy(peers));
    let (recorder, record) = Recorder::in_memory(name, Masker::default()).unwrap();
    let ports = Arc::new(Ports { open: vec![80], ..Ports::default() });
    let named = name.parse().unwrap();
    let door = PeerDoor::open(&street.place(), &named, receiver, recorder.clone(), ports.clone()).unwrap();
    let answering = tokio::spawn(answer(Arc::clone(&door)));
    Sandbox { door, record, recorder, policy: sender, ports, answering }
}

impl Sandbox {
    async fn ends(self) {
        self.answering.abort();
        let _ = self.answering.await;
    }
}

fn names(name: &str, more: &str) -> String {
    format!("[[peers]]\nname = \"{name}\"\n{more}\n")
}

struct Guest {
    stream: BufReader<DuplexStream>,
    served: JoinHandle<io::Result<()>>,
}

impl Guest {
    /// A tunnel to port 80 of `b`, which is open.
    async fn tunnel_to_b(sandbox: &Sandbox) -> Self {
        let mut guest = Self::opens(sandbox, json!({"open": "tunnel", "to": "b", "port": 80})).await;
        assert_eq!(guest.hears().await, PeerEvent::Opened);
        guest
    }

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

impl Sandbox {
    /// Takes all room in the mailbox but that of so many messages.
    fn fills(&self, but: usize) -> Vec<mailbox::Slot<'_>> {
        (but..mailbox::MESSAGES_MAX).map(|_| self.door.seat.mailbox.reserve(1).unwrap()).collect()
    }

    /// Waits until so many of its tunnels are closed: each end notes that for itself.
    async fn closes(&self, count: usize) {
        let closed = |entry: &Entry| matches!(entry, Entry::PeerClosed { .. });
        while entries(&self.record).iter().filter(|entry| closed(entry)).count() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
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
    let street = Street::new();
    let a = sandbox(&street, "a", &names("b", "messages = true"));
    let b = sandbox(&street, "b", &names("a", "messages = true"));
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
async fn guest_that_hangs_up_its_half_hears_what_left_its_mailbox_and_the_rest_waits() {
    let street = Street::new();
    let a = sandbox(&street, "a", &names("b", "messages = true"));
    let b = sandbox(&street, "b", &names("a", "messages = true"));
    let mut from = Guest::mailbox(&a).await;
    for number in 0..20 {
        assert_eq!(from.sends("b", &number.to_string()).await, PeerEvent::Sent { id: 1 });
    }
    let mut heard = Vec::new();
    while heard.len() < 20 {
        let mut to = Guest::mailbox(&b).await;
        to.stream.shutdown().await.unwrap();
        let mut lines = String::new();
        to.stream.read_to_string(&mut lines).await.unwrap();
        to.served.await.unwrap().unwrap();
        heard.extend(lines.lines().map(|line| serde_json::from_str::<PeerEvent>(line).unwrap()));
    }
    let sent = |number: u32| PeerEvent::Message { from: "a".into(), text: number.to_string() };
    assert_eq!(heard, (0..20).map(sent).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_sided_names_are_refused() {
    let street = Street::new();
    let a = sandbox(
        &street,
        "a",
        &(names("b", "messages = true") + &names("c", "ports = [80]") + &names("d", "messages = true")),
    );
    let _b = sandbox(&street, "b", "");
    let _c = sandbox(&street, "c", &names("a", "messages = true"));
    let _e = sandbox(&street, "e", &names("a", "messages = true"));
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

#[tokio::test]
async fn messages_are_bounded_in_size_number_and_rate() {
    let street = Street::new();
    let a = sandbox(&street, "a", &(names("b", "messages = true") + &names("c", "messages = true\nrate = \"2/h\"")));
    let b = sandbox(&street, "b", &names("a", "messages = true"));
    let _c = sandbox(&street, "c", &names("a", "messages = true"));
    let mut from = Guest::mailbox(&a).await;
    assert_eq!(from.sends("b", &"x".repeat(MESSAGE_MAX_BYTES)).await, PeerEvent::Sent { id: 1 });
    assert!(why(from.sends("b", &"x".repeat(MESSAGE_MAX_BYTES + 1)).await).contains("at most"));
    let others = b.fills(2);
    assert_eq!(from.sends("b", "x").await, PeerEvent::Sent { id: 1 });
    assert!(why(from.sends("b", "x").await).contains("the mailbox of b is full"));
    drop(others);
    assert_eq!(from.sends("b", "x").await, PeerEvent::Sent { id: 1 });
    assert_eq!(from.sends("c", "1").await, PeerEvent::Sent { id: 1 });
    assert_eq!(from.sends("c", "2").await, PeerEvent::Sent { id: 1 });
    let refused = why(from.sends("c", "3").await);
    assert!(refused.contains("try again in"), "{refused}");
}

#[tokio::test]
async fn later_mailbox_takes_over() {
    let street = Street::new();
    let a = sandbox(&street, "a", &names("b", "messages = true"));
    let b = sandbox(&street, "b", &names("a", "messages = true"));
    let mut first = Guest::mailbox(&b).await;
    let mut second = Guest::mailbox(&b).await;
    assert!(why(first.hears().await).contains("a later connection"));
    Guest::mailbox(&a).await.sends("b", "x").await;
    assert_eq!(second.hears().await, PeerEvent::Message { from: "a".into(), text: "x".into() });
}

#[tokio::test]
async fn tunnel_carries_bytes_both_ways_and_half_closes() {
    let street = Street::new();
    let a = sandbox(&street, "a", &names("b", "ports = [80]"));
    let b = sandbox(&street, "b", &names("a", "messages = true"));
    let mut guest = Guest::tunnel_to_b(&a).await;
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
    b.closes(1).await;
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
    let street = Street::new();
    let a = sandbox(&street, "a", &names("b", "ports = [80, 81, 7102]\nmessages = true"));
    let b = sandbox(&street, "b", &names("a", "messages = true"));
    for (port, reason) in [
        (22, "does not allow a tunnel to port 22"),
        (81, "that port of b cannot be reached: connection refused"),
        (7102, "a door"),
    ] {
        let mut guest = Guest::opens(&a, json!({"open": "tunnel", "to": "b", "port": port})).await;
        let why = why(guest.hears().await);
        assert!(why.contains(reason), "{why}");
    }
    let mut guest = Guest::opens(&b, json!({"open": "tunnel", "to": "a", "port": 80})).await;
    assert!(why(guest.hears().await).contains("does not allow"), "a name alone opens nothing in the other direction");
}

#[tokio::test]
async fn narrower_policies_end_tunnels_at_once() {
    for narrows in ["a", "b"] {
        let street = Street::new();
        let a = sandbox(&street, "a", &names("b", "ports = [80]"));
        let b = sandbox(&street, "b", &names("a", "messages = true"));
        let mut guest = Guest::tunnel_to_b(&a).await;
        let changed = if narrows == "a" { &a } else { &b };
        changed.policy.send_replace(policy(""));
        let mut rest = Vec::new();
        guest.stream.read_to_end(&mut rest).await.unwrap();
        let _ = guest.served.await.unwrap();
        for sandbox in [&a, &b] {
            sandbox.closes(1).await;
        }
        let mut far = b.ports.accepted.lock().unwrap().pop().unwrap();
        assert_eq!(far.read_to_end(&mut rest).await.unwrap(), 0, "{narrows}");
    }
}

#[tokio::test]
async fn sandbox_that_is_gone_is_gone() {
    let street = Street::new();
    let a = sandbox(&street, "a", &names("b", "ports = [80]\nmessages = true"));
    let b = sandbox(&street, "b", &names("a", "messages = true"));
    let mut tunnel = Guest::tunnel_to_b(&a).await;
    b.ends().await;
    let mut rest = Vec::new();
    tunnel.stream.read_to_end(&mut rest).await.unwrap();
    tunnel.served.await.unwrap().unwrap();
    let mut from = Guest::mailbox(&a).await;
    assert!(why(from.sends("b", "x").await).contains("not there"));
    assert!(!street.path("b").exists());
}

#[tokio::test]
async fn name_is_one_sandboxs_while_it_lives() {
    let street = Street::new();
    let a = sandbox(&street, "a", "");
    let claim = |name: &str| {
        let (_sender, receiver) = watch::channel(policy(""));
        let (recorder, _) = Recorder::in_memory("x", Masker::default()).unwrap();
        PeerDoor::open(&street.place(), &name.parse().unwrap(), receiver, recorder, Arc::new(Ports::default()))
    };
    let taken = claim("a").unwrap_err();
    assert!(taken.to_string().contains(&format!("process {}", std::process::id())), "{taken}");
    // What a killed process leaves: sockets that nobody listens at, the own one and others'.
    for name in ["b", "c"] {
        drop(std::os::unix::net::UnixListener::bind(street.path(name)).unwrap());
    }
    std::fs::write(street.0.path().join("d"), "").unwrap();
    let is_free = |name: &str| street.place().check_free(&name.parse().unwrap());
    assert_eq!(is_free("a").unwrap_err().to_string(), taken.to_string());
    is_free("b").unwrap();
    assert!(street.path("b").exists(), "nothing is changed by looking");
    let b = claim("b").unwrap();
    assert!(street.path("a").exists() && street.path("b").exists() && !street.path("c").exists());
    drop(b);
    a.ends().await;
    let left: Vec<_> = std::fs::read_dir(street.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["d"], "what is no sandbox's stays");
    claim("a").unwrap();
    let longest = "x".repeat(64);
    claim(&longest).unwrap();
}

#[tokio::test]
async fn nothing_is_sent_unrecorded() {
    let street = Street::new();
    let a = sandbox(&street, "a", &names("b", "messages = true"));
    let b = sandbox(&street, "b", &names("a", "messages = true"));
    let mut to = Guest::mailbox(&b).await;
    let mut from = Guest::mailbox(&a).await;
    b.recorder.finish().unwrap();
    assert!(why(from.sends("b", "x").await).contains("cannot be reached"));
    a.recorder.finish().unwrap();
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
        let a = sandbox(&Street::new(), "a", "");
        let guest = Guest::opens(&a, line).await;
        assert!(guest.served.await.unwrap().is_err());
        assert!(matches!(entries(&a.record).as_slice(), [Entry::Malformed { .. }]));
    }
    let a = sandbox(&Street::new(), "a", "");
    let mut guest = Guest::mailbox(&a).await;
    guest.says(json!({"to": "b"})).await;
    assert!(guest.served.await.unwrap().is_err());
}

/// What another process of the user says to a sandbox, and hears.
async fn said_to(street: &Street, name: &str, lines: &[&str]) -> String {
    let mut stream = UnixStream::connect(street.path(name)).await.unwrap();
    for line in lines {
        let _ = stream.write_all(line.as_bytes()).await;
    }
    let _ = stream.shutdown().await;
    let mut heard = String::new();
    let _ = stream.read_to_string(&mut heard).await;
    heard
}

#[tokio::test]
async fn odd_callers_get_nothing_and_leave_nothing() {
    let street = Street::new();
    let b = sandbox(&street, "b", &names("a", "messages = true"));
    let long = "x".repeat(midge_protocol::broker::LINE_MAX_BYTES + 1);
    for lines in [
        &["\n"][..],
        &["{\"call\":\"message\"}\n"],
        &["{\"call\":\"root\",\"from\":\"a\"}\n"],
        &["{\"call\":\"tunnel\",\"from\":\"a\",\"port\":70000}\n"],
        &["no line"],
        &[long.as_str()],
        &[],
    ] {
        assert_eq!(said_to(&street, "b", lines).await, "", "{:.40?}", lines.first());
    }
    let call = |bytes: usize| format!("{{\"call\":\"message\",\"from\":\"a\",\"bytes\":{bytes}}}\n");
    let letter = "{\"text\":\"four\"}\n";
    assert!(said_to(&street, "b", &[&call(usize::MAX)]).await.contains("full"));
    assert!(said_to(&street, "b", &[&call(MESSAGE_MAX_BYTES + 1)]).await.contains("full"));
    let stranger = "{\"call\":\"message\",\"from\":\"c\",\"bytes\":4}\n";
    assert!(said_to(&street, "b", &[stranger, letter]).await.contains("unnamed"));
    // Another length than was called for, more often than the mailbox has room.
    let _others = b.fills(2);
    for _ in 0..4 {
        assert_eq!(said_to(&street, "b", &[&call(3), letter]).await, "{\"answer\":\"agreed\"}\n");
    }
    assert!(entries(&b.record).is_empty());
    assert!(said_to(&street, "b", &[&call(4), letter]).await.contains("delivered"));
    let mut to = Guest::mailbox(&b).await;
    assert_eq!(to.hears().await, PeerEvent::Message { from: "a".into(), text: "four".into() });
}

#[tokio::test]
async fn odd_answers_are_told_as_such() {
    for (answer, reason) in [
        ("{\"answer\":\"delivered\"}\n", "another version"),
        ("{\"answer\":\"yes\"}\n", "another version"),
        ("", "it is gone"),
        ("{\"answer\":\"unreachable\",\"why\":\"\\u001b[31mred\"}\n", "cannot be reached: [31mred"),
    ] {
        let street = Street::new();
        let a = sandbox(&street, "a", &names("b", "messages = true"));
        let listener = tokio::net::UnixListener::bind(street.path("b")).unwrap();
        let other = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let mut from = Guest::mailbox(&a).await;
        let why = why(from.sends("b", "x").await);
        assert!(why.contains(reason), "{answer}: {why}");
        assert!(matches!(entries(&a.record).as_slice(), [Entry::PeerRefused { .. }]), "nothing was sent");
        other.await.unwrap();
    }
}

#[tokio::test]
async fn what_was_said_before_an_end_arrives() {
    let street = Street::new();
    let a = sandbox(&street, "a", &names("b", "ports = [80]"));
    let b = sandbox(&street, "b", &names("a", "messages = true"));
    let mut guest = Guest::tunnel_to_b(&a).await;
    let mut far = b.ports.accepted.lock().unwrap().pop().unwrap();
    // More than the guest's end holds, and then no end of it but its process'.
    far.write_all(&[7; 100_000]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    b.ends().await;
    let mut all = Vec::new();
    guest.stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), 100_000);
    guest.served.await.unwrap().unwrap();
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
}
