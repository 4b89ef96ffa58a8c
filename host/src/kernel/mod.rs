// SPDX-License-Identifier: Apache-2.0
//! Guest kernels: found, or built from source once and cached.
//!
//! Flow: [`Flavour`] → its fragments (`config`) → a source tree (`source`) → `make`, checked and watched (`build`) →
//! `kernels/<flavour>-<key>/` with `vmlinux`, the whole `config`, `System.map` and `build.json`. The key is the hash of the
//! fragments, the source and the compiler. Running a sandbox only ever asks for a kernel of the current fragments:
//! a newer source package makes a new kernel when `midge kernel build` is run, not in the middle of somebody's work.

mod build;
mod config;
mod source;

pub use build::check_tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError, Key};
use crate::progress::Watch;

pub use config::Unset;

/// Which kernel: what it runs on decides what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// In a sandbox with one vCPU.
    Guest,
    /// In a sandbox with several.
    GuestSmp,
    /// On the emulated host: a kernel that offers KVM.
    Host,
}

impl Flavour {
    /// Every flavour.
    pub const ALL: [Self; 3] = [Self::Guest, Self::GuestSmp, Self::Host];

    /// The flavour of a sandbox with `cpus` vCPUs.
    pub fn for_cpus(cpus: u32) -> Self {
        if cpus <= 1 { Self::Guest } else { Self::GuestSmp }
    }

    /// The name on command lines and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::GuestSmp => "guest-smp",
            Self::Host => "host",
        }
    }

    /// The flavour of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flavour| flavour.name() == name)
    }
}

/// What is known of a built kernel; `build.json` beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildRecord {
    /// Which one it is.
    pub flavour: Flavour,
    /// As the source's Makefile has it, such as `6.12.117`.
    pub version: String,
    /// The compiler's own first line of `--version`.
    pub compiler: String,
    /// Hash of the fragments it was built from.
    pub config_key: String,
    /// How long it took.
    pub build_s: u64,
    /// Size of `vmlinux` as the monitor loads it, without symbols.
    pub vmlinux_bytes: u64,
    /// Size of code, of data, and of zeroed memory in it.
    pub text_data_bss_bytes: [u64; 3],
    /// When it was finished, in seconds since 1970.
    pub built_at_unix_s: u64,
}

/// A kernel in the cache.
#[derive(Debug, Clone, Serialize)]
pub struct Kernel {
    /// The file for the monitor.
    pub vmlinux: PathBuf,
    /// What is known of it.
    #[serde(flatten)]
    pub record: BuildRecord,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No source where distributions put it.
    #[error(
        "looking for Linux source in {looked_in}: no linux-source-*.tar.* there; \
         install it with `apt-get install linux-source-6.12`, or name a tarball or tree with --source"
    )]
    NoSource {
        /// The directory that was searched.
        looked_in: PathBuf,
    },
    /// What was named as source is none.
    #[error(
        "using {path} as Linux source: {problem}; expected a kernel tarball, or a tree with a Makefile of Linux 6.6 or later"
    )]
    BadSource {
        /// The path given.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Programs that the build runs are not there.
    #[error("building a kernel: not installed: {}; install with `apt-get install {}`", missing.join(", "), packages.join(" "))]
    MissingTools {
        /// Programs and headers that were looked for.
        missing: Vec<String>,
        /// Debian packages that have them.
        packages: Vec<String>,
    },
    /// Kconfig did not take every option.
    #[error("configuring the {flavour} kernel: {} of the requested options did not take: {}; this source is too old or too new, Linux 6.12 is known to work",
        unset.len(), unset.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Unset {
        /// Which kernel.
        flavour: &'static str,
        /// The options, as they were asked for and as they came out.
        unset: Vec<Unset>,
    },
    /// A step of the build failed.
    #[error("building the {flavour} kernel: `{step}` ended with {status}; whole log in {log}; its end:\n{tail}")]
    Step {
        /// Which kernel.
        flavour: &'static str,
        /// The command.
        step: String,
        /// How it ended.
        status: String,
        /// Everything it printed.
        log: PathBuf,
        /// The last lines of that.
        tail: String,
    },
    /// The operating system refused something.
    #[error("{doing} {path}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
}

