// SPDX-License-Identifier: Apache-2.0
//! Files as the tools take them: named from the run's directory, opened without ever waiting for somebody at the other end, replaced
//! in one step. Nothing here protects a path: a tool may do what the guest's user may.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

/// Files that were replaced so far, so that each temporary one has a name of its own.
static REPLACED: AtomicU64 = AtomicU64::new(0);

/// Which file, in which state: what is told apart when a file changes between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), length: metadata.len(), modified }
    }
}

/// `path` from `cwd` on.
///
/// # Errors
/// A path that is none, in words for the model.
pub(super) fn resolve(cwd: &Path, path: &str) -> Result<PathBuf, String> {
    match path {
        "" => Err("the path is empty".into()),
        path if path.contains('\0') => Err("the path holds a NUL byte".into()),
        path => Ok(cwd.join(path)),
    }
}

/// A name as one line of text.
pub(super) fn shown(name: impl AsRef<OsStr>) -> String {
    let lossy = name.as_ref().to_string_lossy();
    lossy.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char }).collect()
}

/// Opens a regular file to read it.
///
/// # Errors
/// What it is instead, or why it cannot be opened, in words for the model.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), String> {
    let name = shown(path);
    let metadata = fs::metadata(path).map_err(|error| unopened(path, &error))?;
    if let Some(kind) = not_regular(&metadata) {
        return Err(format!("`{name}` is {kind}"));
    }
    // It may have been exchanged since: an open that waits for nobody, and a second look.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = opened.map_err(|error| unopened(path, &error))?;
    let metadata = file.metadata().map_err(|error| unopened(path, &error))?;
    match not_regular(&metadata) {
        Some(kind) => Err(format!("`{name}` is {kind}")),
        None => Ok((file, metadata)),
    }
}

/// The whole of a regular file of at most `max_bytes`.
///
/// # Errors
/// Why not, in words for the model.
pub(super) fn read(path: &Path, max_bytes: u64) -> Result<(Vec<u8>, Stamp), String> {
    let (file, metadata) = open(path)?;
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|error| unopened(path, &error))?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("`{}` is larger than {} MiB; use shell (sed, python)", shown(path), max_bytes >> 20));
    }
    Ok((bytes, Stamp::of(&metadata)))
}

/// Writes a file in one step: whoever looks sees the old bytes or the new ones. Missing directories are made, the mode and the owner
/// stay, a symbolic link stays one. Length of what was there, if there was something.
///
/// # Errors
/// Why nothing was written, in words for the model; also when the file is not as `expected` any more.
pub(super) fn replace(path: &Path, bytes: &[u8], expected: Option<Stamp>) -> Result<Option<u64>, String> {
    let refused = |error: io::Error| format!("`{}` was not written: {error}", shown(path));
    let target = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => fs::canonicalize(path).map_err(|error| dangling(path, &error))?,
        _ => path.to_owned(),
    };
    let old = match fs::metadata(&target) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(refused(error)),
    };
    if let Some(kind) = old.as_ref().and_then(not_regular) {
        return Err(format!("`{}` is {kind}; nothing was written", shown(path)));
    }
    if expected.is_some() && expected != old.as_ref().map(Stamp::of) {
        return Err(format!("`{}` has changed meanwhile; nothing was written, read it again", shown(path)));
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o777).create(parent).map_err(refused)?;
    match &old {
        // Other names of the same file must keep seeing it.
        Some(metadata) if metadata.nlink() > 1 => in_place(&target, bytes),
        _ => by_rename(parent, &target, bytes, old.as_ref()).or_else(|error| match error.kind() {
            // A directory that takes no new names, or a mount point.
            ErrorKind::PermissionDenied | ErrorKind::ResourceBusy if old.is_some() => in_place(&target, bytes),
            _ => Err(error),
        }),
    }
    .map_err(refused)?;
    Ok(old.map(|metadata| metadata.len()))
}

