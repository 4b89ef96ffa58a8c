// SPDX-License-Identifier: Apache-2.0

use midge_record::{Line, Masker, verify};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::sync::mpsc;

use super::*;

struct Rig {
    door: Arc<AskDoor>,
    record: midge_record::Memory,
    _policy: watch::Sender<Arc<Policy>>,
}

fn rig(approver: impl Approver) -> Rig {
    let (recorder, record) = Recorder::in_memory("r", Masker::default()).unwrap();
    let (sender, policy) = watch::channel(Arc::new(Policy::profile("offline").unwrap()));
    Rig { door: AskDoor::new(Arc::new(approver), recorder, policy), record, _policy: sender }
}

fn with_human() -> (Rig, mpsc::Receiver<Pending>) {
    let (approver, questions) = channel();
    (rig(approver), questions)
}

fn tool(input: &str) -> Value {
    json!({"kind": "tool", "name": "shell", "input": {"command": input}, "why": "rule"})
}

fn egress(host: &str, path: &str) -> Value {
    json!({"kind": "egress", "method": "GET", "scheme": "https", "host": host, "port": 443, "path": path})
}

/// What was decided by whom, in order.
fn decided(record: &midge_record::Memory) -> Vec<(Verdict, Decider)> {
    let bytes = record.bytes();
    verify(bytes.as_slice()).unwrap();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let entries = lines.filter_map(|line| serde_json::from_slice::<Line>(line).unwrap().entry());
    entries
        .filter_map(|entry| if let Entry::Decided { verdict, by, .. } = entry { Some((verdict, by)) } else { None })
        .collect()
}

/// A human who gives these verdicts, in order, and is asked no more.
fn human(mut questions: mpsc::Receiver<Pending>, verdicts: Vec<Verdict>) -> tokio::task::JoinHandle<Vec<Asking>> {
    tokio::spawn(async move {
        let mut asked = Vec::new();
        for verdict in verdicts {
            let pending = questions.recv().await.unwrap();
            asked.push(pending.asking.clone());
            pending.answer(verdict);
        }
        asked
    })
}

fn guest(rig: &Rig) -> (BufReader<DuplexStream>, tokio::task::JoinHandle<io::Result<()>>) {
    let (guest, host) = tokio::io::duplex(1 << 16);
    let door = Arc::clone(&rig.door);
    (BufReader::new(guest), tokio::spawn(async move { door.serve(host).await }))
}

