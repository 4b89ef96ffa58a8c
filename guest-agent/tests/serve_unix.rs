// SPDX-License-Identifier: Apache-2.0
//! The real binary, serving conversations on Unix sockets: from its hello to its shutdown.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::net::UnixStream;
use std::process::Command;

use midge_protocol::{Stat, ToAgent, ToHost, Welcome, negotiate};

use support::{Line, script, start, welcome};

#[test]
fn the_binary_serves_from_hello_to_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let (mut agent, _listener, mut control) = start(dir.path());
    let Some(ToHost::Hello(hello)) = control.next() else { panic!("no hello") };
    control.send(&ToAgent::Welcome(Welcome { version: negotiate(&hello).unwrap(), ..welcome() }));

    let mut line = Line::open(dir.path());
    line.send(&ToAgent::Exec(script("echo $PPID; exit 3")));
    assert!(matches!(line.next(), Some(ToHost::Started(_))));
    let parent = format!("{}\n", agent.0.id());
    assert!(matches!(line.next(), Some(ToHost::Stdout(output)) if output.data == parent.as_bytes()));
    assert!(matches!(line.next(), Some(ToHost::Exited(exited)) if exited.number == 3));
    assert_eq!(line.next(), None);

    let mut line = Line::open(dir.path());
    for path in ["/", "/etc"] {
        line.send(&ToAgent::Stat(Stat { path: path.into(), follow: false }));
        assert!(matches!(line.next(), Some(ToHost::Metadata(_))));
    }

    assert_eq!(control.ask(&ToAgent::Shutdown), Some(ToHost::Done));
    assert!(agent.0.wait().unwrap().success());
}

#[test]
fn a_socket_of_an_agent_that_is_gone_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    drop(start(dir.path()));
    std::fs::remove_file(dir.path().join("ready.sock")).unwrap();
    let (_agent, _listener, mut control) = start(dir.path());
    assert!(matches!(control.next(), Some(ToHost::Hello(_))));
    UnixStream::connect(dir.path().join("agent.sock")).unwrap();
}

#[test]
fn started_by_hand_it_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_midge-agent")).arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("PID 1 of a Midge guest"));
    let output =
        Command::new(env!("CARGO_BIN_EXE_midge-agent")).args(["--serve-unix", "/no/such/dir"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}
