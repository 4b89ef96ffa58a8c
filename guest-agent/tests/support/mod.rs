// SPDX-License-Identifier: Apache-2.0
//! Test support: the real binary as a process, and the host's half of its conversations.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use midge_protocol::{Decoder, Exec, MIN_ENTROPY_BYTES, NEWEST_VERSION, ToAgent, ToHost, Welcome, encode};

/// The agent's process; killed when dropped.
pub(crate) struct Agent(pub(crate) Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It has ended already when all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host's end of a conversation.
pub(crate) struct Line {
    pub(crate) stream: UnixStream,
    decoder: Decoder<ToHost>,
    received: Vec<u8>,
}

impl Line {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, decoder: Decoder::new(), received: Vec::new() }
    }

    /// Opens a conversation with the agent that serves at `dir`.
    pub(crate) fn open(dir: &Path) -> Self {
        Self::new(UnixStream::connect(dir.join("agent.sock")).unwrap())
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
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).unwrap() {
                0 => return None,
                len => self.received = buffer[..len].to_vec(),
            }
        }
    }

    pub(crate) fn ask(&mut self, message: &ToAgent) -> Option<ToHost> {
        self.send(message);
        self.next()
    }
}

/// Starts an agent at `dir`: its process, where it calls, and the first call.
pub(crate) fn start(dir: &Path) -> (Agent, UnixListener, Line) {
    let listener = UnixListener::bind(dir.join("ready.sock")).unwrap();
    let agent = Command::new(env!("CARGO_BIN_EXE_midge-agent")).arg("--serve-unix").arg(dir).spawn().unwrap();
    let agent = Agent(agent);
    let control = Line::new(listener.accept().unwrap().0);
    (agent, listener, control)
}

pub(crate) fn welcome() -> Welcome {
    let (entropy, hostname, machine_id) = (vec![1; MIN_ENTROPY_BYTES], "test".to_owned(), [2; 16]);
    Welcome { version: NEWEST_VERSION, unix_time_ns: 0, entropy, hostname, machine_id }
}

/// A shell script as a command.
pub(crate) fn script(text: &str) -> Exec {
    Exec {
        argv: ["/bin/sh", "-c", text].map(Into::into).to_vec(),
        env: Vec::new(),
        cwd: None,
        user: None,
        tty: None,
        stdin: false,
        timeout_ms: 0,
        replay_bytes: 0,
    }
}
