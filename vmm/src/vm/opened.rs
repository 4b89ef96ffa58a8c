// SPDX-License-Identifier: Apache-2.0
//! Everything of a VM that has a path, opened while there still are paths.
//!
//! Nothing is looked into yet: what files say is read where little can be reached. Behind this
//! file no other opens anything.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use super::devices::{self, DiskFiles};
use super::restore::SnapshotFiles;
use super::{VmError, host};
use crate::boot::plan::Images;
use crate::config::{Jail, RestoreConfig, Start, VmmConfig, VsockConfig};
use crate::jail::{self, Limits, Wanted};
use crate::machine::kvm::Host;
use crate::trace::Trace;
use crate::vsock::client::CLIENTS_MAX;
use crate::vsock::table::CONNECTIONS_MAX;

/// Most descriptors of a monitor: one for each connection and client of vsock, and those of everything else.
const DESCRIPTORS_MAX: u64 = (CONNECTIONS_MAX + CLIENTS_MAX + 256) as u64;
/// How much longer than disk or memory a file may be that is made of it: tables of what it holds.
const FILE_SPARE_BYTES: u64 = 1 << 30;

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

impl Opened<'_> {
    /// Locks the process up, which from then on has nothing but what is opened here. Returns in a
    /// process of its own; see [`jail::enter`].
    ///
    /// # Errors
    /// [`VmError::Jail`].
    pub fn lock_up(&self, config: &VmmConfig, trace: &mut Trace) -> Result<OwnedFd, VmError> {
        let uds = config.vsock().map(VsockConfig::uds);
        if config.jail() == Jail::Off {
            return Ok(jail::leave_off(uds)?.doorman);
        }
        let longest = DiskFiles::longest(&self.disks).map_err(host("measuring the disks"))?;
        let limits = Limits {
            descriptors: DESCRIPTORS_MAX,
            file_bytes: longest.max(config.mem_bytes()).saturating_add(FILE_SPARE_BYTES),
        };
        let entered = jail::enter(&Wanted { allow_missing: config.allow_missing(), limits, uds }, trace)?;
        for (part, why) in &entered.missing {
            eprintln!("midge-vmm: the jail has no {part} ({why})");
        }
        Ok(entered.doorman)
    }
}
