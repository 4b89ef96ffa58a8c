// SPDX-License-Identifier: Apache-2.0
//! From the files of a snapshot to what a VM or a resident is made of.
//!
//! Everything is refused here that does not fit: another version, a damaged file, another CPU,
//! another size of memory, a disk that is missing or has changed its length.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::devices::{self, DeviceError, DiskFiles};
use crate::config::{ConsoleMode, DiskMode, RestoreConfig, VmmConfig};
use crate::disk::Disk;
use crate::machine::kvm::{Host, KvmError};
use crate::memory::{self, GuestRam, MemoryError};
use crate::snapshot::VmState;
use crate::snapshot::cpu::{self, CpuError};
use crate::snapshot::files::{self, StateError};

/// Why a snapshot cannot be restored here.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// One of its files could not be opened.
    #[error("opening {path:?} of a snapshot failed")]
    Open {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Its state cannot be used.
    #[error("restoring {path:?} failed")]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StateError,
    },
    /// Another CPU.
    #[error("restoring {path:?} failed")]
    Cpu {
        /// The state's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: CpuError,
    },
    /// The configuration describes another VM.
    #[error("restoring a snapshot: {field} is {configured}, the snapshot was taken of a VM with {snapshot}")]
    Differs {
        /// Field of the configuration.
        field: String,
        /// What the configuration says.
        configured: String,
        /// What the snapshot says.
        snapshot: String,
    },
    /// Its memory cannot be mapped.
    #[error("restoring {path:?} failed")]
    Memory {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: MemoryError,
    },
    /// What it is said to write first is none of its memory.
    #[error("restoring a snapshot: restore.working_set has {len_bytes} bytes at {start:#x}, which are no guest memory")]
    WorkingSet {
        /// Guest-physical address.
        start: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// A disk cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// KVM cannot say what it has here.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// A VM at rest.
pub struct AtRest {
    /// CPUs and devices.
    pub state: VmState,
    /// Its memory, copied as it is written.
    pub ram: GuestRam,
    /// Its disks, over their layers.
    pub disks: Vec<Box<dyn Disk>>,
}

/// The files of a snapshot: opened, and not looked into yet.
#[derive(Debug)]
pub struct SnapshotFiles {
    state: File,
    memory: File,
    layers: Vec<Option<File>>,
}

impl SnapshotFiles {
    /// Opens what `restore` names.
    ///
    /// # Errors
    /// [`RestoreError::Open`].
    pub fn open(restore: &RestoreConfig) -> Result<Self, RestoreError> {
        let layers = restore.layers().iter().map(|path| path.as_deref().map(open).transpose());
        Ok(Self {
            state: open(restore.state())?,
            memory: open(restore.memory())?,
            layers: layers.collect::<Result<_, _>>()?,
        })
    }
}

impl AtRest {
    /// Reads the snapshot of `restore` for the VM of `config`.
    ///
    /// # Errors
    /// [`RestoreError`] names what does not fit.
    pub fn new(
        config: &VmmConfig,
        restore: &RestoreConfig,
        (files, disks): (SnapshotFiles, Vec<DiskFiles>),
        kvm: &Host,
    ) -> Result<Self, RestoreError> {
        let path = restore.state().to_owned();
        let SnapshotFiles { state, memory, mut layers } = files;
        let state = files::read_state(&state);
        let mut state = state.map_err(|source| RestoreError::State { path: path.clone(), source })?;
        check(config, &state)?;
        let here = kvm.cpu_features()?.for_vcpu(0, config.cpus());
        let shown = state.vcpus.first().map(|vcpu| vcpu.cpuid.as_slice()).unwrap_or_default();
        cpu::check(shown, &here).map_err(|source| RestoreError::Cpu { path, source })?;
        // Who is forked often pays once for what each of its forks is spared.
        let fill = if restore.is_resident() && config.huge_pages() { memory::copy_file } else { memory::map_file };
        let ram = fill(&memory, state.mem_bytes);
        let ram = ram.map_err(|source| RestoreError::Memory { path: restore.memory().to_owned(), source })?;
        if let Some((start, len_bytes)) = memory::find_outside(&ram, restore.working_set()) {
            return Err(RestoreError::WorkingSet { start, len_bytes });
        }
        let disks = devices::make_disks(config, disks, |index| {
            Some((layers.get_mut(index)?.take()?, state.disks.get_mut(index)?.layer.take()?))
        })?;
        check_disks(&disks, &state)?;
        Ok(Self { state, ram, disks })
    }
}

fn open(path: &Path) -> Result<File, RestoreError> {
    File::open(path).map_err(|source| RestoreError::Open { path: path.to_owned(), source })
}

fn differs(field: &str, configured: impl ToString, snapshot: impl ToString) -> RestoreError {
    RestoreError::Differs {
        field: field.to_owned(),
        configured: configured.to_string(),
        snapshot: snapshot.to_string(),
    }
}

/// Compares numbers before anything is mapped or opened.
fn check(config: &VmmConfig, state: &VmState) -> Result<(), RestoreError> {
    if state.mem_bytes != config.mem_bytes() {
        return Err(differs("mem_mib", config.mem_bytes() >> 20, state.mem_bytes >> 20));
    }
    if state.vcpus.len() != usize::from(config.cpus()) {
        return Err(differs("cpus", config.cpus(), state.vcpus.len()));
    }
    let has_console = config.console() == ConsoleMode::On;
    if state.has_console != has_console {
        return Err(differs("console", has_console, state.has_console));
    }
    let cid = |cid: Option<u64>| cid.map_or_else(|| "none".to_owned(), |cid| format!("CID {cid}"));
    let (configured, snapshot) = (config.vsock().map(|v| v.guest_cid()), state.vsock.as_ref().map(|v| v.guest_cid));
    if configured != snapshot {
        return Err(differs("vsock", cid(configured), cid(snapshot)));
    }
    if state.disks.len() != config.disks().len() {
        return Err(differs("disks", config.disks().len(), state.disks.len()));
    }
    let layers = match config.start() {
        crate::config::Start::Restore(restore) => restore.layers(),
        crate::config::Start::Kernel(_) => &[],
    };
    for (index, (state, disk)) in state.disks.iter().zip(config.disks()).enumerate() {
        let has_file = layers.get(index).is_some_and(Option::is_some);
        if state.layer.is_some() != has_file {
            let word = |has: bool| if has { "a file" } else { "none" };
            return Err(differs(&format!("restore.layers[{index}]"), word(has_file), word(state.layer.is_some())));
        }
        if state.layer.is_some() && !matches!(disk.mode(), DiskMode::OverlayMemory { .. }) {
            return Err(differs(&format!("disks[{index}].mode"), "not overlay_memory", "an overlay in memory"));
        }
    }
    Ok(())
}

fn check_disks(disks: &[Box<dyn Disk>], state: &VmState) -> Result<(), RestoreError> {
    for (index, (disk, state)) in disks.iter().zip(&state.disks).enumerate() {
        if disk.len_bytes() != state.len_bytes {
            let field = format!("disks[{index}]'s length");
            return Err(differs(&field, disk.len_bytes(), state.len_bytes));
        }
        if disk.is_read_only() != state.is_read_only {
            return Err(differs(&format!("disks[{index}].mode"), disk.is_read_only(), state.is_read_only));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
