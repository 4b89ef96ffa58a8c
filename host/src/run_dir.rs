// SPDX-License-Identifier: Apache-2.0
//! The private directory of one sandbox: its sockets, and elsewhere on a larger disk its big files.
//!
//! Comes first in the life of a sandbox and goes last. Whoever holds the `lock` file's flock owns the
//! directory; a directory whose lock is free belonged to a process that was killed, and the next
//! [`sweep`] removes it. Never follows a symlink that somebody else may have laid.

mod record;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

pub(crate) use record::since_boot;
pub use record::{About, Kind, Record, records};

/// Longest path a Unix socket address can hold, without the closing zero.
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// What a socket's name adds to the base: `/<id>/v.sock_4294967295`.
const SOCKET_NAME_MAX_BYTES: usize = 1 + ID_HEX_DIGITS + 1 + "v.sock_4294967295".len();
/// 48 random bits: short enough for a socket path, unique on one host.
const ID_HEX_DIGITS: usize = 12;
/// Holds the path of the directory with the big files.
const BULK_POINTER: &str = "bulk";

/// Why a run directory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The base exists, but other users could reach into it.
    #[error(
        "using {path} for sockets: it must be a directory of user {uid} with mode 0700, but {found}; \
         remove it, or set XDG_RUNTIME_DIR to a private directory"
    )]
    Insecure {
        /// The base directory.
        path: PathBuf,
        /// The user it has to belong to.
        uid: u32,
        /// What was found instead.
        found: String,
    },
    /// The socket paths would not fit a Unix socket address.
    #[error(
        "using {path} for sockets: its name has {len} bytes, at most {max} fit a Unix socket's address; \
         set XDG_RUNTIME_DIR to a shorter path"
    )]
    TooLong {
        /// The base directory.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// The longest that fits.
        max: usize,
    },
    /// The file system refused.
    #[error("{action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl RunDirError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// Where run directories live: `$XDG_RUNTIME_DIR/midge`, or `/tmp/midge-<uid>` where that is unset, not
/// a directory, or too long for a socket's address.
#[must_use]
pub fn default_base() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() && dir.is_dir() && fits(&dir.join("midge")) => dir.join("midge"),
        _ => fallback_base(),
    }
}

/// [`default_base`], made if it is not there.
///
/// # Errors
/// [`RunDirError::Insecure`] when others could reach into it, [`RunDirError::Io`] when it cannot be made.
pub fn private_base() -> Result<PathBuf, RunDirError> {
    let base = default_base();
    make_private(&base)?;
    Ok(base)
}

fn fallback_base() -> PathBuf {
    PathBuf::from(format!("/tmp/midge-{}", rustix::process::getuid().as_raw()))
}

fn fits(base: &Path) -> bool {
    base.as_os_str().len() + SOCKET_NAME_MAX_BYTES <= SOCKET_PATH_MAX_BYTES
}

/// A directory that this process owns; dropping it removes it and its big files.
#[derive(Debug)]
pub struct RunDir {
    id: String,
    path: PathBuf,
    bulk: PathBuf,
    lock: File,
}

impl RunDir {
    /// Makes and locks `<base>/<id>/` with a fresh random id; `bulk_base` is where big files may go.
    ///
    /// # Errors
    /// [`RunDirError::Insecure`] when others could reach into `base`, [`RunDirError::TooLong`] when no
    /// socket would fit, [`RunDirError::Io`] for the rest.
    pub fn create(base: &Path, bulk_base: &Path) -> Result<Self, RunDirError> {
        if !fits(base) {
            return Err(RunDirError::TooLong {
                path: base.to_path_buf(),
                len: base.as_os_str().len(),
                max: SOCKET_PATH_MAX_BYTES - SOCKET_NAME_MAX_BYTES,
            });
        }
        make_private(base)?;
        let _base_lock = lock_base(base)?;
        let id = new_id();
        let path = base.join(&id);
        private_dir().create(&path).map_err(RunDirError::io("making", &path))?;
        let lock_path = path.join("lock");
        let lock = open_lock(&lock_path).map_err(RunDirError::io("making", &lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| RunDirError::io("locking", &lock_path)(e.into()))?;
        Ok(Self { bulk: bulk_base.join("run").join(&id), id, path, lock })
    }

    /// The random name, 12 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory for sockets.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The vsock's Unix socket; `<socket>_<port>` are those for the guest's own connections.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join("v.sock")
    }

