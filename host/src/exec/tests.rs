// SPDX-License-Identifier: Apache-2.0
//! Commands whose agent is the test: what goes over the wire, and agents that lie.

use std::sync::Arc;
use std::time::Duration;

use midge_protocol::{Exited, Output as Piece, Refused, STDIN_WINDOW_BYTES, Started, ToAgent, ToHost, WindowSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Exec, ExecId, LATE, Outcome, Running, attach};
use crate::error::Error;
use crate::link::Link;
use crate::link::fake::{Guest, Peer};
use crate::monitor::{Cause, End};

fn exited(number: i32, stdout_bytes: u64, stderr_bytes: u64) -> ToHost {
    let usage = midge_protocol::Usage { wall_us: 1, user_us: 2, system_us: 3, max_rss_kib: 4 };
    let outcome = midge_protocol::Outcome::Code;
    ToHost::Exited(Exited { outcome, number, timed_out: false, stdout_bytes, stderr_bytes, usage })
}

fn started() -> ToHost {
    ToHost::Started(Started { exec_id: 9, pid: 42, stdin_offset: 0 })
}

fn stdout(offset: u64, data: &[u8]) -> ToHost {
    ToHost::Stdout(Piece { offset, data: data.to_vec() })
}

fn stderr(offset: u64, data: &[u8]) -> ToHost {
    ToHost::Stderr(Piece { offset, data: data.to_vec() })
}

/// Starts `exec` against an agent that says it runs.
async fn run(guest: &Guest, link: &Link, exec: Exec) -> (Running, Peer, midge_protocol::Exec) {
    let agent = async {
        let mut peer = guest.accept().await;
        let Some(ToAgent::Exec(message)) = peer.next().await else { panic!("no exec") };
        peer.say(&started()).await;
        (peer, message)
    };
    let (running, (peer, message)) = tokio::join!(exec.start(link), agent);
    (running.unwrap(), peer, message)
}

#[tokio::test]
async fn request_carries_every_setting() {
    let (guest, _control, link) = Guest::linked().await;
    let exec = Exec::new(["a", "b c"]).env("K", "V").cwd("/d").user("u").timeout(Duration::from_micros(1));
    let exec = exec.tty(3, 4).stdin(true).replay(u32::MAX).with_defaults(&[("K".into(), "W".into())], Some("x"));
    let (running, _peer, message) = run(&guest, &link, exec).await;
    assert_eq!(message.argv, ["a", "b c"]);
    let env: Vec<_> = message.env.iter().map(|var| (var.name.to_str().unwrap(), var.value.to_str().unwrap())).collect();
    assert_eq!(env, [("K", "W"), ("K", "V")], "the command's own setting comes last");
    assert_eq!((message.cwd, message.user.as_deref()), (Some("/d".into()), Some("u")));
    assert_eq!((message.timeout_ms, message.stdin), (1, true), "a tiny limit is not `never`");
    assert_eq!(message.tty, Some(WindowSize { rows: 3, columns: 4 }));
    assert_eq!(message.replay_bytes, midge_protocol::MAX_REPLAY_BYTES);
    assert_eq!((running.id(), running.pid()), (ExecId(9), 42));
    assert!(running.stdin.is_some());
}

#[tokio::test]
async fn output_is_collected_and_the_status_told() {
    let (guest, _control, link) = Guest::linked().await;
    let (running, mut peer, message) = run(&guest, &link, Exec::new(["x"])).await;
    assert!(!message.stdin && running.stdin.is_none());
    let agent = tokio::spawn(async move {
        for message in [stdout(0, b"ab"), stderr(0, b"E"), stdout(2, b"c"), exited(3, 3, 1)] {
            peer.say(&message).await;
        }
    });
    let output = running.output().await.unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"abc"[..], &b"E"[..]));
    assert_eq!((output.status.outcome, output.status.usage.max_rss_kib), (Outcome::Code(3), 4));
    agent.await.unwrap();
}

