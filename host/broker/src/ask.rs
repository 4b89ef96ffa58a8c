// SPDX-License-Identifier: Apache-2.0
//! The door `ask`, and the one place where questions are put: those of the guest, and those of the host's own rules about the network.
//!
//! Each question is recorded, put to the [`Approver`], and its verdict recorded before anybody acts on it. No answer in time is a no.
//! "For this run" is remembered for exactly the same: a tool with the same input, or a connection that the same rule asks about, to
//! the same scheme, host and port.

mod approver;
mod remember;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use midge_policy::Policy;
use midge_protocol::Door;
use midge_protocol::broker::{Answer, Question, Verdict};
use midge_record::{Decider, Entry, RecordError, Recorder};
use serde_json::Value;
use tokio::io::WriteHalf;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinSet;

use crate::lines::{LineError, Lines, Pace, note_nonsense, unrecorded, write_line};
use crate::stream::{Later, Stream};

pub use approver::{Approver, Asking, Automatic, Pending, channel};
use remember::{Memory, fits, key};

/// Questions that are open at once; more are denied.
pub const OPEN_MAX: usize = 32;
/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 16;
/// Questions of the guest a second; more wait.
const QUESTIONS_PER_SECOND: u32 = 20;
/// Of them, what may come at once.
const QUESTIONS_BURST: u32 = 100;

/// The door of one sandbox, and who is asked by its host's rules.
pub struct AskDoor {
    approver: Arc<dyn Approver>,
    recorder: Recorder,
    policy: watch::Receiver<Arc<Policy>>,
    numbers: AtomicU64,
    memory: Memory,
    open: Semaphore,
    pace: Mutex<Pace>,
    places: Semaphore,
}

impl std::fmt::Debug for AskDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AskDoor").field("open", &(OPEN_MAX - self.open.available_permits())).finish_non_exhaustive()
    }
}

impl AskDoor {
    /// A door whose questions go to `approver`, and wait as long as the policy says.
    #[must_use]
    pub fn new(approver: Arc<dyn Approver>, recorder: Recorder, policy: watch::Receiver<Arc<Policy>>) -> Arc<Self> {
        Arc::new(Self {
            approver,
            recorder,
            policy,
            numbers: AtomicU64::new(1),
            memory: Memory::default(),
            open: Semaphore::new(OPEN_MAX),
            pace: Mutex::new(Pace::new(QUESTIONS_PER_SECOND, Duration::from_secs(1), QUESTIONS_BURST)),
            places: Semaphore::new(CONNECTIONS_MAX),
        })
    }

    /// Puts one question and gives its verdict. `asked` is an object with a `kind`: `tool`, `human`, `egress`, or another of the
    /// host's. Dropped before there is a verdict, the question is withdrawn, which is recorded too.
    ///
    /// # Errors
    /// The verdict could not be recorded: nothing may be done.
    pub async fn ask(&self, asked: Value, why: String) -> Result<Verdict, RecordError> {
        let question = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.recorder.note(&Entry::Asked { question, asked: asked.clone(), why: why.clone() })?;
        let key = key(&asked, &why);
        let mut withdrawn = Withdrawn { recorder: &self.recorder, question, armed: true };
        let (verdict, by) = if self.memory.knows(key.as_deref()) {
            (Verdict::Allow, Decider::Remembered)
        } else if let Ok(_place) = self.open.try_acquire() {
            self.put(Asking { question, asked: asked.clone(), why, timeout: self.timeout() }).await
        } else {
            (
                denied(&format!("{OPEN_MAX} questions are open already; ask again when they are answered")),
                Decider::Nobody,
            )
        };
        let verdict = fits(&asked, verdict);
        withdrawn.armed = false;
        self.recorder.note(&Entry::Decided { question, verdict: verdict.clone(), by })?;
        if verdict == Verdict::AllowForRun {
            self.memory.learn(key);
        }
        Ok(verdict)
    }

