// SPDX-License-Identifier: Apache-2.0
//! What the worker waits for: one epoll of its own, edge-triggered.
//!
//! The epoll is nested in the monitor's event loop, for two reasons: all that is ready is seen
//! before anything is moved, so that the round robin of `mux` is fair and interrupts are few; and
//! edges need neither reads of the kick eventfds nor changes of interest while bytes flow.
//! Nothing here knows what a token means to the worker.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::table::ConnectionId;

/// Most events taken in one wait.
const EVENTS_MAX: usize = 64;

/// Whose readiness an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A command of the control half.
    Command,
    /// Work that was put off.
    Again,
    /// The guest kicked this queue.
    Kick(u32),
    /// A client knocks.
    Door,
    /// The doorman has answered.
    Doorman,
    /// A client that has not said yet what it wants, by its place.
    Client(u32),
    /// The socket of a connection.
    Connection(ConnectionId),
}

impl Token {
    fn to_bits(self) -> u64 {
        let (kind, value) = match self {
            Self::Command => (0_u64, 0),
            Self::Again => (1, 0),
            Self::Kick(queue) => (2, queue),
            Self::Door => (3, 0),
            Self::Client(place) => (4, place),
            Self::Doorman => (5, 0),
            Self::Connection(id) => (6, id.to_bits()),
        };
        (kind << 32) | u64::from(value)
    }

    fn from_bits(bits: u64) -> Self {
        let [_, _, _, kind, v3, v2, v1, v0] = bits.to_be_bytes();
        let value = u32::from_be_bytes([v3, v2, v1, v0]);
        match kind {
            0 => Self::Command,
            1 => Self::Again,
            2 => Self::Kick(value),
            3 => Self::Door,
            4 => Self::Client(value),
            5 => Self::Doorman,
            _ => Self::Connection(ConnectionId::from_bits(value)),
        }
    }
}

/// What is wanted from a descriptor besides its errors and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes, or the end, to read.
    Read,
    /// The same, and room to write.
    ReadWrite,
}

impl Interest {
    fn event_set(self) -> EventSet {
        let read = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        match self {
            Self::Read => read,
            Self::ReadWrite => read | EventSet::OUT,
        }
    }
}

/// What has become of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// There may be something to read: bytes, the end, an error.
    pub read: bool,
    /// The end is there, behind the bytes.
    pub end: bool,
    /// There may be room to write.
    pub write: bool,
    /// Its peer takes nothing more.
    pub gone: bool,
}

/// Events of one wait, in the order of the kernel.
#[derive(Debug)]
pub struct Events {
    list: [EpollEvent; EVENTS_MAX],
    count: usize,
}

impl Events {
    /// One event after the other.
    pub fn iter(&self) -> impl Iterator<Item = (Token, Readiness)> {
        self.list.iter().take(self.count).map(|event| {
            let set = event.event_set();
            let gone = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
            let end = gone || set.contains(EventSet::READ_HANG_UP);
            let readiness =
                Readiness { read: end || set.contains(EventSet::IN), end, write: set.contains(EventSet::OUT), gone };
            (Token::from_bits(event.data()), readiness)
        })
    }

    /// Whether there may be more than fitted.
    pub fn is_full(&self) -> bool {
        self.count == EVENTS_MAX
    }
}

/// The epoll.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// With nothing to wait for.
    ///
    /// # Errors
    /// The kernel's, mostly EMFILE.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Waits for `fd` too.
    ///
    /// # Errors
    /// The kernel's, mostly ENOSPC (`fs.epoll.max_user_watches`).
    pub fn add(&self, fd: &impl AsRawFd, token: Token) -> io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), token, Interest::Read)
    }

    /// Changes what is wanted; what is ready at this moment is told again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn modify(&self, fd: &impl AsRawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd.as_raw_fd(), token, interest)
    }

    /// Forgets `fd`. To be called before it is closed: its description may live on in a fork.
    pub fn remove(&self, fd: &impl AsRawFd) {
        // Fails only for a descriptor that is not there, which is what was wanted.
        let _ = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
    }

    /// What is ready now; never waits.
    pub fn poll(&self) -> Events {
        let mut list = [EpollEvent::default(); EVENTS_MAX];
        // An error here is EINTR: what is ready is still ready at the next call.
        let count = self.epoll.wait(0, &mut list).unwrap_or(0);
        Events { list, count }
    }

    fn control(&self, operation: ControlOperation, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.epoll.ctl(operation, fd, EpollEvent::new(interest.event_set(), token.to_bits()))
    }
}

impl AsRawFd for Poller {
    /// The epoll itself: readable while anything is ready.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn tokens(poller: &Poller) -> Vec<(Token, Readiness)> {
        poller.poll().iter().collect()
    }

    #[test]
    fn tokens_survive_the_kernel() {
        let id = ConnectionId::from_bits(0xfedc_0123);
        for token in [
            Token::Command,
            Token::Again,
            Token::Kick(2),
            Token::Door,
            Token::Doorman,
            Token::Client(63),
            Token::Connection(id),
        ] {
            assert_eq!(Token::from_bits(token.to_bits()), token);
        }
    }

    #[test]
    fn readiness_is_told_once_and_again_after_modify() {
        let poller = Poller::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        poller.add(&ours, Token::Client(7)).unwrap();
        assert_eq!(tokens(&poller), []);
        std::io::Write::write_all(&mut &theirs, b"x").unwrap();
        let readable = Readiness { read: true, end: false, write: false, gone: false };
        assert_eq!(tokens(&poller), [(Token::Client(7), readable)]);
        assert_eq!(tokens(&poller), [], "an edge is told once");
        poller.modify(&ours, Token::Client(8), Interest::ReadWrite).unwrap();
        let both = Readiness { read: true, end: false, write: true, gone: false };
        assert_eq!(tokens(&poller), [(Token::Client(8), both)]);
        drop(theirs);
        assert!(tokens(&poller).iter().all(|(_, readiness)| readiness.gone && readiness.end));
        poller.remove(&ours);
        poller.remove(&ours);
    }
}
