// SPDX-License-Identifier: Apache-2.0
//! Tests of the near side against a stand-in for the outpost. Real emulated hosts are booted by the end-to-end tests.

use super::conversation::MAX_ANSWER_BYTES;
use super::*;
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpListener as Listener;

async fn listen() -> (Listener, Entrance) {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let entrance = Entrance::new(listener.local_addr().unwrap().port());
    (listener, entrance)
}

/// A peer that checks one request for its `op` and then says `answer`, keeping the connection until the other end closes.
async fn outpost(op: &'static str, answer: &'static [u8]) -> Entrance {
    let (listener, entrance) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(one_conversation(stream, op, answer));
        }
    });
    entrance
}

async fn one_conversation(stream: TcpStream, op: &str, answer: &[u8]) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    reader.read_line(&mut line).await.unwrap();
    assert!(line.contains(&format!("\"op\":\"{op}\"")), "{line}");
    writer.write_all(b"HELLO\n").await.unwrap();
    writer.write_all(answer).await.unwrap();
    let _ = reader.read_line(&mut line).await;
}

#[tokio::test]
async fn stream_begins_right_after_the_answer() {
    let entrance = outpost("connect", b"OK\nfirst bytes").await;
    let line = request("t", Op::Connect { id: "a".into(), port: 5 });
    let mut stream = converse(&entrance, &line, "connecting").await.unwrap().whole().unwrap();
    let mut bytes = [0; 11];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"first bytes");
}

#[tokio::test]
async fn refusal_is_told_with_its_reason() {
    let entrance = outpost("signal", b"ERR no sandbox \"a\" runs\n").await;
    let line = request("t", Op::Signal { id: "a".into(), signal: 9 });
    let text = converse(&entrance, &line, "killing a monitor").await.unwrap_err().to_string();
    assert_eq!(text, "killing a monitor on the emulated host: no sandbox \"a\" runs");
}

#[tokio::test]
async fn dropped_memory_is_told_in_bytes() {
    for (answer, bytes) in [(&b"OK\n8192\n"[..], Some(8192)), (b"OK\nmany\n", None), (b"ERR no\n", None)] {
        let entrance = outpost("discard", answer).await;
        let host = EmulatedHost { own: None, entrance, token: "t".into(), boot_ms: 0 };
        assert_eq!(host.discard("a", vec![(0, 4096), (8192, 4096)]).await.ok(), bytes);
    }
}

#[tokio::test]
async fn hanging_up_and_endless_answers_are_errors() {
    let line = request("t", Op::Hold);
    let (listener, entrance) = listen().await;
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    assert!(matches!(converse(&entrance, &line, "x").await, Err(EmulatedError::Io { .. })));
    let noise: &'static [u8] = Box::leak(vec![b'x'; MAX_ANSWER_BYTES * 2].into_boxed_slice());
    let entrance = outpost("hold", noise).await;
    assert!(matches!(converse(&entrance, &line, "x").await, Err(EmulatedError::Refused { .. })));
}

