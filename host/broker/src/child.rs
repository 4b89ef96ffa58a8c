// SPDX-License-Identifier: Apache-2.0
//! The door `child`: a sandbox made of the one that asks. Nothing a guest says makes a child that may do more than its parent: the
//! policy is proved to be no wider ([`Narrower`] exists in no other way), the budgets are taken from the parent's ledger, and the
//! whole family is counted.
//!
//! One request a connection. The child lives no longer than the connection: when the parent is ended or hangs up, so is the child.
//! Who makes sandboxes is [`Children`]; this file starts no process.

mod family;
mod plan;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use midge_policy::{Narrower, Policy};
use midge_protocol::Door;
use midge_protocol::broker::{Base, ChildEvent, ChildRequest, Keep, Work};
use midge_record::{Entry, Recorder};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, Semaphore, watch};

use crate::ledger::Ledger;
use crate::lines::{LineError, Lines, Pace, note_nonsense, unrecorded, write_line};
use crate::stream::{Later, Stream};

pub use family::Family;

/// Connections at once, and so children that are alive or whose changes are kept; more are refused.
pub const CONNECTIONS_MAX: usize = 32;
/// Requests a second; more wait.
const REQUESTS_PER_SECOND: u32 = 10;
/// Requests that may come at once.
const REQUESTS_BURST: u32 = 50;
/// How long the request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest text of one event, in bytes.
const TEXT_MAX_BYTES: usize = 64 << 10;
/// Most changed or removed paths that are told.
const PATHS_MAX: usize = 4096;
/// Longest tar of a child's changes, in bytes.
const CHANGES_MAX_BYTES: u64 = 1 << 30;
/// The exit code of a child that was ended, as of a command that SIGKILL ended.
const ENDED_CODE: i32 = 137;

/// Who makes sandboxes.
pub trait Children: Send + Sync + 'static {
    /// Makes one and starts its work. Everything that it may do and spend is in `order`.
    ///
    /// # Errors
    /// Why there is none, in words for the model.
    fn start(&self, order: Order) -> Later<'_, Result<Box<dyn Child>, String>>;
}

/// A child to be made.
#[derive(Debug)]
pub struct Order {
    /// Its name: its parent's, a full stop, its number.
    pub name: String,
    /// What it may do.
    pub policy: Narrower,
    /// What it is made of: its parent, or a template that the parent's policy names.
    pub base: Base,
    /// What it is to do.
    pub work: Work,
    /// What it may spend. It is closed when the child is at its end.
    pub ledger: Ledger,
    /// For its own door `child`.
    pub family: Family,
}

/// A child. Dropped, it is ended, with all that it made.
pub trait Child: Send {
    /// Waits for what it does next; after [`Happened::Ended`] it is not asked again. Can be dropped and called again.
    fn next(&mut self) -> Later<'_, Happened>;

    /// What it changed in the workspace, after its end.
    ///
    /// # Errors
    /// The changes cannot be read.
    fn changes(&mut self) -> Later<'_, io::Result<Changes>>;
}

/// What a child does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// Output of its command, or of its loop.
    Output(String),
    /// It is at its end.
    Ended {
        /// Its command's exit code, or the loop's.
        code: i32,
        /// The last words of its loop, or the end of its command's output.
        text: String,
        /// One path each, with `A`, `M` or `D` before it.
        changed: Vec<String>,
    },
}

/// What a child changed.
pub struct Changes {
    /// A tar of what is new or other.
    pub tar: Box<dyn AsyncRead + Send + Unpin>,
    /// Its bytes, exactly.
    pub tar_bytes: u64,
    /// Paths that it removed.
    pub removed: Vec<String>,
}

/// The door of one sandbox.
pub struct ChildDoor {
    name: String,
    children: Arc<dyn Children>,
    policy: watch::Receiver<Arc<Policy>>,
    ledger: Ledger,
    recorder: Recorder,
    family: Family,
    pace: Mutex<Pace>,
    places: Semaphore,
}

impl std::fmt::Debug for ChildDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChildDoor").field("name", &self.name).field("family", &self.family).finish_non_exhaustive()
    }
}