#[tokio::test]
async fn refusal_keeps_the_shells_code() {
    let (guest, _control, link) = Guest::linked().await;
    let agent = async {
        let mut peer = guest.accept().await;
        peer.next().await;
        peer.say(&ToHost::Refused(Refused { exit_code: 127, errno: 2, text: "x: not found".into() })).await;
        peer
    };
    let (running, _peer) = tokio::join!(Exec::new(["x"]).start(&link), agent);
    assert!(matches!(running.unwrap_err(), Error::NotStarted { exit_code: 127, errno: 2, .. }));
}

#[tokio::test]
async fn empty_command_is_refused_before_the_guest_is_asked() {
    let (_guest, _control, link) = Guest::linked().await;
    for argv in [vec![], vec![""]] {
        assert!(matches!(Exec::new(argv).start(&link).await.unwrap_err(), Error::Setting { .. }));
    }
}

#[tokio::test]
async fn input_stops_at_the_window_and_signals_overtake_it() {
    let (guest, _control, link) = Guest::linked().await;
    let (mut running, mut peer, _) = run(&guest, &link, Exec::new(["x"]).stdin(true)).await;
    let mut stdin = running.stdin.take().unwrap();
    let total = usize::try_from(STDIN_WINDOW_BYTES).unwrap() * 2;
    let writer = tokio::spawn(async move { stdin.write_all(&vec![b'i'; total]).await });
    let mut got = 0;
    while got < STDIN_WINDOW_BYTES {
        let Some(ToAgent::Stdin(data)) = peer.next().await else { panic!("no input") };
        got += data.len() as u64;
    }
    assert_eq!(got, STDIN_WINDOW_BYTES, "not a byte beyond the window");
    running.controls().signal(2);
    assert_eq!(peer.next().await, Some(ToAgent::Signal(2)), "the signal does not queue behind the input");
    peer.say(&ToHost::StdinTaken(got)).await;
    while got < total as u64 {
        let Some(ToAgent::Stdin(data)) = peer.next().await else { panic!("no input") };
        got += data.len() as u64;
        peer.say(&ToHost::StdinTaken(got)).await;
    }
    writer.await.unwrap().unwrap();
    assert_eq!(peer.next().await, Some(ToAgent::StdinEof));
    peer.say(&exited(0, 0, 0)).await;
    assert!(running.wait().await.unwrap().is_success());
}

#[tokio::test]
async fn agent_that_takes_more_input_than_there_is_changes_nothing() {
    let (guest, _control, link) = Guest::linked().await;
    let (mut running, mut peer, _) = run(&guest, &link, Exec::new(["x"]).stdin(true)).await;
    peer.say(&ToHost::StdinTaken(u64::MAX)).await;
    running.stdin.take().unwrap().write_all(b"abc").await.unwrap();
    assert_eq!(peer.next().await, Some(ToAgent::Stdin(b"abc".to_vec())));
    assert_eq!(peer.next().await, Some(ToAgent::StdinEof));
}

#[tokio::test]
async fn terminal_size_is_passed_on() {
    let (guest, _control, link) = Guest::linked().await;
    let (running, mut peer, _) = run(&guest, &link, Exec::new(["x"]).tty(24, 80)).await;
    running.controls().resize(50, 132);
    assert_eq!(peer.next().await, Some(ToAgent::Resize(WindowSize { rows: 50, columns: 132 })));
}

#[tokio::test]
async fn dropping_the_command_hangs_up() {
    let (guest, _control, link) = Guest::linked().await;
    let (running, mut peer, _) = run(&guest, &link, Exec::new(["x"])).await;
    drop(running);
    assert_eq!(peer.next().await, None);
}

#[tokio::test]
async fn dropped_stream_is_discarded_and_the_other_flows() {
    let (guest, _control, link) = Guest::linked().await;
    let (mut running, mut peer, _) = run(&guest, &link, Exec::new(["x"])).await;
    drop(running.stderr.take());
    let agent = tokio::spawn(async move {
        let piece = vec![b'e'; midge_protocol::MAX_DATA_BYTES];
        for round in 0..32 {
            peer.say(&stderr(round * piece.len() as u64, &piece)).await;
        }
        peer.say(&stdout(0, b"through")).await;
        peer.say(&exited(0, 7, 32 * piece.len() as u64)).await;
    });
    let mut through = [0; 7];
    running.stdout.as_mut().unwrap().read_exact(&mut through).await.unwrap();
    assert_eq!(&through, b"through");
    assert!(running.wait().await.unwrap().is_success());
    agent.await.unwrap();
}

