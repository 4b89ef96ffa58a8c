// SPDX-License-Identifier: Apache-2.0
//! One running server: its process, its requests that wait for an answer, and the threads that read what it writes, bounded whatever
//! it writes. It knows nothing of tools.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use serde_json::Value;

use super::super::tree::{self, Tree};
use super::super::{Cancel, Waited, clip};
use super::wire::{self, Heard};

/// Longest line of a server, in bytes.
pub(super) const LINE_MAX_BYTES: usize = 16 << 20;
/// Bytes of its standard error that are kept: the last.
const WORDS_MAX_BYTES: usize = 2 << 10;
/// Bytes of one read.
const CHUNK_BYTES: usize = 64 << 10;
/// How long it may take to accept what is written to it.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to end by itself when its input ends.
const END_WITHIN: Duration = Duration::from_millis(500);
/// Between two looks at the flag and at whether it lives.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Messages about one request, in number, that wait to be looked at.
const EVENTS_MAX: usize = 16;

/// A server that was started.
pub(super) struct Connection {
    tree: Tree,
    child: Mutex<Child>,
    shared: Arc<Shared>,
    next: AtomicU64,
}

/// What the reading threads share with those who ask.
struct Shared {
    stdin: Mutex<Option<ChildStdin>>,
    pending: Mutex<BTreeMap<u64, SyncSender<Event>>>,
    tools_changed: AtomicBool,
    ended: AtomicBool,
    /// The end of its standard error.
    words: Mutex<VecDeque<u8>>,
    /// Set when the connection is given up, for a write that waits.
    stop: Cancel,
}

enum Event {
    Words(String),
    Answer(Result<Value, String>),
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The server says no, in its words.
    Refused(String),
    /// It has ended, or can no longer be spoken to; its last words.
    Dead(String),
    /// It did not answer in time.
    TimedOut,
    /// The flag is set.
    Cancelled,
}

impl Connection {
    /// Starts a server. Nothing is said to it yet.
    pub(super) fn start(mark: String, command: &mut Command) -> io::Result<Self> {
        let tree = Tree::new(mark);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = tree.spawn(command)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        if let Some(stdin) = &stdin {
            rustix::fs::fcntl_setfl(stdin, rustix::fs::OFlags::NONBLOCK)?;
        }
        let shared = Arc::new(Shared {
            stdin: Mutex::new(stdin),
            pending: Mutex::default(),
            tools_changed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            words: Mutex::default(),
            stop: Cancel::new()?,
        });
        let connection = Self { tree, child: Mutex::new(child), shared, next: AtomicU64::new(1) };
        if let (Some(stdout), Some(stderr)) = (stdout, stderr) {
            connection.read(stdout, stderr)?;
        }
        Ok(connection)
    }

    fn read(&self, stdout: ChildStdout, stderr: ChildStderr) -> io::Result<()> {
        let shared = self.shared.clone();
        std::thread::Builder::new().name("mcp-out".into()).spawn(move || {
            shared.read_lines(stdout);
            shared.end();
        })?;
        let shared = self.shared.clone();
        std::thread::Builder::new().name("mcp-err".into()).spawn(move || shared.read_words(stderr))?;
        Ok(())
    }

