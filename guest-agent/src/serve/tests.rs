// SPDX-License-Identifier: Apache-2.0
//! Many conversations at once, and none before its time.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use midge_protocol::{Decoder, encode};

use super::*;
use crate::control::{Agent, Power, Report};
use crate::link::Host;
use crate::testing::exec;

#[test]
fn a_gate_lets_pass_only_when_it_is_open() {
    static GATE: Gate = Gate::new();
    assert!(GATE.pass(Duration::from_millis(5)).is_none());
    let waiting = thread::spawn(|| GATE.pass(Duration::from_secs(10)));
    GATE.open();
    assert!(waiting.join().unwrap().is_some());
    assert!(GATE.pass(Duration::ZERO).is_some());
}

#[test]
fn a_frozen_gate_has_no_time_limit_and_tells_afterwards_whether_the_guest_was_copied() {
    static GATE: Gate = Gate::new();
    GATE.open();
    let pass = GATE.pass(Duration::ZERO).unwrap();
    GATE.freeze();
    let waiting = thread::spawn(|| GATE.pass(Duration::ZERO));
    let asking = thread::spawn(move || pass.is_from_before_a_copy());
    thread::sleep(Duration::from_millis(20));
    assert!(!waiting.is_finished() && !asking.is_finished());
    GATE.open();
    assert!(waiting.join().unwrap().is_some() && !asking.join().unwrap());
    GATE.freeze();
    GATE.open_in_copy();
    assert!(pass.is_from_before_a_copy());
    assert!(!GATE.pass(Duration::ZERO).unwrap().is_from_before_a_copy());
}

/// All that comes until the stream's end.
fn rest(mut stream: UnixStream) -> Vec<ToHost> {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let (mut decoder, mut received) = (Decoder::new(), &bytes[..]);
    std::iter::from_fn(|| decoder.decode(&mut received).unwrap()).collect()
}

fn send(stream: &mut UnixStream, message: &ToAgent) {
    let mut bytes = Vec::new();
    encode(message, &mut bytes).unwrap();
    stream.write_all(&bytes).unwrap();
}

#[test]
fn as_many_conversations_as_promised_are_served_and_one_more_is_told_so() {
    static GATE: Gate = Gate::new();
    GATE.open();
    if crate::sys::process::raise_open_files(8192).is_err() {
        eprintln!("skipped: this test needs more open files than it is allowed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = Host::Unix(dir.path().to_owned());
    let agent = Agent::new(host.clone(), host.listen().unwrap(), Power::Process, &GATE, Report::default());
    thread::spawn(move || agent.serve(None::<fn() -> Vec<String>>));
    let connect = || UnixStream::connect(dir.path().join("agent.sock")).unwrap();
    let mut open: Vec<UnixStream> = (0..MAX_CONVERSATIONS).map(|_| connect()).collect();
    let refused = rest(connect());
    assert!(matches!(&refused[..], [ToHost::Error(failure)] if failure.code == ErrorCode::Busy), "{refused:?}");
    // The last of them is as good as the first.
    let mut last = open.pop().unwrap();
    send(&mut last, &ToAgent::Exec(exec(&["true"])));
    let answer = rest(last);
    assert!(matches!(&answer[..], [ToHost::Started(_), ToHost::Exited(_)]), "{answer:?}");
    drop(open);
    let since = std::time::Instant::now();
    loop {
        let mut stream = connect();
        send(&mut stream, &ToAgent::Exec(exec(&["true"])));
        if rest(stream).len() == 2 {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(10), "places of closed conversations are not given back");
    }
}
