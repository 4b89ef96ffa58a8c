// SPDX-License-Identifier: Apache-2.0
//! A port of the loopback as a stream of the host.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};

use midge_protocol::ToAgent;

use super::*;
use crate::testing::Peer;

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// One test at a time: the connections of all are counted together.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn port_is_reached_and_each_end_passes_by_itself() {
    let _alone = ALONE.lock();
    let (listener, port) = listen();
    let mut host = Peer::with(&ToAgent::Dial(port));
    let (mut program, _) = listener.accept().unwrap();
    assert_eq!(host.next(), Some(ToHost::Done));
    host.stream.write_all(b"question").unwrap();
    host.stream.shutdown(Shutdown::Write).unwrap();
    let mut asked = String::new();
    program.read_to_string(&mut asked).unwrap();
    program.write_all(b"answer").unwrap();
    drop(program);
    let mut answered = String::new();
    host.stream.read_to_string(&mut answered).unwrap();
    assert_eq!((asked.as_str(), answered.as_str()), ("question", "answer"));
    host.leave();
}

#[test]
fn port_that_nobody_listens_on_is_refused_with_the_errno() {
    let _alone = ALONE.lock();
    let (listener, port) = listen();
    drop(listener);
    let mut host = Peer::with(&ToAgent::Dial(port));
    let Some(ToHost::Error(failure)) = host.next() else { panic!("it is refused") };
    assert_eq!(failure.errno, libc::ECONNREFUSED);
    assert!(failure.text.contains(&format!("connecting to port {port} of the guest")), "{}", failure.text);
    assert_eq!(host.next(), None);
}

#[test]
fn one_connection_too_many_is_told_so_and_places_are_given_back() {
    let _alone = ALONE.lock();
    let (listener, port) = listen();
    let dial = || {
        let mut host = Peer::with(&ToAgent::Dial(port));
        (host.next(), host)
    };
    let open: Vec<_> = (0..MAX_DIALED)
        .map(|_| {
            let (answer, host) = dial();
            assert_eq!(answer, Some(ToHost::Done));
            (host, listener.accept().unwrap())
        })
        .collect();
    let (Some(ToHost::Error(failure)), _) = dial() else { panic!("it is refused") };
    assert_eq!(failure.code, ErrorCode::Busy);
    for (host, _program) in open {
        host.leave();
    }
    assert_eq!(dial().0, Some(ToHost::Done));
}