impl ChildDoor {
    /// A door for the sandbox `name`. `family` is [`Order::family`] for a child, [`Family::new`] for a root.
    #[must_use]
    pub fn new(
        name: &str,
        children: Arc<dyn Children>,
        policy: watch::Receiver<Arc<Policy>>,
        ledger: Ledger,
        recorder: Recorder,
        family: Family,
    ) -> Arc<Self> {
        let pace = Mutex::new(Pace::new(REQUESTS_PER_SECOND, Duration::from_secs(1), REQUESTS_BURST));
        let places = Semaphore::new(CONNECTIONS_MAX);
        Arc::new(Self { name: name.to_owned(), children, policy, ledger, recorder, family, pace, places })
    }

    /// Serves one connection to its end.
    ///
    /// # Errors
    /// The connection failed, something could not be recorded, or what came was no request.
    pub async fn serve(&self, stream: impl Stream) -> io::Result<()> {
        let (read, mut out) = tokio::io::split(stream);
        let Ok(_place) = self.places.try_acquire() else {
            let why = format!("{CONNECTIONS_MAX} children are alive or wait for `keep` already");
            return write_line(&mut out, &ChildEvent::Refused { why }).await;
        };
        let mut lines = Lines::new(read);
        let Some(line) = self.line(tokio::time::timeout(REQUEST_TIMEOUT, lines.next()).await?)? else { return Ok(()) };
        let request: ChildRequest =
            serde_json::from_slice(&line).map_err(|error| self.nonsense(&line, &error.to_string()))?;
        self.pace.lock().await.wait(1).await;
        let number = self.family.number();
        let asked = Entry::ChildAsked { child: number, request: Box::new(request.clone()) };
        self.recorder.note(&asked).map_err(unrecorded)?;
        let order = match self.order(number, request) {
            Ok(order) => order,
            Err(why) => return self.refuse(&mut out, number, why).await,
        };
        let ledger = order.ledger.clone();
        // Whatever happens from here on, what the child did not spend comes back.
        let _closes = Closes(ledger.clone());
        let started = Entry::ChildStarted {
            child: number,
            name: order.name.clone(),
            policy: order.policy.policy().to_toml(),
            share: ledger.left(),
        };
        self.recorder.note(&started).map_err(unrecorded)?;
        let (name, policy) = (order.name.clone(), order.policy.policy().clone());
        let child = tokio::select! {
            child = self.children.start(order) => child,
            () = gone(&mut lines) => Err("whoever asked for it is gone".to_owned()),
        };
        match child {
            Ok(child) => {
                let alive = Alive { child, number, name, policy, ledger };
                self.live(alive, lines, out).await
            }
            Err(why) => {
                self.family.give_back();
                self.refuse(&mut out, number, vec![why]).await
            }
        }
    }

    /// Follows a child to its end, and then does with its changes what the parent says.
    async fn live<S: Stream>(
        &self,
        alive: Alive,
        mut lines: Lines<ReadHalf<S>>,
        mut out: WriteHalf<S>,
    ) -> io::Result<()> {
        let Alive { mut child, number, name, policy, ledger } = alive;
        let mut record = Ends { recorder: &self.recorder, ledger: &ledger, number, armed: true };
        write_line(&mut out, &ChildEvent::Started { name }).await?;
        let (code, text, changed) = loop {
            let happened = tokio::select! {
                happened = child.next() => happened,
                () = gone(&mut lines) => return Err(io::ErrorKind::ConnectionAborted.into()),
                () = time_is_up(&ledger) => break (None, "the child was ended: its wall time is over".to_owned(), Vec::new()),
                () = self.narrowed(&policy) => {
                    let why = "the child was ended: the policy was narrowed to less than it may do".to_owned();
                    break (None, why, Vec::new());
                }
            };
            match happened {
                Happened::Output(text) => write_line(&mut out, &ChildEvent::Output { text: cut(text) }).await?,
                Happened::Ended { code, text, mut changed } => {
                    changed.truncate(PATHS_MAX);
                    break (Some(code), text, changed);
                }
            }
        };
        record.end(code, &changed)?;
        let ended = ChildEvent::Ended { code: code.unwrap_or(ENDED_CODE), text: cut(text), changed };
        write_line(&mut out, &ended).await?;
        if code.is_none() {
            drop(child);
            return Ok(());
        }
        let Some(line) = self.line(lines.next().await)? else { return self.kept(number, Keep::Drop, 0) };
        match serde_json::from_slice(&line).map_err(|error| self.nonsense(&line, &error.to_string()))? {
            Keep::Drop => self.kept(number, Keep::Drop, 0),
            Keep::Take => self.hand_over(child, number, &mut out).await,
        }
    }

