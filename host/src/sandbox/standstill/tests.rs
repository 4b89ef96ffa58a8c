// SPDX-License-Identifier: Apache-2.0
//! Callers that give up, at a guest that the test plays.

use std::future::{pending, ready};
use std::time::Duration;

use midge_protocol::{Freeze, ToAgent, ToHost};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::link::fake::{Guest, Peer};

/// Long enough for a request that should not be there to come.
const SHORT: Duration = Duration::from_millis(50);
const SOON: Duration = Duration::from_secs(20);
const FREEZE: ToAgent = ToAgent::Freeze(Freeze { leave: false });

/// The next request, signs of life aside.
async fn request(control: &mut Peer) -> ToAgent {
    loop {
        match timeout(SOON, control.next()).await.expect("the host asks for something") {
            Some(ToAgent::Ping(number)) => control.say(&ToHost::Pong(number)).await,
            Some(request) => return request,
            None => panic!("the host hung up"),
        }
    }
}

async fn grant(control: &mut Peer, expected: &ToAgent) {
    assert_eq!(request(control).await, *expected);
    control.say(&ToHost::Done).await;
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_no_guest_frozen() {
    let (_guest, mut control, link) = Guest::linked().await;
    let standstill = Standstill::default();
    // Before the guest has answered.
    let asked = {
        let during = standstill.during(&link, ready(Ok(())));
        tokio::select! {
            biased;
            _ = during => panic!("nobody has answered"),
            asked = request(&mut control) => asked,
        }
    };
    assert_eq!(asked, FREEZE);
    control.say(&ToHost::Done).await;
    grant(&mut control, &ToAgent::Thaw).await;
    // While the work is under way: it is not cut short.
    let (release, released) = oneshot::channel::<()>();
    let (told, done) = oneshot::channel();
    let work = async {
        released.await.expect("the test says when");
        told.send(()).expect("the test waits");
        Ok(())
    };
    tokio::select! {
        biased;
        _ = standstill.during(&link, work) => panic!("the work is not done"),
        () = grant(&mut control, &FREEZE) => {}
    }
    assert!(timeout(SHORT, request(&mut control)).await.is_err(), "not thawed before the work is done");
    release.send(()).expect("it goes on");
    done.await.expect("the work is done");
    grant(&mut control, &ToAgent::Thaw).await;
}

#[tokio::test]
async fn the_next_one_waits_for_its_turn_and_asks_nothing_of_the_guest_if_it_gives_up() {
    let (_guest, mut control, link) = Guest::linked().await;
    let standstill = Standstill::default();
    let (release, released) = oneshot::channel::<()>();
    let first = standstill.during(&link, async { released.await.map_err(|_| unreachable!()) });
    let second = standstill.during(&link, pending::<Result<(), Error>>());
    let third = standstill.during(&link, ready(Ok("third")));
    let guest = async {
        grant(&mut control, &FREEZE).await;
        assert!(timeout(SHORT, request(&mut control)).await.is_err(), "nobody else has a turn");
        release.send(()).expect("it goes on");
        grant(&mut control, &ToAgent::Thaw).await;
        grant(&mut control, &FREEZE).await;
        grant(&mut control, &ToAgent::Thaw).await;
    };
    let (first, second, third, ()) = tokio::join!(first, timeout(Duration::from_millis(20), second), third, guest);
    first.expect("it is done");
    assert!(second.is_err(), "it has given up");
    assert_eq!(third.expect("it is done"), "third");
}

#[tokio::test]
async fn the_guest_goes_on_when_the_work_fails_and_is_not_thawed_when_it_was_not_frozen() {
    let (_guest, mut control, link) = Guest::linked().await;
    let standstill = Standstill::default();
    let fails = || ready(Err::<(), _>(Error::prepare("test", Fault::Host, "it fails")));
    let guest = async {
        grant(&mut control, &FREEZE).await;
        grant(&mut control, &ToAgent::Thaw).await;
        assert_eq!(request(&mut control).await, FREEZE);
        let failure = midge_protocol::Failure { code: midge_protocol::ErrorCode::Other, errno: 5, text: "no".into() };
        control.say(&ToHost::Error(failure)).await;
        grant(&mut control, &FREEZE).await;
        grant(&mut control, &ToAgent::Thaw).await;
    };
    let host = async {
        let failed = standstill.during(&link, fails()).await.expect_err("the work fails");
        assert!(failed.to_string().contains("test"), "{failed}");
        let refused = standstill.during(&link, fails()).await.expect_err("the guest refuses");
        assert!(matches!(refused, Error::Failed { .. }), "{refused}");
        standstill.during(&link, async { Ok(()) }).await.expect("the guest goes on");
    };
    tokio::join!(guest, host);
}
