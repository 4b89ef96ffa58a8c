// SPDX-License-Identifier: Apache-2.0
//! What the shell's processes print, taken from their pipe at all times so that nothing they start ever waits for a reader: the ends
//! stay in memory, the beginning goes to the spool. It knows nothing of commands.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::super::spool::{Kept, NOTES_MAX_BYTES, Spool};
use super::super::{Cancel, OUTCOME_MAX_BYTES, clip};

/// Bytes of one read.
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes of a call's beginning that the model sees, when not all.
const HEAD_BYTES: usize = (OUTCOME_MAX_BYTES - NOTES_MAX_BYTES) / 2;
/// Bytes of a call's end that the model sees, when not all.
const TAIL_BYTES: usize = HEAD_BYTES - BETWEEN_BYTES;
/// Bytes that are kept of what background jobs print between two calls.
const BETWEEN_BYTES: usize = 4 << 10;
/// Most bytes taken from the pipe after a command has ended: what it printed is in there, a background job may print for ever.
const DRAIN_MAX_BYTES: usize = 1 << 20;
/// How long a reader sleeps that nobody wakes.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// The pipe and what came through it.
#[derive(Debug)]
pub(super) struct Capture {
    state: Arc<Mutex<State>>,
    /// Kept open, so that the pipe outlives each shell.
    writer: OwnedFd,
    stop: Cancel,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    pipe: OwnedFd,
    spool: Arc<Spool>,
    between: Ends,
    call: Option<Ends>,
}

/// The two ends of a stream.
#[derive(Debug, Default)]
struct Ends {
    head: Vec<u8>,
    head_max: usize,
    tail: VecDeque<u8>,
    tail_max: usize,
    total_bytes: u64,
    kept: Option<Kept>,
}

/// What a call has printed.
#[derive(Debug)]
pub(super) struct Printed {
    /// For the model, marks included.
    pub(super) text: String,
    /// Bytes that it leaves out.
    pub(super) elided_bytes: u64,
}

impl Capture {
    /// A pipe and its reader.
    pub(super) fn new(spool: Arc<Spool>) -> io::Result<Self> {
        let (pipe, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK)?;
        let polled = pipe.try_clone()?;
        let state = State { pipe, spool, between: Ends::new(0, BETWEEN_BYTES), call: None };
        let state = Arc::new(Mutex::new(state));
        let stop = Cancel::new()?;
        let (shared, stopped) = (state.clone(), stop.clone());
        let reader = std::thread::Builder::new().name("shell-output".into()).spawn(move || {
            while !stopped.is_cancelled() {
                let ready = stopped.wait(polled.as_fd(), PollFlags::IN, Instant::now() + FOR_EVER);
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if ready.is_err() || state.read(CHUNK_BYTES).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { state, writer, stop, reader: Some(reader) })
    }

    /// The end that processes write to.
    pub(super) fn writer(&self) -> io::Result<OwnedFd> {
        self.writer.try_clone()
    }

    /// A call begins: what comes now is its output.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Trouble with the pipe shows again when the call ends.
        let _ = state.read(DRAIN_MAX_BYTES);
        state.call = Some(Ends::new(HEAD_BYTES, TAIL_BYTES));
    }

    /// The last bytes of the call so far that are new since it had `known_bytes`, for whoever watches, and how many it has.
    pub(super) fn news(&self, known_bytes: u64) -> Option<(String, u64)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let call = state.call.as_ref().filter(|call| call.total_bytes > known_bytes)?;
        let new = usize::try_from(call.total_bytes - known_bytes).unwrap_or(usize::MAX).min(BETWEEN_BYTES);
        let all: Vec<u8> = call.head.iter().chain(&call.tail).copied().collect();
        Some((clip::text_of(&all[all.len() - new.min(all.len())..]), call.total_bytes))
    }

