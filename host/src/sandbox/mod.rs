// SPDX-License-Identifier: Apache-2.0
//! One virtual machine from start to end: the top of the library.
//!
//! ```no_run
//! # async fn demo() -> Result<(), midge::error::Error> {
//! use midge::exec::Exec;
//! use midge::sandbox::Sandbox;
//!
//! let sandbox = Sandbox::builder().mem_mib(512).start().await?;
//! let output = sandbox.exec(Exec::new(["uname", "-r"])).await?.output().await?;
//! println!("{}", String::from_utf8_lossy(&output.stdout));
//! sandbox.stop().await;
//! # Ok(())
//! # }
//! ```

pub mod binaries;
mod builder;
mod choice;
mod doors;
mod give_back;
mod kernel_file;
mod launch;
pub(crate) mod listing;
mod prepare;
pub mod settings;
mod standstill;
pub mod twin;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use midge_protocol::{Hello, Stats};

pub use builder::Builder;
pub use choice::Where;
pub use doors::Doors;
pub use settings::Settings;
pub use twin::Forks;
pub use workspace::Workspace;

use crate::error::Error;
use crate::exec::{Exec, ExecId, Running, attach};
use crate::files::Files;
use crate::groups::Usage;
use crate::link::Link;
use crate::monitor::{End, Monitor, Stream};
use crate::run_dir::RunDir;
use crate::timeline::{Recorder, Timeline};
use standstill::Standstill;
use twin::Made;

/// How long a guest may take to write everything out and reset itself.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How long a monitor may take to stop when it is told to; it has nothing to wait for.
const STOP: Duration = Duration::from_secs(2);

/// A running virtual machine. Dropping it ends the machine and removes everything that belongs to it.
///
/// Several can run side by side in one process; each has a monitor process of its own.
#[derive(Debug)]
pub struct Sandbox {
    // Dropped in this order: first the machine, then the directory it has its sockets in.
    monitor: Monitor,
    link: Link,
    made: Arc<Made>,
    recorder: Recorder,
    collections: AtomicU32,
    standstill: Standstill,
    run_dir: RunDir,
}

/// What every command of a sandbox gets, unless it says otherwise.
#[derive(Debug, Clone, Default)]
pub(crate) struct Defaults {
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) user: Option<String>,
}

impl Sandbox {
    /// A sandbox to be set up and started.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Its random name, 12 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        self.run_dir.id()
    }

    /// Starts a command.
    ///
    /// # Errors
    /// [`Error::NotStarted`] when the guest cannot start it, or the reason why the guest is gone.
    pub async fn exec(&self, exec: Exec) -> Result<Running, Error> {
        let running =
            exec.with_defaults(&self.made.defaults.env, self.made.defaults.user.as_deref()).start(&self.link).await?;
        self.recorder.note("exec_started");
        Ok(running)
    }

    /// Takes over a command that was started with [`Exec::replay`], from these offsets of its output on.
    ///
    /// # Errors
    /// [`Error::Failed`] when there is no such command or the output is not kept that far back, or the
    /// reason why the guest is gone.
    pub async fn attach(&self, id: ExecId, stdout_offset: u64, stderr_offset: u64) -> Result<Running, Error> {
        attach(&self.link, id, stdout_offset, stderr_offset).await
    }

    /// The guest's files.
    #[must_use]
    pub fn files(&self) -> Files<'_> {
        Files::new(&self.link)
    }

    /// The directory of the host that the guest has a copy of, if there is one.
    #[must_use]
    pub fn workspace(&self) -> Option<Workspace<'_>> {
        Workspace::of(self)
    }

    /// A name in the sandbox's directory for big files that nothing has yet.
    fn fresh_bulk_path(&self, what: &str) -> Result<PathBuf, Error> {
        let number = self.collections.fetch_add(1, Ordering::Relaxed);
        Ok(self.run_dir.bulk()?.join(format!("{what}-{number}")))
    }

    /// Connects to a TCP port of the guest's 127.0.0.1. Half-close passes both ways.
    ///
    /// # Errors
    /// [`Error::Failed`] with the guest's errno when nobody listens there or too many such connections are open, or the reason why the
    /// guest is gone.
    pub async fn dial(&self, port: u16) -> Result<Stream, Error> {
        self.link.dial(port).await
    }

    /// How the guest is: memory, CPU time, processes, disk.
    ///
    /// # Errors
    /// The reason why the guest is gone, or what a broken agent sent.
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.link.stats().await
    }

    /// Has the agent kill every process of the guest but itself, and write everything out.
    ///
    /// # Errors
    /// As for [`Sandbox::stats`].
    pub async fn quiesce(&self) -> Result<(), Error> {
        self.link.quiesce().await
    }

    /// The stages so far.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.recorder.timeline()
    }

    /// Where to note further stages.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// The agent's version, and what it had to say at the start.
    #[must_use]
    pub fn agent(&self) -> &Hello {
        &self.made.hello
    }

    /// The monitor's process id, where it is a process of this machine.
    #[must_use]
    pub fn monitor_pid(&self) -> Option<u32> {
        self.monitor.pid()
    }

    /// What its monitor has of its machine, as its control group counts it; `None` where it has none.
    pub async fn usage(&self) -> Option<Usage> {
        self.monitor.usage().await
    }

    /// Where it runs: `native` or `emulated`.
    #[must_use]
    pub fn place_name(&self) -> &'static str {
        self.monitor.place_name()
    }

    /// Why the VM has ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<Arc<End>> {
        self.monitor.end()
    }

    /// A future of the end that does not borrow the sandbox.
    pub fn watch_end(&self) -> impl Future<Output = Arc<End>> + Send + 'static {
        self.monitor.watch_end()
    }

    /// Waits until the VM ends by itself, and says why.
    pub async fn ended(&self) -> Arc<End> {
        self.monitor.ended().await
    }

    /// Shuts the guest down in good order, or, if that takes too long, ends it. Everything written in the
    /// guest is on its disks afterwards.
    pub async fn stop(self) -> Arc<End> {
        let orderly = async {
            self.link.shutdown().await?;
            Ok::<_, Error>(self.monitor.ended().await)
        };
        match tokio::time::timeout(SHUTDOWN, orderly).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "no orderly shutdown"),
            Err(_) => tracing::debug!("the guest takes too long to shut down"),
        }
        self.kill().await
    }

    /// Ends the VM at once and waits until its process is gone. What the guest had not written is lost.
    pub async fn kill(mut self) -> Arc<End> {
        self.monitor.close_lifeline();
        if tokio::time::timeout(STOP, self.monitor.reaped()).await.is_err() {
            self.monitor.kill();
            if tokio::time::timeout(STOP, self.monitor.reaped()).await.is_err() {
                tracing::warn!(id = self.id(), "the monitor's process does not go away");
            }
        }
        self.monitor.end().unwrap_or_else(|| Arc::new(End::lost("it did not stop")))
    }
}

#[cfg(test)]
mod tests;
