// SPDX-License-Identifier: Apache-2.0
//! Test support: the host's half of a conversation with the agent's own code on the other end of a socket pair.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use midge_protocol::{Decoder, Exec, Exited, ToAgent, ToHost, encode};

use crate::link::{Conversation, LinkError};
use crate::serve::{Gate, converse};

/// No test waits longer for a message.
const PATIENCE: Duration = Duration::from_secs(20);

/// The host's end.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    decoder: Decoder<ToHost>,
    received: Vec<u8>,
    agent: Option<JoinHandle<Result<(), LinkError>>>,
}

fn open_gate() -> &'static Gate {
    static GATE: Gate = Gate::new();
    GATE.open();
    &GATE
}

impl Peer {
    /// Opens a conversation.
    pub(crate) fn new() -> Self {
        crate::sys::process::ignore_broken_pipes();
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let agent = Some(thread::spawn(|| converse(Conversation::new(theirs), None, open_gate())));
        Self { stream, decoder: Decoder::new(), received: Vec::new(), agent }
    }

    /// Opens a conversation with this message.
    pub(crate) fn with(message: &ToAgent) -> Self {
        let mut peer = Self::new();
        peer.send(message);
        peer
    }

    pub(crate) fn send(&mut self, message: &ToAgent) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next message; `None` at the stream's end.
    pub(crate) fn next(&mut self) -> Option<ToHost> {
        loop {
            let mut rest = &self.received[..];
            let message = self.decoder.decode(&mut rest).unwrap();
            self.received = rest.to_vec();
            if message.is_some() {
                return message;
            }
            let mut buffer = vec![0; 100_000];
            let len = self.stream.read(&mut buffer).expect("the agent answers in time");
            if len == 0 {
                return None;
            }
            self.received = buffer[..len].to_vec();
        }
    }

    /// Everything up to the stream's end.
    pub(crate) fn rest(&mut self) -> Vec<ToHost> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Leaves without a word, and waits until the agent's side has ended too.
    pub(crate) fn leave(self) {
        drop(self.stream);
        if let Some(agent) = self.agent {
            // How it ended is not the point here.
            let _ = agent.join().unwrap();
        }
    }

    /// Reads a command to its end.
    pub(crate) fn finish(&mut self) -> Ran {
        let mut ran = Ran::default();
        for message in self.rest() {
            match message {
                ToHost::Started(started) => ran.exec_id = started.exec_id,
                ToHost::Stdout(output) => {
                    assert_eq!(output.offset, ran.stdout_from + ran.stdout.len() as u64);
                    ran.stdout.extend(output.data);
                }
                ToHost::Stderr(output) => {
                    assert_eq!(output.offset, ran.stderr.len() as u64);
                    ran.stderr.extend(output.data);
                }
                ToHost::Exited(exited) => {
                    assert_eq!(exited.stdout_bytes, ran.stdout_from + ran.stdout.len() as u64);
                    assert!(ran.exited.replace(exited).is_none());
                }
                ToHost::StdinTaken(taken) => ran.stdin_taken = taken,
                other => panic!("unexpected {other:?}"),
            }
        }
        ran
    }
}

/// What a command did.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) exec_id: u64,
    pub(crate) stdout_from: u64,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) stdin_taken: u64,
    pub(crate) exited: Option<Exited>,
}

impl Ran {
    pub(crate) fn code(&self) -> i32 {
        self.exited.as_ref().unwrap().number
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// A command with defaults.
pub(crate) fn exec(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(Into::into).collect(),
        env: Vec::new(),
        cwd: Some("/".into()),
        user: None,
        tty: None,
        stdin: false,
        timeout_ms: 0,
        replay_bytes: 0,
    }
}

/// A shell script as a command.
pub(crate) fn script(text: &str) -> Exec {
    exec(&["/bin/sh", "-c", text])
}

/// Runs a command to its end.
pub(crate) fn run(exec: Exec) -> Ran {
    Peer::with(&ToAgent::Exec(exec)).finish()
}

/// Whether this test has the rights of root; without them the tests that need them are skipped with this reason.
pub(crate) fn is_root(what: &str) -> bool {
    let root = crate::sys::process::own_ids().0 == 0;
    if !root {
        eprintln!("skipped: {what} needs root");
    }
    root
}
