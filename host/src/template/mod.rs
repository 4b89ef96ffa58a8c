// SPDX-License-Identifier: Apache-2.0
//! Templates: sandboxes that are set up once, kept at rest, and forked.
//!
//! ```no_run
//! # async fn demo() -> Result<(), midge::error::Error> {
//! use midge::exec::Exec;
//! use midge::sandbox::Sandbox;
//! use midge::template::{Plan, Template};
//!
//! let plan = Plan { setup: Some("pip install --no-index ./wheels/*".into()), ..Plan::default() };
//! Template::create("tools", Sandbox::builder().mem_mib(256), plan).await?;
//! let held = Template::open("tools")?.hold().await?;
//! for task in ["one", "two"] {
//!     let sandbox = held.fork().await?;
//!     sandbox.exec(Exec::new(["./run", task])).await?.wait().await?;
//!     sandbox.kill().await;
//! }
//! # Ok(())
//! # }
//! ```

mod create;
pub mod store;

use std::sync::Arc;

use tokio::task::JoinHandle;

use midge_protocol::{Hello, NEWEST_VERSION, OLDEST_VERSION, READY_PORT};

pub use create::{OnOutput, OnPacked, Plan};
pub use store::{Record, Store, StoreError};

use crate::cache::Cache;
use crate::error::{Error, Fault, HOLDING, STARTING};
use crate::groups;
use crate::monitor::{Jail, Place, Resident, VmmConfig};
use crate::run_dir::{self, Kind, RunDir};
use crate::sandbox::listing::{Lineage, describe};
use crate::sandbox::twin::{Made, new_run_dir};
use crate::sandbox::{Defaults, Sandbox, Where};
use crate::timeline::Recorder;
use crate::workspace::Manifest;

/// What a monitor says when its guest runs.
const RUNNING_STAGE: &str = "first_run";
/// Longest wait for a monitor to run its guest, or a resident to take orders.
const HOLD_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// A template on disk.
#[derive(Debug, Clone)]
pub struct Template {
    store: Store,
    record: Record,
}

/// A template in memory, ready to be forked. Dropping it lets go of the memory; its forks run on.
#[derive(Debug)]
pub struct Held {
    // Dropped in this order.
    resident: Resident,
    made: Arc<Made>,
    _run_dir: RunDir,
}

fn store() -> Result<Store, Error> {
    let cache = Cache::open().map_err(|error| Error::prepare("cache", Fault::Host, error))?;
    Store::open(&cache).map_err(failed)
}

/// Whose fault it is that a template cannot be had.
fn failed(error: StoreError) -> Error {
    let fault = match error {
        StoreError::Io { .. } | StoreError::Cache(_) | StoreError::Workspace(_) => Fault::Host,
        _ => Fault::User,
    };
    Error::prepare("template", fault, error)
}

impl Template {
    /// The template of that name.
    ///
    /// # Errors
    /// [`Error::Prepare`] when there is none, or its record is damaged.
    pub fn open(name: &str) -> Result<Self, Error> {
        let store = store()?;
        let mut record = store.read(name).map_err(failed)?;
        // Whatever a file says.
        record.config.jail = Jail::On;
        Ok(Self { store, record })
    }

    /// The same; what is made of it has its monitor's jail left off if `jail` says so: for benches, of guests of their own.
    pub(crate) fn jail(mut self, jail: Jail) -> Self {
        self.record.config.jail = jail;
        self
    }

    /// All templates, by name.
    ///
    /// # Errors
    /// [`Error::Prepare`] when they cannot be listed.
    pub fn list() -> Result<Vec<Record>, Error> {
        store()?.list().map_err(failed)
    }

    /// Removes the template of that name. Sandboxes that were made of it run on.
    ///
    /// # Errors
    /// [`Error::Prepare`] when there is none.
    pub fn remove(name: &str) -> Result<(), Error> {
        store()?.remove(name).map_err(failed)
    }

    /// What is known of it.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Starts a sandbox of it, in a process of its own.
    ///
    /// # Errors
    /// [`Error::Prepare`] when a file that it stands on is missing; [`Error::VmEnded`] when it cannot go on here: made by
    /// another version, on another CPU, damaged.
    pub async fn start(&self, place: Where, is_forkable: bool) -> Result<Sandbox, Error> {
        let recorder = Recorder::new();
        recorder.note("start");
        let place = self.place(place).await?;
        let config = self.store.config(&self.record, false).map_err(failed)?;
        let config = VmmConfig { forkable: is_forkable, ..config };
        // Read while the monitor starts.
        self.start_as(config, &place, self.workspace(), recorder).await
    }

