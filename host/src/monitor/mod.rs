// SPDX-License-Identifier: Apache-2.0
//! Starting, watching and ending one monitor process (`midge-vmm`).
//!
//! Knows configuration, events and byte streams; nothing of the agent's protocol. Wherever the VM runs,
//! the layers above see one [`Monitor`]: streams to and from guest ports, the moment it ended and why.

pub mod config;
pub mod end;
pub mod events;
#[cfg(fuzzing)]
pub mod fuzz;
mod native;
pub mod place;
mod reach;
pub mod resident;
pub mod stream;
mod twin;
mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as channel};

use crate::groups::{GroupError, Quarters, Usage};
use crate::orders::OrderError;
use crate::timeline::Recorder;

pub use config::{Disk, DiskMode, Jail, Restore, VmmConfig, Vsock};
pub use end::{Cause, End};
pub use native::reap_all;
pub use place::{Dialer, Listener, Place};
pub use reach::Reach;
pub use resident::{Resident, SnapshotFiles};
pub use stream::{Inbound, Stream};

/// Why a monitor could not be started or reached.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// There is no monitor binary.
    #[error(
        "looking for the monitor: {path} is not an executable file; \
         install midge-vmm beside midge, or set MIDGE_VMM to its path"
    )]
    Missing {
        /// Where it was expected.
        path: PathBuf,
    },
    /// The process could not be started.
    #[error("starting {path}")]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A socket of the sandbox could not be made.
    #[error("listening on {path} for the guest")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The guest's port could not be reached.
    #[error("connecting to port {port} of the guest")]
    Connect {
        /// The vsock port.
        port: u32,
        /// Why it failed; `ConnectionRefused` when nothing listens there.
        source: io::Error,
    },
    /// A monitor did not do what it was told.
    #[error("{action}")]
    Order {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: OrderError,
    },
    /// The machine does not keep a limit that was asked for.
    #[error("limiting what the monitor may have of this machine")]
    Limit(#[from] GroupError),
    /// The emulated host failed.
    #[error("asking the emulated host to {action}")]
    Emulated {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A running monitor. Dropping it ends the VM: the process is killed and reaped, wherever it runs.
#[derive(Debug)]
pub struct Monitor {
    dialer: Dialer,
    ended: channel::Receiver<Option<Arc<End>>>,
    reaped: channel::Receiver<bool>,
    life: Life,
    /// Its control group, where this machine has one for it.
    quarters: Option<Arc<Quarters>>,
}

/// What keeps the VM alive and can take its life.
#[derive(Debug)]
enum Life {
    /// A child process of ours.
    Native(native::Process),
    /// A process that a monitor has made of itself.
    Twin(twin::Twin),
    /// A process on an emulated host.
    Remote(place::Remote),
}

/// How often a stage is looked for.
const STAGE_PAUSE: Duration = Duration::from_micros(200);

/// Waits for a stage, or an end, or the limit.
async fn reached(
    ended: channel::Receiver<Option<Arc<End>>>,
    stage: &str,
    recorder: &Recorder,
    limit: Duration,
) -> Result<(), Arc<End>> {
    let has_come = async {
        while !recorder.has(stage) {
            tokio::time::sleep(STAGE_PAUSE).await;
        }
    };
    tokio::select! {
        biased;
        () = has_come => Ok(()),
        end = Monitor::wait_end(ended) => Err(end),
        () = tokio::time::sleep(limit) => Err(Arc::new(End::lost(&format!(
            "it did not come to running within {} s; a machine with less to do, or a larger part of it, is quicker",
            limit.as_secs()
        )))),
    }
}

/// Receives console lines, when the guest has a console.
pub type ConsoleSender = mpsc::Sender<String>;

impl Monitor {
    /// What opens streams to the guest's ports.
    #[must_use]
    pub fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }

    /// Why the VM ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<Arc<End>> {
        self.ended.borrow().clone()
    }

    /// Waits until the VM has ended and says why. The process may take a few milliseconds more.
    pub async fn ended(&self) -> Arc<End> {
        Self::wait_end(self.ended.clone()).await
    }

    /// A future of the end that does not borrow the monitor.
    pub fn watch_end(&self) -> impl Future<Output = Arc<End>> + Send + 'static {
        Self::wait_end(self.ended.clone())
    }

    async fn wait_end(mut ended: channel::Receiver<Option<Arc<End>>>) -> Arc<End> {
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_else(|| Arc::new(End::lost("its watcher vanished"))),
            Err(_) => Arc::new(End::lost("its watcher vanished")),
        }
    }

    /// Waits until the monitor has said on `recorder` that it is at `stage`, at most `limit`.
    ///
    /// # Errors
    /// Its end, if that comes first.
    pub async fn reached(&self, stage: &str, recorder: &Recorder, limit: Duration) -> Result<(), Arc<End>> {
        reached(self.ended.clone(), stage, recorder, limit).await
    }

    /// Waits until the process is gone and reaped.
    pub async fn reaped(&self) {
        // An error means the watcher is gone, and with it the process.
        let _ = self.reaped.clone().wait_for(|reaped| *reaped).await;
    }

    /// Asks the VM to end now by closing its lifeline; harmless when it has ended.
    pub fn close_lifeline(&mut self) {
        match &mut self.life {
            Life::Native(process) => process.close_lifeline(),
            Life::Twin(twin) => twin.close_lifeline(),
            Life::Remote(remote) => remote.close_lifeline(),
        }
    }

    /// Ends the VM at once, with no regard to the guest; harmless when it has ended.
    pub fn kill(&mut self) {
        match &mut self.life {
            Life::Native(process) => process.kill(),
            Life::Twin(twin) => twin.kill(),
            Life::Remote(remote) => remote.kill(),
        }
    }

    /// Where it runs: `native` or `emulated`.
    #[must_use]
    pub fn place_name(&self) -> &'static str {
        match &self.life {
            Life::Native(_) | Life::Twin(_) => "native",
            Life::Remote(_) => "emulated",
        }
    }

    /// Its control group's directory, where it is one of this machine.
    #[must_use]
    pub fn group(&self) -> Option<PathBuf> {
        self.quarters.as_ref()?.path()
    }

    /// What it has of its machine, as far as that counts it.
    pub async fn usage(&self) -> Option<Usage> {
        match &self.life {
            Life::Native(_) | Life::Twin(_) => Usage::of(&self.group()?),
            Life::Remote(remote) => remote.host().usage(remote.id()).await.ok().flatten(),
        }
    }

    /// The process id, where it is a process of this machine.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &self.life {
            Life::Native(process) => Some(process.pid()),
            Life::Twin(twin) => twin.pid(),
            Life::Remote(_) => None,
        }
    }
}