    /// A directory for big files, made at the first call.
    ///
    /// # Errors
    /// [`RunDirError::Io`] when it cannot be made.
    pub fn bulk(&self) -> Result<&Path, RunDirError> {
        if !self.bulk.is_dir() {
            let pointer = self.path.join(BULK_POINTER);
            let text = self.bulk.to_string_lossy().into_owned();
            fs::write(&pointer, text).map_err(RunDirError::io("writing", &pointer))?;
            private_dir().recursive(true).create(&self.bulk).map_err(RunDirError::io("making", &self.bulk))?;
        }
        Ok(&self.bulk)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        for dir in [&self.bulk, &self.path] {
            if let Err(error) = remove(dir) {
                tracing::warn!(dir = %dir.display(), %error, "run directory left behind");
            }
        }
    }
}

/// [`sweep`] where run directories live; that it fails is no reason not to go on, and is logged.
pub fn sweep_default() {
    if let Err(error) = sweep(&default_base()) {
        tracing::warn!(%error, "looking for what killed runs left behind");
    }
}

/// Removes the directories of processes that are gone; returns how many.
///
/// # Errors
/// [`RunDirError`] when the base cannot be read; a single stubborn directory is only logged.
pub fn sweep(base: &Path) -> Result<usize, RunDirError> {
    if !base.is_dir() {
        return Ok(0);
    }
    make_private(base)?;
    let _base_lock = lock_base(base)?;
    let mut removed = 0;
    let entries = fs::read_dir(base).map_err(RunDirError::io("listing", base))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().filter(|name| is_id(name)) else { continue };
        let path = entry.path();
        if !is_stale(&path) {
            continue;
        }
        if let Some(bulk) = bulk_of(&path, id) {
            remove_stale(&bulk);
        }
        remove_stale(&path);
        removed += 1;
    }
    Ok(removed)
}

