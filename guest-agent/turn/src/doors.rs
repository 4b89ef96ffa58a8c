// SPDX-License-Identifier: Apache-2.0
//! The loop's ends of the doors `record` and `ask`: lines of JSON over Unix sockets. A lost record ends the run, because nothing may
//! happen that is not recorded; a lost ask is a denial.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use midge_protocol::Door;
use midge_protocol::broker::{Answer, Asked, LINE_MAX_BYTES, Left, Noted, Question, Told, Verdict};
use rustix::event::PollFlags;
use serde::Serialize;
use serde_json::{Value, json};

use crate::talk::head;
use crate::tools::{Asker, Cancel, Waited};

/// Longest wait for the host to take a line.
const WRITE_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the host to have read the last line.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Longest wait for an answer. The host has a time-out of its own, which is shorter.
const ASK_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// What a string in a line that is too long is cut to, in bytes.
const CUT_BYTES: usize = 16 << 10;

/// The record's door.
#[derive(Debug)]
pub struct Record {
    stream: UnixStream,
    reader: JoinHandle<()>,
}

/// What comes back from the record's door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromRecord {
    /// What is left, after a line.
    Left(Left),
    /// It is closed, or says what it should not.
    Lost(String),
}

impl Record {
    /// Opens the door in `dir`; `told` gets what comes back, from another thread.
    ///
    /// # Errors
    /// When there is nobody at the door.
    pub fn open(dir: &Path, mut told: impl FnMut(FromRecord) + Send + 'static) -> io::Result<Self> {
        let stream = UnixStream::connect(dir.join(Door::Record.name()))?;
        stream.set_write_timeout(Some(WRITE_MAX))?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let read = move || {
            let lost = loop {
                match read_line(&mut lines).map(|line| serde_json::from_str::<Left>(&line)) {
                    Ok(Ok(left)) => told(FromRecord::Left(left)),
                    Ok(Err(error)) => break format!("the host's line cannot be read: {error}"),
                    Err(error) => break error.to_string(),
                }
            };
            told(FromRecord::Lost(lost));
        };
        let reader = std::thread::Builder::new().name("record".into()).spawn(read)?;
        Ok(Self { stream, reader })
    }

    /// Says one thing.
    ///
    /// # Errors
    /// When the host does not take it.
    pub fn note(&self, told: Told) -> io::Result<()> {
        (&self.stream).write_all(line(&Noted { told })?.as_bytes())
    }

    /// Says that nothing more comes, and waits until the host has read it all.
    pub fn close(self) {
        // A door that is lost already is closed.
        let _ = self.stream.shutdown(Shutdown::Write);
        let until = Instant::now() + CLOSE_MAX;
        while !self.reader.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// `value` as a line. One that would be too long has its long strings cut, so that the record says at least that it was.
fn line(value: &impl Serialize) -> io::Result<String> {
    let mut text = serde_json::to_string(value)?;
    let mut most = CUT_BYTES;
    while text.len() >= LINE_MAX_BYTES && most > 0 {
        let mut value: Value = serde_json::from_str(&text)?;
        cut_strings(&mut value, most);
        text = value.to_string();
        most /= 8;
    }
    if text.len() >= LINE_MAX_BYTES {
        return Err(io::Error::other("a line for the record is too long, and no string in it is"));
    }
    text.push('\n');
    Ok(text)
}

fn cut_strings(value: &mut Value, most: usize) {
    match value {
        Value::String(text) if text.len() > most => {
            let bytes = text.len();
            text.truncate(head(text, most).len());
            text.push_str(&format!("[… {bytes} bytes in all]"));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| cut_strings(value, most)),
        Value::Object(all) => all.values_mut().for_each(|value| cut_strings(value, most)),
        _ => {}
    }
}

/// One line without its end, at most [`LINE_MAX_BYTES`].
fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    let most = u64::try_from(LINE_MAX_BYTES).unwrap_or(u64::MAX);
    from.take(most).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        let text = if line.is_empty() { "the host closed the door" } else { "a line of the host has no end" };
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    String::from_utf8(line).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a line of the host is no text"))
}

/// The door `ask`: a connection a question, so that questions of several tools do not wait for each other.
#[derive(Debug)]
pub struct AskDoor {
    path: PathBuf,
    next: AtomicU64,
}

impl AskDoor {
    /// The door in `dir`; nothing is opened before there is a question.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join(Door::Ask.name()), next: AtomicU64::new(1) }
    }

    fn exchange(&self, asked: &Asked, cancel: &Cancel) -> Result<Verdict, String> {
        let lost = |error: io::Error| format!("the door for questions is lost ({error})");
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut stream = UnixStream::connect(&self.path).map_err(lost)?;
        stream.set_write_timeout(Some(WRITE_MAX)).map_err(lost)?;
        let question = line(&json!(Question { id, asked: asked.clone() })).map_err(lost)?;
        stream.write_all(question.as_bytes()).map_err(lost)?;
        let until = Instant::now() + ASK_MAX;
        let mut lines = BufReader::new(Patient { stream, cancel, until });
        let answer = read_line(&mut lines).map_err(lost)?;
        let answer: Answer = serde_json::from_str(&answer).map_err(|error| lost(error.into()))?;
        if answer.id == id { Ok(answer.verdict) } else { Err("the answer is to another question".into()) }
    }
}

impl Asker for AskDoor {
    fn ask(&self, asked: &Asked, cancel: &Cancel) -> Result<Verdict, String> {
        self.exchange(asked, cancel)
    }
}

/// A stream whose reads end when the flag is set.
struct Patient<'a> {
    stream: UnixStream,
    cancel: &'a Cancel,
    until: Instant,
}

impl Read for Patient<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.cancel.wait(self.stream.as_fd(), PollFlags::IN, self.until)? {
            Waited::Ready => self.stream.read(bytes),
            Waited::TimedOut => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody answers")),
            Waited::Cancelled => Err(io::Error::other("the run was cancelled")),
        }
    }
}

#[cfg(test)]
mod tests;
