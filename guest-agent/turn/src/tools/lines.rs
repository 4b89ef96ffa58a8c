// SPDX-License-Identifier: Apache-2.0
//! Lines of JSON over a socket of a door: bounded, ended by a deadline or the flag. It knows no message.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use midge_protocol::broker::LINE_MAX_BYTES;
use rustix::event::PollFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::{Cancel, Waited};

/// Bytes of one read.
const CHUNK_BYTES: usize = 64 << 10;
/// How long the other side may take to accept what is sent.
const SEND_WITHIN: Duration = Duration::from_secs(30);

/// Why there is no line.
#[derive(Debug, Error)]
pub(super) enum LineError {
    /// Nobody is there.
    #[error("the door is shut: {0}")]
    Shut(io::Error),
    /// The other side has hung up.
    #[error("the other side ended in the middle")]
    Ended,
    /// It says nothing.
    #[error("no answer in time")]
    TimedOut,
    /// The flag is set.
    #[error("cancelled")]
    Cancelled,
    /// More than a line may have.
    #[error("a line is longer than {LINE_MAX_BYTES} bytes")]
    TooLong,
    /// Not what is expected.
    #[error("a line makes no sense: {0}")]
    Garbage(serde_json::Error),
    /// The socket.
    #[error("the door broke: {0}")]
    Broke(io::Error),
}

/// A conversation through a door.
pub(super) struct Lines<'a> {
    stream: UnixStream,
    unread: Vec<u8>,
    cancel: &'a Cancel,
    deadline: Instant,
}

impl<'a> Lines<'a> {
    /// Opens the door.
    pub(super) fn open(door: &Path, cancel: &'a Cancel, deadline: Instant) -> Result<Self, LineError> {
        let stream = UnixStream::connect(door).map_err(LineError::Shut)?;
        stream.set_nonblocking(true).map_err(LineError::Shut)?;
        Ok(Self { stream, unread: Vec::new(), cancel, deadline })
    }

    /// What is waited for from now on is waited for until `deadline`.
    pub(super) fn until(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Hangs up this side's half: the other side hears the end, and may still say what it has.
    pub(super) fn finish(&self) {
        // Where the other side is gone there is no half to close.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Says one line.
    pub(super) fn say(&mut self, line: &impl Serialize) -> Result<(), LineError> {
        let mut bytes = serde_json::to_vec(line).map_err(LineError::Garbage)?;
        bytes.push(b'\n');
        if bytes.len() > LINE_MAX_BYTES {
            return Err(LineError::TooLong);
        }
        let deadline = self.deadline.min(Instant::now() + SEND_WITHIN);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    self.wait(PollFlags::OUT, deadline)?;
                }
                Err(error) => return Err(LineError::Broke(error)),
            }
        }
        Ok(())
    }

    /// The next line.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> Result<T, LineError> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.unread[looked..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=looked + end).collect();
                return serde_json::from_slice(&line).map_err(LineError::Garbage);
            }
            looked = self.unread.len();
            if looked >= LINE_MAX_BYTES {
                return Err(LineError::TooLong);
            }
            let mut chunk = vec![0; CHUNK_BYTES.min(LINE_MAX_BYTES - looked)];
            match self.receive(&mut chunk)? {
                0 => return Err(LineError::Ended),
                count => self.unread.extend_from_slice(&chunk[..count]),
            }
        }
    }

    fn receive(&mut self, chunk: &mut [u8]) -> Result<usize, LineError> {
        loop {
            match self.stream.read(chunk) {
                Ok(count) => return Ok(count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    self.wait(PollFlags::IN, self.deadline)?;
                }
                Err(error) => return Err(LineError::Broke(error)),
            }
        }
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<(), LineError> {
        match self.cancel.wait(self.stream.as_fd(), events, deadline).map_err(LineError::Broke)? {
            Waited::Ready => Ok(()),
            Waited::TimedOut => Err(LineError::TimedOut),
            Waited::Cancelled => Err(LineError::Cancelled),
        }
    }
}

/// The bytes that follow a line.
impl Read for Lines<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            return self.receive(bytes).map_err(io::Error::other);
        }
        let count = bytes.len().min(self.unread.len());
        bytes[..count].copy_from_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::os::unix::net::UnixListener;

    /// What a client hears from a server that says `said` and then hangs up, or waits.
    fn heard(said: &'static [u8], hangs_up: bool) -> Vec<Result<Value, String>> {
        let dir = tempfile::tempdir().unwrap();
        let door = dir.path().join("door");
        let listener = UnixListener::bind(&door).unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let _ = stream.write_all(said);
            (!hangs_up).then_some(stream)
        });
        let cancel = Cancel::new().unwrap();
        let mut lines = Lines::open(&door, &cancel, Instant::now() + Duration::from_millis(300)).unwrap();
        let held = server.join().unwrap();
        let all = (0..3).map(|_| lines.hear::<Value>().map_err(|error| error.to_string())).collect();
        drop(held);
        all
    }

    #[test]
    fn lines_are_told_apart_from_their_faults() {
        let all = heard(b"1\n{\"a\":2}\n\xff\n", true);
        assert_eq!(all[0], Ok(1.into()));
        assert!(all[1].is_ok() && all[2].as_ref().unwrap_err().contains("makes no sense"), "{all:?}");
        assert!(heard(b"1\n2", true)[1].as_ref().unwrap_err().contains("ended in the middle"));
        assert!(heard(b"1", false)[0].as_ref().unwrap_err().contains("in time"));
        let cancel = Cancel::new().unwrap();
        assert!(matches!(Lines::open(Path::new("/nowhere"), &cancel, Instant::now()), Err(LineError::Shut(_))));
    }

    #[test]
    fn an_endless_line_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let door = dir.path().join("door");
        let listener = UnixListener::bind(&door).unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let cancel = Cancel::new().unwrap();
        let mut lines = Lines::open(&door, &cancel, Instant::now() + Duration::from_secs(60)).unwrap();
        assert!(matches!(lines.hear::<Value>(), Err(LineError::TooLong)));
        assert!(matches!(lines.say(&"x".repeat(LINE_MAX_BYTES)), Err(LineError::TooLong)));
        drop(lines);
        server.join().unwrap();
    }
}
