// SPDX-License-Identifier: Apache-2.0
//! Conversations: streams with the host, and messages on them. Over vsock in a guest, over Unix sockets in tests.
//! Knows nothing of what the messages mean.

use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use midge_protocol::{
    AGENT_PORT, DecodeError, Decoder, Door, EncodeError, ErrorCode, Failure, READY_PORT, ToAgent, ToHost, encode,
};

use crate::sys::fd::{Watch, wait};
use crate::sys::vsock;

/// Most bytes taken from a stream at once.
const READ_MAX_BYTES: usize = 64 * 1024;
/// Bytes taken from a stream at once until it brings more.
const READ_MIN_BYTES: usize = 4 * 1024;
/// Messages that are sent together, in bytes.
const QUEUE_BYTES: usize = 64 * 1024;

/// Memory to read into: a page for a stream that says little, more for one that fills it.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    bytes: Vec<u8>,
    was_full: bool,
}

impl ReadBuffer {
    /// Reads once, at most `limit` bytes.
    pub(crate) fn read(&mut self, mut source: impl io::Read, limit: usize) -> io::Result<&[u8]> {
        if self.bytes.is_empty() {
            self.bytes.resize(READ_MIN_BYTES, 0);
        } else if self.was_full && self.bytes.len() < READ_MAX_BYTES {
            self.bytes.resize(READ_MAX_BYTES, 0);
        }
        let room = limit.min(self.bytes.len());
        let len = source.read(&mut self.bytes[..room])?;
        self.was_full = len == self.bytes.len();
        Ok(&self.bytes[..len])
    }
}

/// Where the host is.
#[derive(Debug, Clone)]
pub(crate) enum Host {
    /// On the other side of the machine's vsock device.
    Vsock,
    /// In this directory: `agent.sock` takes conversations, `ready.sock` and `door_<port>.sock` are the host's.
    Unix(PathBuf),
}

/// Takes conversations.
#[derive(Debug)]
pub(crate) enum Listener {
    /// In a guest.
    Vsock(vsock::Listener),
    /// In tests.
    Unix(UnixListener),
}