    /// [`AskDoor::ask`] for rules of the host: what could not be recorded is denied.
    pub fn approve(&self, asked: Value, why: String) -> Later<'_, Verdict> {
        Box::pin(async move { self.ask(asked, why).await.unwrap_or_else(|error| denied(&error.to_string())) })
    }

    async fn put(&self, asking: Asking) -> (Verdict, Decider) {
        let timeout = asking.timeout;
        match tokio::time::timeout(timeout, self.approver.ask(asking)).await {
            Ok(Some(verdict)) => (verdict, Decider::Approver),
            Ok(None) => (denied("there is nobody to answer questions in this run"), Decider::Nobody),
            Err(_) => (denied(&format!("nobody answered within {} s", timeout.as_secs())), Decider::TimeOut),
        }
    }

    fn timeout(&self) -> Duration {
        self.policy.borrow().approvals().timeout.duration()
    }

    /// Serves one connection of the guest to its end. Questions are answered in any order; those that are open when the guest hangs
    /// up are withdrawn.
    ///
    /// # Errors
    /// The connection failed, something could not be recorded, or what came was no question.
    pub async fn serve(self: &Arc<Self>, stream: impl Stream) -> io::Result<()> {
        let Ok(_place) = self.places.acquire().await else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let (read, mut out) = tokio::io::split(stream);
        let mut lines = Lines::new(read);
        let mut asked = JoinSet::new();
        loop {
            tokio::select! {
                line = lines.next() => match line {
                    Ok(Some(line)) => {
                        self.pace.lock().await.wait(1).await;
                        self.question(&line, &mut asked)?;
                    }
                    // Half-closed: it may still read its answers.
                    Ok(None) => return answer_rest(&mut asked, &mut out).await,
                    Err(LineError::Io(error)) => return Err(error),
                    Err(error) => return Err(self.refused(b"", &error.to_string())),
                },
                Some(answer) = asked.join_next() => write_answer(answer, &mut out).await?,
            }
        }
    }

    fn question(self: &Arc<Self>, line: &[u8], asked: &mut JoinSet<Result<Answer, RecordError>>) -> io::Result<()> {
        let question: Question =
            serde_json::from_slice(line).map_err(|error| self.refused(line, &error.to_string()))?;
        if asked.len() >= 2 * OPEN_MAX {
            return Err(self.refused(b"", "more questions than can be open, and none of their answers was waited for"));
        }
        let door = Arc::clone(self);
        let what = serde_json::to_value(&question.asked)?;
        let why = what.get("why").and_then(Value::as_str).unwrap_or("the guest asks").to_owned();
        asked.spawn(async move { door.ask(what, why).await.map(|verdict| Answer { id: question.id, verdict }) });
        Ok(())
    }

    fn refused(&self, line: &[u8], why: &str) -> io::Error {
        match note_nonsense(&self.recorder, Door::Ask.name(), line, why) {
            Ok(()) => io::Error::new(io::ErrorKind::InvalidData, why.to_owned()),
            Err(error) => unrecorded(error),
        }
    }
}

type Joined = Result<Result<Answer, RecordError>, tokio::task::JoinError>;

async fn write_answer<S: Stream>(answer: Joined, out: &mut WriteHalf<S>) -> io::Result<()> {
    let answer = answer.map_err(io::Error::other)?.map_err(unrecorded)?;
    write_line(out, &answer).await
}

async fn answer_rest<S: Stream>(
    asked: &mut JoinSet<Result<Answer, RecordError>>,
    out: &mut WriteHalf<S>,
) -> io::Result<()> {
    while let Some(answer) = asked.join_next().await {
        write_answer(answer, out).await?;
    }
    Ok(())
}

fn denied(why: &str) -> Verdict {
    Verdict::Deny { why: why.to_owned() }
}

/// Records that nobody waits for a verdict any more.
struct Withdrawn<'a> {
    recorder: &'a Recorder,
    question: u64,
    armed: bool,
}

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        if self.armed {
            let verdict = denied("whoever asked is gone");
            // A failure latches, and ends the run.
            let _ = self.recorder.note(&Entry::Decided { question: self.question, verdict, by: Decider::Nobody });
        }
    }
}

#[cfg(test)]
mod tests;
