// SPDX-License-Identifier: Apache-2.0
//! What a run changed: the upper directory of an overlay, path by path. Parents come before children, names in order.
//!
//! A whiteout is a character device 0:0. An opaque directory hides the base's. A directory that was renamed points at
//! its old place in the base; as the reader has no base to look in, it is told as an opaque directory with all that
//! the merged view shows in it.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use midge_protocol::{Change, ChangeKind, Changes, Layer, MAX_DATA_BYTES, ToHost};

use super::transfer::{Exactly, open_regular};
use super::{FileError, MODE_MASK, attempt, mtime_ns};
use crate::link::Conversation;
use crate::sys::fd::attribute;
use std::io::Read as _;

const OPAQUE: &CStr = c"trusted.overlay.opaque";
const REDIRECT: &CStr = c"trusted.overlay.redirect";

/// One overlay of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overlay {
    /// Where its changes lie.
    pub(crate) upper: PathBuf,
    /// Where it is mounted.
    pub(crate) merged: PathBuf,
}

/// The overlays of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Overlays {
    pub(crate) workspace: Option<Overlay>,
    pub(crate) root: Option<Overlay>,
}

static OVERLAYS: OnceLock<Overlays> = OnceLock::new();

/// Tells, once, what was mounted.
pub(crate) fn set_overlays(overlays: Overlays) {
    // Set by the agent's start and nobody else.
    let _ = OVERLAYS.set(overlays);
}

pub(super) fn list(conversation: &mut Conversation, request: &Changes) -> Result<ToHost, FileError> {
    let overlays = OVERLAYS.get().ok_or(FileError::NoOverlay)?;
    let overlay = match request.layer {
        Layer::Workspace => &overlays.workspace,
        Layer::Root => &overlays.root,
    };
    walk(overlay.as_ref().ok_or(FileError::NoOverlay)?, &mut |change, content| {
        conversation.queue(&ToHost::Change(change.clone()))?;
        let Some(path) = content else { return Ok(()) };
        let mut content = Exactly { file: open_regular(path)?, left: change.size };
        while content.left > 0 {
            let mut piece = vec![0; usize::try_from(content.left).unwrap_or(usize::MAX).min(MAX_DATA_BYTES)];
            let len = attempt("reading", path, content.read(&mut piece))?;
            piece.truncate(len);
            conversation.queue(&ToHost::Data(piece))?;
        }
        Ok(())
    })?;
    Ok(ToHost::End)
}

/// A place to look at, below the overlay's root.
struct Place {
    name: PathBuf,
    /// Looked at in the merged view, where everything counts as new.
    is_merged: bool,
}

/// Takes a change, a file's with the path of its content.
type Tell<'a> = dyn FnMut(&Change, Option<&Path>) -> Result<(), FileError> + 'a;

/// Tells every change.
fn walk(overlay: &Overlay, tell: &mut Tell<'_>) -> Result<(), FileError> {
    let mut pending = vec![Place { name: PathBuf::new(), is_merged: false }];
    while let Some(Place { name, is_merged }) = pending.pop() {
        let path = if is_merged { overlay.merged.join(&name) } else { overlay.upper.join(&name) };
        let (change, is_redirected) = look(&path, &name, is_merged)?;
        // The root itself is a change of nothing but its times.
        if !name.as_os_str().is_empty() {
            tell(&change, (change.kind == ChangeKind::File).then_some(&path))?;
        }
        if matches!(change.kind, ChangeKind::Dir | ChangeKind::OpaqueDir) {
            let is_merged = is_merged || is_redirected;
            let path = if is_merged { overlay.merged.join(&name) } else { path };
            pending.append(&mut entries(&path, &name, is_merged)?);
        }
    }
    Ok(())
}

fn entries(path: &Path, name: &Path, is_merged: bool) -> Result<Vec<Place>, FileError> {
    let mut names = Vec::new();
    for entry in attempt("listing changes in", path, fs::read_dir(path))? {
        names.push(name.join(attempt("listing changes in", path, entry)?.file_name()));
    }
    // The last is looked at first.
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names.into_iter().map(|name| Place { name, is_merged }).collect())
}

/// What `path` means, and whether it is a directory that came from another place.
fn look(path: &Path, name: &Path, is_merged: bool) -> Result<(Change, bool), FileError> {
    const LOOKING: &str = "looking at the change";
    let metadata = attempt(LOOKING, path, fs::symlink_metadata(path))?;
    let file_type = metadata.file_type();
    let has =
        |mark| attempt(LOOKING, path, attribute(path, mark)).map(|value| value.is_some_and(|value| !value.is_empty()));
    let is_redirected = file_type.is_dir() && !is_merged && has(REDIRECT)?;
    let is_opaque = is_redirected
        || file_type.is_dir()
            && !is_merged
            && attempt(LOOKING, path, attribute(path, OPAQUE))?.as_deref() == Some(b"y");
    let kind = match () {
        () if file_type.is_char_device() && metadata.rdev() == 0 && !is_merged => ChangeKind::Whiteout,
        () if is_opaque => ChangeKind::OpaqueDir,
        () if file_type.is_dir() => ChangeKind::Dir,
        () if file_type.is_file() => ChangeKind::File,
        () if file_type.is_symlink() => ChangeKind::Symlink,
        () => ChangeKind::Special,
    };
    let target = if file_type.is_symlink() { Some(attempt(LOOKING, path, fs::read_link(path))?) } else { None };
    let change = Change {
        path: name.to_owned(),
        kind,
        mode: metadata.mode() & MODE_MASK,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime_ns: mtime_ns(&metadata),
        size: if kind == ChangeKind::File { metadata.len() } else { 0 },
        target,
    };
    Ok((change, is_redirected))
}

#[cfg(test)]
mod tests;