    /// The call has ended: what it printed, after what background jobs did before it.
    pub(super) fn end(&self) -> Printed {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let trouble = state.read(DRAIN_MAX_BYTES).err();
        let between = std::mem::replace(&mut state.between, Ends::new(0, BETWEEN_BYTES));
        let call = state.call.take().unwrap_or_default();
        drop(state);
        let mut text = String::new();
        if between.total_bytes > 0 {
            let (before, _) = between.text();
            text = format!("[background jobs printed since the last call]\n{before}\n[this call printed]\n");
        }
        let (printed, elided_bytes) = call.text();
        text += &printed;
        if let Some(error) = trouble {
            text += &format!("\n[output could not be read: {error}]");
        }
        Printed { text, elided_bytes }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.cancel();
        // A reader that panicked has nothing to say any more.
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

impl State {
    /// Takes what is in the pipe, up to about `max_bytes`.
    fn read(&mut self, max_bytes: usize) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES.min(max_bytes)];
        let mut taken = 0;
        while taken < max_bytes {
            match rustix::io::read(&self.pipe, &mut chunk) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(count) => {
                    taken += count;
                    let ends = self.call.as_mut().unwrap_or(&mut self.between);
                    ends.push(&chunk[..count], &self.spool);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Ends {
    fn new(head_max: usize, tail_max: usize) -> Self {
        Self { head_max, tail_max, ..Self::default() }
    }

    fn push(&mut self, bytes: &[u8], spool: &Spool) {
        self.total_bytes += bytes.len() as u64;
        let before_bytes = self.head.len() + self.tail.len();
        let room = (self.head_max - self.head.len()).min(bytes.len());
        let overflows = before_bytes + bytes.len() > self.head_max + self.tail_max;
        if overflows && self.head_max > 0 && self.kept.is_none() {
            let mut kept = spool.begin();
            kept.write(&self.head);
            kept.write(self.tail.make_contiguous());
            self.kept = Some(kept);
        }
        if let Some(kept) = &mut self.kept {
            kept.write(bytes);
        }
        self.head.extend_from_slice(&bytes[..room]);
        let rest = &bytes[room..];
        let rest = &rest[rest.len().saturating_sub(self.tail_max)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(self.tail_max);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    /// As text within `head_max + tail_max` bytes and a mark, and how many bytes that leaves out.
    fn text(self) -> (String, u64) {
        let tail: Vec<u8> = self.tail.into();
        let shown_bytes = (self.head.len() + tail.len()) as u64;
        let left_out = self.total_bytes - shown_bytes;
        if left_out == 0 {
            // One piece, so that a character across the border stays whole.
            let all = clip::text_of(&[self.head, tail].concat());
            let (head, end) = clip::ends(&all, self.head_max + self.tail_max);
            let elided = (all.len() - head.len() - end.len()) as u64;
            let mark = if elided > 0 { format!("\n[{elided} bytes left out here: binary]\n") } else { String::new() };
            return (format!("{head}{mark}{end}"), elided);
        }
        let (head, end) = (clip::text_of(&self.head), clip::text_of(&tail));
        let (head, end) = (clip::head(&head, self.head_max), clip::tail(&end, self.tail_max));
        let mark = match &self.kept {
            Some(kept) => kept.mark(self.head.len() as u64, left_out),
            None => format!("[{left_out} bytes left out here]"),
        };
        (format!("{head}\n{mark}\n{end}"), left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ends_are_bounded_and_whole_when_they_fit(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20),
            head in 1_usize..100,
            tail in 0_usize..100,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let spool = Spool::new(dir.path().into());
            let mut ends = Ends::new(head, tail);
            for piece in &pieces {
                ends.push(piece, &spool);
            }
            let all = pieces.concat();
            prop_assert!(all.starts_with(&ends.head) && ends.head.len() == head.min(all.len()));
            prop_assert!(all.ends_with(ends.tail.make_contiguous()) && ends.tail.len() <= tail);
            let (text, elided) = ends.text();
            prop_assert!(text.len() <= head + tail + NOTES_MAX_BYTES);
            if all.len() <= head + tail && clip::text_of(&all).len() <= head + tail {
                prop_assert_eq!((text, elided), (clip::text_of(&all), 0));
            }
        }
    }

    #[test]
    fn what_comes_between_calls_is_shown_with_the_next_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let capture = Capture::new(Spool::new(dir.path().into())).unwrap();
        let writer = capture.writer().unwrap();
        for _ in 0..1000 {
            rustix::io::write(&writer, &[b'x'; 1000]).unwrap();
        }
        capture.begin();
        rustix::io::write(&writer, b"mine").unwrap();
        let printed = capture.end();
        assert!(printed.text.ends_with("[this call printed]\nmine") && printed.text.len() < 2 * BETWEEN_BYTES);
        capture.begin();
        assert_eq!(capture.end().text, "");
    }
}
