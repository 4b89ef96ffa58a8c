// SPDX-License-Identifier: Apache-2.0
//! How a sandbox is asked for. Every setting has a default; nothing is opened before [`Builder::start`].

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::choice::Where;
use super::launch::Forking;
use super::settings::Settings;
use crate::error::Error;
use crate::monitor::{ConsoleSender, Jail};
use crate::progress::{Silent, Watch};
use crate::workspace::PackLimits;

/// A sandbox to be set up and started.
#[derive(Clone)]
#[must_use = "nothing starts before `start`"]
pub struct Builder {
    pub(super) settings: Settings,
    pub(super) image: Option<String>,
    pub(super) kernel: Option<PathBuf>,
    pub(super) workspace: Option<PathBuf>,
    pub(super) pack_limits: PackLimits,
    pub(super) pack_into: Option<PathBuf>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) user: Option<String>,
    pub(super) console: Option<ConsoleSender>,
    pub(super) place: Where,
    pub(super) watch: Arc<dyn Watch>,
    pub(super) forking: Forking,
    pub(super) behind: Duration,
    pub(super) jail: Jail,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            settings: Settings::default(),
            image: None,
            kernel: None,
            workspace: None,
            pack_limits: PackLimits::default(),
            pack_into: None,
            env: Vec::new(),
            user: None,
            console: None,
            place: Where::Auto,
            watch: Arc::new(Silent),
            forking: Forking::default(),
            behind: Duration::ZERO,
            jail: Jail::On,
        }
    }

    /// The root file system: the name of a built image, a directory, or an erofs, ext4 or squashfs file.
    /// Without it: the built image `base`.
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// The guest's kernel: a vmlinux or bzImage for x86-64. Without it: the one that `MIDGE_KERNEL` names, else
    /// one built from the distribution's source.
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.kernel = Some(path.into());
        self
    }

    /// Guest memory in MiB, from [`super::settings::MEM_MIN_MIB`] to the host's.
    pub fn mem_mib(mut self, mib: u64) -> Self {
        self.settings.mem_mib = mib;
        self
    }

    /// Number of vCPUs, from 1 to [`super::settings::CPUS_MAX`].
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.settings.cpus = cpus;
        self
    }

    /// Size of the writable disk in MiB, within [`super::settings::DISK_RANGE_MIB`].
    pub fn disk_mib(mut self, mib: u64) -> Self {
        self.settings.disk_mib = mib;
        self
    }

    /// A directory of the host whose content the guest sees at `/workspace`. The guest changes a copy;
    /// [`Sandbox::workspace`](super::Sandbox::workspace) tells what it changed.
    pub fn workspace(mut self, dir: impl Into<PathBuf>) -> Self {
        self.workspace = Some(dir.into());
        self
    }

    /// How much of the workspace may be packed, and whether what cannot be read is left out.
    pub fn pack_limits(mut self, limits: PackLimits) -> Self {
        self.pack_limits = limits;
        self
    }

    /// A variable for every command.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The user that commands run as: a name, `uid` or `uid:gid`. Without it: `agent` where it exists, else root.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Gives the guest a serial console whose lines go to `lines`. What nobody fetches in time is dropped.
    /// The text is the guest's: see [`printable`](crate::monitor::events::printable).
    pub fn console(mut self, lines: ConsoleSender) -> Self {
        self.console = Some(lines);
        self
    }

    /// Where it runs; without it, wherever the kernel does.
    pub fn place(mut self, place: Where) -> Self {
        self.place = place;
        self
    }

    /// How long the guest may take to its agent's hello, within [`super::settings::BOOT_TIMEOUT_RANGE_S`].
    pub fn boot_timeout(mut self, limit: Duration) -> Self {
        self.settings.boot_timeout = Some(limit);
        self
    }

    /// Makes the sandbox one that can be forked while it runs ([`Sandbox::fork`](super::Sandbox::fork)). Its disk is then
    /// held in memory, whatever its size.
    pub fn forkable(mut self) -> Self {
        self.forking.is_possible = true;
        self
    }

    /// Model-specific registers that forks need beyond those that the machine's KVM lists. Without it: those that
    /// `MIDGE_EXTRA_MSRS` lists, as hexadecimal numbers between commas.
    pub fn extra_msrs(mut self, registers: impl Into<Vec<u32>>) -> Self {
        self.forking.extra_msrs = registers.into();
        self
    }

    /// Its monitor's jail is left off if `jail` says so: for benches, of guests of their own.
    pub(crate) fn jail(mut self, jail: Jail) -> Self {
        self.jail = jail;
        self
    }

    /// The image that was asked for.
    pub(crate) fn image_name(&self) -> Option<String> {
        self.image.clone()
    }

    /// The sandbox from which a template is made, with a wall clock that is `behind` the world's. The image of its workspace is
    /// the new file `pack_into`.
    pub(crate) fn for_template(mut self, behind: Duration, pack_into: PathBuf) -> Result<Self, Error> {
        if self.console.is_some() {
            return Err(Error::Setting {
                what: "the template's console",
                value: "given".to_owned(),
                accepted: "none: what cannot be forked is no template".to_owned(),
            });
        }
        self.behind = behind;
        self.pack_into = Some(pack_into);
        Ok(self.forkable())
    }

    /// Who is told of what takes long: a kernel or image that has to be built first.
    pub fn watch(mut self, watch: Arc<dyn Watch>) -> Self {
        self.watch = watch;
        self
    }
}
