// SPDX-License-Identifier: Apache-2.0

mod whole;

use std::collections::VecDeque;
use std::sync::Mutex as StdMutex;

use midge_protocol::broker::Left;
use midge_record::{Line, Masker, Memory, verify};
use tokio::io::{AsyncBufReadExt as _, BufReader, DuplexStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;

const PARENT: &str = r#"
version = 1
[budget]
turns = 100
tokens = 1000
[children]
allowed = true
depth = 2
number = 3
share_percent = 50
templates = ["py"]
"#;

/// What one fake child does.
#[derive(Default)]
struct Script {
    happens: VecDeque<Happened>,
    tar: Vec<u8>,
    claimed_bytes: Option<u64>,
    refuses: Option<String>,
    /// Tokens that it spends at once.
    spends: u64,
}

/// Makes children that follow scripts, and counts how many are alive.
#[derive(Default)]
struct Fake {
    scripts: StdMutex<VecDeque<Script>>,
    orders: StdMutex<Vec<Seen>>,
    alive: Arc<StdMutex<usize>>,
    dropped: Arc<Notify>,
}

/// What the door ordered.
struct Seen {
    policy: Policy,
    granted: Left,
    family: Family,
}

struct FakeChild {
    script: Script,
    alive: Arc<StdMutex<usize>>,
    dropped: Arc<Notify>,
    _ledger: Ledger,
}

impl Children for Fake {
    fn start(&self, order: Order) -> Later<'_, Result<Box<dyn Child>, String>> {
        let script = self.scripts.lock().unwrap().pop_front().unwrap_or_default();
        let granted = order.ledger.left();
        if script.spends > 0 {
            order
                .ledger
                .charge(&crate::ledger::Charge::of(&Left { tokens: Some(script.spends), ..Left::default() }))
                .unwrap();
        }
        let policy = order.policy.policy().clone();
        self.orders.lock().unwrap().push(Seen { policy, granted, family: order.family });
        if let Some(why) = script.refuses {
            return Box::pin(std::future::ready(Err(why)));
        }
        *self.alive.lock().unwrap() += 1;
        let child =
            FakeChild { script, alive: self.alive.clone(), dropped: self.dropped.clone(), _ledger: order.ledger };
        Box::pin(std::future::ready(Ok(Box::new(child) as Box<dyn Child>)))
    }
}

impl Child for FakeChild {
    fn next(&mut self) -> Later<'_, Happened> {
        match self.script.happens.pop_front() {
            Some(happened) => Box::pin(std::future::ready(happened)),
            None => Box::pin(std::future::pending()),
        }
    }

    fn changes(&mut self) -> Later<'_, io::Result<Changes>> {
        let tar = std::mem::take(&mut self.script.tar);
        let tar_bytes = self.script.claimed_bytes.unwrap_or(tar.len() as u64);
        let changes = Changes { tar: Box::new(io::Cursor::new(tar)), tar_bytes, removed: vec!["gone".into()] };
        Box::pin(std::future::ready(Ok(changes)))
    }
}

impl Drop for FakeChild {
    fn drop(&mut self) {
        *self.alive.lock().unwrap() -= 1;
        self.dropped.notify_one();
    }
}

struct Rig {
    door: Arc<ChildDoor>,
    fake: Arc<Fake>,
    record: Memory,
    ledger: Ledger,
    policy: watch::Sender<Arc<Policy>>,
}

fn rig_of(policy: &str, scripts: Vec<Script>, budget: Left) -> Rig {
    let policy = Policy::parse(policy, "test").unwrap_or_else(|problems| panic!("{problems}"));
    let (sender, receiver) = watch::channel(Arc::new(policy));
    let (recorder, record) = Recorder::in_memory("root", Masker::default()).unwrap();
    let fake = Arc::new(Fake { scripts: StdMutex::new(scripts.into()), ..Fake::default() });
    let ledger = Ledger::new(&budget);
    let family = Family::new(receiver.clone());
    let door = ChildDoor::new("root", fake.clone(), receiver, ledger.clone(), recorder, family);
    Rig { door, fake, record, ledger, policy: sender }
}

fn rig(scripts: Vec<Script>) -> Rig {
    rig_of(PARENT, scripts, Left { turns: Some(100), tokens: Some(1000), ..Left::default() })
}

fn ended(code: i32) -> Happened {
    Happened::Ended { code, text: "last words".into(), changed: vec!["M a.rs".into()] }
}

struct Guest {
    stream: BufReader<DuplexStream>,
    served: JoinHandle<io::Result<()>>,
}

impl Guest {
    fn new(door: &Arc<ChildDoor>) -> Self {
        let (guest, host) = tokio::io::duplex(1 << 16);
        let door = Arc::clone(door);
        Self { stream: BufReader::new(guest), served: tokio::spawn(async move { door.serve(host).await }) }
    }

    async fn asks(door: &Arc<ChildDoor>, request: serde_json::Value) -> Self {
        let mut guest = Self::new(door);
        guest.says(&request.to_string()).await;
        guest
    }

