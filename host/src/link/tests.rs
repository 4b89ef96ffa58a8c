// SPDX-License-Identifier: Apache-2.0
//! Links to guests that are good, broken, silent or dead.

use std::sync::Arc;
use std::time::Duration;

use midge_protocol::{ErrorCode, Failure, InitFailed, Stats, ToAgent, ToHost};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::fake::{Guest, LIMITS, hello};
use super::{ANSWERED, Limits, Link};
use crate::error::{Error, Fault};
use crate::monitor::{Cause, End, MonitorError};
use crate::timeline::Source;

fn panicked() -> Arc<End> {
    Arc::new(End { cause: Cause::GuestPanic, console_tail: vec!["last words".into()], ..End::lost("no init") })
}

fn stats() -> Stats {
    Stats {
        uptime_ms: 1,
        memory_total_kib: 2,
        memory_available_kib: 3,
        cpu_user_ms: 4,
        cpu_system_ms: 5,
        cpu_idle_ms: 6,
        processes: 7,
        execs: 8,
        disk_total_bytes: 9,
        disk_free_bytes: 10,
    }
}

/// Starts a link, lets the guest say `bytes` instead of a hello and hang up, and gives the error.
async fn greeted_with(bytes: &[u8]) -> Error {
    let (guest, link) = Guest::start(LIMITS).await;
    let mut peer = guest.connect().await;
    peer.raw(bytes).await;
    drop(peer);
    link.await.unwrap().unwrap_err()
}

#[tokio::test]
async fn hello_is_answered_with_entropy_time_and_identity() {
    let (guest, link) = Guest::start(LIMITS).await;
    let mut control = guest.connect().await;
    control.say(&ToHost::Hello(hello())).await;
    let Some(ToAgent::Welcome(welcome)) = control.next().await else { panic!("no welcome") };
    assert!(welcome.entropy.len() >= midge_protocol::MIN_ENTROPY_BYTES);
    assert!(welcome.entropy.iter().any(|byte| *byte != welcome.entropy[0]));
    assert!(welcome.unix_time_ns > 1_700_000_000_000_000_000);
    assert_eq!((welcome.hostname.as_str(), welcome.machine_id), ("h", [7; 16]));
    let (_link, told) = link.await.unwrap().unwrap();
    assert_eq!(told, hello());
    let timeline = guest.recorder.timeline();
    let at = |source, name| timeline.stage(source, name).unwrap().at_us;
    let distance_us = at(Source::Agent, "ready") - at(Source::Agent, "start");
    assert!((2499..=2501).contains(&distance_us), "{distance_us}, but for rounding");
    assert_eq!(at(Source::Agent, "ready"), at(Source::Host, "hello"));
}

#[tokio::test]
async fn first_pong_is_the_first_reply() {
    let (guest, mut control, _link) = Guest::linked().await;
    let Some(ToAgent::Ping(number)) = control.next().await else { panic!("no ping") };
    control.say(&ToHost::Pong(number)).await;
    for _ in 0..200 {
        if guest.recorder.timeline().stage(Source::Host, "first_reply").is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the reply was not noted");
}

#[tokio::test]
async fn garbage_instead_of_a_hello_is_the_guests_fault() {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0xff, 0xff, 0xff, 0x7f, 1, 0x80, 0, 0]] {
        let error = greeted_with(bytes).await;
        assert!(matches!(error, Error::Broken { .. }), "{error}");
        assert_eq!(error.fault(), Fault::Guest);
    }
}

#[tokio::test]
async fn message_out_of_turn_is_refused_by_name() {
    let mut bytes = Vec::new();
    midge_protocol::encode(&ToHost::Pong(1), &mut bytes).unwrap();
    let error = greeted_with(&bytes).await;
    assert!(error.to_string().contains("Pong") && error.to_string().contains("Hello"), "{error}");
}

#[tokio::test]
async fn failed_setup_tells_its_step() {
    let failed = InitFailed { step: "mount /dev/vda".into(), errno: 22, text: "bad superblock\u{1b}[2J".into() };
    let mut bytes = Vec::new();
    midge_protocol::encode(&ToHost::InitFailed(failed), &mut bytes).unwrap();
    let text = greeted_with(&bytes).await.to_string();
    assert!(text.contains("mount /dev/vda") && text.contains("bad superblock") && !text.contains('\u{1b}'), "{text}");
}

