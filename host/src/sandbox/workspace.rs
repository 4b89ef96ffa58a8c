// SPDX-License-Identifier: Apache-2.0
//! Brings back what a run changed in its workspace: the guest's report, message by message, into the spool.

use std::path::{Path, PathBuf};

use midge_protocol::{ChangeKind, Changes, Layer, ToAgent, ToHost};
use std::os::unix::ffi::OsStrExt;

use super::Sandbox;
use crate::error::{Error, Fault};
use crate::workspace::{ChangeSet, GuestEntry, GuestKind, Manifest, Spool, SpoolLimits};

const COLLECTING: &str = "collecting the changes to the workspace";

/// The directory that was packed and what was in it then.
#[derive(Debug)]
pub(super) struct WorkspaceOrigin {
    pub(super) dir: PathBuf,
    pub(super) manifest: Manifest,
}

/// A sandbox's workspace. From [`Sandbox::workspace`].
#[derive(Debug, Clone, Copy)]
pub struct Workspace<'a> {
    sandbox: &'a Sandbox,
    origin: &'a WorkspaceOrigin,
}

impl<'a> Workspace<'a> {
    pub(super) fn of(sandbox: &'a Sandbox) -> Option<Self> {
        sandbox.workspace.as_ref().map(|origin| Self { sandbox, origin })
    }

    /// The directory on the host.
    #[must_use]
    pub fn dir(&self) -> &'a Path {
        &self.origin.dir
    }

    /// What was packed for the guest.
    #[must_use]
    pub fn manifest(&self) -> &'a Manifest {
        &self.origin.manifest
    }

    /// Takes in everything that the guest changed so far. The data lies in a temporary directory until the
    /// result is dropped; the host's directory is not touched.
    ///
    /// # Errors
    /// [`Error::Prepare`] when the report is not acceptable or cannot be stored, or the reason why the guest is gone.
    pub async fn collect(&self) -> Result<ChangeSet, Error> {
        let refused = |error: crate::workspace::spool::SpoolError| {
            let fault = if error.is_guest_fault() { Fault::Guest } else { Fault::Host };
            Error::prepare("changes to the workspace", fault, error)
        };
        let dir = self.sandbox.fresh_bulk_path("changes")?;
        let mut spool = Spool::create(&dir, SpoolLimits::default()).map_err(refused)?;
        let request = ToAgent::Changes(Changes { layer: Layer::Workspace });
        let mut conversation = self.sandbox.link.open(&request, COLLECTING).await?;
        loop {
            match conversation.receiver.next().await? {
                ToHost::Change(change) => spool.entry(&entry(change)).map_err(refused)?,
                ToHost::Data(data) => spool.data(&data).map_err(refused)?,
                ToHost::End => return spool.finish(&self.origin.manifest).map_err(refused),
                other => return Err(conversation.receiver.unexpected(other, "Change, Data or End")),
            }
        }
    }
}

fn entry(change: midge_protocol::Change) -> GuestEntry {
    let kind = match change.kind {
        ChangeKind::Whiteout => GuestKind::Whiteout,
        ChangeKind::OpaqueDir => GuestKind::OpaqueDir,
        ChangeKind::Dir => GuestKind::Dir,
        ChangeKind::File => GuestKind::File,
        ChangeKind::Symlink => GuestKind::Symlink,
        ChangeKind::Special => GuestKind::Special,
    };
    let target = change.target.map(|target| target.as_os_str().as_bytes().to_vec()).unwrap_or_default();
    GuestEntry { path: change.path.as_os_str().as_bytes().to_vec(), kind, mode: change.mode, size: change.size, target }
}