    /// Waits until this sandbox's policy allows no child with `policy` any more.
    async fn narrowed(&self, policy: &Policy) {
        let narrow = |parent: &Arc<Policy>| parent.child(Some(policy)).is_err();
        // Without a sender nobody changes it: its broker is gone, and this connection soon.
        if self.policy.clone().wait_for(narrow).await.is_err() {
            std::future::pending().await
        }
    }

    async fn hand_over<S: Stream>(
        &self,
        mut child: Box<dyn Child>,
        number: u64,
        out: &mut WriteHalf<S>,
    ) -> io::Result<()> {
        let changes = match child.changes().await {
            Ok(changes) if changes.tar_bytes <= CHANGES_MAX_BYTES => changes,
            Ok(changes) => {
                let why = format!(
                    "its changes have {} bytes, at most {CHANGES_MAX_BYTES} are handed over",
                    changes.tar_bytes
                );
                return self.refuse(out, number, vec![why]).await;
            }
            Err(error) => return self.refuse(out, number, vec![format!("its changes cannot be read: {error}")]).await,
        };
        let Changes { tar, tar_bytes, mut removed } = changes;
        removed.truncate(PATHS_MAX);
        self.kept(number, Keep::Take, tar_bytes)?;
        write_line(out, &ChildEvent::Changes { tar_bytes, removed }).await?;
        let copied = tokio::io::copy(&mut tar.take(tar_bytes), out).await?;
        if copied < tar_bytes {
            // The guest cannot be told inside the bytes: the connection ends short of them.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.shutdown().await
    }

    async fn refuse<S: Stream>(&self, out: &mut WriteHalf<S>, child: u64, why: Vec<String>) -> io::Result<()> {
        let text = cut(why.join("\n"));
        self.recorder.note(&Entry::ChildRefused { child, why }).map_err(unrecorded)?;
        write_line(out, &ChildEvent::Refused { why: text }).await
    }

    fn kept(&self, child: u64, keep: Keep, tar_bytes: u64) -> io::Result<()> {
        self.recorder.note(&Entry::ChildKept { child, keep, tar_bytes }).map(drop).map_err(unrecorded)
    }

    fn line(&self, line: Result<Option<bytes::Bytes>, LineError>) -> io::Result<Option<bytes::Bytes>> {
        match line {
            Ok(line) => Ok(line),
            Err(LineError::Io(error)) => Err(error),
            Err(error) => Err(self.nonsense(b"", &error.to_string())),
        }
    }

    fn nonsense(&self, line: &[u8], why: &str) -> io::Error {
        match note_nonsense(&self.recorder, Door::Child.name(), line, why) {
            Ok(()) => io::Error::new(io::ErrorKind::InvalidData, why.to_owned()),
            Err(error) => unrecorded(error),
        }
    }
}

/// Waits until whoever asked for a child hangs up. It has nothing to say before the child's end; what it says is not waited for.
async fn gone<R: AsyncRead + Unpin>(lines: &mut Lines<R>) {
    lines.closed().await;
}

/// Waits until a ledger's wall time is over.
async fn time_is_up(ledger: &Ledger) {
    match ledger.wall_left_ms() {
        Some(left) => tokio::time::sleep(Duration::from_millis(left)).await,
        None => std::future::pending().await,
    }
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_MAX_BYTES {
        let end = (0..=TEXT_MAX_BYTES).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
    text
}

/// A child that runs.
struct Alive {
    child: Box<dyn Child>,
    number: u64,
    name: String,
    policy: Policy,
    ledger: Ledger,
}

/// Closes a ledger when it is dropped.
struct Closes(Ledger);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Records a child's end, once: at the end, or when it is dropped because its parent is gone.
struct Ends<'a> {
    recorder: &'a Recorder,
    ledger: &'a Ledger,
    number: u64,
    armed: bool,
}

impl Ends<'_> {
    fn end(&mut self, code: Option<i32>, changed: &[String]) -> io::Result<()> {
        self.armed = false;
        self.ledger.close();
        let spent = self.ledger.spent();
        let entry = Entry::ChildEnded { child: self.number, code, spent, changed: changed.to_vec() };
        self.recorder.note(&entry).map(drop).map_err(unrecorded)
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if self.armed {
            // A failure latches, and ends the run.
            let _ = self.end(None, &[]);
        }
    }
}

#[cfg(test)]
mod tests;
