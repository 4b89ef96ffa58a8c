// SPDX-License-Identifier: Apache-2.0
//! A conversation with an agent, blocking and with nothing around it, in the guest of any monitor that takes
//! `CONNECT <port>` on its vsock socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use midge_protocol::{Decoder, MIN_ENTROPY_BYTES, ToAgent, ToHost, Welcome, encode};

/// How often a wait looks whether its time is up.
const TICK: Duration = Duration::from_millis(50);

/// A stream, and received bytes that are not a message yet.
#[derive(Debug)]
pub(super) struct Talk {
    stream: UnixStream,
    decoder: Decoder<ToHost>,
    pending: Vec<u8>,
}

/// Opens a stream to a port of the guest whose monitor listens at `uds`.
pub(super) fn connect(uds: &Path, port: u32, limit: Duration) -> Result<UnixStream, String> {
    let opened = UnixStream::connect(uds).and_then(|mut stream| {
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let (mut line, mut byte) = (Vec::new(), [0]);
        // By bytes, so that nothing of the guest's own is taken.
        while line.last() != Some(&b'\n') && line.len() < 32 {
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        if line.starts_with(b"OK ") { Ok(stream) } else { Err(io::Error::other("the monitor refused the connection")) }
    });
    opened.map_err(|error| format!("connecting to port {port} of the guest: {error}"))
}

impl AsFd for Talk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Talk {
    /// A conversation over a stream.
    pub(super) fn over(stream: UnixStream) -> Result<Self, String> {
        stream.set_read_timeout(Some(TICK)).map_err(|error| error.to_string())?;
        Ok(Self { stream, decoder: Decoder::new(), pending: Vec::new() })
    }

    /// Sends messages in one piece.
    pub(super) fn send(&mut self, messages: &[ToAgent]) -> Result<(), String> {
        let mut bytes = Vec::new();
        for message in messages {
            encode(message, &mut bytes).map_err(|error| error.to_string())?;
        }
        self.stream.write_all(&bytes).map_err(|error| error.to_string())
    }

    /// The agent's next message; `None` when `give_up` says so first.
    pub(super) fn next(&mut self, mut give_up: impl FnMut() -> bool) -> Result<Option<ToHost>, String> {
        loop {
            let mut rest = self.pending.as_slice();
            let message = self.decoder.decode(&mut rest).map_err(|error| error.to_string())?;
            let used = self.pending.len() - rest.len();
            self.pending.drain(..used);
            if message.is_some() {
                return Ok(message);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err("the agent hung up".to_owned()),
                Ok(len) => self.pending.extend_from_slice(&chunk[..len]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if give_up() {
                        return Ok(None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// The next message, which has to be `expected`, or the time is up.
    pub(super) fn expect(&mut self, expected: &ToHost, give_up: impl FnMut() -> bool) -> Result<(), String> {
        match self.next(give_up)? {
            Some(got) if got == *expected => Ok(()),
            Some(got) => Err(format!("{got:?} in place of {expected:?}")),
            None => Err(format!("nothing in place of {expected:?}")),
        }
    }
}

/// What every guest of a bench is told; it needs no secrets.
pub(super) fn welcome(version: u16) -> Welcome {
    Welcome {
        version,
        unix_time_ns: unix_time_ns(),
        entropy: vec![0x5a; MIN_ENTROPY_BYTES],
        hostname: "bench".into(),
        machine_id: [1; 16],
    }
}

fn unix_time_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn connecting_takes_the_answer_and_no_byte_more() {
        let dir = tempfile::tempdir().unwrap();
        let uds = dir.path().join("v");
        let listener = UnixListener::bind(&uds).unwrap();
        let monitor = std::thread::spawn(move || {
            for answer in ["OK 7\nx", "NO\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 11];
                stream.read_exact(&mut asked).unwrap();
                assert_eq!(&asked, b"CONNECT 52\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let limit = Duration::from_secs(5);
        let mut rest = String::new();
        connect(&uds, 52, limit).unwrap().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "x");
        assert!(connect(&uds, 52, limit).unwrap_err().contains("refused"));
        monitor.join().unwrap();
    }

    #[test]
    fn unexpected_messages_are_named() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut talk = Talk::over(near).unwrap();
        let mut bytes = Vec::new();
        [ToHost::Done, ToHost::Pong(3)].iter().for_each(|message| encode(message, &mut bytes).unwrap());
        far.write_all(&bytes).unwrap();
        talk.expect(&ToHost::Done, || true).unwrap();
        assert!(talk.expect(&ToHost::Done, || true).unwrap_err().contains("Pong(3) in place of Done"));
        assert!(talk.expect(&ToHost::Done, || true).unwrap_err().contains("nothing in place"));
    }
}