/// Under the base's lock, a directory without a lockable lock has no owner and never will.
fn is_stale(path: &Path) -> bool {
    match OpenOptions::new().read(true).open(path.join("lock")) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The directory of big files, taken at its word only if it is named after the run.
fn bulk_of(path: &Path, id: &str) -> Option<PathBuf> {
    let bulk = PathBuf::from(fs::read_to_string(path.join(BULK_POINTER)).ok()?);
    let named_after_run = bulk.is_absolute() && bulk.file_name().is_some_and(|name| name == id);
    named_after_run.then_some(bulk)
}

fn remove_stale(dir: &Path) {
    match remove(dir) {
        Ok(()) => tracing::debug!(dir = %dir.display(), "removed what a killed run left behind"),
        Err(error) => tracing::warn!(dir = %dir.display(), %error, "stale run directory stays"),
    }
}

/// Removes a directory that may be gone already. Tried twice: a thread that nobody waits for may just have put a file into it.
fn remove(dir: &Path) -> io::Result<()> {
    let removed = match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(dir),
        removed => removed,
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Whether this is such a name as [`new_id`] gives.
pub(crate) fn is_id(name: &str) -> bool {
    name.len() == ID_HEX_DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn private_dir() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

fn make_private(base: &Path) -> Result<(), RunDirError> {
    match private_dir().create(base) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(RunDirError::io("making", base)(e));
        }
        _ => {}
    }
    examine_private(base)
}

/// Whether nobody else can reach into `base`.
fn examine_private(base: &Path) -> Result<(), RunDirError> {
    let meta = fs::symlink_metadata(base).map_err(RunDirError::io("examining", base))?;
    let uid = rustix::process::getuid().as_raw();
    let found = if !meta.is_dir() {
        "it is no directory".to_owned()
    } else if meta.uid() != uid {
        format!("it belongs to user {}", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        format!("its mode is {:04o}", meta.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(RunDirError::Insecure { path: base.to_path_buf(), uid, found })
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// The base is its own lock file: nothing is left in it when nobody runs.
fn lock_base(base: &Path) -> Result<File, RunDirError> {
    let dir = File::open(base).map_err(RunDirError::io("opening", base))?;
    flock(&dir, FlockOperation::LockExclusive).map_err(|e| RunDirError::io("locking", base)(e.into()))?;
    Ok(dir)
}

/// A random name for a sandbox, 12 hexadecimal digits.
#[must_use]
pub fn new_id() -> String {
    let bytes: [u8; ID_HEX_DIGITS / 2] = random_bytes();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes from the kernel's generator, for names and for the guest's entropy.
///
/// # Panics
/// When the kernel has no working `getrandom`, which no supported kernel lacks.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let got = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled += got.expect("getrandom works on every supported kernel");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn base() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b");
        (dir, base)
    }

    #[test]
    fn dropping_removes_the_directory_and_its_big_files() {
        let (tmp, base) = base();
        let run = RunDir::create(&base, tmp.path()).unwrap();
        let (path, bulk) = (run.path().to_path_buf(), run.bulk().unwrap().to_path_buf());
        fs::write(bulk.join("image"), "x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert!(run.socket().starts_with(&path));
        drop(run);
        assert!(!path.exists() && !bulk.exists());
    }

    #[test]
    fn sweep_spares_the_living_and_removes_the_dead() {
        let (tmp, base) = base();
        let alive = RunDir::create(&base, tmp.path()).unwrap();
        let dead = RunDir::create(&base, tmp.path()).unwrap();
        let (dead_path, dead_bulk) = (dead.path().to_path_buf(), dead.bulk().unwrap().to_path_buf());
        // What a SIGKILL leaves: the files, and a lock that nobody holds.
        let RunDir { lock, .. } = &dead;
        flock(lock, FlockOperation::Unlock).unwrap();
        std::mem::forget(dead);
        fs::create_dir(base.join("0123456789ab")).unwrap();
        fs::create_dir(base.join("not-an-id")).unwrap();
        assert_eq!(sweep(&base).unwrap(), 2);
        assert!(alive.path().exists() && base.join("not-an-id").exists());
        assert!(!dead_path.exists() && !dead_bulk.exists());
    }

    #[test]
    fn sweep_does_not_believe_a_bulk_pointer_to_elsewhere() {
        let (tmp, base) = base();
        drop(RunDir::create(&base, tmp.path()).unwrap());
        let stale = base.join("0123456789ab");
        let precious = tmp.path().join("precious");
        fs::create_dir(&precious).unwrap();
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join(BULK_POINTER), precious.to_str().unwrap()).unwrap();
        assert_eq!(sweep(&base).unwrap(), 1);
        assert!(precious.exists());
    }

    #[test]
    fn base_open_to_others_is_refused() {
        let (tmp, base) = base();
        fs::create_dir(&base).unwrap();
        fs::set_permissions(&base, fs::Permissions::from_mode(0o755)).unwrap();
        let error = RunDir::create(&base, tmp.path()).unwrap_err();
        assert!(error.to_string().contains("0755"), "{error}");
        let link = tmp.path().join("l");
        std::os::unix::fs::symlink(tmp.path(), &link).unwrap();
        let error = RunDir::create(&link, tmp.path()).unwrap_err();
        assert!(error.to_string().contains("no directory"), "{error}");
    }

    #[test]
    fn base_too_long_for_a_socket_is_refused_by_number() {
        let (tmp, _) = base();
        let max = SOCKET_PATH_MAX_BYTES - SOCKET_NAME_MAX_BYTES;
        let fitting = "x".repeat(max - tmp.path().as_os_str().len() - 1);
        assert!(RunDir::create(&tmp.path().join(&fitting), tmp.path()).is_ok());
        let error = RunDir::create(&tmp.path().join(fitting + "x"), tmp.path()).unwrap_err();
        assert!(matches!(error, RunDirError::TooLong { len, .. } if len == max + 1), "{error}");
    }

    #[test]
    fn ids_differ_and_are_hexadecimal() {
        let ids: std::collections::HashSet<_> = (0..100).map(|_| new_id()).collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| is_id(id)));
        assert!(!is_id("0123456789a") && !is_id("../456789abc"));
    }
}