#[tokio::test]
async fn versions_that_do_not_meet_are_refused() {
    let mut strange = hello();
    (strange.oldest_version, strange.newest_version) = (900, 901);
    let mut bytes = Vec::new();
    midge_protocol::encode(&ToHost::Hello(strange), &mut bytes).unwrap();
    assert!(matches!(greeted_with(&bytes).await, Error::Version(_)));
}

#[tokio::test]
async fn silence_is_a_boot_timeout() {
    let limits = Limits { boot: Duration::from_millis(50), ..LIMITS };
    let (guest, link) = Guest::start(limits).await;
    let error = link.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::BootTimeout { limit_ms: 50, .. }), "{error}");
    // A guest that connects and then says nothing is no better.
    let (other, link) = Guest::start(limits).await;
    let _peer = other.connect().await;
    assert!(matches!(link.await.unwrap().unwrap_err(), Error::BootTimeout { .. }));
    drop(guest);
}

#[tokio::test]
async fn death_before_the_hello_is_told_with_its_reason() {
    let (mut guest, link) = Guest::start(LIMITS).await;
    guest.end.take().unwrap().send(panicked()).unwrap();
    let error = link.await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::VmEnded { end, .. } if end.cause == Cause::GuestPanic), "{error}");
    assert_eq!(error.console_tail(), ["last words"]);
}

#[tokio::test]
async fn requests_get_their_own_answers_in_order() {
    let (_guest, mut control, link) = Guest::linked().await;
    let agent = tokio::spawn(async move {
        let mut asked = Vec::new();
        while asked.len() < 2 {
            match control.next().await.unwrap() {
                ToAgent::Ping(_) => {}
                other => asked.push(other),
            }
        }
        for request in &asked {
            match request {
                ToAgent::GetStats => control.say(&ToHost::Stats(stats())).await,
                _ => control.say(&ToHost::Done).await,
            }
        }
        control
    });
    let (got, done) = tokio::join!(link.stats(), link.quiesce());
    assert_eq!(got.unwrap(), stats());
    done.unwrap();
    agent.await.unwrap();
}

#[tokio::test]
async fn refused_request_is_told() {
    let (_guest, mut control, link) = Guest::linked().await;
    let agent = tokio::spawn(async move {
        while !matches!(control.next().await, Some(ToAgent::Quiesce)) {}
        let failure = Failure { code: ErrorCode::Busy, errno: 16, text: "too busy".into() };
        control.say(&ToHost::Error(failure)).await;
        control
    });
    let error = link.quiesce().await.unwrap_err();
    assert!(matches!(&error, Error::Failed { failure, .. } if failure.code == ErrorCode::Busy), "{error}");
    agent.await.unwrap();
}

/// The test of "exec can not hang": every kind of pending operation ends when the VM does.
#[tokio::test]
async fn death_of_the_vm_ends_everything_that_waits() {
    let (mut guest, _control, link) = Guest::linked().await;
    let request = async |link: &Link| link.stats().await.map(drop);
    let opening = async |link: &Link| {
        let mut conversation = link.open(&ToAgent::GetStats, "testing").await?;
        conversation.receiver.next().await.map(drop)
    };
    let end = guest.end.take().unwrap();
    let dies = async {
        let peer = guest.accept().await;
        end.send(panicked()).unwrap();
        peer
    };
    let (stats, opened, _peer) = tokio::join!(request(&link), opening(&link), dies);
    for error in [stats.unwrap_err(), opened.unwrap_err()] {
        assert!(matches!(&error, Error::VmEnded { end, .. } if end.cause == Cause::GuestPanic), "{error}");
    }
}

