// SPDX-License-Identifier: Apache-2.0
//! Everything a machine needs, made ready: place, kernel, image, scratch disk, initramfs, packed workspace.
//!
//! Nothing is started before all settings were checked; what takes long is found in the cache the next time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::launch::{Image, Launch, Parts, limits, overlay};
use super::twin::new_run_dir;
use super::{Builder, Defaults, Sandbox, binaries, kernel_file, settings};
use crate::cache::Cache;
use crate::error::{Error, Fault};
use crate::kernel::Flavour;
use crate::progress::Watch;
use crate::run_dir::{self, RunDir};
use crate::timeline::Recorder;
use crate::workspace::{Manifest, PackLimits, pack};
use crate::{groups, image, initramfs, kernel, scratch};

impl Builder {
    /// Prepares what is missing, starts the machine and waits until its agent answers.
    ///
    /// # Errors
    /// [`Error::Setting`] before anything is opened; [`Error::Prepare`], [`Error::RunDir`] and [`Error::Monitor`]
    /// for what this machine refuses; [`Error::VmEnded`], [`Error::BootTimeout`] and [`Error::GuestSetup`] when the
    /// guest does not come up.
    pub async fn start(mut self) -> Result<Sandbox, Error> {
        let recorder = Recorder::new();
        recorder.note("start");
        let host_mib = settings::host_memory_mib();
        self.kernel = self.kernel.or_else(kernel_from_environment);
        self.check(host_mib)?;
        let Self { settings, image, kernel, workspace, pack_limits, env, .. } = self;
        let Self { user, console, place, watch, mut forking, behind, pack_into, jail, .. } = self;
        let own_kernel = kernel.is_some();
        if forking.is_possible && forking.extra_msrs.is_empty() {
            forking.extra_msrs = extra_msrs_from_environment()?;
        }
        let run_dir = new_run_dir()?;
        let request = Request {
            cpus: settings.cpus,
            disk_mib: settings.disk_mib,
            image,
            kernel,
            workspace: workspace.map(|dir| to_pack(dir, pack_into, &run_dir)).transpose()?,
            pack_limits,
            watch: Arc::clone(&watch),
        };
        let ready = blocking(move || request.prepare()).await?;
        recorder.note("prepared");
        // Last, because it may start a whole emulated host: nothing that can be refused comes after it.
        let place = place.find(own_kernel, &settings, host_mib, &watch).await?;
        recorder.note("place_found");
        let launch = Launch {
            overlay: overlay(&settings, host_mib, place.is_emulated() || forking.is_possible, &run_dir)?,
            limits: limits(&settings, place.is_emulated()),
            parts: ready.parts,
            settings,
            console,
            defaults: Defaults { env, user },
            recorder,
            run_dir,
            workspace: ready.workspace.map(Arc::new),
            forking,
            behind,
            jail,
            place,
        };
        launch.start().await
    }

    fn check(&self, host_mib: u64) -> Result<(), Error> {
        self.settings.check(host_mib)?;
        for (name, _) in &self.env {
            settings::check_env_name(&name.to_string_lossy())?;
        }
        if let Some(dir) = &self.workspace {
            settings::check_workspace(dir)?;
        }
        if let Some(kernel) = &self.kernel {
            kernel_file::check(kernel, self.settings.mem_mib)?;
        }
        Ok(())
    }
}

/// `MIDGE_KERNEL`: for machines whose KVM needs a kernel of its own kind.
fn kernel_from_environment() -> Option<PathBuf> {
    std::env::var_os("MIDGE_KERNEL").filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// `MIDGE_EXTRA_MSRS`: for machines whose KVM does not list all that a guest's state needs.
fn extra_msrs_from_environment() -> Result<Vec<u32>, Error> {
    let Some(list) = std::env::var_os("MIDGE_EXTRA_MSRS").filter(|value| !value.is_empty()) else {
        return Ok(Vec::new());
    };
    let list = list.to_string_lossy();
    let number = |word: &str| u32::from_str_radix(word.trim().trim_start_matches("0x"), 16).ok();
    list.split(',').map(number).collect::<Option<_>>().ok_or_else(|| Error::Setting {
        what: "the list of registers (MIDGE_EXTRA_MSRS)",
        value: list.into_owned(),
        accepted: "hexadecimal numbers between commas, for example 0x4b564d00,0x4b564d10".to_owned(),
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::prepare("sandbox", Fault::Midge, error)),
    }
}

/// Files after which packing is worth telling about.
const WORTH_TELLING_FILES: u64 = 5_000;

/// What is to be made ready.
struct Request {
    cpus: u32,
    disk_mib: u64,
    image: Option<String>,
    kernel: Option<PathBuf>,
    workspace: Option<ToPack>,
    pack_limits: PackLimits,
    watch: Arc<dyn Watch>,
}

/// A workspace, and the image that it becomes.
struct ToPack {
    dir: PathBuf,
    into: PathBuf,
}

/// Beside the run, unless it is to outlive it. Whoever gives up the start removes the place, not the thread that packs: it may
/// be far from done.
fn to_pack(dir: PathBuf, into: Option<PathBuf>, run_dir: &RunDir) -> Result<ToPack, Error> {
    let into = match into {
        Some(into) => into,
        None => run_dir.bulk()?.join("workspace.erofs"),
    };
    Ok(ToPack { dir, into })
}

struct Ready {
    parts: Parts,
    workspace: Option<Manifest>,
}

impl Request {
    fn prepare(self) -> Result<Ready, Error> {
        let host =
            |what| move |error: Box<dyn std::error::Error + Send + Sync>| Error::prepare(what, Fault::Host, error);
        let cache = Cache::open().map_err(|error| host("cache")(error.into()))?;
        let watch = &*self.watch;
        let kernel = match &self.kernel {
            Some(path) => absolute(path)?,
            None => kernel::ensure(&cache, Flavour::for_cpus(self.cpus), watch)
                .map_err(|error| host("guest kernel")(error.into()))?,
        };
        let image = image::resolve(&cache, self.image.as_deref(), watch)
            .map_err(|error| Error::prepare("image", fault_of_image(&error), error))?;
        let scratch = scratch::ensure(&cache, self.disk_mib).map_err(|error| host("scratch disk")(error.into()))?;
        let initramfs =
            initramfs::ensure(&cache, &binaries::agent()?).map_err(|error| host("initramfs")(error.into()))?;
        run_dir::sweep_default();
        groups::sweep();
        let workspace = self.workspace.as_ref().map(|workspace| self.pack(workspace)).transpose()?;
        let parts = Parts {
            kernel,
            initramfs,
            root: Image { path: image.path, fs: image.file_system.name() },
            scratch,
            workspace: self.workspace.map(|workspace| workspace.into),
        };
        Ok(Ready { parts, workspace })
    }

    fn pack(&self, ToPack { dir, into }: &ToPack) -> Result<Manifest, Error> {
        let mut told = false;
        let mut progress = |files: u64, _bytes: u64| {
            if files > WORTH_TELLING_FILES && !told {
                told = true;
                self.watch.begin("reading the workspace", 0);
            }
        };
        let packed = pack(dir, into, &self.pack_limits, &mut progress);
        if told {
            self.watch.end("");
        }
        packed.map_err(|error| Error::prepare("workspace", Fault::User, error))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(|error| Error::prepare("guest kernel", Fault::User, error))
}

fn fault_of_image(error: &image::ImageError) -> Fault {
    use image::ImageError::{NoRecipe, NotAnImage, NotFound};
    match error {
        NotFound { .. } | NoRecipe { .. } | NotAnImage { .. } => Fault::User,
        _ => Fault::Host,
    }
}