fn by_rename(parent: &Path, target: &Path, bytes: &[u8], old: Option<&Metadata>) -> io::Result<()> {
    let number = REPLACED.fetch_add(1, Ordering::Relaxed);
    let temporary = parent.join(format!(".midge-{}-{number}.tmp", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o666).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| {
        if let Some(old) = old {
            // Only root may give files away; for others the owner is the writer.
            let _ = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
            file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        }
        fs::rename(&temporary, target)
    });
    if written.is_err() {
        // What is told is the first error.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn in_place(target: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).truncate(true).open(target)?.write_all(bytes)
}

/// What the file is, in words, when it has no bytes of its own.
fn not_regular(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory; use list"),
        () if kind.is_fifo() => Some("a FIFO, which is not a file with an end; use shell"),
        () if kind.is_socket() => Some("a socket; use shell"),
        () => Some("a device, which is not a file with an end; use shell"),
    }
}

fn unopened(path: &Path, error: &io::Error) -> String {
    match (error.kind(), fs::symlink_metadata(path)) {
        (ErrorKind::NotFound, Ok(metadata)) if metadata.is_symlink() => dangling(path, error),
        (ErrorKind::NotFound, _) => {
            let existing = path.ancestors().skip(1).find(|parent| parent.is_dir());
            let hint = existing.map(|parent| format!("; `{}` is the nearest directory that exists", shown(parent)));
            format!("`{}` does not exist{}", shown(path), hint.unwrap_or_default())
        }
        _ => format!("`{}` cannot be read: {error}", shown(path)),
    }
}

fn dangling(path: &Path, error: &io::Error) -> String {
    let target = fs::read_link(path).map(shown).unwrap_or_default();
    format!("`{}` is a symbolic link to `{target}`, which leads nowhere: {error}", shown(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn mode_links_and_other_names_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a"), "old").unwrap();
        fs::set_permissions(path("a"), Permissions::from_mode(0o751)).unwrap();
        symlink("a", path("link")).unwrap();
        assert_eq!(replace(&path("link"), b"new", None), Ok(Some(3)));
        assert_eq!(fs::read(path("a")).unwrap(), b"new");
        assert_eq!(fs::metadata(path("a")).unwrap().mode() & 0o7777, 0o751);
        assert!(fs::symlink_metadata(path("link")).unwrap().is_symlink());
        fs::hard_link(path("a"), path("b")).unwrap();
        replace(&path("b"), b"both", None).unwrap();
        assert_eq!(fs::read(path("a")).unwrap(), b"both");
        assert_eq!(replace(&path("made/of/parents"), b"x", None), Ok(None));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("midge")), "{left:?}");
    }

    #[test]
    fn what_is_no_file_is_refused_by_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), rustix::fs::Mode::RWXU).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        symlink("loop", path("loop")).unwrap();
        let both = |path: &Path| [open(path).map(|_| ()).unwrap_err(), replace(path, b"x", None).unwrap_err()];
        for (name, word) in [("fifo", "FIFO"), ("", "directory"), ("dangling", "leads nowhere"), ("loop", "loop")] {
            assert!(both(&path(name)).iter().all(|text| text.contains(word)), "{name}: {:?}", both(&path(name)));
        }
        assert!(both(Path::new("/dev/zero")).iter().all(|text| text.contains("device")));
        assert!(!path("nowhere").exists());
        fs::write(path("file"), "").unwrap();
        assert!(replace(&path("file/below"), b"x", None).unwrap_err().contains("not written"));
        assert!(open(&path("no/such/file")).map(|_| ()).unwrap_err().contains("nearest directory"));
    }

    #[test]
    fn a_file_that_changed_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "one").unwrap();
        let (_, stamp) = read(&path, 10).unwrap();
        fs::write(&path, "other").unwrap();
        assert!(replace(&path, b"x", Some(stamp)).unwrap_err().contains("changed meanwhile"));
        assert_eq!(fs::read(&path).unwrap(), b"other");
        assert!(read(&path, 4).unwrap_err().contains("larger than"));
        assert!(read(&path, 5).is_ok());
    }
}
