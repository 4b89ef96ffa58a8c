// SPDX-License-Identifier: Apache-2.0
//! Sandboxes that are made from others: forks of a running one, and of what a resident holds.
//!
//! The order keeps the copies apart: everything in the guest stands still before it is copied, and a copy's first act
//! is to become somebody else. No command runs in it before it has random numbers, a clock and a name of its own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use midge_protocol::{Hello, READY_PORT};

use super::listing::{Lineage, describe};
use super::settings::Settings;
use super::standstill::Standstill;
use super::{Defaults, Sandbox, launch};
use crate::error::Error;
use crate::link::{Identity, Limits, Link};
use crate::monitor::{Monitor, Place, Resident, VmmConfig};
use crate::orders::Pause;
use crate::run_dir::{self, Kind, RunDir, new_id};
use crate::timeline::Recorder;
use crate::workspace::Manifest;

/// What a sandbox and its forks have in common.
#[derive(Debug)]
pub(crate) struct Made {
    pub(super) config: VmmConfig,
    pub(super) limits: Limits,
    pub(super) hello: Hello,
    pub(super) defaults: Defaults,
    pub(super) workspace: Option<Arc<Manifest>>,
    /// The template that all of them come from.
    pub(super) template: Option<String>,
}

impl Made {
    /// For sandboxes that come from the template of this name.
    pub(crate) fn new(
        template: &str,
        config: VmmConfig,
        place: &Place,
        hello: Hello,
        defaults: Defaults,
        workspace: Option<Arc<Manifest>>,
    ) -> Self {
        let limits = launch::limits(&Settings::default(), place.is_emulated());
        Self { config, limits, hello, defaults, workspace, template: Some(template.to_owned()) }
    }

    /// The machine.
    pub(crate) fn config(&self) -> &VmmConfig {
        &self.config
    }

    /// What was packed for its workspace.
    pub(crate) fn workspace(&self) -> Option<&Manifest> {
        self.workspace.as_deref()
    }

    /// The template that it comes from.
    pub(crate) fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// The version of the agent in it.
    pub(crate) fn agent_version(&self) -> &str {
        &self.hello.agent_version
    }

    /// Variables and user for every command, as far as they are text.
    pub(crate) fn defaults_as_text(&self) -> (Vec<(String, String)>, Option<String>) {
        let text = |word: &OsString| word.to_string_lossy().into_owned();
        let env = self.defaults.env.iter().map(|(name, value)| (text(name), text(value))).collect();
        (env, self.defaults.user.clone())
    }
}

/// Most forks that are made of a sandbox at once.
pub const FORKS_MAX: usize = 10_000;

/// What [`Sandbox::fork`] has made.
#[derive(Debug)]
pub struct Forks {
    /// The copies.
    pub sandboxes: Vec<Sandbox>,
    /// How long the guest's CPUs stood still for it.
    pub pause: Pause,
}

impl Sandbox {
    /// Makes `count` copies of the sandbox as it is now: memory, processes, disk. All of them go on, the first one
    /// too; what one of them changes none of the others sees. A command that runs goes on in every copy; its output
    /// can be taken over there with [`Sandbox::attach`] if it was started with
    /// [`Exec::replay`](crate::exec::Exec::replay).
    ///
    /// A caller that gives up gets no copies; the sandbox goes on all the same.
    ///
    /// A program that keeps random numbers of its own in memory, beside the kernel's, repeats them in its copies.
    ///
    /// # Errors
    /// [`Error::Setting`] for more than [`FORKS_MAX`]; [`Error::Monitor`] unless it was built with
    /// [`forkable`](super::Builder::forkable), and when the machine has no memory or processes left: the sandbox goes
    /// on in any case.
    pub async fn fork(&self, count: usize) -> Result<Forks, Error> {
        if count == 0 || count > FORKS_MAX {
            return Err(Error::Setting {
                what: "the number of forks",
                value: count.to_string(),
                accepted: format!("1 to {FORKS_MAX}"),
            });
        }
        let (resident, pause) = self.freeze_and_go_on().await?;
        let mut sandboxes = Vec::with_capacity(count);
        for _ in 0..count {
            sandboxes.push(Self::from_resident(&resident, &self.made, Some(self.id())).await?);
        }
        Ok(Forks { sandboxes, pause })
    }

    async fn freeze_and_go_on(&self) -> Result<(Resident, Pause), Error> {
        let reach = self.monitor.reach()?;
        self.standstill.during(&self.link, async move { Ok(reach.freeze(&new_id()).await?) }).await
    }

    /// Brings everything in the guest to a stand and copies it; the sandbox does not go on.
    pub(crate) async fn freeze_for_good(&self, id: &str) -> Result<(Resident, Pause), Error> {
        let reach = self.monitor.reach()?;
        let freeze = async {
            let (resident, pause) = reach.freeze(id).await?;
            resident.prepare().await?;
            Ok::<_, Error>((resident, pause))
        };
        self.standstill.for_good(&self.link, freeze).await
    }

    /// What its forks have in common with it.
    pub(crate) fn made(&self) -> Arc<Made> {
        Arc::clone(&self.made)
    }

    /// A sandbox of what `resident` holds, which it has of the sandbox `parent`, if not of a template.
    pub(crate) async fn from_resident(
        resident: &Resident,
        made: &Arc<Made>,
        parent: Option<&str>,
    ) -> Result<Self, Error> {
        let recorder = Recorder::new();
        recorder.note("start");
        let run_dir = new_run_dir()?;
        let socket = run_dir.socket();
        let listener = resident.place().listen(run_dir.id(), &socket, READY_PORT).await?;
        let monitor = resident.fork(run_dir.id(), &socket, &recorder).await?;
        let lineage = Lineage { kind: Kind::Fork, template: made.template(), parent };
        describe(&run_dir, monitor.place_name(), (monitor.pid(), monitor.group()), made.config(), lineage);
        Self::resume(monitor, listener, Arc::clone(made), recorder, run_dir).await
    }

    /// Makes a machine that was just copied a sandbox of its own.
    pub(crate) async fn resume(
        monitor: Monitor,
        listener: crate::monitor::Listener,
        made: Arc<Made>,
        recorder: Recorder,
        run_dir: RunDir,
    ) -> Result<Self, Error> {
        let identity = Identity::random(run_dir.id());
        let (dialer, ended) = (monitor.dialer(), monitor.watch_end());
        let link = Link::resume(dialer, Some(listener), ended, identity, made.limits, recorder.clone()).await?;
        Ok(Self {
            monitor,
            link,
            made,
            recorder,
            collections: AtomicU32::new(0),
            standstill: Standstill::default(),
            run_dir,
        })
    }
}

/// A directory for one more sandbox.
pub(crate) fn new_run_dir() -> Result<RunDir, Error> {
    let bulk: PathBuf = crate::cache::Cache::open()
        .map_err(|error| Error::prepare("cache", crate::error::Fault::Host, error))?
        .root()
        .to_owned();
    Ok(RunDir::create(&run_dir::default_base(), &bulk)?)
}
