// SPDX-License-Identifier: Apache-2.0
//! The flag that ends tool calls early, with a descriptor that a waiting call polls beside what it waits for. It ends nothing itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// A flag that is set once. Its clones are one flag.
#[derive(Debug, Clone)]
pub struct Cancel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    set: AtomicBool,
    event: OwnedFd,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The descriptor is ready, or at its end.
    Ready,
    /// The deadline has passed.
    TimedOut,
    /// The flag is set.
    Cancelled,
}

impl Cancel {
    /// A flag that is not set.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { inner: Arc::new(Inner { set: AtomicBool::new(false), event }) })
    }

    /// Sets the flag and wakes everybody who polls it. Again is no harm.
    pub fn cancel(&self) {
        self.inner.set.store(true, Ordering::SeqCst);
        // The counter can only be full when it is readable already.
        let _ = rustix::io::write(&self.inner.event, &1_u64.to_ne_bytes());
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.inner.set.load(Ordering::SeqCst)
    }

    /// Readable as soon as the flag is set, and from then on; nobody reads it.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.event.as_fd()
    }

    /// Waits until `fd` has one of `events` (or hangs up), `deadline` has passed, or the flag is set, which goes first.
    ///
    /// # Errors
    /// Those of `poll`, interruption left out.
    pub fn wait(&self, fd: BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> io::Result<Waited> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN), PollFd::from_borrowed_fd(fd, events)];
            match poll(&mut fds, Some(&timespec(left))) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) if self.is_cancelled() => return Ok(Waited::Cancelled),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(Waited::Ready),
                Ok(_) if left.is_zero() => return Ok(Waited::TimedOut),
                Ok(_) => {}
            }
        }
    }

    /// Sleeps for `time` or until the flag is set; whether it is.
    pub fn sleep(&self, time: Duration) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)];
        // An interrupted sleep is a short one: every caller looks again.
        let _ = poll(&mut fds, Some(&timespec(time)));
        self.is_cancelled()
    }
}

/// `time` as the kernel takes it; longer than it can say is the longest.
fn timespec(time: Duration) -> Timespec {
    Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_flag_ends_a_wait_in_another_thread_and_stays_set() {
        let cancel = Cancel::new().unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let far = Instant::now() + Duration::from_secs(3600);
        let other = cancel.clone();
        let waiting = std::thread::spawn(move || other.wait(reader.as_fd(), PollFlags::IN, far).unwrap());
        cancel.cancel();
        cancel.cancel();
        assert_eq!(waiting.join().unwrap(), Waited::Cancelled);
        assert!(cancel.is_cancelled() && cancel.sleep(Duration::from_secs(3600)));
    }

    #[test]
    fn a_wait_tells_ready_and_late_apart() {
        let cancel = Cancel::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(cancel.wait(reader.as_fd(), PollFlags::IN, Instant::now()).unwrap(), Waited::TimedOut);
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(cancel.wait(reader.as_fd(), PollFlags::IN, Instant::now()).unwrap(), Waited::Ready);
        drop(writer);
        assert_eq!(cancel.wait(reader.as_fd(), PollFlags::IN, Instant::now()).unwrap(), Waited::Ready);
    }
}
