// SPDX-License-Identifier: Apache-2.0
//! Test support: the guest's side of a link, played by the test over real sockets.

use std::sync::Arc;
use std::time::Duration;

use midge_protocol::{Decoder, Hello, NEWEST_VERSION, OLDEST_VERSION, READY_PORT, Stage, ToAgent, ToHost, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::{Identity, Limits, Link};
use crate::error::Error;
use crate::groups::Share;
use crate::monitor::{Dialer, End, Place};
use crate::timeline::Recorder;

/// A link whose guest is the test.
pub(crate) struct Guest {
    pub(crate) dir: tempfile::TempDir,
    monitor: UnixListener,
    pub(crate) recorder: Recorder,
    /// Sending on it ends the VM.
    pub(crate) end: Option<oneshot::Sender<Arc<End>>>,
}

/// One conversation, seen from the guest.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    decoder: Decoder<ToAgent>,
    unread: Vec<u8>,
}

pub(crate) const LIMITS: Limits = Limits { boot: Duration::from_secs(5), silence: Duration::from_secs(30) };

pub(crate) fn hello() -> Hello {
    Hello {
        oldest_version: OLDEST_VERSION,
        newest_version: NEWEST_VERSION,
        agent_version: "fake".into(),
        stages: vec![Stage { name: "start".into(), at_us: 1000 }, Stage { name: "ready".into(), at_us: 3500 }],
        warnings: Vec::new(),
    }
}

fn identity() -> Identity {
    Identity { hostname: "h".into(), machine_id: [7; 16], behind: Duration::ZERO }
}

/// An end of the VM that comes when it is sent, and not when the sender is dropped.
fn end() -> (oneshot::Sender<Arc<End>>, impl Future<Output = Arc<End>> + Send + 'static) {
    let (end, ended) = oneshot::channel();
    let ended = async {
        match ended.await {
            Ok(end) => end,
            Err(_) => std::future::pending().await,
        }
    };
    (end, ended)
}

impl Guest {
    /// Starts establishing a link; the test has to say hello.
    pub(crate) async fn start(limits: Limits) -> (Self, tokio::task::JoinHandle<Result<(Link, Hello), Error>>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("v.sock");
        let place = Place::Native { vmm: "/nonexistent".into(), allow_missing: Vec::new(), share: Share::default() };
        let listener = place.listen("fake", &socket, READY_PORT).await.unwrap();
        let monitor = UnixListener::bind(&socket).unwrap();
        let (end, ended) = end();
        let recorder = Recorder::new();
        let dialer = Dialer::new(place, "fake", &socket);
        let link = tokio::spawn(Link::establish(dialer, listener, ended, identity(), limits, recorder.clone()));
        (Self { dir, monitor, recorder, end: Some(end) }, link)
    }

    /// Starts resuming a copy, which can call again if it `has_listener`; the test has to answer.
    pub(crate) async fn resume(
        limits: Limits,
        has_listener: bool,
    ) -> (Self, tokio::task::JoinHandle<Result<Link, Error>>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("v.sock");
        let place = Place::Native { vmm: "/nonexistent".into(), allow_missing: Vec::new(), share: Share::default() };
        let listener = match has_listener {
            true => Some(place.listen("fake", &socket, READY_PORT).await.unwrap()),
            false => None,
        };
        let monitor = UnixListener::bind(&socket).unwrap();
        let (end, ended) = end();
        let recorder = Recorder::new();
        let dialer = Dialer::new(place, "fake", &socket);
        let link = tokio::spawn(Link::resume(dialer, listener, ended, identity(), limits, recorder.clone()));
        (Self { dir, monitor, recorder, end: Some(end) }, link)
    }

    /// A link that is established, and the guest's end of its control conversation.
    pub(crate) async fn linked() -> (Self, Peer, Link) {
        let (guest, link) = Self::start(LIMITS).await;
        let mut control = guest.connect().await;
        control.say(&ToHost::Hello(hello())).await;
        assert!(matches!(control.next().await, Some(ToAgent::Welcome(_))));
        let (link, _) = link.await.unwrap().unwrap();
        (guest, control, link)
    }

    /// The guest connects to the host's port for the control conversation.
    pub(crate) async fn connect(&self) -> Peer {
        let path = self.dir.path().join(format!("v.sock_{READY_PORT}"));
        Peer::new(UnixStream::connect(path).await.unwrap())
    }

    /// The host's next conversation.
    pub(crate) async fn accept(&self) -> Peer {
        let (mut stream, _) = self.monitor.accept().await.unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(stream.read_u8().await.unwrap());
        }
        assert_eq!(line, b"CONNECT 1024\n");
        stream.write_all(b"OK 5000\n").await.unwrap();
        Peer::new(stream)
    }
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::new(), unread: Vec::new() }
    }

    /// The host's next message; `None` when it hung up.
    pub(crate) async fn next(&mut self) -> Option<ToAgent> {
        loop {
            let mut rest = &self.unread[..];
            let message = self.decoder.decode(&mut rest).unwrap();
            self.unread = rest.to_vec();
            if message.is_some() {
                return message;
            }
            let mut buffer = vec![0; 64 << 10];
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(got) => self.unread = buffer[..got].to_vec(),
            }
        }
    }

    pub(crate) async fn say(&mut self, message: &ToHost) {
        let mut frame = Vec::new();
        encode(message, &mut frame).unwrap();
        self.raw(&frame).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }
}
