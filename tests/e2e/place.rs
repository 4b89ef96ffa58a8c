// SPDX-License-Identifier: Apache-2.0
//! Where guests run: this machine's KVM, or an emulated host started once for all tests.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use midge::cache::Cache;
use midge::emulated::{EmulatedHost, EmulatedOptions};
use midge::progress::Silent;

use crate::harness::asked;

/// A place for guests.
#[derive(Debug)]
pub(crate) enum Place {
    /// None: the tests stop before a guest starts.
    Unset,
    /// This machine's KVM, with a kernel of the user's if ours cannot run on it.
    Native {
        /// The value of `MIDGE_KERNEL`.
        kernel: Option<PathBuf>,
    },
    /// The emulated host that belongs to this test run.
    Emulated(Box<Shared>),
}

/// The emulated host: where calls of `midge` find it. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Holds its address and token, mode 0600.
    pub(crate) address: PathBuf,
    _dir: tempfile::TempDir,
    host: EmulatedHost,
    _runtime: tokio::runtime::Runtime,
}

impl Place {
    /// Variables that lead `midge` here.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        match self {
            Self::Unset | Self::Native { kernel: None } => Vec::new(),
            Self::Native { kernel: Some(path) } => vec![("MIDGE_KERNEL", path.into())],
            Self::Emulated(shared) => vec![("MIDGE_EMULATED_HOST", shared.address.clone().into())],
        }
    }

    /// This machine's KVM, if a guest boots on it.
    pub(crate) fn native() -> Result<Self, String> {
        let kernel = std::env::var_os("MIDGE_TEST_NATIVE_KERNEL").map(PathBuf::from);
        if kernel.is_none() {
            return Err("no KVM for an unmodified kernel here; MIDGE_TEST_NATIVE_KERNEL can name one that runs".into());
        }
        Ok(Self::Native { kernel })
    }

    /// Starts the emulated host with these binaries in it.
    pub(crate) fn emulated(bin: &Path) -> Result<Self, String> {
        let mut options = Self::options(bin)?;
        if let Some(mem_mib) = asked("MIDGE_TEST_HOST_MIB") {
            options.mem_mib = mem_mib;
        }
        Self::start(options)
    }

    /// Starts one where this test binary stands in for the monitor, which lies beside it under the same name and `ending`; what
    /// is needed for that is packed in `dir`.
    pub(crate) fn emulated_with_stand_in(bin: &Path, ending: &str, dir: &Path) -> Result<Self, String> {
        let real = format!("/midge-vmm{ending}");
        let programs = [("/init", "midge"), ("/midge-vmm", "e2e"), (real.as_str(), "midge-vmm")];
        let programs = programs.map(|(name, program)| (PathBuf::from(name), bin.join(program)));
        let initramfs = dir.join("initramfs");
        midge::initramfs::pack(&programs, &initramfs).map_err(|error| midge::error::chain(&error))?;
        Self::start(EmulatedOptions { initramfs, ..Self::options(bin)? })
    }

    fn options(bin: &Path) -> Result<EmulatedOptions, String> {
        let text = |error: &dyn std::error::Error| midge::error::chain(error);
        let cache = Cache::open().map_err(|error| text(&error))?;
        let options = EmulatedOptions::prepare(&cache, &bin.join("midge"), &bin.join("midge-vmm"), &Silent);
        options.map_err(|error| text(&error))
    }

    /// The end of an emulated host's console.
    pub(crate) fn console(&self) -> String {
        if let Self::Emulated(shared) = self { shared.host.console_tail() } else { String::new() }
    }

    fn start(options: EmulatedOptions) -> Result<Self, String> {
        let text = |error: &dyn std::error::Error| midge::error::chain(error);
        let runtime = tokio::runtime::Runtime::new().map_err(|error| text(&error))?;
        let dir = tempfile::Builder::new().prefix("e2e-host-").tempdir().map_err(|error| text(&error))?;
        let address = dir.path().join("address");
        let host = runtime.block_on(EmulatedHost::start(&options, &Silent)).map_err(|error| text(&error))?;
        println!("emulated host started in {} ms", host.boot_ms());
        host.share(&address).map_err(|error| text(&error))?;
        Ok(Self::Emulated(Box::new(Shared { address, _dir: dir, host, _runtime: runtime })))
    }
}
