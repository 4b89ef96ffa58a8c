// SPDX-License-Identifier: Apache-2.0
//! Brings back what a run changed in its workspace: the guest's report, message by message, into the spool.

use std::path::Path;

use midge_protocol::{ChangeKind, Changes, Layer, ToAgent, ToHost};
use std::os::unix::ffi::OsStrExt;

use super::Sandbox;
use crate::error::{Error, Fault};
use crate::link::Link;
use crate::workspace::spool::SpoolError;
use crate::workspace::{ChangeSet, GuestEntry, GuestKind, Manifest, Spool, SpoolLimits};

const COLLECTING: &str = "collecting the changes to the workspace";

/// A sandbox's workspace. From [`Sandbox::workspace`].
#[derive(Debug, Clone, Copy)]
pub struct Workspace<'a> {
    sandbox: &'a Sandbox,
    manifest: &'a Manifest,
}

impl<'a> Workspace<'a> {
    pub(super) fn of(sandbox: &'a Sandbox) -> Option<Self> {
        sandbox.made.workspace.as_deref().map(|manifest| Self { sandbox, manifest })
    }

    /// The directory on the host.
    #[must_use]
    pub fn dir(&self) -> &'a Path {
        &self.manifest.dir
    }

    /// What was packed for the guest: for this sandbox, or for the template that it comes from.
    #[must_use]
    pub fn manifest(&self) -> &'a Manifest {
        self.manifest
    }

    /// Takes in everything that differs from what was packed by now; what a template's commands changed is part of it.
    /// The data lies in a temporary directory until the result is dropped; the host's directory is not touched.
    ///
    /// # Errors
    /// [`Error::Prepare`] when the report is not acceptable or cannot be stored, or the reason why the guest is gone.
    pub async fn collect(&self) -> Result<ChangeSet, Error> {
        let dir = self.sandbox.fresh_bulk_path("changes")?;
        collect(&self.sandbox.link, &dir, SpoolLimits::default(), self.manifest).await
    }
}

/// Asks for the report and takes it in, into the new directory `dir`.
async fn collect(link: &Link, dir: &Path, limits: SpoolLimits, manifest: &Manifest) -> Result<ChangeSet, Error> {
    let mut spool = Spool::create(dir, limits).map_err(refused)?;
    let request = ToAgent::Changes(Changes { layer: Layer::Workspace });
    let mut conversation = link.open(&request, COLLECTING).await?;
    loop {
        match conversation.receiver.next().await? {
            ToHost::Change(change) => spool.entry(&entry(change)).map_err(refused)?,
            ToHost::Data(data) => spool.data(&data).map_err(refused)?,
            ToHost::End => return spool.finish(manifest).map_err(refused),
            other => return Err(conversation.receiver.unexpected(other, "Change, Data or End")),
        }
    }
}

fn refused(error: SpoolError) -> Error {
    let fault = if error.is_guest_fault() { Fault::Guest } else { Fault::Host };
    Error::prepare("changes to the workspace", fault, error)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::fake::Guest;
    use crate::workspace::{PackLimits, pack};
    use midge_protocol::{Change, ErrorCode, Failure};

    fn change(path: &str, kind: ChangeKind, size: u64) -> ToHost {
        let path = path.into();
        ToHost::Change(Change { path, kind, mode: 0o644, uid: 0, gid: 0, mtime_ns: 0, size, target: None })
    }

    /// Packs a directory with one file, and takes in what a fake agent says of it.
    async fn reported(report: &[ToHost]) -> Result<ChangeSet, Error> {
        let dir = tempfile::tempdir().unwrap();
        let project = dir.path().join("project");
        std::fs::create_dir(&project).unwrap();
        std::fs::write(project.join("kept"), "old\n").unwrap();
        let manifest = pack(&project, &dir.path().join("image"), &PackLimits::default(), &mut |_, _| ()).unwrap();
        let (guest, _control, link) = Guest::linked().await;
        let agent = async {
            let mut peer = guest.accept().await;
            assert!(matches!(peer.next().await, Some(ToAgent::Changes(Changes { layer: Layer::Workspace }))));
            for message in report {
                peer.say(message).await;
            }
            peer
        };
        let limits = SpoolLimits { entries: 3, bytes: 100 };
        let spool = dir.path().join("spool");
        let (result, _peer) = tokio::join!(collect(&link, &spool, limits, &manifest), agent);
        assert_eq!(std::fs::read_to_string(project.join("kept")).unwrap(), "old\n", "collecting applies nothing");
        result
    }

    #[tokio::test]
    async fn what_changed_is_told_with_its_content() {
        let report = [change("kept", ChangeKind::File, 4), ToHost::Data(b"ne".to_vec()), ToHost::Data(b"w\n".to_vec())];
        let gone = [change("absent", ChangeKind::Whiteout, 0), ToHost::End];
        let changes = reported(&[&report[..], &gone[..]].concat()).await.unwrap();
        let paths: Vec<String> = changes.changes().iter().map(|change| change.path.to_string()).collect();
        assert_eq!(paths, ["kept"], "what was never there is no change");
    }

    #[tokio::test]
    async fn reports_that_lie_are_the_guests_fault() {
        let file = |size| change("kept", ChangeKind::File, size);
        let liars: [&[ToHost]; 6] = [
            &[change("../outside", ChangeKind::File, 0)],
            &[change("/etc/passwd", ChangeKind::Whiteout, 0)],
            &[file(1), ToHost::Data(b"xx".to_vec())],
            &[file(2), ToHost::Data(b"x".to_vec()), ToHost::End],
            &[file(101)],
            &[ToHost::Data(b"of nothing".to_vec())],
        ];
        for lies in liars {
            let error = reported(lies).await.unwrap_err();
            assert_eq!(error.fault(), Fault::Guest, "{lies:?}: {error}");
        }
    }

    #[tokio::test]
    async fn refusals_and_misplaced_messages_end_the_collection() {
        let failure = Failure { code: ErrorCode::Unsupported, errno: 0, text: "no overlay".into() };
        let error = reported(&[ToHost::Error(failure)]).await.unwrap_err();
        assert!(matches!(&error, Error::Failed { failure, .. } if failure.code == ErrorCode::Unsupported), "{error}");
        let error = reported(&[ToHost::Pong(1)]).await.unwrap_err();
        assert!(error.to_string().contains("Pong"), "{error}");
    }
}
