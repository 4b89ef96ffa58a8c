// SPDX-License-Identifier: Apache-2.0
//! Bytes between a stream of the guest and one to its host, both ways, with the end of each. Decides nothing and understands nothing.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::sys::fd::{Watch, is_gone, set_nonblocking, wait};

/// Bytes that are held in one direction of a connection.
const BUFFER_BYTES: usize = 64 * 1024;

/// Bytes on their way in one direction.
struct Flow<'a> {
    from: &'a UnixStream,
    to: &'a UnixStream,
    buffer: Vec<u8>,
    /// `taken..filled` waits to be written.
    taken: usize,
    filled: usize,
    is_at_end: bool,
    is_over: bool,
}

impl<'a> Flow<'a> {
    /// `ahead` was read already.
    fn new(from: &'a UnixStream, to: &'a UnixStream, ahead: Vec<u8>) -> Self {
        let (filled, mut buffer) = (ahead.len(), ahead);
        buffer.resize(filled.max(BUFFER_BYTES), 0);
        Self { from, to, buffer, taken: 0, filled, is_at_end: false, is_over: false }
    }

    fn wants_to_read(&self) -> bool {
        !self.is_at_end && self.taken == self.filled
    }

    fn wants_to_write(&self) -> bool {
        self.taken < self.filled
    }

    /// Moves what can be moved without waiting.
    fn turn(&mut self) -> io::Result<()> {
        if self.wants_to_read() {
            match ready(self.from.read(&mut self.buffer))? {
                Some(0) => self.is_at_end = true,
                Some(len) => (self.taken, self.filled) = (0, len),
                None => {}
            }
        }
        if self.wants_to_write()
            && let Some(len) = ready(self.to.write(&self.buffer[self.taken..self.filled]))?
        {
            self.taken += len;
        }
        if self.is_at_end && !self.is_over {
            // A peer that is gone has no half to close.
            let _ = self.to.shutdown(Shutdown::Write);
            self.is_over = true;
        }
        Ok(())
    }
}

/// What came of a call that does not wait; `None` when it would have.
fn ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        result => result.map(Some),
    }
}

/// Passes bytes both ways until both directions are over, one has broken, or the host has left; `ahead` was read from `outside` already.
pub(crate) fn relay(inside: &UnixStream, outside: &UnixStream, ahead: Vec<u8>) -> io::Result<()> {
    set_nonblocking(inside)?;
    set_nonblocking(outside)?;
    let (mut out, mut back) = (Flow::new(inside, outside, Vec::new()), Flow::new(outside, inside, ahead));
    while !(out.is_over && back.is_over) {
        let watch = |reads: &Flow<'_>, writes: &Flow<'_>, stream: &UnixStream| {
            let (read, write) = (reads.wants_to_read(), writes.wants_to_write());
            // Its hang-up would be told again and again to whoever waits for nothing.
            let is_awaited = read || write || (reads.is_over && std::ptr::eq(stream, outside));
            if is_awaited { Watch::new(stream, read, write) } else { Watch::idle() }
        };
        let mut watches = [watch(&out, &back, inside), watch(&back, &out, outside)];
        wait(&mut watches, None)?;
        out.turn()?;
        back.turn()?;
        if back.is_over && (watches[1].hung_up() || is_gone(outside)) {
            // All that it said has been passed on, and nobody is there for an answer.
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