impl KernelError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// The newest kernel of this flavour that was built from the current fragments.
///
/// # Errors
/// [`KernelError::Cache`] when the cache cannot be read.
pub fn find(cache: &Cache, flavour: Flavour) -> Result<Option<Kernel>, KernelError> {
    let wanted = config_key(flavour);
    let mut kernels = list(cache)?;
    kernels.retain(|kernel| kernel.record.flavour == flavour && kernel.record.config_key == wanted);
    Ok(kernels.into_iter().max_by_key(|kernel| kernel.record.built_at_unix_s))
}

/// The path of a kernel of this flavour: found, or built from the distribution's source now (minutes).
///
/// # Errors
/// Those of [`find`] and [`build`].
pub fn ensure(cache: &Cache, flavour: Flavour, watch: &dyn Watch) -> Result<PathBuf, KernelError> {
    if let Some(found) = find(cache, flavour)? {
        return Ok(found.vmlinux);
    }
    Ok(build(cache, flavour, None, watch)?.vmlinux)
}

/// Builds the kernel of this flavour from `source` (a tarball or a tree; by default the distribution's package), or
/// finds the one that was built from the very same inputs. Builds take turns.
///
/// # Errors
/// [`KernelError`]: no source, missing tools, options that do not take, a failing build.
pub fn build(cache: &Cache, flavour: Flavour, source: Option<&Path>, watch: &dyn Watch) -> Result<Kernel, KernelError> {
    build::check_tools()?;
    let compiler = build::compiler()?;
    let source = source::find(source)?;
    watch.begin("waiting for other kernel builds", 0);
    let _turn = cache.lock("kernel-build")?;
    watch.end("");
    watch.begin("reading the kernel's source", 0);
    let source_key = source::key(cache, &source)?;
    let key = Key::new()
        .part("config", config_key(flavour).as_bytes())
        .part("source", source_key.as_bytes())
        .part("compiler", compiler.as_bytes())
        .part("recipe", build::RECIPE.as_bytes())
        .finish();
    let into = cache.dir("kernels")?.join(format!("{}-{key}", flavour.name()));
    if let Some(kernel) = read(&into) {
        watch.end(&format!("the {} kernel is already built: {}", flavour.name(), kernel.vmlinux.display()));
        return Ok(kernel);
    }
    let tree = source::unpack(cache, &source, &source_key, watch)?;
    watch.end("");
    build::run(cache, &build::Job { flavour, tree, compiler, key, into: into.clone() }, watch)?;
    read(&into).ok_or_else(|| KernelError::Io {
        doing: "reading the record of the kernel just built in",
        path: into,
        source: std::io::ErrorKind::NotFound.into(),
    })
}

/// Every kernel in the cache, by name.
///
/// # Errors
/// [`KernelError`] when the cache cannot be read.
pub fn list(cache: &Cache) -> Result<Vec<Kernel>, KernelError> {
    let dir = cache.dir("kernels")?;
    let entries = fs::read_dir(&dir).map_err(KernelError::io("listing", &dir))?;
    let mut kernels: Vec<Kernel> = entries.flatten().filter_map(|entry| read(&entry.path())).collect();
    kernels.sort_by(|one, other| one.vmlinux.cmp(&other.vmlinux));
    Ok(kernels)
}

/// The kernel in one directory of the cache; `None` when it is not one.
fn read(dir: &Path) -> Option<Kernel> {
    let record = serde_json::from_slice(&fs::read(dir.join("build.json")).ok()?).ok()?;
    let vmlinux = dir.join("vmlinux");
    vmlinux.is_file().then_some(Kernel { vmlinux, record })
}

/// Hash of what we ask of Kconfig for a flavour.
fn config_key(flavour: Flavour) -> String {
    Key::new().part("fragments", config::merged(flavour).as_bytes()).finish()
}

/// Seconds since 1970.
fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