    /// Starts a sandbox as `config` has it.
    async fn start_as(
        &self,
        mut config: VmmConfig,
        place: &Place,
        workspace: Loading,
        recorder: Recorder,
    ) -> Result<Sandbox, Error> {
        let made_of = config.clone();
        let run_dir = new_run_dir()?;
        let socket = run_dir.socket();
        if let Some(vsock) = &mut config.vsock {
            vsock.uds.clone_from(&socket);
        }
        let listener = place.listen(run_dir.id(), &socket, READY_PORT).await?;
        let monitor = place.spawn(run_dir.id(), &socket, &config, &recorder, None).await?;
        describe(&run_dir, monitor.place_name(), (monitor.pid(), monitor.group()), &config, self.lineage(Kind::Fork));
        // It makes its socket itself, on the way to running.
        let ready = monitor.reached(RUNNING_STAGE, &recorder, HOLD_MAX).await;
        ready.map_err(|end| Error::VmEnded { during: STARTING, end })?;
        let made = Arc::new(self.made(place, made_of, workspace.loaded().await?));
        Sandbox::resume(monitor, listener, made, recorder, run_dir).await
    }

    /// Brings it into memory, on this machine or wherever its kernel runs.
    ///
    /// # Errors
    /// As for [`Template::start`].
    pub async fn hold(&self) -> Result<Held, Error> {
        self.hold_at(Where::Auto, false).await
    }

    /// The same at a place of choice; with `is_forkable` the forks can be forked again.
    ///
    /// # Errors
    /// As for [`Template::start`].
    pub async fn hold_at(&self, place: Where, is_forkable: bool) -> Result<Held, Error> {
        let place = self.place(place).await?;
        let mut config = self.store.config(&self.record, true).map_err(failed)?;
        let workspace = self.workspace().loaded().await?;
        let made = Arc::new(self.made(&place, config.clone(), workspace));
        config.forkable = is_forkable;
        let recorder = Recorder::new();
        // Its socket is nobody's: every fork gets one of its own. The directory is for whoever lists what is alive.
        let run_dir = new_run_dir()?;
        let resident = place.hold(run_dir.id(), &config, &recorder).await?;
        describe(&run_dir, place.name(), (resident.pid(), resident.group()), &config, self.lineage(Kind::Resident));
        resident.ready(HOLD_MAX).await.map_err(|end| Error::VmEnded { during: HOLDING, end })?;
        Ok(Held { resident, made, _run_dir: run_dir })
    }

    fn lineage(&self, kind: Kind) -> Lineage<'_> {
        Lineage { kind, template: Some(&self.record.name), parent: None }
    }

    /// Where its kernel runs: a machine's KVM that runs any kernel, or the one it was made on.
    async fn place(&self, place: Where) -> Result<Place, Error> {
        run_dir::sweep_default();
        groups::sweep();
        place.find_for_template(self.record.place == "native", &self.record.config).await
    }

    /// Begins to read what was packed for its workspace.
    fn workspace(&self) -> Loading {
        let (store, record) = (self.store.clone(), self.record.clone());
        let begin = |_: &String| tokio::task::spawn_blocking(move || store.workspace(&record).map_err(failed));
        Loading(self.record.workspace.as_ref().map(begin))
    }

    fn made(&self, place: &Place, config: VmmConfig, workspace: Option<Arc<Manifest>>) -> Made {
        let env = self.record.env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let hello = Hello {
            oldest_version: OLDEST_VERSION,
            newest_version: NEWEST_VERSION,
            agent_version: self.record.agent_version.clone(),
            stages: Vec::new(),
            warnings: Vec::new(),
        };
        let defaults = Defaults { env, user: self.record.user.clone() };
        Made::new(&self.record.name, config, place, hello, defaults, workspace)
    }
}

/// What was packed for a workspace, on its way from the disk.
struct Loading(Option<JoinHandle<Result<Option<Manifest>, Error>>>);

impl Loading {
    async fn loaded(self) -> Result<Option<Arc<Manifest>>, Error> {
        let Some(task) = self.0 else { return Ok(None) };
        let loaded = task.await.map_err(|error| Error::prepare("template", Fault::Midge, error))?;
        Ok(loaded?.map(Arc::new))
    }
}

impl Held {
    /// A new sandbox, with everything that the template had in memory and on disk.
    ///
    /// # Errors
    /// [`Error::Monitor`] when the machine has no memory or processes left; the template stays as it is.
    pub async fn fork(&self) -> Result<Sandbox, Error> {
        Sandbox::from_resident(&self.resident, &self.made, None).await
    }

    /// The memory that a fork can come to use, in MiB: the guest's, and what its disks hold in memory.
    #[must_use]
    pub fn fork_max_mib(&self) -> u64 {
        self.made.config().memory_max_mib()
    }

    /// The process that holds it, where it is one of this machine.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.resident.pid()
    }
}