    async fn says(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hears(&mut self) -> ChildEvent {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    async fn refused(mut self) -> String {
        match self.hears().await {
            ChildEvent::Refused { why } => why,
            other => panic!("{other:?}"),
        }
    }
}

fn task() -> serde_json::Value {
    serde_json::json!({"base": "myself", "work": {"task": "do it"}})
}

fn kinds(record: &Memory) -> Vec<String> {
    let bytes = record.bytes();
    verify(bytes.as_slice()).unwrap();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice::<Line>(line).unwrap().kind().to_owned()).skip(1).collect()
}

#[tokio::test]
async fn child_runs_ends_and_hands_its_changes_over() {
    let script = Script {
        happens: [Happened::Output("hi\n".into()), ended(3)].into(),
        tar: b"tar!".to_vec(),
        spends: 30,
        ..Script::default()
    };
    let rig = rig(vec![script]);
    let mut guest = Guest::asks(&rig.door, task()).await;
    assert_eq!(guest.hears().await, ChildEvent::Started { name: "root.1".into() });
    assert_eq!(guest.hears().await, ChildEvent::Output { text: "hi\n".into() });
    let end = guest.hears().await;
    assert_eq!(end, ChildEvent::Ended { code: 3, text: "last words".into(), changed: vec!["M a.rs".into()] });
    assert_eq!((rig.ledger.left().tokens, rig.ledger.spent().tokens), (Some(970), Some(30)), "settled at its end");
    guest.says("\"take\"").await;
    assert_eq!(guest.hears().await, ChildEvent::Changes { tar_bytes: 4, removed: vec!["gone".into()] });
    let mut tar = Vec::new();
    guest.stream.read_to_end(&mut tar).await.unwrap();
    assert_eq!(tar, b"tar!");
    guest.served.await.unwrap().unwrap();
    assert_eq!(kinds(&rig.record), ["child_asked", "child_started", "child_ended", "child_kept"]);
    assert_eq!(*rig.fake.alive.lock().unwrap(), 0);
}

#[tokio::test]
async fn budgets_are_taken_before_the_child_starts() {
    let rig = rig(vec![Script::default()]);
    let mut guest = Guest::asks(&rig.door, task()).await;
    guest.hears().await;
    assert_eq!((rig.ledger.left().turns, rig.ledger.left().tokens), (Some(50), Some(500)));
    let orders = rig.fake.orders.lock().unwrap();
    assert_eq!(orders[0].granted, Left { turns: Some(50), tokens: Some(500), ..Left::default() });
    assert!(orders[0].policy.children().depth < 2 || !orders[0].policy.children().allowed);
}

#[tokio::test]
async fn child_does_not_outlive_whoever_asked_for_it() {
    let rig = rig(vec![Script { spends: 10, ..Script::default() }]);
    let mut guest = Guest::asks(&rig.door, task()).await;
    guest.hears().await;
    assert_eq!(*rig.fake.alive.lock().unwrap(), 1);
    drop(guest.stream);
    rig.fake.dropped.notified().await;
    assert!(guest.served.await.unwrap().is_err());
    assert_eq!(rig.ledger.left().tokens, Some(990));
    assert_eq!(kinds(&rig.record), ["child_asked", "child_started", "child_ended"]);
}

#[tokio::test]
async fn parent_that_is_ended_ends_its_children() {
    let rig = rig(vec![Script::default()]);
    let mut guest = Guest::asks(&rig.door, task()).await;
    guest.hears().await;
    guest.served.abort();
    rig.fake.dropped.notified().await;
    assert!(guest.served.await.is_err());
    assert_eq!(kinds(&rig.record).last().map(String::as_str), Some("child_ended"));
    assert_eq!(rig.ledger.left().tokens, Some(1000));
}

#[tokio::test(start_paused = true)]
async fn wall_time_of_a_child_ends_it() {
    let rig = rig(vec![Script::default()]);
    let request = serde_json::json!({"base": "myself", "work": {"task": "x"}, "share": {"wall_ms": 50}});
    let mut guest = Guest::asks(&rig.door, request).await;
    guest.hears().await;
    let ChildEvent::Ended { code, text, .. } = guest.hears().await else { panic!() };
    assert_eq!(code, ENDED_CODE);
    assert!(text.contains("wall time"), "{text}");
    guest.served.await.unwrap().unwrap();
    assert_eq!(*rig.fake.alive.lock().unwrap(), 0);
}

#[tokio::test]
async fn narrowing_ends_children_that_may_do_more() {
    let rig = rig(vec![Script::default()]);
    let mut guest = Guest::asks(&rig.door, task()).await;
    guest.hears().await;
    rig.policy.send_replace(Arc::new(Policy::parse("version = 1\n", "narrower").unwrap()));
    let ChildEvent::Ended { text, .. } = guest.hears().await else { panic!() };
    assert!(text.contains("narrowed"), "{text}");
}

#[tokio::test]
async fn what_the_policy_does_not_allow_is_refused_with_the_reason() {
    let none = rig_of("version = 1\n", vec![], Left::default());
    assert!(Guest::asks(&none.door, task()).await.refused().await.contains("children"));
    let rig = rig(vec![]);
    let with = |field: &str, value: serde_json::Value| {
        let mut request = task();
        request[field] = value;
        request
    };
    for (request, reason) in [
        (with("base", serde_json::json!({"template": "root"})), "template root"),
        (with("work", serde_json::json!({"command": []})), "a task or a command"),
        (with("work", serde_json::json!({"task": " "})), "a task or a command"),
        (with("work", serde_json::json!({"task": "x".repeat(WORK_MAX + 1)})), "at most"),
        (with("policy", "version = 1\n[network".into()), "child's policy"),
        (with("share", serde_json::json!({"tokens": 501})), "50 percent"),
        (with("share", serde_json::json!({"turns": 0})), "0 of the budget"),
    ] {
        let why = Guest::asks(&rig.door, request).await.refused().await;
        assert!(why.contains(reason), "{why}");
    }
    assert!(rig.fake.orders.lock().unwrap().is_empty());
    assert_eq!((rig.ledger.left().tokens, rig.door.family.made()), (Some(1000), 0), "a refusal costs nothing");
    assert_eq!(kinds(&rig.record).iter().filter(|kind| *kind == "child_refused").count(), 7);
}

const WORK_MAX: usize = 256 << 10;

#[tokio::test]
async fn number_is_of_the_whole_family() {
    let rig = rig((0..9).map(|_| Script { happens: [ended(0)].into(), ..Script::default() }).collect());
    for _ in 0..3 {
        let mut guest = Guest::asks(&rig.door, task()).await;
        guest.hears().await;
        guest.hears().await;
        guest.says("\"drop\"").await;
        guest.served.await.unwrap().unwrap();
    }
    let why = Guest::asks(&rig.door, task()).await.refused().await;
    assert!(why.contains("3 children"), "{why}");
    // Not even through a child that has some left by its own policy.
    let family = rig.fake.orders.lock().unwrap()[0].family.clone();
    assert!(family.admit().is_err());
    assert_eq!(family.made(), 0);
}

#[tokio::test]
async fn host_that_cannot_make_one_costs_nothing() {
    let rig = rig(vec![Script { refuses: Some("no memory".into()), ..Script::default() }]);
    let why = Guest::asks(&rig.door, task()).await.refused().await;
    assert_eq!(why, "no memory");
    assert_eq!((rig.ledger.left().tokens, rig.door.family.made()), (Some(1000), 0));
    assert_eq!(kinds(&rig.record), ["child_asked", "child_started", "child_refused"]);
}

#[tokio::test]
async fn changes_that_are_not_as_long_as_told_break_the_connection() {
    let short = Script { happens: [ended(0)].into(), tar: vec![1; 10], claimed_bytes: Some(20), ..Script::default() };
    let huge = Script { happens: [ended(0)].into(), claimed_bytes: Some(CHANGES_MAX_BYTES + 1), ..Script::default() };
    let long = Script { happens: [ended(0)].into(), tar: vec![1; 30], claimed_bytes: Some(20), ..Script::default() };
    let rig = rig(vec![short, huge, long]);
    for expected in [Err(10), Ok(None), Ok(Some(20))] {
        let mut guest = Guest::asks(&rig.door, task()).await;
        guest.hears().await;
        guest.hears().await;
        guest.says("\"take\"").await;
        let event = guest.hears().await;
        let mut bytes = Vec::new();
        guest.stream.read_to_end(&mut bytes).await.unwrap();
        let served = guest.served.await.unwrap();
        match expected {
            Err(length) => assert!(served.is_err() && bytes.len() == length, "{served:?} {}", bytes.len()),
            Ok(None) => assert!(matches!(event, ChildEvent::Refused { .. }), "{event:?}"),
            Ok(Some(length)) => assert_eq!((served.is_ok(), bytes.len()), (true, length)),
        }
    }
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_the_child() {
    for line in ["hello", "{}", "{\"base\":\"myself\",\"work\":{\"task\":\"x\"},\"root\":true}"] {
        let rig = rig(vec![]);
        let mut guest = Guest::new(&rig.door);
        guest.says(line).await;
        assert!(guest.served.await.unwrap().is_err());
        assert_eq!(kinds(&rig.record), ["malformed"]);
    }
    let rig = rig(vec![Script { happens: [ended(0)].into(), ..Script::default() }]);
    let mut guest = Guest::asks(&rig.door, task()).await;
    guest.hears().await;
    guest.hears().await;
    guest.says("\"apply to the host\"").await;
    assert!(guest.served.await.unwrap().is_err());
    assert_eq!(*rig.fake.alive.lock().unwrap(), 0);
}

#[tokio::test]
async fn children_alive_at_once_are_bounded() {
    let wide = PARENT.replace("number = 3", "number = 1000").replace("share_percent = 50", "share_percent = 1");
    let rig = rig_of(&wide, vec![], Left::default());
    let mut guests = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut guest = Guest::asks(&rig.door, task()).await;
        guest.hears().await;
        guests.push(guest);
    }
    let why = Guest::new(&rig.door).refused().await;
    assert!(why.contains("32 children"), "{why}");
}