#[tokio::test]
async fn broken_stream_waits_for_the_reason_of_the_death() {
    let (mut guest, _control, link) = Guest::linked().await;
    let conversation = async {
        let mut conversation = link.open(&ToAgent::GetStats, "testing").await?;
        conversation.receiver.next().await
    };
    let end = guest.end.take().unwrap();
    let dies = async {
        drop(guest.accept().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
        end.send(panicked()).unwrap();
    };
    let (result, ()) = tokio::join!(conversation, dies);
    assert!(matches!(result.unwrap_err(), Error::VmEnded { .. }));
}

#[tokio::test(start_paused = true)]
async fn agent_that_stops_answering_is_given_up() {
    let (_guest, control, link) = Guest::linked().await;
    let error = link.stats().await.unwrap_err();
    assert!(matches!(error, Error::Silent { silent_ms, .. } if silent_ms >= 30_000), "{error}");
    drop(control);
}

/// A guest that is taken over can keep the pulse and leave everything else unanswered.
#[tokio::test(start_paused = true)]
async fn agent_that_answers_pings_and_nothing_else_is_waited_for_in_vain_once() {
    let (_guest, mut control, link) = Guest::linked().await;
    let agent = tokio::spawn(async move {
        while let Some(message) = control.next().await {
            if let ToAgent::Ping(number) = message {
                control.say(&ToHost::Pong(number)).await;
            }
        }
    });
    let error = link.quiesce().await.unwrap_err();
    let limit = ANSWERED.as_millis();
    assert!(matches!(error, Error::Silent { silent_ms, .. } if u128::from(silent_ms) == limit), "{error}");
    agent.abort();
}

/// Whoever is connected to says `OK` or hangs up; a monitor that is taken over does neither.
#[tokio::test(start_paused = true)]
async fn a_monitor_that_never_connects_a_conversation_is_given_up() {
    let (_guest, _control, link) = Guest::linked().await;
    // Nobody accepts, but the connection is made.
    let error = link.open(&ToAgent::GetStats, "testing").await.unwrap_err();
    let is_late = |source: &std::io::Error| source.kind() == std::io::ErrorKind::TimedOut;
    let connect =
        |error: &Error| matches!(error, Error::Monitor(MonitorError::Connect { source, .. }) if is_late(source));
    // The control conversation is silent as well here: whichever is noticed first.
    assert!(connect(&error) || matches!(error, Error::Silent { .. }), "{error:?}");
}

#[tokio::test]
async fn agent_that_lost_its_control_conversation_may_open_another() {
    let (guest, control, link) = Guest::linked().await;
    drop(control);
    let mut again = guest.connect().await;
    again.say(&ToHost::Hello(hello())).await;
    assert!(matches!(again.next().await, Some(ToAgent::Welcome(_))));
    let agent = tokio::spawn(async move {
        while !matches!(again.next().await, Some(ToAgent::GetStats)) {}
        again.say(&ToHost::Stats(stats())).await;
        again
    });
    assert_eq!(link.stats().await.unwrap(), stats());
    agent.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn agent_that_does_not_come_back_is_lost() {
    let (_guest, control, link) = Guest::linked().await;
    drop(control);
    let mut conversation = tokio::time::timeout(Duration::from_secs(60), link.stats()).await;
    while let Ok(Ok(_)) = conversation {
        conversation = tokio::time::timeout(Duration::from_secs(60), link.stats()).await;
    }
    assert!(matches!(conversation.unwrap().unwrap_err(), Error::Lost { .. }));
}

#[tokio::test]
async fn unasked_answer_breaks_the_conversation_not_the_host() {
    let (guest, mut control, link) = Guest::linked().await;
    control.say(&ToHost::Done).await;
    while control.next().await.is_some() {}
    let mut again = guest.connect().await;
    again.say(&ToHost::Hello(hello())).await;
    assert!(matches!(again.next().await, Some(ToAgent::Welcome(_))));
    drop(link);
}

/// A resumed link, and the guest's end of its control conversation.
async fn resumed(has_listener: bool) -> (Guest, super::fake::Peer, Link) {
    let (guest, link) = Guest::resume(LIMITS, has_listener).await;
    let mut control = guest.accept().await;
    let Some(ToAgent::Resume(welcome)) = control.next().await else { panic!("no resume") };
    assert!(welcome.entropy.len() >= midge_protocol::MIN_ENTROPY_BYTES);
    assert_eq!((welcome.hostname.as_str(), welcome.machine_id), ("h", [7; 16]));
    control.say(&ToHost::Done).await;
    let link = link.await.unwrap().unwrap();
    let Some(ToAgent::SetClock(unix_time_ns)) = control.next().await else { panic!("no clock") };
    assert!(unix_time_ns >= welcome.unix_time_ns);
    (guest, control, link)
}

#[tokio::test]
async fn copy_is_resumed_and_asked_on_the_same_conversation() {
    let (guest, mut control, link) = resumed(false).await;
    let timeline = guest.recorder.timeline();
    let at = |name| timeline.stage(Source::Host, name).unwrap().at_us;
    assert!(at("resume_sent") <= at("resumed"));
    // Nothing but what it is asked comes first.
    let agent = tokio::spawn(async move {
        assert_eq!(control.next().await, Some(ToAgent::GetStats));
        control.say(&ToHost::Stats(stats())).await;
        control
    });
    assert_eq!(link.stats().await.unwrap(), stats());
    agent.await.unwrap();
}

#[tokio::test]
async fn every_copy_gets_entropy_of_its_own() {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let (guest, _link) = Guest::resume(LIMITS, false).await;
        let Some(ToAgent::Resume(welcome)) = guest.accept().await.next().await else { panic!("no resume") };
        assert!(seen.insert(welcome.entropy));
    }
}

#[tokio::test]
async fn copy_that_refuses_is_an_error_with_its_reason() {
    let (guest, link) = Guest::resume(LIMITS, false).await;
    let mut control = guest.accept().await;
    control.next().await;
    let failure = Failure { code: ErrorCode::Other, errno: 1, text: "no entropy".into() };
    control.say(&ToHost::Error(failure)).await;
    let error = link.await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Failed { failure, .. } if failure.text == "no entropy"), "{error}");
}

