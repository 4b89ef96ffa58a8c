// SPDX-License-Identifier: Apache-2.0
//! Tests of conversations: real sockets, no guests.

use super::*;
use crate::emulated::outpost::guests::Guests;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;

/// Runs one conversation of an outpost whose token is `secret`, and gives the client's end to `client`.
fn talk<F, R>(client: impl FnOnce(TcpStream) -> F) -> R
where
    F: Future<Output = R>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outpost = Rc::new(Outpost {
        births: tokio::sync::Mutex::default(),
        token: "secret".into(),
        guests: Guests::default(),
        held: Notify::new(),
        released: Notify::new(),
    });
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let served = tokio::task::spawn_local(conversation(far, Rc::clone(&outpost)));
        let mut greeting = [0; 6];
        near.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"HELLO\n");
        let result = client(near).await;
        tokio::time::timeout(Duration::from_secs(20), served).await.unwrap().unwrap();
        result
    })
}

fn answer(request: &[u8]) -> String {
    talk(|mut stream| async move {
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    })
}

#[test]
fn requests_that_cannot_be_read_are_refused_with_a_reason() {
    for request in [&b""[..], b"\n", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"{\"token\":\"secret\"}\n"] {
        let text = answer(request);
        assert!(text.starts_with("ERR reading the request: "), "{text}");
        assert_eq!(text.matches('\n').count(), 1);
    }
}

#[test]
fn an_order_to_a_sandbox_that_does_not_run_is_refused_by_its_name() {
    let text = answer(b"{\"token\":\"secret\",\"op\":\"discard\",\"id\":\"a\",\"ranges\":[[0,4096]]}\n");
    assert_eq!(text, "ERR no sandbox \"a\" runs\n");
}

#[test]
fn endless_request_line_is_refused_at_the_limit() {
    let text = answer(&vec![b'x'; MAX_REQUEST_BYTES + 1000]);
    assert!(text.starts_with("ERR ") || text.is_empty(), "{text}");
}

#[test]
fn nothing_is_done_without_the_token() {
    assert_eq!(answer(b"{\"token\":\"secre\",\"op\":\"hold\"}\n"), "ERR wrong token\n");
    let spawn = r#"{"token":"","op":"spawn","id":"a","config":{},"allowance":{"memory_mib":1,"cpus":1}}"#;
    assert_eq!(answer(format!("{spawn}\n").as_bytes()), "ERR wrong token\n");
}

#[test]
fn hold_is_acknowledged_and_lasts_until_it_closes() {
    assert_eq!(answer(b"{\"token\":\"secret\",\"op\":\"hold\"}\n"), "OK\n");
}

#[test]
fn unknown_sandboxes_are_refused() {
    let text = answer(b"{\"token\":\"secret\",\"op\":\"signal\",\"id\":\"a\",\"signal\":9}\n");
    assert_eq!(text, "ERR no sandbox \"a\" runs\n");
    let text = answer(b"{\"token\":\"secret\",\"op\":\"connect\",\"id\":\"none\",\"port\":1}\n");
    assert!(text.starts_with("ERR No such file"), "{text}");
    let text = answer(b"{\"token\":\"secret\",\"op\":\"listen\",\"id\":\"../a\",\"port\":1}\n");
    assert!(text.contains("is not a sandbox's id"), "{text}");
}

/// A monitor's socket that answers `CONNECT` with `answer` and then echoes.
async fn monitor(path: std::path::PathBuf, answer: &'static [u8]) {
    let listener = UnixListener::bind(path).unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = [0; 13];
    stream.read_exact(&mut request).await.unwrap();
    assert_eq!(&request, b"CONNECT 1024\n");
    stream.write_all(answer).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

async fn try_connect(answer: &'static [u8]) -> io::Result<UnixStream> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    tokio::spawn(monitor(path.clone(), answer));
    while !path.exists() {
        tokio::task::yield_now().await;
    }
    connect(path.to_str().unwrap(), 1024).await
}

#[tokio::test]
async fn stream_to_a_guest_begins_right_after_the_answer() {
    let mut stream = try_connect(b"OK 5\nhello").await.unwrap();
    let mut text = [0; 5];
    stream.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"hello");
}

#[tokio::test]
async fn closed_socket_is_a_refusal_and_noise_is_an_error() {
    let long = b"XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX";
    assert!(try_connect(long).await.unwrap_err().to_string().contains("did not answer OK"));
    assert!(try_connect(b"NO\n").await.is_err());
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let (guest, mut guest_side) = UnixStream::pair().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    let (reader, mut writer) = far.into_split();
    let pumping = async { pump(guest, BufReader::new(reader), &mut writer).await };
    let talking = async {
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut asked = String::new();
        guest_side.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        guest_side.write_all(b"answer").await.unwrap();
        guest_side.shutdown().await.unwrap();
        let mut answered = String::new();
        near.read_to_string(&mut answered).await.unwrap();
        assert_eq!(answered, "answer");
    };
    tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(pumping, talking) }).await.unwrap();
}
