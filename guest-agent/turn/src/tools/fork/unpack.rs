// SPDX-License-Identifier: Apache-2.0
//! A child's changes put into a directory: every path is walked from that directory's descriptor, one name at a time, through real
//! directories only, so that neither a name in the archive nor a link that is there or that it brings leads out.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags};
use tar::{Archive, Entry, EntryType};

use super::super::{Cancel, files};

/// Most entries of an archive, in number.
const ENTRIES_MAX: u64 = 200_000;
/// Most troubles that are told, in number; the rest is counted.
const TROUBLES_MAX: usize = 10;
/// Deepest directory that is removed, in levels.
const DEPTH_MAX_LEVELS: u32 = 128;
/// The name of a file that is not whole yet.
const TEMPORARY: &str = ".midge-take.tmp";
/// How a directory is opened: it must be one, not a link to one.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Paths that were written.
    pub(super) written: u64,
    /// Paths that were removed.
    pub(super) removed: u64,
    /// What was not done and why.
    pub(super) troubles: Vec<String>,
    /// Troubles that are not told one by one.
    pub(super) more_troubles: u64,
}

impl Taken {
    fn trouble(&mut self, path: impl AsRef<OsStr>, why: &io::Error) {
        if self.troubles.len() < TROUBLES_MAX {
            self.troubles.push(format!("`{}`: {why}", files::shown(path)));
        } else {
            self.more_troubles += 1;
        }
    }
}

/// Writes everything in `archive` below `root`, after removing `removed`.
///
/// # Errors
/// When `root` cannot be opened or the archive ends in its middle; what was written until then stays.
pub(super) fn unpack(root: &Path, archive: impl Read, removed: &[String], cancel: &Cancel) -> io::Result<Taken> {
    let root = fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut taken = Taken::default();
    for path in removed {
        match remove(&root, Path::new(path)) {
            Ok(()) => taken.removed += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => taken.trouble(path, &error),
        }
    }
    let mut archive = Archive::new(archive);
    for (count, entry) in (0_u64..).zip(archive.entries()?) {
        if count == ENTRIES_MAX {
            return Err(io::Error::other(format!("the archive has more than {ENTRIES_MAX} entries")));
        }
        if cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        let path = OsStr::from_bytes(&path);
        match write(&root, Path::new(path), &mut entry) {
            Ok(()) => taken.written += 1,
            Err(error) => taken.trouble(path, &error),
        }
    }
    Ok(taken)
}

/// One entry.
fn write(root: &OwnedFd, path: &Path, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let names = names(path)?;
    let mode = Mode::from_raw_mode(entry.header().mode()? & 0o777);
    let kind = entry.header().entry_type();
    let Some((name, parents)) = names.split_last() else {
        // The root itself; it is there.
        return Ok(());
    };
    let parent = descend(root, parents, true)?;
    match kind {
        EntryType::Directory => {
            if !is_directory(&parent, name) {
                remove_at(parent.as_fd(), name, 0)?;
                fs::mkdirat(&parent, *name, Mode::RWXU)?;
            }
            let directory = fs::openat(&parent, *name, DIRECTORY, Mode::empty())?;
            Ok(fs::fchmod(&directory, mode)?)
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => make(&parent, name, |temporary| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = std::fs::File::from(fs::openat(&parent, temporary, flags, Mode::RUSR | Mode::WUSR)?);
            let copied = io::copy(entry, &mut file)?;
            if copied != entry.size() {
                // The reader says nothing of an archive that ends too early.
                return Err(io::Error::other("the archive ends in the middle of it"));
            }
            file.flush()?;
            Ok(fs::fchmod(&file, mode)?)
        }),
        EntryType::Symlink => {
            let target =
                entry.link_name_bytes().ok_or_else(|| io::Error::other("a link without a target"))?.into_owned();
            make(&parent, name, |temporary| Ok(fs::symlinkat(OsStr::from_bytes(&target), &parent, temporary)?))
        }
        EntryType::Link => {
            let target =
                entry.link_name_bytes().ok_or_else(|| io::Error::other("a link without a target"))?.into_owned();
            let target = self::names(Path::new(OsStr::from_bytes(&target)))?;
            let (old, above) = target.split_last().ok_or_else(|| io::Error::other("a link to nothing"))?;
            let above = descend(root, above, false)?;
            make(&parent, name, |temporary| Ok(fs::linkat(&above, *old, &parent, temporary, AtFlags::empty())?))
        }
        kind => Err(io::Error::other(format!("an entry of kind {kind:?} is not taken"))),
    }
}

/// Makes something under another name and gives it its own when it is whole.
fn make(parent: &OwnedFd, name: &OsStr, build: impl FnOnce(&str) -> io::Result<()>) -> io::Result<()> {
    remove_at(parent.as_fd(), OsStr::new(TEMPORARY), 0)?;
    let made = build(TEMPORARY).and_then(|()| {
        if is_directory(parent, name) {
            remove_at(parent.as_fd(), name, 0)?;
        }
        Ok(fs::renameat(parent, TEMPORARY, parent, name)?)
    });
    // After a rename between two names of one file both are still there.
    let _ = fs::unlinkat(parent, TEMPORARY, AtFlags::empty());
    made
}

/// The names of a path that stays below where it begins.
fn names(path: &Path) -> io::Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) if name.as_bytes().contains(&0) => {
                return Err(io::Error::other("a name holds a NUL byte"));
            }
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(io::Error::other("the path leads out of the directory; it is not taken"));
            }
        }
    }
    Ok(names)
}

/// The directory that `names` lead to, made where it is missing and `create` says so.
fn descend(root: &OwnedFd, names: &[&OsStr], create: bool) -> io::Result<OwnedFd> {
    let mut directory = root.try_clone()?;
    for name in names {
        if create {
            match fs::mkdirat(&directory, *name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        directory = fs::openat(&directory, *name, DIRECTORY, Mode::empty()).map_err(|error| match error {
            rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => io::Error::other(format!(
                "`{}` is no directory (perhaps a link); nothing is written through it",
                files::shown(name)
            )),
            error => error.into(),
        })?;
    }
    Ok(directory)
}

fn is_directory(parent: &OwnedFd, name: &OsStr) -> bool {
    let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

fn remove(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let names = names(path)?;
    let (name, parents) = names.split_last().ok_or_else(|| io::Error::other("the directory itself is not removed"))?;
    let parent = descend(root, parents, false)?;
    fs::statat(&parent, *name, AtFlags::SYMLINK_NOFOLLOW)?;
    remove_at(parent.as_fd(), name, 0)
}

/// Removes whatever has this name, if anything has.
fn remove_at(parent: BorrowedFd<'_>, name: &OsStr, depth: u32) -> io::Result<()> {
    if depth == DEPTH_MAX_LEVELS {
        return Err(io::Error::other(format!("deeper than {DEPTH_MAX_LEVELS} directories")));
    }
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let directory = fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    let mut inside: Vec<OsString> = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            inside.push(name);
        }
    }
    for name in inside {
        remove_at(directory.as_fd(), &name, depth + 1)?;
    }
    Ok(fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests;
