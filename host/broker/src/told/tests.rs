// SPDX-License-Identifier: Apache-2.0

use midge_protocol::broker::{LINE_MAX_BYTES, Left};
use midge_record::{Line, Masker, Memory, Speaker, verify};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};

use super::*;

fn door(budgets: Left) -> (Arc<ToldDoor>, Memory) {
    let (recorder, memory) = Recorder::in_memory("r", Masker::default()).unwrap();
    (ToldDoor::new(recorder, Ledger::new(&budgets)), memory)
}

fn guest(door: &Arc<ToldDoor>) -> (BufReader<DuplexStream>, tokio::task::JoinHandle<io::Result<()>>) {
    let (guest, host) = tokio::io::duplex(1 << 16);
    let door = Arc::clone(door);
    (BufReader::new(guest), tokio::spawn(async move { door.serve(host).await }))
}

fn kinds(memory: &Memory) -> Vec<String> {
    let bytes = memory.bytes();
    verify(bytes.as_slice()).unwrap();
    bytes
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|line| {
            let line: Line = serde_json::from_slice(line).unwrap();
            format!("{} {}", if line.by == Speaker::Guest { "guest" } else { "host" }, line.kind())
        })
        .collect()
}

#[tokio::test]
async fn what_is_told_is_the_guests_and_answered_with_what_is_left() {
    let (door, memory) = door(Left { turns: Some(3), ..Left::default() });
    let (mut guest, served) = guest(&door);
    for said in ["one", "two"] {
        let line = json!({"told": {"event": "said", "text": said}}).to_string() + "\n";
        guest.write_all(line.as_bytes()).await.unwrap();
        let mut left = String::new();
        guest.read_line(&mut left).await.unwrap();
        assert_eq!(left, "{\"turns\":3}\n");
    }
    drop(guest);
    served.await.unwrap().unwrap();
    assert_eq!(kinds(&memory), ["host opened", "guest told", "guest told"]);
}

#[tokio::test]
async fn nonsense_ends_the_connection_with_an_entry() {
    let endless = vec![b'a'; LINE_MAX_BYTES + 1];
    let odd: [&[u8]; 6] = [
        b"hello\n",
        b"\xff\xfe\n",
        b"{\"told\":{\"event\":\"root\"}}\n",
        b"{\"told\":{\"event\":\"said\",\"text\":\"x\"},\"by\":\"host\"}\n",
        b"{\"told\":{\"event\":\"said\"",
        &endless,
    ];
    for line in odd {
        let (door, memory) = door(Left::default());
        let (guest, served) = guest(&door);
        let mut guest = guest.into_inner();
        // The host may hang up before it has read all.
        let _ = guest.write_all(line).await;
        let _ = guest.shutdown().await;
        assert!(served.await.unwrap().is_err());
        assert_eq!(
            kinds(&memory),
            ["host opened", "host malformed"],
            "{}",
            String::from_utf8_lossy(&line[..line.len().min(40)])
        );
    }
}

#[tokio::test(start_paused = true)]
async fn floods_wait() {
    let (door, memory) = door(Left::default());
    let (mut guest, served) = guest(&door);
    let line = json!({"told": {"event": "said", "text": "x"}}).to_string() + "\n";
    let lines = LINES_BURST + 2 * LINES_PER_SECOND;
    let start = tokio::time::Instant::now();
    for _ in 0..lines {
        guest.write_all(line.as_bytes()).await.unwrap();
        let mut left = String::new();
        guest.read_line(&mut left).await.unwrap();
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(3), "{took:?}");
    drop(guest);
    served.await.unwrap().unwrap();
    assert_eq!(kinds(&memory).len(), lines as usize + 1);
}

#[tokio::test]
async fn one_run_cannot_fill_the_disk() {
    let (door, memory) = door(Left::default());
    door.told_bytes.store(RUN_MAX_BYTES - 1, Ordering::Relaxed);
    let (mut guest, served) = guest(&door);
    guest.write_all((json!({"told": {"event": "said", "text": "x"}}).to_string() + "\n").as_bytes()).await.unwrap();
    assert!(served.await.unwrap().is_err());
    assert_eq!(kinds(&memory), ["host opened", "host malformed"]);
}

#[tokio::test]
async fn nothing_goes_on_unrecorded() {
    let (door, _memory) = door(Left::default());
    door.recorder.finish().unwrap();
    let (mut guest, served) = guest(&door);
    guest.write_all((json!({"told": {"event": "said", "text": "x"}}).to_string() + "\n").as_bytes()).await.unwrap();
    assert!(served.await.unwrap().is_err());
    let mut left = String::new();
    assert_eq!(guest.read_line(&mut left).await.unwrap(), 0);
}
