// SPDX-License-Identifier: Apache-2.0
//! Commands in the guest: what to run, the running command with its three streams, and how it ended.
//!
//! ```no_run
//! # async fn demo(sandbox: &midge::sandbox::Sandbox) -> Result<(), midge::error::Error> {
//! use midge::exec::Exec;
//!
//! let output = sandbox.exec(Exec::new(["python3", "-c", "print(6 * 7)"])).await?.output().await?;
//! assert_eq!(output.stdout, b"42\n");
//! assert!(output.status.is_success());
//! # Ok(())
//! # }
//! ```

mod pump;
mod status;
mod streams;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use midge_protocol::{Attach, EnvVar, ToAgent, ToHost, WindowSize};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use status::{ExitStatus, Outcome, Usage};
pub use streams::{OutputReader, StdinWriter};

use crate::error::Error;
use crate::link::{Conversation, Link};
use pump::Pump;

const STARTING: &str = "running the command";
/// How much longer than its time-out a command may take until its agent counts as one that does not tell its end.
const LATE: Duration = Duration::from_secs(120);

/// A command to run. Built like [`std::process::Command`]; never passed through a shell.
#[derive(Debug, Clone)]
pub struct Exec {
    pub(crate) message: midge_protocol::Exec,
}

impl Exec {
    /// The program and its arguments. A program without a slash is looked up in the guest's `PATH`.
    pub fn new<I, S>(argv: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        let message = midge_protocol::Exec {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            tty: None,
            stdin: false,
            timeout_ms: 0,
            replay_bytes: 0,
        };
        Self { message }
    }

    /// Sets a variable on top of the defaults (`PATH`, `HOME`, `USER`, `LANG` and a few more).
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.message.env.push(EnvVar { name: name.into(), value: value.into() });
        self
    }

    /// As [`Exec::env`], but only where nothing else sets the variable.
    #[must_use]
    pub fn default_env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.message.env.insert(0, EnvVar { name: name.into(), value: value.into() });
        self
    }

    /// Sets the working directory; without one it is `/workspace` where that exists, else the user's home.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.message.cwd = Some(dir.into());
        self
    }

    /// Sets the user: a name, `uid` or `uid:gid`; without one it is `agent` where that exists, else root.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.message.user = Some(user.into());
        self
    }

    /// After this time the whole process tree is killed, and [`ExitStatus::timed_out`] says so.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        // 0 means "never" on the wire.
        self.message.timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        self
    }

    /// Whether [`Running::stdin`] will be written to; without it the command's standard input is empty.
    #[must_use]
    pub fn stdin(mut self, wanted: bool) -> Self {
        self.message.stdin = wanted;
        self
    }

    /// Gives the command a terminal instead of three pipes; all its output then comes on stdout.
    #[must_use]
    pub fn tty(mut self, rows: u16, columns: u16) -> Self {
        self.message.tty = Some(WindowSize { rows, columns });
        self
    }

    /// Lets the command outlive its [`Running`]: so many bytes of each stream are kept for
    /// [`Sandbox::attach`](crate::sandbox::Sandbox::attach).
    #[must_use]
    pub fn replay(mut self, bytes: u32) -> Self {
        self.message.replay_bytes = bytes.min(midge_protocol::MAX_REPLAY_BYTES);
        self
    }

    /// Fills in what the sandbox gives every command; the command's own settings win.
    pub(crate) fn with_defaults(mut self, env: &[(OsString, OsString)], user: Option<&str>) -> Self {
        let defaults = env.iter().map(|(name, value)| EnvVar { name: name.clone(), value: value.clone() });
        self.message.env = defaults.chain(self.message.env).collect();
        self.message.user = self.message.user.or_else(|| user.map(str::to_owned));
        self
    }

    pub(crate) async fn start(self, link: &Link) -> Result<Running, Error> {
        if self.message.argv.first().is_none_or(|program| program.is_empty()) {
            return Err(Error::Setting {
                what: "the command",
                value: "empty".to_owned(),
                accepted: "a program and its arguments".to_owned(),
            });
        }
        let takes_stdin = self.message.stdin;
        let limit = Some(self.message.timeout_ms).filter(|limit_ms| *limit_ms > 0).map(Duration::from_millis);
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit)?.checked_add(LATE));
        let conversation = link.open(&ToAgent::Exec(self.message), STARTING).await?;
        Running::begin(conversation, [0, 0], takes_stdin, deadline).await
    }
}

/// Takes over a running command, from the given offsets of its output on.
pub(crate) async fn attach(link: &Link, id: ExecId, stdout_offset: u64, stderr_offset: u64) -> Result<Running, Error> {
    let attach = Attach { exec_id: id.0, stdout_offset, stderr_offset };
    let conversation = link.open(&ToAgent::Attach(attach), "attaching to the command").await?;
    Running::begin(conversation, [stdout_offset, stderr_offset], true, None).await
}

