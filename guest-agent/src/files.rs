// SPDX-License-Identifier: Apache-2.0
//! Files of the guest, for the host. Paths are absolute and mean what they mean to a program of the guest: symlinks are
//! followed in the guest and nowhere else.

mod archive;
pub(crate) mod changes;
mod transfer;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Component, Path, PathBuf};

use midge_protocol::{Entry, ErrorCode, Failure, FileKind, Metadata, Mkdir, Move, Owner, Remove, ToAgent, ToHost};

use crate::link::{Conversation, LinkError, failure};
use crate::sys::fd::rename_new;

/// Permission bits, with set-uid, set-gid and sticky.
const MODE_MASK: u32 = 0o7777;

/// Why a request for files failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("{attempt} {path}")]
    System { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("{attempt} {path}: {reason}")]
    Refused { attempt: &'static str, path: PathBuf, reason: &'static str },
    #[error("listing changes: this guest has no such overlay; it was started without one")]
    NoOverlay,
    /// The conversation itself is broken: nobody can be told.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl FileError {
    fn to_failure(&self) -> Failure {
        let mut failure = failure(self);
        match self {
            Self::Refused { .. } => failure.code = ErrorCode::InvalidInput,
            Self::NoOverlay => failure.code = ErrorCode::Unsupported,
            _ => {}
        }
        failure
    }
}

/// Turns an `io::Error` into one that tells what was attempted.
fn attempt<T>(attempt: &'static str, path: &Path, result: io::Result<T>) -> Result<T, FileError> {
    result.map_err(|source| FileError::System { attempt, path: path.to_owned(), source })
}

/// Answers a request for files; false when `request` is none.
pub(crate) fn answer(conversation: &mut Conversation, request: &ToAgent) -> Result<bool, LinkError> {
    conversation.awaits_content = matches!(request, ToAgent::FileWrite(_) | ToAgent::TarIn(_));
    let result = match request {
        ToAgent::FileRead(request) => transfer::read(conversation, request),
        ToAgent::FileWrite(request) => transfer::write(conversation, request),
        ToAgent::TarIn(request) => archive::unpack(conversation, request),
        ToAgent::TarOut(request) => archive::pack(conversation, request),
        ToAgent::Changes(request) => changes::list(conversation, request),
        ToAgent::List(request) => list(conversation, &request.path),
        ToAgent::Stat(request) => stat(&request.path, request.follow).map(ToHost::Metadata),
        ToAgent::Mkdir(request) => mkdir(request).map(|()| ToHost::Done),
        ToAgent::Remove(request) => remove(request).map(|()| ToHost::Done),
        ToAgent::Move(request) => rename(request).map(|()| ToHost::Done),
        _ => return Ok(false),
    };
    match result {
        Ok(last) => conversation.send(&last)?,
        Err(FileError::Link(error)) => return Err(error),
        Err(error) => {
            conversation.send(&ToHost::Error(error.to_failure()))?;
            transfer::skip_content(conversation)?;
        }
    }
    Ok(true)
}

/// A path that means the same to everybody.
fn absolute<'a>(doing: &'static str, path: &'a Path) -> Result<&'a Path, FileError> {
    let refused = |reason| FileError::Refused { attempt: doing, path: path.to_owned(), reason };
    if !path.is_absolute() {
        return Err(refused("the path must be absolute"));
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(refused("the path holds a NUL byte"));
    }
    Ok(path)
}

/// What `metadata` of `path` says.
fn describe(path: &Path, metadata: &fs::Metadata) -> Metadata {
    let file_type = metadata.file_type();
    let kind = match () {
        () if file_type.is_file() => FileKind::File,
        () if file_type.is_dir() => FileKind::Dir,
        () if file_type.is_symlink() => FileKind::Symlink,
        () => FileKind::Special,
    };
    Metadata {
        kind,
        mode: metadata.mode() & MODE_MASK,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: metadata.size(),
        mtime_ns: mtime_ns(metadata),
        target: file_type.is_symlink().then(|| fs::read_link(path).unwrap_or_default()),
    }
}

fn mtime_ns(metadata: &fs::Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

fn stat(path: &Path, follow: bool) -> Result<Metadata, FileError> {
    let path = absolute("looking at", path)?;
    let metadata = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    Ok(describe(path, &attempt("looking at", path, metadata)?))
}

fn list(conversation: &mut Conversation, path: &Path) -> Result<ToHost, FileError> {
    const LISTING: &str = "listing";
    let path = absolute(LISTING, path)?;
    for entry in attempt(LISTING, path, fs::read_dir(path))? {
        let entry = attempt(LISTING, path, entry)?;
        let name: OsString = entry.file_name();
        // What is gone between its name and its look was not there.
        let Ok(metadata) = entry.metadata() else { continue };
        conversation.queue(&ToHost::Entry(Entry { name, metadata: describe(&entry.path(), &metadata) }))?;
    }
    Ok(ToHost::End)
}

/// The owner that a new file in `dir` gets when the request names none.
fn owner_of(dir: &Path) -> io::Result<Owner> {
    fs::metadata(dir).map(|metadata| Owner { uid: metadata.uid(), gid: metadata.gid() })
}

/// Gives `path` away, where this process may.
fn give(path: &Path, owner: &Owner) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if (metadata.uid(), metadata.gid()) == (owner.uid, owner.gid) {
        return Ok(());
    }
    lchown(path, Some(owner.uid), Some(owner.gid))
}

/// Makes one directory with exactly this mode and owner.
fn make_dir(path: &Path, mode: u32, owner: Option<&Owner>) -> io::Result<()> {
    let inherited = owner_of(path.parent().unwrap_or(Path::new("/")))?;
    DirBuilder::new().mode(0o700).create(path)?;
    give(path, owner.unwrap_or(&inherited))?;
    fs::set_permissions(path, Permissions::from_mode(mode & MODE_MASK))
}

/// Makes `path` and every directory above it that is missing.
fn make_dirs(path: &Path, mode: u32, owner: Option<&Owner>) -> io::Result<()> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|path| !path.is_dir()).collect();
    while let Some(path) = missing.pop() {
        match make_dir(path, mode, owner) {
            // Somebody else made it in the meantime.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            result => result?,
        }
    }
    Ok(())
}

fn mkdir(request: &Mkdir) -> Result<(), FileError> {
    const MAKING: &str = "making the directory";
    let path = absolute(MAKING, &request.path)?;
    let make = if request.parents { make_dirs } else { make_dir };
    attempt(MAKING, path, make(path, request.mode, request.owner.as_ref()))
}

fn remove(request: &Remove) -> Result<(), FileError> {
    const REMOVING: &str = "removing";
    let path = absolute(REMOVING, &request.path)?;
    if !path.components().any(|part| matches!(part, Component::Normal(_))) {
        let reason = "the root of the file system stays";
        return Err(FileError::Refused { attempt: REMOVING, path: path.to_owned(), reason });
    }
    let is_dir = attempt(REMOVING, path, fs::symlink_metadata(path))?.is_dir();
    let result = match (is_dir, request.recursive) {
        (true, true) => fs::remove_dir_all(path),
        (true, false) => fs::remove_dir(path),
        (false, _) => fs::remove_file(path),
    };
    attempt(REMOVING, path, result)
}

fn rename(request: &Move) -> Result<(), FileError> {
    const MOVING: &str = "moving";
    let (from, to) = (absolute(MOVING, &request.from)?, absolute("moving to", &request.to)?);
    attempt(MOVING, from, if request.replace { fs::rename(from, to) } else { rename_new(from, to) })
}

#[cfg(test)]
mod tests;
