// SPDX-License-Identifier: Apache-2.0
//! Everything of a VM that has a path, opened while there still are paths.
//!
//! Nothing is looked into yet: what files say is read where little can be reached. Behind this
//! file no other opens anything.

use std::os::unix::net::UnixListener;

use super::VmError;
use super::devices::{self, DiskFiles};
use super::restore::SnapshotFiles;
use crate::boot::plan::Images;
use crate::config::{RestoreConfig, Start, VmmConfig};
use crate::machine::kvm::Host;

/// The files and sockets of one VM.
#[derive(Debug)]
pub struct Opened<'a> {
    /// KVM.
    pub kvm: Host,
    /// What the VM begins with.
    pub start: StartFiles<'a>,
    /// Those of the disks, in order.
    pub disks: Vec<DiskFiles>,
    /// Where vsock's clients knock; a resident has none.
    pub listener: Option<UnixListener>,
}

/// What a VM begins with.
#[derive(Debug)]
pub enum StartFiles<'a> {
    /// A kernel.
    Images(Images),
    /// A snapshot.
    Snapshot(&'a RestoreConfig, SnapshotFiles),
}

impl<'a> Opened<'a> {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// [`VmError`] names what cannot be opened.
    pub fn open(config: &'a VmmConfig) -> Result<Self, VmError> {
        let (start, is_resident) = match config.start() {
            Start::Kernel(kernel) => (StartFiles::Images(Images::open(config, kernel)?), false),
            Start::Restore(restore) => {
                (StartFiles::Snapshot(restore, SnapshotFiles::open(restore)?), restore.is_resident())
            }
        };
        let disks = DiskFiles::open_all(config)?;
        let kvm = Host::open(config.cpus())?;
        let listener = if is_resident { None } else { devices::listen(config)? };
        Ok(Self { kvm, start, disks, listener })
    }
}
