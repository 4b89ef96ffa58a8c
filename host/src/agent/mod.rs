// SPDX-License-Identifier: Apache-2.0
//! An agent in a sandbox: a broker behind the doors of its guest, and the tool loop of a language model in front of them.
//!
//! The loop runs in the guest and can do there what it likes. Whatever it wants of the world (a model's answer, a page, a human's
//! word, a child) it asks the [`Broker`] for, which holds it against the policy, counts it and records it. Nothing here decides
//! anything; this is the wiring, and the loop's beginning and end.

mod children;
mod guest;
mod household;
mod peers;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use midge_broker::Broker;
use midge_broker::ledger::Ledger;
use midge_policy::Policy;
use midge_protocol::Door;
use midge_protocol::broker::{End, Run, Told};
use midge_record::{Entry, Line, RecordError, Recorder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::error::{Error, Fault};
use crate::exec::{Controls, Exec, ExitStatus, OutputReader, Running};
use crate::monitor::Inbound;
use crate::monitor::events::printable;
use crate::sandbox::{Doors, Sandbox};

pub use guest::{BASE_URL, environment, with_doors};
pub use household::{Household, Life, Member, Over, Recording, WORKSPACE, Watcher, cwd, end, tools};
pub use peers::{check_name_is_free, message_peers};

/// Connections of one guest, and calls of its peers, that are served at once; more wait.
const CONNECTIONS_MAX: usize = 256;
/// How long the loop may take to end in good order when it is told to.
const GRACE: Duration = Duration::from_secs(10);
/// Most of what the loop wrote to its standard error that is kept, in bytes.
const COMPLAINT_MAX_BYTES: usize = 4096;
/// The machine is the agent's own: it may install what it needs, and there is nobody to be kept from.
pub(crate) const ROOT: &str = "0";
const SIGINT: u8 = 2;
const SIGKILL: u8 = 9;

/// What narrows policies while sandboxes run: nothing, or the policy that the latest change says.
pub type Change = watch::Receiver<Option<Arc<Policy>>>;

/// A sandbox whose doors lead to a broker. Dropping it closes them.
#[derive(Debug)]
pub struct Attended {
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Attended {
    /// Closes the doors and waits until nothing is served behind them any more.
    pub async fn end(mut self) {
        self.stop = None;
        // Of an error nothing follows: what was served is gone then too.
        let _ = (&mut self.serving).await;
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Puts `broker` behind the doors of a sandbox, and what programs need to find them into its guest: the certificates that they
/// are to trust, of which one is `authority`, as PEM. What comes through `change` narrows its policy, then and later.
///
/// # Errors
/// What [`Sandbox::open_doors`] says, or the reason why the guest cannot take a file.
pub async fn attend(sandbox: &Sandbox, broker: Broker, authority: &str, change: Change) -> Result<Attended, Error> {
    let doors = sandbox.open_doors(&Door::ALL).await?;
    let (stop, stopped) = oneshot::channel();
    let serving = tokio::spawn(serve(doors, broker, change, stopped));
    let attended = Attended { stop: Some(stop), serving };
    guest::trust(sandbox, authority).await?;
    Ok(attended)
}

async fn serve(mut doors: Doors, broker: Broker, mut change: Change, mut stopped: oneshot::Receiver<()>) {
    let mut served: JoinSet<(Door, io::Result<()>)> = JoinSet::new();
    // Also what was changed before this began.
    change.mark_changed();
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => return served.shutdown().await,
            Ok(()) = change.changed() => {
                let policy = change.borrow_and_update().clone();
                if let Some(Err(error)) = policy.map(|policy| broker.narrow(&policy)) {
                    // Nothing passes any more, rather than what should not.
                    return tracing::error!(%error, "the doors of a sandbox are closed: its policy could not be narrowed");
                }
            }
            Some(ended) = served.join_next(), if !served.is_empty() => {
                if let Ok((door, Err(error))) = ended {
                    tracing::debug!(door = door.name(), %error, "a connection of the guest, or of a peer");
                }
            }
            arrived = doors.next(), if served.len() < CONNECTIONS_MAX => {
                let Some((door, inbound)) = arrived else { return };
                let broker = broker.clone();
                served.spawn(async move {
                    // As sockets: the kernel moves what only passes through.
                    let done = match inbound {
                        Inbound::Unix(stream) => broker.serve(door, stream).await,
                        Inbound::Tcp(stream) => broker.serve(door, stream).await,
                    };
                    (door, done)
                });
            }
            called = broker.called(), if served.len() < CONNECTIONS_MAX => {
                let broker = broker.clone();
                served.spawn(async move { (Door::Peer, broker.answer(called).await) });
            }
        }
    }
}

/// How a loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub how: End,
    /// The model's last words, or what went wrong; the guest's text.
    pub text: String,
}

/// A loop that runs.
#[derive(Debug)]
pub struct Turning {
    running: Running,
    stderr: Option<OutputReader>,
    lines: broadcast::Receiver<Arc<Line>>,
    ledger: Ledger,
    recorder: Recorder,
}

/// Starts the tool loop in a guest that is attended, with `run` to do.
///
/// # Errors
/// The loop's program is not where it should be, or the guest cannot take or start it.
pub async fn start(sandbox: &Sandbox, run: &Run, ledger: &Ledger, recorder: &Recorder) -> Result<Turning, Error> {
    let task = serde_json::to_vec(run).map_err(|error| Error::prepare("agent's task", Fault::Midge, error))?;
    let program = guest::put_loop(sandbox).await?;
    let lines = recorder.listen();
    let exec = guest::with_doors(Exec::new([program]).user(ROOT).stdin(true).cwd(&run.cwd));
    let mut running = sandbox.exec(exec).await?;
    let stderr = running.stderr.take();
    if let Some(mut stdin) = running.stdin.take() {
        let sent = async {
            stdin.write_all(&task).await?;
            stdin.shutdown().await
        };
        sent.await.map_err(|source| Error::Local { during: "giving the agent its task", source })?;
    }
    Ok(Turning { running, stderr, lines, ledger: ledger.clone(), recorder: recorder.clone() })
}

impl Turning {
    /// What sends it signals: SIGINT ends it in good order.
    #[must_use]
    pub fn controls(&self) -> Controls {
        self.running.controls()
    }

    /// Waits for its end: its own, that of its wall time, or because something could not be recorded.
    ///
    /// # Errors
    /// The reason why the guest is gone, or why nothing can be recorded any more.
    pub async fn ended(mut self) -> Result<Ended, Error> {
        let controls = self.controls();
        let late = time_is_up(self.ledger.clone());
        let complaint = complaint(self.stderr.take());
        let waited = async { tokio::join!(self.running.wait(), complaint) };
        tokio::pin!(waited);
        let (status, complaint, is_late) = tokio::select! {
            (status, complaint) = &mut waited => (status?, complaint, false),
            error = self.recorder.failed() => return Err(unrecorded(error)),
            () = late => {
                controls.signal(SIGINT);
                let (status, complaint) = match tokio::time::timeout(GRACE, &mut waited).await {
                    Ok(waited) => waited,
                    Err(_) => {
                        controls.signal(SIGKILL);
                        waited.await
                    }
                };
                (status?, complaint, true)
            }
        };
        let told = last_words(&mut self.lines);
        Ok(judge(
            &status,
            told,
            &complaint,
            self.ledger.left().exhausted().filter(|_| is_late || status.shell_code() == 3),
        ))
    }
}

/// Everything that the host knows of an end, in one. What the guest says counts for nothing where the host knows better.
fn judge(status: &ExitStatus, told: Option<Ended>, complaint: &str, exhausted: Option<&str>) -> Ended {
    let (how, words) = told.map_or((None, String::new()), |told| (Some(told.how), told.text));
    if let Some(budget) = exhausted {
        return Ended { how: End::Budget(budget.to_owned()), text: words };
    }
    let code = status.shell_code();
    match how {
        Some(End::Failed) => Ended { how: End::Failed, text: words },
        Some(how) if how.exit_code() == code => Ended { how: how_of(code), text: words },
        _ => {
            let said = if complaint.is_empty() { "it said nothing".to_owned() } else { printable(complaint) };
            Ended { how: how_of(code), text: format!("the loop left with {code} and no last word; {said}") }
        }
    }
}

/// The end that a code of the loop stands for. Which budget a guest means is its own word.
fn how_of(code: u8) -> End {
    let all = [End::Done, End::Budget("unknown".to_owned()), End::Denied, End::Cancelled];
    all.into_iter().find(|end| end.exit_code() == code).unwrap_or(End::Failed)
}

/// The last `finished` that was recorded.
fn last_words(lines: &mut broadcast::Receiver<Arc<Line>>) -> Option<Ended> {
    let mut last = None;
    loop {
        match lines.try_recv() {
            Ok(line) => {
                if let Some(Entry::Told { told: Told::Finished { end, text } }) = line.entry() {
                    last = Some(Ended { how: end, text });
                }
            }
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return last,
        }
    }
}

/// An end in one word, and which budget it was.
#[must_use]
pub fn word_of(how: &End) -> String {
    match how {
        End::Done => "done".to_owned(),
        End::Budget(which) => format!("budget: {which}"),
        End::Denied => "denied".to_owned(),
        End::Cancelled => "cancelled".to_owned(),
        End::Failed => "failed".to_owned(),
    }
}

/// Versions of the parts, for transcripts.
#[must_use]
pub fn versions() -> BTreeMap<String, String> {
    [("midge".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into()
}

async fn time_is_up(ledger: Ledger) {
    while let Some(left) = ledger.left().wall_ms {
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(left)).await;
    }
    std::future::pending().await
}

/// The end of what it says on its standard error.
async fn complaint(stderr: Option<OutputReader>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let (mut kept, mut piece) = (Vec::new(), vec![0; COMPLAINT_MAX_BYTES]);
    while let Ok(len @ 1..) = stderr.read(&mut piece).await {
        kept.extend_from_slice(&piece[..len]);
        kept.drain(..kept.len().saturating_sub(COMPLAINT_MAX_BYTES));
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// Why a run has to stop that cannot be recorded.
#[must_use]
pub fn unrecorded(error: RecordError) -> Error {
    Error::prepare("run's transcript", Fault::Host, error)
}

#[cfg(test)]
mod tests;