    /// Asks and waits. `words` is told of progress that the server makes.
    pub(super) fn ask(
        &self,
        method: &str,
        params: &Value,
        within: Duration,
        cancel: &Cancel,
        words: &dyn Fn(&str),
    ) -> Result<Value, NoAnswer> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = sync_channel(EVENTS_MAX);
        lock(&self.shared.pending).insert(id, sender);
        let mut params = params.clone();
        if let Some(params) = params.as_object_mut()
            && method == "tools/call"
        {
            params.insert("_meta".into(), serde_json::json!({"progressToken": id}));
        }
        let answer = match self.shared.say(&wire::request(id, method, &params)) {
            Ok(()) => self.wait(&receiver, Instant::now() + within, cancel, words),
            Err(error) => Err(NoAnswer::Dead(format!("{error}; {}", self.how_it_ended()))),
        };
        lock(&self.shared.pending).remove(&id);
        // The first request must not be cancelled (the protocol's lifecycle): who gives it up ends the server.
        if matches!(answer, Err(NoAnswer::TimedOut | NoAnswer::Cancelled)) && method != "initialize" {
            let reason = serde_json::json!({"requestId": id, "reason": "no longer wanted"});
            // A server that cannot be told is found dead by the next request.
            let _ = self.shared.say(&wire::notice("notifications/cancelled", &reason));
        }
        answer
    }

    /// Says something that asks for nothing.
    pub(super) fn tell(&self, method: &str) -> io::Result<()> {
        self.shared.say(&wire::notice(method, &serde_json::json!({})))
    }

    fn wait(
        &self,
        receiver: &Receiver<Event>,
        deadline: Instant,
        cancel: &Cancel,
        words: &dyn Fn(&str),
    ) -> Result<Value, NoAnswer> {
        loop {
            match receiver.recv_timeout(LOOK_EVERY) {
                Ok(Event::Answer(answer)) => return answer.map_err(NoAnswer::Refused),
                Ok(Event::Words(text)) => words(&text),
                Err(RecvTimeoutError::Disconnected) => return Err(NoAnswer::Dead(self.how_it_ended())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if cancel.is_cancelled() {
                return Err(NoAnswer::Cancelled);
            }
            if !self.is_alive() {
                // It may have answered with its last breath.
                std::thread::sleep(LOOK_EVERY);
                return match receiver
                    .try_iter()
                    .find_map(|event| if let Event::Answer(answer) = event { Some(answer) } else { None })
                {
                    Some(answer) => answer.map_err(NoAnswer::Refused),
                    None => Err(NoAnswer::Dead(self.how_it_ended())),
                };
            }
            if Instant::now() >= deadline {
                return Err(NoAnswer::TimedOut);
            }
        }
    }

    /// Whether it can still be asked.
    pub(super) fn is_alive(&self) -> bool {
        !self.shared.ended.load(Ordering::SeqCst) && matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// Whether its tools have changed since this was asked last.
    pub(super) fn take_tools_changed(&self) -> bool {
        self.shared.tools_changed.swap(false, Ordering::SeqCst)
    }

    fn how_it_ended(&self) -> String {
        // Its streams end before it does, and its last words may still be on their way.
        let deadline = Instant::now() + END_WITHIN;
        let mut status = None;
        while status.is_none() && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
            status = lock(&self.child).try_wait().ok().flatten();
        }
        let how = status.map_or("it has closed its output".into(), |status| format!("it has ended ({status})"));
        how + &self.last_words()
    }

    /// The end of its standard error, as the end of a sentence.
    pub(super) fn last_words(&self) -> String {
        let words: Vec<u8> = lock(&self.shared.words).iter().copied().collect();
        let words = clip::text_of(&words);
        if words.trim().is_empty() { String::new() } else { format!("; its last words: {}", words.trim()) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        // A server is asked to end by the end of its input.
        *lock(&self.shared.stdin) = None;
        let mut child = lock(&self.child);
        let deadline = Instant::now() + END_WITHIN;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY / 5);
        }
        self.tree.end(Some(&child), &BTreeSet::new());
        // It has been killed: whatever it says, it is gone.
        let _ = child.wait();
        tree::forget(&child);
        tree::reap_orphans();
    }
}

impl Shared {
    /// Writes a message, whole or not at all as far as the server lets us.
    fn say(&self, message: &Value) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut stdin = lock(&self.stdin);
        let Some(pipe) = stdin.as_mut() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let deadline = Instant::now() + WRITE_WITHIN;
        let mut rest = &line[..];
        while !rest.is_empty() {
            match io::Write::write(pipe, rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stop.wait(pipe.as_fd(), PollFlags::OUT, deadline)? != Waited::Ready {
                        // Half a message is there: nothing that follows would be understood.
                        *stdin = None;
                        self.end();
                        return Err(io::Error::other("it does not read"));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_lines(&self, mut stdout: ChildStdout) {
        let mut line = Vec::new();
        let mut too_long = false;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = match stdout.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            for piece in chunk[..count].split_inclusive(|byte| *byte == b'\n') {
                if line.len() + piece.len() > LINE_MAX_BYTES {
                    line = Vec::new();
                    too_long = true;
                }
                if !too_long {
                    line.extend_from_slice(piece);
                }
                if piece.ends_with(b"\n") {
                    if std::mem::take(&mut too_long) {
                        self.refuse_all(&format!("it wrote a line longer than {} MiB", LINE_MAX_BYTES >> 20));
                    } else {
                        self.take(&line);
                    }
                    line.clear();
                }
            }
            if self.stop.is_cancelled() {
                return;
            }
        }
    }

    fn take(&self, line: &[u8]) {
        for heard in wire::heard(line) {
            match heard {
                Heard::Answer { id, result } => {
                    let sender = lock(&self.pending).remove(&id);
                    // Whoever asked may have gone.
                    let _ = sender.map(|sender| sender.send(Event::Answer(result)));
                }
                Heard::Request { id, method } => {
                    // A server that does not read has its connection ended by this.
                    let _ = self.say(&wire::reply(&id, &method));
                }
                Heard::ToolsChanged => self.tools_changed.store(true, Ordering::SeqCst),
                Heard::Progress { id, words: Some(words) } => {
                    let sender = lock(&self.pending).get(&id).cloned();
                    // Words that nobody has time for are dropped.
                    let _ = sender.map(|sender| sender.try_send(Event::Words(words)));
                }
                // Servers log to the wrong stream; it is no reason to end them.
                Heard::Progress { words: None, .. } | Heard::Noted | Heard::Garbage => {}
            }
        }
    }

    fn read_words(&self, mut stderr: ChildStderr) {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = stderr.read(&mut chunk) {
            let mut words = lock(&self.words);
            let new = &chunk[count.saturating_sub(WORDS_MAX_BYTES)..count];
            let held = words.len();
            words.drain(..(held + new.len()).saturating_sub(WORDS_MAX_BYTES));
            words.extend(new);
            if self.stop.is_cancelled() {
                return;
            }
        }
    }

    fn refuse_all(&self, why: &str) {
        for (_, sender) in std::mem::take(&mut *lock(&self.pending)) {
            // Whoever asked may have gone.
            let _ = sender.send(Event::Answer(Err(why.to_owned())));
        }
    }

    /// Nobody will be answered any more.
    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        lock(&self.pending).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
