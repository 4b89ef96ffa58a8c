// SPDX-License-Identifier: Apache-2.0
//! The first words with an agent, blocking and with nothing around them: hello, welcome, ping, pong.
//! Works with any monitor that connects guests to `<uds>_<port>`.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use midge_protocol::{READY_PORT, ToAgent, ToHost, negotiate};

use super::talk::{Talk, welcome};

/// Awaits the agent at the socket of the port it reports to.
#[derive(Debug)]
pub(super) struct Greeter {
    listener: UnixListener,
}

/// When the agent spoke, counted from a start given by the caller.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) hello_us: u64,
    pub(super) reply_us: u64,
    /// What the agent told of its own start: names, and guest time in microseconds.
    pub(super) stages: Vec<(String, u64)>,
    /// The control conversation. Holding it keeps the agent content.
    pub(super) talk: Talk,
}

/// Microseconds since `start`.
pub(super) fn since_us(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Greeter {
    /// Listens; `uds` is the socket that the monitor is told of.
    pub(super) fn bind(uds: &Path) -> io::Result<Self> {
        Ok(Self { listener: listen(uds, READY_PORT)? })
    }

    /// Takes the agent's connection and talks to it; `None` when `give_up` says so first.
    pub(super) fn greet(&self, start: Instant, mut give_up: impl FnMut() -> bool) -> Result<Option<Greeted>, String> {
        let Some(stream) = accept(&self.listener, &mut give_up).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let mut talk = Talk::over(stream)?;
        let Some(message) = talk.next(&mut give_up)? else { return Ok(None) };
        let hello_us = since_us(start);
        let hello = match message {
            ToHost::Hello(hello) => hello,
            ToHost::InitFailed(failed) => return Err(format!("the guest could not be set up: {}", failed.text)),
            other => return Err(format!("{other:?} in place of a hello")),
        };
        let version = negotiate(&hello).map_err(|error| error.to_string())?;
        talk.send(&[ToAgent::Welcome(welcome(version)), ToAgent::Ping(7)])?;
        match talk.next(&mut give_up)? {
            None => Ok(None),
            Some(ToHost::Pong(7)) => {
                let reply_us = since_us(start);
                let stages = hello.stages.into_iter().map(|stage| (stage.name, stage.at_us)).collect();
                Ok(Some(Greeted { hello_us, reply_us, stages, talk }))
            }
            Some(other) => Err(format!("{other:?} in place of a pong")),
        }
    }
}

/// Where a guest's connections to `port` arrive.
pub(super) fn listen(uds: &Path, port: u32) -> io::Result<UnixListener> {
    let mut path = uds.as_os_str().to_owned();
    path.push(format!("_{port}"));
    UnixListener::bind(path)
}

/// The next of them; `None` when `give_up` says so first.
pub(super) fn accept(listener: &UnixListener, mut give_up: impl FnMut() -> bool) -> io::Result<Option<UnixStream>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut fds, Some(&tick))? > 0 {
            return Ok(Some(listener.accept()?.0));
        }
        if give_up() {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use midge_protocol::{Decoder, Hello, Stage, encode};
    use std::io::{Read as _, Write as _};

    /// An agent that says hello in two pieces and answers a ping.
    fn agent(path: std::path::PathBuf, polite: bool) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            let stages = vec![Stage { name: "init".into(), at_us: 5 }];
            let hello =
                Hello { oldest_version: 1, newest_version: 1, agent_version: "0".into(), stages, warnings: vec![] };
            let mut bytes = Vec::new();
            let first = if polite { ToHost::Hello(hello) } else { ToHost::Pong(7) };
            encode(&first, &mut bytes).unwrap();
            stream.write_all(&bytes[..3]).unwrap();
            stream.write_all(&bytes[3..]).unwrap();
            let (mut decoder, mut seen) = (Decoder::<ToAgent>::new(), Vec::new());
            let mut chunk = [0; 1024];
            while let Ok(len @ 1..) = stream.read(&mut chunk) {
                let mut rest = &chunk[..len];
                while let Some(message) = decoder.decode(&mut rest).unwrap() {
                    if let ToAgent::Ping(number) = message {
                        let mut bytes = Vec::new();
                        encode(&ToHost::Pong(number), &mut bytes).unwrap();
                        stream.write_all(&bytes).unwrap();
                    }
                    seen.push(message);
                }
            }
            assert!(!polite || matches!(seen[..], [ToAgent::Welcome(_), ToAgent::Ping(7)]), "{seen:?}");
        })
    }

    #[test]
    fn hello_is_answered_and_the_reply_timed() {
        let dir = tempfile::tempdir().unwrap();
        let greeter = Greeter::bind(&dir.path().join("v")).unwrap();
        let agent = agent(dir.path().join("v_1025"), true);
        let greeted = greeter.greet(Instant::now(), || false).unwrap().unwrap();
        assert!(greeted.hello_us <= greeted.reply_us);
        assert_eq!(greeted.stages, [("init".to_owned(), 5)]);
        drop(greeted);
        agent.join().unwrap();
    }

    #[test]
    fn wrong_first_word_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let greeter = Greeter::bind(&dir.path().join("v")).unwrap();
        let agent = agent(dir.path().join("v_1025"), false);
        assert!(greeter.greet(Instant::now(), || false).unwrap_err().contains("in place of a hello"));
        agent.join().unwrap();
    }

    #[test]
    fn waiting_ends_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let greeter = Greeter::bind(&dir.path().join("v")).unwrap();
        assert!(greeter.greet(Instant::now(), || true).unwrap().is_none());
    }
}