#[tokio::test]
async fn guest_gets_answers_in_any_order() {
    let (rig, mut questions) = with_human();
    let (mut guest, served) = guest(&rig);
    for id in [7, 8] {
        let line = json!({"id": id, "asked": {"kind": "tool", "name": "t", "input": id, "why": "because"}}).to_string();
        guest.write_all((line + "\n").as_bytes()).await.unwrap();
    }
    let (first, second) = (questions.recv().await.unwrap(), questions.recv().await.unwrap());
    assert_eq!(
        (&first.asking.asked["input"], first.asking.why.as_str(), first.asking.timeout.as_secs()),
        (&json!(7), "because", 300)
    );
    second.answer(Verdict::Edited { input: json!(80) });
    let mut line = String::new();
    guest.read_line(&mut line).await.unwrap();
    assert_eq!(
        serde_json::from_str::<Answer>(&line).unwrap(),
        Answer { id: 8, verdict: Verdict::Edited { input: json!(80) } }
    );
    guest.shutdown().await.unwrap();
    first.answer(Verdict::Deny { why: "no".into() });
    line.clear();
    guest.read_line(&mut line).await.unwrap();
    assert!(line.contains("\"id\":7") && line.contains("deny"), "{line}");
    served.await.unwrap().unwrap();
    assert_eq!(decided(&rig.record).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_answer_in_time_is_a_no() {
    let (rig, mut questions) = with_human();
    let start = tokio::time::Instant::now();
    let verdict = rig.door.ask(tool("rm"), "rule".into()).await.unwrap();
    assert!(matches!(&verdict, Verdict::Deny { why } if why.contains("300 s")), "{verdict:?}");
    assert_eq!(start.elapsed(), Duration::from_secs(300));
    let mut late = questions.recv().await.unwrap();
    late.withdrawn().await;
    late.answer(Verdict::Allow);
    assert_eq!(decided(&rig.record), [(verdict, Decider::TimeOut)]);
}

#[tokio::test]
async fn for_this_run_is_for_exactly_the_same() {
    let (rig, questions) = with_human();
    let no = || Verdict::Deny { why: "no".into() };
    let human =
        human(questions, vec![Verdict::AllowForRun, no(), Verdict::AllowForRun, no(), no(), Verdict::Allow, no()]);
    let ask = |asked: Value, why: &str| rig.door.ask(asked, why.to_owned());
    assert_eq!(ask(tool("ls"), "a").await.unwrap(), Verdict::AllowForRun);
    assert_eq!(ask(tool("ls"), "other words").await.unwrap(), Verdict::Allow);
    assert_eq!(ask(tool("ls "), "a").await.unwrap(), no());
    assert_eq!(ask(egress("a.org", "/x"), "rule a").await.unwrap(), Verdict::AllowForRun);
    assert_eq!(ask(egress("a.org", "/y"), "rule a").await.unwrap(), Verdict::Allow, "another path of the same host");
    assert_eq!(ask(egress("a.org", "/x"), "rule b").await.unwrap(), no(), "another rule");
    assert_eq!(ask(egress("b.org", "/x"), "rule a").await.unwrap(), no(), "another host");
    assert_eq!(ask(tool("once"), "a").await.unwrap(), Verdict::Allow);
    assert_eq!(ask(tool("once"), "a").await.unwrap(), no(), "once is once");
    assert_eq!(human.await.unwrap().len(), 7);
    let remembered = decided(&rig.record).into_iter().filter(|(_, by)| *by == Decider::Remembered).count();
    assert_eq!(remembered, 2);
}

#[tokio::test]
async fn verdicts_that_make_no_sense_are_a_no() {
    let (rig, questions) = with_human();
    let edited = || Verdict::Edited { input: json!(1) };
    let text = || Verdict::Text { text: "words".into() };
    let human = human(questions, vec![text(), edited(), Verdict::Allow, text(), Verdict::AllowForRun, edited()]);
    let ask = |asked: Value| rig.door.ask(asked, String::new());
    let question = || json!({"kind": "human", "text": "which?", "choices": []});
    assert_eq!(ask(tool("x")).await.unwrap(), Verdict::Deny { why: "words".into() });
    assert!(matches!(ask(egress("a.org", "/")).await.unwrap(), Verdict::Deny { .. }));
    assert!(matches!(ask(question()).await.unwrap(), Verdict::Deny { .. }));
    assert_eq!(ask(question()).await.unwrap(), text());
    assert_eq!(ask(json!({"kind": "other"})).await.unwrap(), Verdict::Allow, "nothing that could be remembered");
    assert_eq!(ask(tool("x")).await.unwrap(), edited());
    human.await.unwrap();
}

#[tokio::test]
async fn open_questions_are_bounded() {
    let (rig, mut questions) = with_human();
    let asking: Vec<_> = (0..OPEN_MAX)
        .map(|n| {
            let door = Arc::clone(&rig.door);
            tokio::spawn(async move { door.ask(tool(&n.to_string()), String::new()).await.unwrap() })
        })
        .collect();
    let mut pending = Vec::new();
    for _ in 0..OPEN_MAX {
        pending.push(questions.recv().await.unwrap());
    }
    assert!(matches!(rig.door.ask(tool("more"), String::new()).await.unwrap(), Verdict::Deny { .. }));
    pending.into_iter().for_each(|one| one.answer(Verdict::Allow));
    for one in asking {
        assert_eq!(one.await.unwrap(), Verdict::Allow);
    }
    assert_eq!(decided(&rig.record).iter().filter(|(_, by)| *by == Decider::Nobody).count(), 1);
}

#[tokio::test]
async fn guest_that_hangs_up_withdraws_its_questions() {
    let (rig, mut questions) = with_human();
    let (mut guest, served) = guest(&rig);
    let line = json!({"id": 1, "asked": {"kind": "human", "text": "?", "choices": []}}).to_string() + "\n";
    guest.write_all(line.as_bytes()).await.unwrap();
    let mut pending = questions.recv().await.unwrap();
    served.abort();
    pending.withdrawn().await;
    let _ = served.await;
    let found = decided(&rig.record);
    assert!(matches!(found.as_slice(), [(Verdict::Deny { .. }, Decider::Nobody)]), "{found:?}");
}

#[tokio::test]
async fn automatic_answers_need_nobody() {
    let allow = rig(Automatic::Allow);
    assert_eq!(allow.door.ask(tool("x"), String::new()).await.unwrap(), Verdict::Allow);
    assert_eq!(allow.door.approve(egress("a.org", "/"), String::new()).await, Verdict::Allow);
    let human = allow.door.ask(json!({"kind": "human"}), String::new()).await.unwrap();
    assert!(matches!(human, Verdict::Deny { .. }), "nobody knows what only a human can say");
    let deny = rig(Automatic::Deny);
    assert!(matches!(deny.door.ask(tool("x"), String::new()).await.unwrap(), Verdict::Deny { .. }));
    let (gone, questions) = with_human();
    drop(questions);
    assert!(matches!(gone.door.ask(tool("x"), String::new()).await.unwrap(), Verdict::Deny { .. }));
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_allowed() {
    let rig = rig(Automatic::Allow);
    rig.door.recorder.finish().unwrap();
    assert!(rig.door.ask(tool("x"), String::new()).await.is_err());
    assert!(matches!(rig.door.approve(tool("x"), String::new()).await, Verdict::Deny { .. }));
}

#[tokio::test]
async fn nonsense_and_floods_end_the_connection() {
    for line in [&b"x\n"[..], b"{\"id\":1}\n", b"{\"id\":1,\"asked\":{\"kind\":\"root\"}}\n"] {
        let rig = rig(Automatic::Allow);
        let (mut guest, served) = guest(&rig);
        guest.write_all(line).await.unwrap();
        assert!(served.await.unwrap().is_err());
        assert!(String::from_utf8(rig.record.bytes()).unwrap().contains("malformed"));
    }
    let (rig, _questions) = with_human();
    let (mut guest, served) = guest(&rig);
    let line = json!({"id": 1, "asked": {"kind": "human", "text": "?", "choices": []}}).to_string() + "\n";
    // Nobody reads the answers that say that too much is open.
    for _ in 0..20_000 {
        if guest.write_all(line.as_bytes()).await.is_err() {
            break;
        }
    }
    drop(guest);
    assert!(served.await.unwrap().is_err());
    let text = String::from_utf8(rig.record.bytes()).unwrap();
    assert!(text.contains("malformed") && text.matches("\"kind\":\"asked\"").count() <= 2 * OPEN_MAX, "{text}");
}