/// What a lying agent may say after the start, and a word of the error that has to follow.
#[tokio::test]
async fn agents_that_lie_are_found_out() {
    let liars: [(&str, Vec<ToHost>); 7] = [
        ("offset 1", vec![stdout(1, b"skipped")]),
        ("offset 0", vec![stdout(0, b"x"), stdout(0, b"again")]),
        ("5+0", vec![stdout(0, b"x"), exited(0, 5, 0)]),
        ("0+1", vec![exited(0, 0, 1)]),
        ("Code 256", vec![exited(256, 0, 0)]),
        ("Hello", vec![ToHost::Hello(crate::link::fake::hello())]),
        ("Started", vec![started()]),
    ];
    for (word, lies) in liars {
        let (guest, _control, link) = Guest::linked().await;
        let (running, mut peer, _) = run(&guest, &link, Exec::new(["x"])).await;
        for lie in &lies {
            peer.say(lie).await;
        }
        let error = running.output().await.unwrap_err();
        assert!(matches!(error, Error::Unexpected { .. }), "{word}: {error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[tokio::test]
async fn garbage_in_the_middle_of_output_is_an_error_not_output() {
    let (guest, _control, link) = Guest::linked().await;
    let (running, mut peer, _) = run(&guest, &link, Exec::new(["x"])).await;
    peer.raw(&[0xff; 100]).await;
    assert!(matches!(running.output().await.unwrap_err(), Error::Broken { .. }));
}

#[tokio::test]
async fn death_of_the_vm_ends_the_command_after_its_last_bytes() {
    let (mut guest, _control, link) = Guest::linked().await;
    let (mut running, mut peer, _) = run(&guest, &link, Exec::new(["x"]).stdin(true)).await;
    peer.say(&stdout(0, b"last")).await;
    let end = End { cause: Cause::TripleFault, ..End::lost("") };
    guest.end.take().unwrap().send(Arc::new(end)).unwrap();
    drop(peer);
    let mut stdout = running.stdout.take().unwrap();
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).await.unwrap();
    assert_eq!((bytes.as_slice(), stdout.offset()), (&b"last"[..], 4));
    let error = running.wait().await.unwrap_err();
    assert!(matches!(&error, Error::VmEnded { end, .. } if end.cause == Cause::TripleFault), "{error}");
}

/// The time-out is the agent's to keep; one that does not keep it is not believed for ever.
#[tokio::test(start_paused = true)]
async fn an_agent_that_lets_a_timeout_pass_without_a_word_is_given_up() {
    let (guest, mut control, link) = Guest::linked().await;
    let pulse = tokio::spawn(async move {
        while let Some(message) = control.next().await {
            if let ToAgent::Ping(number) = message {
                control.say(&ToHost::Pong(number)).await;
            }
        }
    });
    let begun = tokio::time::Instant::now();
    let (running, _peer, _) = run(&guest, &link, Exec::new(["x"]).timeout(Duration::from_secs(1000))).await;
    let error = running.wait().await.unwrap_err();
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    assert!(begun.elapsed() >= Duration::from_secs(1000) + LATE, "{:?}", begun.elapsed());
    pulse.abort();
}

#[tokio::test]
async fn attaching_goes_on_where_the_reader_stopped() {
    let (guest, _control, link) = Guest::linked().await;
    let agent = async {
        let mut peer = guest.accept().await;
        let Some(ToAgent::Attach(attach)) = peer.next().await else { panic!("no attach") };
        assert_eq!((attach.exec_id, attach.stdout_offset, attach.stderr_offset), (9, 100, 5));
        peer.say(&ToHost::Started(Started { exec_id: 9, pid: 42, stdin_offset: 77 })).await;
        peer.say(&stdout(100, b"rest")).await;
        peer.say(&exited(0, 104, 5)).await;
        peer
    };
    let (running, _peer) = tokio::join!(attach(&link, ExecId(9), 100, 5), agent);
    let mut running = running.unwrap();
    let mut stdout = running.stdout.take().unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert_eq!((rest.as_str(), stdout.offset()), ("rest", 104));
    assert!(running.wait().await.unwrap().is_success());
}
