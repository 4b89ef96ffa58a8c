// SPDX-License-Identifier: Apache-2.0
//! The real binary, serving conversations on Unix sockets: from its hello to its shutdown.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use midge_protocol::{Decoder, Exec, MIN_ENTROPY_BYTES, Stat, ToAgent, ToHost, Welcome, encode, negotiate};

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It has ended already when all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Line {
    stream: UnixStream,
    decoder: Decoder<ToHost>,
    received: Vec<u8>,
}

impl Line {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, decoder: Decoder::new(), received: Vec::new() }
    }

    fn send(&mut self, message: &ToAgent) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn next(&mut self) -> Option<ToHost> {
        loop {
            let mut rest = &self.received[..];
            let message = self.decoder.decode(&mut rest).unwrap();
            self.received = rest.to_vec();
            if message.is_some() {
                return message;
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).unwrap() {
                0 => return None,
                len => self.received = buffer[..len].to_vec(),
            }
        }
    }
}

fn start(dir: &Path) -> (Agent, Line) {
    let listener = UnixListener::bind(dir.join("ready.sock")).unwrap();
    let agent = Command::new(env!("CARGO_BIN_EXE_midge-agent")).arg("--serve-unix").arg(dir).spawn().unwrap();
    let agent = Agent(agent);
    (agent, Line::new(listener.accept().unwrap().0))
}

fn welcome(version: u16) -> ToAgent {
    let (entropy, hostname, machine_id) = (vec![1; MIN_ENTROPY_BYTES], "test".to_owned(), [2; 16]);
    ToAgent::Welcome(Welcome { version, unix_time_ns: 0, entropy, hostname, machine_id })
}

#[test]
fn the_binary_serves_from_hello_to_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let (mut agent, mut control) = start(dir.path());
    let Some(ToHost::Hello(hello)) = control.next() else { panic!("no hello") };
    control.send(&welcome(negotiate(&hello).unwrap()));

    let mut line = Line::new(UnixStream::connect(dir.path().join("agent.sock")).unwrap());
    let argv = ["/bin/sh", "-c", "echo $PPID; exit 3"].map(Into::into).to_vec();
    let (env, cwd, user, tty) = (Vec::new(), None, None, None);
    line.send(&ToAgent::Exec(Exec { argv, env, cwd, user, tty, stdin: false, timeout_ms: 0, replay_bytes: 0 }));
    assert!(matches!(line.next(), Some(ToHost::Started(_))));
    let parent = format!("{}\n", agent.0.id());
    assert!(matches!(line.next(), Some(ToHost::Stdout(output)) if output.data == parent.as_bytes()));
    assert!(matches!(line.next(), Some(ToHost::Exited(exited)) if exited.number == 3));
    assert_eq!(line.next(), None);

    let mut line = Line::new(UnixStream::connect(dir.path().join("agent.sock")).unwrap());
    for path in ["/", "/etc"] {
        line.send(&ToAgent::Stat(Stat { path: path.into(), follow: false }));
        assert!(matches!(line.next(), Some(ToHost::Metadata(_))));
    }

    control.send(&ToAgent::Shutdown);
    assert_eq!(control.next(), Some(ToHost::Done));
    assert!(agent.0.wait().unwrap().success());
}

#[test]
fn a_socket_of_an_agent_that_is_gone_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    drop(start(dir.path()));
    std::fs::remove_file(dir.path().join("ready.sock")).unwrap();
    let (_agent, mut control) = start(dir.path());
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