#[tokio::test]
async fn copy_that_does_not_answer_or_dies_is_told_apart() {
    let (guest, link) = Guest::resume(Limits { boot: Duration::from_millis(50), ..LIMITS }, false).await;
    let _control = guest.accept().await;
    let error = link.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Silent { silent_ms: 50, .. }), "{error}");
    let (mut guest, link) = Guest::resume(LIMITS, false).await;
    let _control = guest.accept().await;
    guest.end.take().unwrap().send(panicked()).unwrap();
    let error = link.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::VmEnded { .. }), "{error}");
    let (guest, link) = Guest::resume(LIMITS, false).await;
    drop(guest.accept().await);
    drop(guest);
    assert!(matches!(link.await.unwrap().unwrap_err(), Error::Lost { .. }));
}

#[tokio::test]
async fn copy_that_loses_its_host_calls_again_where_it_can() {
    let (guest, control, link) = resumed(true).await;
    drop(control);
    let mut again = guest.connect().await;
    again.say(&ToHost::Hello(hello())).await;
    assert!(matches!(again.next().await, Some(ToAgent::Welcome(_))));
    drop(link);
    let (_guest, control, link) = resumed(false).await;
    drop(control);
    assert!(matches!(link.stats().await.unwrap_err(), Error::Lost { .. }));
}

#[tokio::test]
async fn frozen_guest_that_is_left_is_not_given_up() {
    let (guest, mut control, link) = Guest::linked().await;
    let agent = tokio::spawn(async move {
        loop {
            match control.next().await {
                Some(ToAgent::Freeze(freeze)) => break assert!(freeze.leave),
                Some(ToAgent::Ping(_)) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        control.say(&ToHost::Done).await;
        // The host hangs up, and so may the guest.
        while control.next().await.is_some() {}
    });
    link.freeze(true).await.unwrap();
    agent.await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), link.health.gone()).await.is_err());
    drop(guest);
}

#[tokio::test]
async fn real_agent_is_frozen_thawed_left_and_resumed() {
    let agent = super::real_agent::Agent::start().await;
    let stat = ToAgent::Stat(midge_protocol::Stat { path: "/".into(), follow: false });
    let answers = async |link: &Link| {
        let mut conversation = link.open(&stat, "testing").await?;
        conversation.receiver.next().await
    };
    agent.link.freeze(false).await.unwrap();
    assert!(matches!(agent.link.freeze(false).await.unwrap_err(), Error::Failed { .. }));
    assert!(tokio::time::timeout(Duration::from_millis(50), answers(&agent.link)).await.is_err());
    agent.link.thaw().await.unwrap();
    answers(&agent.link).await.unwrap();
    let recorder = crate::timeline::Recorder::new();
    let error = agent.resume(&recorder).await.unwrap_err();
    assert!(error.to_string().contains("frozen"), "{error}");
    agent.link.freeze(true).await.unwrap();
    let link = agent.resume(&recorder).await.unwrap();
    answers(&link).await.unwrap();
    link.stats().await.unwrap();
}

#[tokio::test]
async fn port_of_the_guest_is_a_stream_with_an_end_each_way() {
    let agent = super::real_agent::Agent::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Before it is asked anything, so right behind the agent's answer.
        stream.write_all(b"welcome ").await.unwrap();
        let mut asked = String::new();
        stream.read_to_string(&mut asked).await.unwrap();
        stream.write_all(asked.to_uppercase().as_bytes()).await.unwrap();
    });
    let mut stream = agent.link.dial(port).await.unwrap();
    stream.writer.write_all(b"question").await.unwrap();
    stream.writer.shutdown().await.unwrap();
    let mut heard = String::new();
    stream.reader.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "welcome QUESTION");
    program.await.unwrap();
    let refused = agent.link.dial(port).await.unwrap_err();
    assert!(matches!(&refused, Error::Failed { failure, .. } if failure.errno == libc::ECONNREFUSED), "{refused}");
}