/// Names a command within its sandbox, for [`Sandbox::attach`](crate::sandbox::Sandbox::attach).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExecId(pub u64);

/// A running command.
///
/// The streams have backpressure: a command whose output nobody reads comes to a halt, as with a pipe. Take
/// all streams and read them side by side, drop the ones you do not need, or use [`Running::output`].
///
/// Dropping a `Running` gives the command up: it is killed, unless it was started with [`Exec::replay`].
#[derive(Debug)]
pub struct Running {
    /// Its standard input, when asked for with [`Exec::stdin`]. Dropping it is the end of the input.
    pub stdin: Option<StdinWriter>,
    /// Its standard output, or its terminal.
    pub stdout: Option<OutputReader>,
    /// Its standard error; empty for a command on a terminal.
    pub stderr: Option<OutputReader>,
    id: ExecId,
    pid: u32,
    controls: Controls,
    ended: oneshot::Receiver<Result<ExitStatus, Error>>,
    pump: AbortOnDrop,
}

/// Sends signals and window sizes to a running command; cheap to clone.
#[derive(Debug, Clone)]
pub struct Controls {
    messages: mpsc::UnboundedSender<ToAgent>,
}

impl Controls {
    /// Sends a signal to the command's process group; a command that has ended takes no notice.
    pub fn signal(&self, number: u8) {
        // An error means that the command has ended.
        let _ = self.messages.send(ToAgent::Signal(number));
    }

    /// Tells the command's terminal its new size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let _ = self.messages.send(ToAgent::Resize(WindowSize { rows, columns }));
    }
}

/// What [`Running::output`] collects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How the command ended.
    pub status: ExitStatus,
    /// Everything on its standard output.
    pub stdout: Vec<u8>,
    /// Everything on its standard error.
    pub stderr: Vec<u8>,
}

impl Running {
    async fn begin(
        mut conversation: Conversation,
        offsets: [u64; 2],
        takes_stdin: bool,
        deadline: Option<Instant>,
    ) -> Result<Self, Error> {
        let started = match pump::next(&mut conversation.receiver, deadline).await? {
            ToHost::Started(started) => started,
            ToHost::Refused(refused) => {
                let midge_protocol::Refused { exit_code, errno, text } = refused;
                return Err(Error::NotStarted { exit_code, errno, text });
            }
            other => return Err(conversation.receiver.unexpected(other, "Started")),
        };
        let (stdin, input) = takes_stdin.then(streams::input).unzip();
        let (stdout, stdout_sink) = streams::output(offsets[0]);
        let (stderr, stderr_sink) = streams::output(offsets[1]);
        let (messages, outbox) = mpsc::unbounded_channel();
        let (report, ended) = oneshot::channel();
        let sinks = [stdout_sink, stderr_sink];
        let pump = Pump { conversation, input, stdin_offset: started.stdin_offset, outbox, sinks, deadline };
        let task = tokio::spawn(async move {
            // Nobody may care about the end.
            let _ = report.send(pump.run().await);
        });
        Ok(Self {
            stdin,
            stdout: Some(stdout),
            stderr: Some(stderr),
            id: ExecId(started.exec_id),
            pid: started.pid,
            controls: Controls { messages },
            ended,
            pump: AbortOnDrop(task.abort_handle()),
        })
    }

    /// Its name within the sandbox.
    #[must_use]
    pub fn id(&self) -> ExecId {
        self.id
    }

    /// Its process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What sends signals and window sizes to it.
    #[must_use]
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// Waits for its end. Closes those streams that were not taken out: no more input, output discarded.
    ///
    /// # Errors
    /// The reason why the guest is gone, or what a broken agent sent.
    pub async fn wait(self) -> Result<ExitStatus, Error> {
        let Self { stdin, stdout, stderr, ended, pump, .. } = self;
        drop((stdin, stdout, stderr));
        let end = ended.await;
        drop(pump);
        end.unwrap_or_else(|_| Err(Error::Lost { during: STARTING, source: std::io::ErrorKind::Interrupted.into() }))
    }

    /// Closes its input and collects all its output, whatever the size, until it ends.
    ///
    /// # Errors
    /// As for [`Running::wait`].
    pub async fn output(mut self) -> Result<Output, Error> {
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let (status, stdout, stderr) = tokio::join!(self.wait(), collect(stdout), collect(stderr));
        Ok(Output { status: status?, stdout, stderr })
    }
}

async fn collect(stream: Option<OutputReader>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // Reading from the pump cannot fail; a broken stream is `wait`'s to report.
        let _ = stream.read_to_end(&mut bytes).await;
    }
    bytes
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod agent_tests;
#[cfg(test)]
mod tests;