impl Host {
    /// Where the host's conversations arrive; taking one never waits.
    pub(crate) fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Vsock => vsock::listen_on(AGENT_PORT).map(Listener::Vsock),
            Self::Unix(dir) => {
                let path = dir.join("agent.sock");
                remove_stale(&path)?;
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Unix(listener))
            }
        }
    }

    /// A stream for the control conversation.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        match self {
            Self::Vsock => vsock::connect(READY_PORT),
            Self::Unix(dir) => UnixStream::connect(dir.join("ready.sock")),
        }
    }

    /// A stream to what is behind a door.
    pub(crate) fn connect_door(&self, door: Door) -> io::Result<UnixStream> {
        match self {
            Self::Vsock => vsock::connect(door.port()),
            Self::Unix(dir) => UnixStream::connect(dir.join(format!("door_{}.sock", door.port()))),
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Listener {
    /// The next conversation's stream, or [`io::ErrorKind::WouldBlock`].
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        match self {
            Self::Vsock(listener) => listener.accept(),
            Self::Unix(listener) => listener.accept().map(|(stream, _)| stream),
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Vsock(listener) => listener.as_raw_fd(),
            Self::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

/// Why a conversation ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("talking to the host")]
    Stream(#[from] io::Error),
    #[error("understanding the host")]
    Decode(#[from] DecodeError),
    #[error("answering the host")]
    Encode(#[from] EncodeError),
    #[error("the host left in the middle of a request")]
    Unfinished,
    #[error("received `{name}` where only content or its end may come")]
    Misplaced { name: &'static str },
}

/// A stream on which whole messages go and come, one after another.
#[derive(Debug)]
pub(crate) struct Conversation {
    stream: UnixStream,
    decoder: Decoder<ToAgent>,
    /// What a read brought; `taken..filled` is not decoded yet.
    buffer: ReadBuffer,
    taken: usize,
    filled: usize,
    out: Vec<u8>,
    /// The request that was received last goes on until `End`.
    pub(crate) awaits_content: bool,
}

impl Conversation {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let (decoder, buffer, out) = (Decoder::new(), ReadBuffer::default(), Vec::new());
        Self { stream, decoder, buffer, taken: 0, filled: 0, out, awaits_content: false }
    }

    /// The next message; `None` when the host has closed its half between two messages.
    pub(crate) fn receive(&mut self) -> Result<Option<ToAgent>, LinkError> {
        loop {
            if let Some(message) = self.received()? {
                return Ok(Some(message));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// The next message among what was read, if it is complete.
    pub(crate) fn received(&mut self) -> Result<Option<ToAgent>, LinkError> {
        let mut rest = &self.buffer.bytes[self.taken..self.filled];
        let message = self.decoder.decode(&mut rest)?;
        self.taken = self.filled - rest.len();
        Ok(message)
    }

    /// Reads once, after all that was read before has been taken; false when the host has closed its half between two
    /// messages.
    pub(crate) fn read(&mut self) -> Result<bool, LinkError> {
        (self.taken, self.filled) = (0, 0);
        self.filled = match self.buffer.read(&self.stream, READ_MAX_BYTES) {
            Ok([]) if self.decoder.is_at_boundary() => return Ok(false),
            Ok([]) => return Err(LinkError::Unfinished),
            Ok(received) => received.len(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(true)
    }

    /// What to wait for before the next [`Conversation::read`]; without `read` only for its end.
    pub(crate) fn watch(&self, read: bool) -> Watch {
        Watch::new(&self.stream, read, false)
    }

    /// Whether the host has given it up in both directions.
    pub(crate) fn is_gone(&self) -> bool {
        let mut watches = [self.watch(false)];
        wait(&mut watches, Some(Duration::ZERO)).is_ok() && watches[0].hung_up()
    }

    /// Sends one message whole, and all that were queued before it.
    pub(crate) fn send(&mut self, message: &ToHost) -> Result<(), LinkError> {
        encode(message, &mut self.out)?;
        self.flush()
    }

    /// Sends one message, perhaps only with the next ones.
    pub(crate) fn queue(&mut self, message: &ToHost) -> Result<(), LinkError> {
        encode(message, &mut self.out)?;
        if self.out.len() >= QUEUE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Lets reads that take longer fail; `None` waits for ever.
    pub(crate) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// The stream with everything that was received on it and not taken.
    pub(crate) fn into_parts(self) -> (UnixStream, Decoder<ToAgent>, Vec<u8>) {
        let mut received = self.buffer.bytes;
        received.truncate(self.filled);
        received.drain(..self.taken);
        (self.stream, self.decoder, received)
    }
}

/// A failure as the host gets it: the whole chain of causes in one line.
pub(crate) fn failure(error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut text = error.to_string();
    let mut errno = 0;
    let mut code = ErrorCode::Other;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            errno = error.raw_os_error().unwrap_or(errno);
            code = code_of(error);
        } else if error.downcast_ref::<DecodeError>().is_some() {
            code = ErrorCode::Protocol;
        }
        cause = error.source();
        if let Some(cause) = cause {
            text = format!("{text}: {cause}");
        }
    }
    Failure { code, errno, text }
}

fn code_of(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorCode::PermissionDenied,
        io::ErrorKind::AlreadyExists => ErrorCode::AlreadyExists,
        io::ErrorKind::NotADirectory => ErrorCode::NotADirectory,
        io::ErrorKind::IsADirectory => ErrorCode::IsADirectory,
        io::ErrorKind::DirectoryNotEmpty => ErrorCode::NotEmpty,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        io::ErrorKind::InvalidInput => ErrorCode::InvalidInput,
        io::ErrorKind::Unsupported => ErrorCode::Unsupported,
        _ => ErrorCode::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, Conversation) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Conversation::new(theirs))
    }

    #[test]
    fn messages_arrive_in_order_however_they_are_cut() {
        let (mut host, mut conversation) = pair();
        let mut bytes = Vec::new();
        for number in 0..3 {
            encode(&ToAgent::Ping(number), &mut bytes).unwrap();
        }
        let writer = std::thread::spawn(move || {
            for piece in bytes.chunks(5) {
                host.write_all(piece).unwrap();
            }
        });
        for number in 0..3 {
            assert_eq!(conversation.receive().unwrap(), Some(ToAgent::Ping(number)));
        }
        writer.join().unwrap();
        assert_eq!(conversation.receive().unwrap(), None);
    }

    #[test]
    fn a_host_that_leaves_inside_a_message_is_noticed() {
        let (mut host, mut conversation) = pair();
        host.write_all(&[8, 0, 0, 0, 2, 0]).unwrap();
        drop(host);
        assert!(matches!(conversation.receive(), Err(LinkError::Unfinished)));
    }

    #[test]
    fn what_was_received_and_not_taken_is_handed_on() {
        let (mut host, mut conversation) = pair();
        let mut bytes = Vec::new();
        encode(&ToAgent::GetStats, &mut bytes).unwrap();
        bytes.extend_from_slice(b"rest");
        host.write_all(&bytes).unwrap();
        assert_eq!(conversation.receive().unwrap(), Some(ToAgent::GetStats));
        assert_eq!(conversation.into_parts().2, b"rest");
    }

    #[test]
    fn a_failure_tells_every_cause_and_the_errno() {
        let error = LinkError::Stream(io::Error::from_raw_os_error(libc::ENOSPC));
        let failure = failure(&error);
        assert_eq!((failure.code, failure.errno), (ErrorCode::NoSpace, libc::ENOSPC));
        assert!(failure.text.starts_with("talking to the host: "), "{}", failure.text);
    }

    #[test]
    fn an_unknown_kind_is_a_protocol_failure_with_its_number() {
        let (mut host, mut conversation) = pair();
        host.write_all(&[0, 0, 0, 0, 0x34, 0x12, 0, 0]).unwrap();
        let failure = failure(&conversation.receive().unwrap_err());
        assert_eq!(failure.code, ErrorCode::Protocol);
        assert!(failure.text.contains("0x1234"), "{}", failure.text);
    }

    #[test]
    fn a_stream_that_says_little_takes_little_memory() {
        let mut buffer = ReadBuffer::default();
        assert_eq!(buffer.read(&b"abc"[..], 2).unwrap(), b"ab");
        assert_eq!(buffer.bytes.len(), READ_MIN_BYTES);
        let long = vec![7; READ_MAX_BYTES * 2];
        assert_eq!(buffer.read(&long[..], usize::MAX).unwrap().len(), READ_MIN_BYTES);
        assert_eq!(buffer.read(&long[..], usize::MAX).unwrap().len(), READ_MAX_BYTES);
        assert_eq!(buffer.read(&long[..], usize::MAX).unwrap().len(), READ_MAX_BYTES);
    }
}