#[tokio::test]
async fn one_connection_comes_in_at_a_time() {
    let (listener, entrance) = listen().await;
    let serve = async {
        let mut served = Vec::new();
        for _ in 0..20 {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Whoever does not wait comes now.
            let beside = tokio::time::timeout(Duration::from_millis(5), listener.accept()).await;
            assert!(beside.is_err(), "{beside:?}");
            stream.write_all(b"HELLO\n").await.unwrap();
            served.push(stream);
        }
        // Those who have arrived do not keep others from it, however long their answers take.
        for mut stream in served {
            stream.write_all(b"OK\n").await.unwrap();
        }
    };
    let line = request("t", Op::Hold);
    let asked = (0..20).map(|_| {
        let (entrance, line) = (entrance.clone(), line.clone());
        tokio::spawn(async move { converse(&entrance, &line, "x").await.map(drop) })
    });
    let asked: Vec<_> = asked.collect();
    serve.await;
    for one in asked {
        one.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_is_no_outpost_is_told() {
    let (listener, entrance) = listen().await;
    tokio::spawn(async move { listener.accept().await.unwrap().0.write_all(b"OK\n").await });
    let error = converse(&entrance, &request("t", Op::Hold), "x").await.unwrap_err();
    assert!(crate::error::chain(&error).contains("not an outpost: \"OK\""), "{error}");
}

/// An emulator that was stopped still has its connections accepted, by its kernel.
#[tokio::test(start_paused = true)]
async fn silence_is_an_error_in_the_end() {
    let (_listener, entrance) = listen().await;
    let asked = converse(&entrance, &request("t", Op::Hold), "holding a connection").await;
    let Err(EmulatedError::Io { doing, source }) = asked else { panic!("{asked:?}") };
    assert_eq!((doing.as_str(), source.kind()), ("holding a connection on the emulated host", io::ErrorKind::TimedOut));
}

#[tokio::test]
async fn listener_binds_before_the_guest_comes_and_again_after() {
    let entrance = outpost("listen", b"BOUND\nOK\nfrom the guest").await;
    let line = request("t", Op::Listen { id: "a".into(), port: 1025 });
    let mut listener = RemoteListener { next: bind(&entrance, &line).await.unwrap(), entrance, request: line };
    for _ in 0..3 {
        let mut stream = listener.accept().await.unwrap();
        let mut bytes = [0; 14];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"from the guest");
    }
}

async fn delivered(output: &'static [u8]) -> (String, String, Option<ExitStatus>) {
    let entrance = outpost("hold", output).await;
    let connection = entrance.open(&request("t", Op::Hold)).await.unwrap();
    let (mut events, events_in) = duplex(1 << 16);
    let (mut stderr, stderr_in) = duplex(1 << 16);
    let (status_in, status) = oneshot::channel();
    let Connection { reader, mut writer } = connection;
    // The peer hangs up when it has seen us do so.
    writer.shutdown().await.unwrap();
    deliver(reader, events_in, stderr_in, status_in).await;
    let (mut event_text, mut stderr_text) = (String::new(), String::new());
    events.read_to_string(&mut event_text).await.unwrap();
    stderr.read_to_string(&mut stderr_text).await.unwrap();
    (event_text, stderr_text, status.await.ok())
}

#[tokio::test]
async fn output_of_a_monitor_is_sorted() {
    let (events, stderr, status) = delivered(b"E {\"a\":1}\nS oops\nnoise\nE {\"b\":2}\nX 512\n").await;
    assert_eq!(events, "{\"a\":1}\n{\"b\":2}\n");
    assert_eq!(stderr, "oops\n");
    assert_eq!(status.and_then(|status| status.code()), Some(2));
}

#[tokio::test]
async fn host_that_goes_away_leaves_no_status() {
    let (events, _, status) = delivered(b"E {\"a\":1}\n").await;
    assert_eq!(events, "{\"a\":1}\n");
    assert_eq!(status, None);
}

#[test]
fn token_is_random_and_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let (token, file) = make_token().unwrap();
    assert_eq!(token.len(), 32);
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), token);
    assert_eq!(file.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_ne!(make_token().unwrap().0, token);
}

#[tokio::test]
async fn machine_that_does_not_start_is_told_by_its_last_words() {
    let opts = EmulatedOptions {
        kernel: "/k".into(),
        initramfs: "/i".into(),
        mem_mib: 64,
        cpus: 1,
        ready_timeout: Duration::from_secs(20),
    };
    let err = start_on_free_port(Path::new("/bin/false"), &opts, Path::new("/t")).await.unwrap_err();
    assert!(err.to_string().contains("exit status: 1"), "{err}");
    let err = start_on_free_port(Path::new("/no/qemu"), &opts, Path::new("/t")).await.unwrap_err();
    assert!(matches!(err, EmulatedError::Qemu { .. }), "{err}");
}
