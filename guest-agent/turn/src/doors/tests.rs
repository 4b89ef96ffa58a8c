// SPDX-License-Identifier: Apache-2.0

use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;

use super::*;

fn listener(dir: &Path, door: Door) -> UnixListener {
    UnixListener::bind(dir.join(door.name())).unwrap()
}

fn asked() -> Asked {
    Asked::Human { text: "which?".into(), choices: Vec::new() }
}

/// A host that answers one question with `answer`, after a look at the question.
fn host(dir: &Path, answer: impl FnOnce(Question) -> Vec<u8> + Send + 'static) -> JoinHandle<()> {
    let listener = listener(dir, Door::Ask);
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let line = read_line(&mut BufReader::new(stream.try_clone().unwrap())).unwrap();
        let bytes = answer(serde_json::from_str(&line).unwrap());
        // A door that closes without an answer is one of the cases.
        let _ = stream.write_all(&bytes);
    })
}

#[test]
fn notes_are_lines_and_what_is_left_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let host = listener(dir.path(), Door::Record);
    let (sender, receiver) = channel();
    let record = Record::open(dir.path(), move |from| drop(sender.send(from))).unwrap();
    let (mut stream, _) = host.accept().unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    record.note(Told::Said { text: "a\nb".into() }).unwrap();
    assert_eq!(read_line(&mut lines).unwrap(), r#"{"told":{"event":"said","text":"a\nb"}}"#);
    stream.write_all(b"{\"turns\":3}\n").unwrap();
    assert_eq!(receiver.recv().unwrap(), FromRecord::Left(Left { turns: Some(3), ..Left::default() }));
    stream.write_all(b"{\"turn\":3}\n").unwrap();
    assert!(matches!(receiver.recv().unwrap(), FromRecord::Lost(why) if why.contains("cannot be read")));
}

#[test]
fn closed_record_is_lost_and_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let host = listener(dir.path(), Door::Record);
    let (sender, receiver) = channel();
    let record = Record::open(dir.path(), move |from| drop(sender.send(from))).unwrap();
    drop(host.accept().unwrap());
    assert!(matches!(receiver.recv().unwrap(), FromRecord::Lost(why) if why.contains("closed the door")));
    assert!(receiver.recv().is_err());
    assert!(record.note(Told::Said { text: "x".into() }).is_err());
    record.close();
}

#[test]
fn no_record_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Record::open(dir.path(), |_| {}).is_err());
}

#[test]
fn line_that_is_too_long_is_cut_inside_its_strings() {
    let big = "ä".repeat(LINE_MAX_BYTES);
    let input = json!({"path": "a", "parts": [big, {"x": big}]});
    let told = Told::ToolCall { id: "i".into(), name: "write".into(), input };
    let text = line(&Noted { told }).unwrap();
    assert!(text.len() <= LINE_MAX_BYTES && text.ends_with('\n'));
    let noted: Noted = serde_json::from_str(&text).unwrap();
    assert!(
        matches!(noted.told, Told::ToolCall { input, .. } if input["path"] == "a" && input["parts"][0].as_str().unwrap().contains("bytes in all"))
    );
    let many = json!({"many": vec!["x".repeat(2000); 2000]});
    assert!(line(&many).unwrap().len() <= LINE_MAX_BYTES);
    assert!(line(&vec![0u8; LINE_MAX_BYTES]).is_err());
}

#[test]
fn question_is_asked_and_answered() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), |question| {
        assert_eq!(question.asked, asked());
        let answer = Answer { id: question.id, verdict: Verdict::Text { text: "this".into() } };
        [serde_json::to_vec(&answer).unwrap(), b"\n".to_vec()].concat()
    });
    let verdict = AskDoor::new(dir.path()).ask(&asked(), &Cancel::new().unwrap());
    assert_eq!(verdict, Ok(Verdict::Text { text: "this".into() }));
    host.join().unwrap();
}

#[test]
fn lost_door_is_no_answer() {
    for bytes in [&b""[..], b"{\"id\":1", b"nonsense\n", b"{\"id\":99,\"verdict\":{\"verdict\":\"allow\"}}\n"] {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), |_| bytes.to_vec());
        assert!(AskDoor::new(dir.path()).ask(&asked(), &Cancel::new().unwrap()).is_err(), "{bytes:?}");
        host.join().unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(AskDoor::new(dir.path()).ask(&asked(), &Cancel::new().unwrap()).is_err());
}

#[test]
fn question_is_dropped_when_the_run_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let _host = listener(dir.path(), Door::Ask);
    let cancel = Cancel::new().unwrap();
    let flag = cancel.clone();
    let door = AskDoor::new(dir.path());
    let asking = std::thread::spawn(move || door.ask(&asked(), &flag));
    cancel.cancel();
    assert!(asking.join().unwrap().unwrap_err().contains("cancelled"));
}
