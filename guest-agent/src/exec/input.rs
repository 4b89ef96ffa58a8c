// SPDX-License-Identifier: Apache-2.0
//! A command's standard input: a window of bytes that the program has not taken, then its end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Write as _};

use midge_protocol::STDIN_WINDOW_BYTES;

use crate::sys::fd::Watch;
use crate::sys::tty;

/// The client is told of progress in steps of this size, in bytes.
const REPORT_STEP_BYTES: u64 = STDIN_WINDOW_BYTES / 4;

/// What goes into a program.
#[derive(Debug)]
pub(crate) struct Input {
    sink: Option<File>,
    is_terminal: bool,
    queue: VecDeque<u8>,
    ends: bool,
    /// The terminal's end-of-file character must still be typed.
    owes_end: bool,
    /// Bytes that came from clients and went into the program or were thrown away.
    taken: u64,
    reported: u64,
}

impl Input {
    /// Input into `sink`, whose writes do not wait.
    pub(crate) const fn new(sink: Option<File>, is_terminal: bool) -> Self {
        Self { sink, is_terminal, queue: VecDeque::new(), ends: false, owes_end: false, taken: 0, reported: 0 }
    }

    pub(crate) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether more may come from the client. With the window full too: what comes then from a client that keeps to it is
    /// no input but a signal, which may be what gets the program to move.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() as u64 <= STDIN_WINDOW_BYTES
    }

    pub(crate) fn watch(&self) -> Watch {
        match &self.sink {
            Some(sink) if !self.queue.is_empty() || self.owes_end => Watch::new(sink, false, true),
            _ => Watch::idle(),
        }
    }

    /// More from the client.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if !self.ends {
            self.queue.extend(bytes);
        }
        self.write();
    }

    /// No more will come.
    pub(crate) fn end(&mut self) {
        if self.ends {
            return;
        }
        self.ends = true;
        self.owes_end = self.is_terminal;
        self.write();
    }

    /// Writes what the program takes, and closes behind the last byte.
    pub(crate) fn write(&mut self) {
        while let Some(sink) = &mut self.sink
            && !self.queue.is_empty()
        {
            match sink.write(self.queue.as_slices().0) {
                Ok(len) if len > 0 => self.take(len),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The program has closed its input. What comes for it is thrown away.
                _ => self.sink = None,
            }
        }
        if self.sink.is_none() {
            self.take(self.queue.len());
        }
        self.close();
    }

    /// Closes an input that has come to its end, on a terminal by typing that.
    fn close(&mut self) {
        if let Some(sink) = self.sink.as_mut().filter(|_| self.owes_end)
            && let Ok(end_of_file) = tty::end_of_file(sink)
            && sink.write(&[end_of_file]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        {
            return;
        }
        self.owes_end = false;
        if self.ends {
            self.sink = None;
        }
    }

    fn take(&mut self, len: usize) {
        self.queue.drain(..len);
        self.taken = self.taken.saturating_add(len as u64);
    }

    /// The offset to tell the client, when it is worth a message.
    pub(crate) fn report(&mut self) -> Option<u64> {
        if self.taken < self.reported.saturating_add(REPORT_STEP_BYTES) {
            return None;
        }
        self.reported = self.taken;
        Some(self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd::set_nonblocking;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;

    fn pipe() -> (Input, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        set_nonblocking(&writer).unwrap();
        (Input::new(Some(File::from(OwnedFd::from(writer))), false), reader)
    }

    #[test]
    fn what_the_program_does_not_take_fills_the_window() {
        let (mut input, _program) = pipe();
        let mut sent = 0_u64;
        while input.has_room() {
            input.push(&[7; 10_000]);
            sent += 10_000;
        }
        assert!(input.taken() > 0 && sent - input.taken() > STDIN_WINDOW_BYTES, "{sent} {}", input.taken());
        assert!(sent - input.taken() <= STDIN_WINDOW_BYTES + 10_000);
    }

    #[test]
    fn a_full_window_leaves_room_for_what_is_no_input() {
        let (mut input, _program) = pipe();
        input.push(&vec![7; 100_000]);
        let window = usize::try_from(STDIN_WINDOW_BYTES).unwrap();
        input.push(&vec![7; window - input.queue.len()]);
        assert!(input.queue.len() == window && input.has_room());
        input.push(b"7");
        assert!(!input.has_room());
    }

    #[test]
    fn the_end_comes_after_the_last_byte() {
        let (mut input, mut program) = pipe();
        input.push(&vec![1; 100_000]);
        input.end();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            program.read_to_end(&mut all).unwrap();
            all.len()
        });
        while input.taken() < 100_000 {
            input.write();
            std::thread::yield_now();
        }
        assert_eq!(reader.join().unwrap(), 100_000);
    }

    #[test]
    fn input_for_a_program_that_closed_it_is_thrown_away() {
        crate::sys::process::ignore_broken_pipes();
        let (mut input, program) = pipe();
        drop(program);
        input.push(&vec![1; 1 << 20]);
        assert_eq!(input.taken(), 1 << 20);
        assert!(input.has_room());
        assert_eq!(input.report(), Some(1 << 20));
    }

    #[test]
    fn progress_is_told_in_steps() {
        let (mut input, _program) = pipe();
        input.push(&[1; 100]);
        assert_eq!(input.report(), None);
        let mut without = Input::new(None, false);
        without.push(&vec![1; usize::try_from(REPORT_STEP_BYTES).unwrap()]);
        assert_eq!(without.report(), Some(REPORT_STEP_BYTES));
        assert_eq!(without.report(), None);
    }

    #[test]
    fn nothing_is_taken_after_the_end() {
        let (mut input, mut program) = pipe();
        input.end();
        input.push(b"late");
        let mut all = Vec::new();
        program.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"");
    }
}
