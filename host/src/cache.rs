// SPDX-License-Identifier: Apache-2.0
//! The artefact cache: where built kernels, images and scratch disks live between runs.
//!
//! Every artefact has a name made from the hash of its inputs, is built in a staging directory beside the others,
//! and appears under its name by one atomic rename: whoever sees a name sees a whole artefact. Two builders of the
//! same thing take turns by a lock file. Never removes an artefact.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

/// Hexadecimal digits of a key: 64 bits, ample for the few dozen artefacts of one cache.
const KEY_DIGITS: usize = 16;

/// Bytes read at a time while hashing.
const HASH_CHUNK_BYTES: usize = 1 << 17;

/// Why the cache could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// There is no home directory to put a cache in.
    #[error("looking for a cache directory: none of MIDGE_CACHE, XDG_CACHE_HOME and HOME is set; set MIDGE_CACHE")]
    NoPlace,
    /// The operating system refused something.
    #[error("{doing} {path}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

impl CacheError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// The cache directory; it exists.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the user's cache: `MIDGE_CACHE`, else `$XDG_CACHE_HOME/midge`, else `~/.cache/midge`.
    ///
    /// # Errors
    /// [`CacheError::NoPlace`] without any of the three variables, [`CacheError::Io`] when it cannot be made.
    pub fn open() -> Result<Self, CacheError> {
        let root = place(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from));
        Self::at(&root.ok_or(CacheError::NoPlace)?)
    }

    /// Opens a cache at `root`, which is made when it is not there.
    ///
    /// # Errors
    /// [`CacheError::Io`] when it cannot be made.
    pub fn at(root: &Path) -> Result<Self, CacheError> {
        fs::create_dir_all(root).map_err(CacheError::io("making the cache directory", root))?;
        let root = root.canonicalize().map_err(CacheError::io("finding the cache directory", root))?;
        Ok(Self { root })
    }

    /// The absolute path of the cache.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of one kind of artefact, made when it is not there.
    ///
    /// # Errors
    /// [`CacheError::Io`] when it cannot be made.
    pub fn dir(&self, kind: &str) -> Result<PathBuf, CacheError> {
        let dir = self.root.join(kind);
        fs::create_dir_all(&dir).map_err(CacheError::io("making", &dir))?;
        Ok(dir)
    }

    /// Waits for and takes the lock `name`; it is given back when the value is dropped or the process ends.
    ///
    /// # Errors
    /// [`CacheError::Io`] when the lock file cannot be made or locked.
    pub fn lock(&self, name: &str) -> Result<Lock, CacheError> {
        let path = self.dir("locks")?.join(name);
        let file = File::create(&path).map_err(CacheError::io("making the lock file", &path))?;
        let held = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| CacheError::io("locking", &path)(errno.into()))?;
        Ok(Lock { _held: held })
    }

    /// A place on the cache's own file system to build something in. What processes that were killed have left there goes first.
    ///
    /// # Errors
    /// [`CacheError::Io`] when it cannot be made.
    pub fn stage(&self) -> Result<Staging, CacheError> {
        let parent = self.dir("staging")?;
        let _one_at_a_time = self.lock("staging")?;
        remove_abandoned(&parent);
        let made = tempfile::Builder::new().prefix("").tempdir_in(&parent);
        let dir = made.map_err(CacheError::io("making a staging directory in", &parent))?;
        let held = hold(dir.path()).map_err(CacheError::io("locking", dir.path()))?;
        Ok(Staging { dir, _held: held })
    }
}

/// Locks a directory, which shows that it is in use; at once or not at all.
fn hold(dir: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(dir)?, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Removes the staging directories below `parent` that nobody holds. One that cannot be removed is no reason to stop.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir
            && hold(&path).is_ok()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(%error, dir = %path.display(), "removing what a killed process has left");
        }
    }
}

/// Which directory a cache belongs in, given the environment.
fn place(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("MIDGE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("midge")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".cache/midge")))
}

/// An exclusive lock, held as long as the value lives.
#[derive(Debug)]
pub struct Lock {
    _held: Flock<File>,
}

/// An artefact that is being built; dropped unpublished, it is removed.
#[derive(Debug)]
pub struct Staging {
    dir: tempfile::TempDir,
    _held: Flock<File>,
}

impl Staging {
    /// The directory to build in.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes the whole directory appear as `into`; when another process was faster, its artefact stays.
    ///
    /// # Errors
    /// [`CacheError::Io`] when renaming fails for another reason than that.
    pub fn publish_dir(self, into: &Path) -> Result<(), CacheError> {
        match fs::rename(self.path(), into) {
            // Renamed away: there is nothing left to remove.
            Ok(()) => drop(self.dir.keep()),
            Err(_) if into.is_dir() => {}
            Err(err) => return Err(CacheError::io("publishing", into)(err)),
        }
        Ok(())
    }

    /// Makes the file `name` of this directory appear as `into`, replacing what is there.
    ///
    /// # Errors
    /// [`CacheError::Io`] when renaming fails.
    pub fn publish_file(self, name: &str, into: &Path) -> Result<(), CacheError> {
        fs::rename(self.path().join(name), into).map_err(CacheError::io("publishing", into))
    }
}

/// The hash of an artefact's inputs, in the making. Every part is labelled and length-prefixed, so that two
/// different lists of parts cannot have the same bytes.
#[derive(Clone, Default)]
pub struct Key {
    hash: Sha256,
}

impl Key {
    /// A key of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one input.
    #[must_use]
    pub fn part(mut self, label: &str, bytes: &[u8]) -> Self {
        for piece in [label.as_bytes(), bytes] {
            self.hash.update((piece.len() as u64).to_le_bytes());
            self.hash.update(piece);
        }
        self
    }

    /// The key as it stands in a file name.
    pub fn finish(self) -> String {
        let mut text = hex(&self.hash.finalize());
        text.truncate(KEY_DIGITS);
        text
    }
}

/// SHA-256 of everything `reader` gives, in hexadecimal.
///
/// # Errors
/// Those of the reader.
pub fn sha256(mut reader: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; HASH_CHUNK_BYTES];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(len) => hash.update(chunk.get(..len).unwrap_or_default()),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A size as people read it: `14.2 MiB`.
pub fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(&dir.path().join("deep/cache")).unwrap();
        (dir, cache)
    }

    #[test]
    fn variables_are_asked_in_order() {
        let env = |set: &'static [(&str, &str)]| {
            place(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value)))
        };
        assert_eq!(env(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("MIDGE_CACHE", "/m")]), Some("/m".into()));
        assert_eq!(env(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/midge".into()));
        assert_eq!(env(&[("HOME", "/h")]), Some("/h/.cache/midge".into()));
        assert_eq!(env(&[]), None);
    }

    #[test]
    fn cache_in_an_impossible_place_names_it() {
        let err = Cache::at(Path::new("/proc/none/cache")).unwrap_err();
        assert!(err.to_string().contains("/proc/none/cache"), "{err}");
    }

    #[test]
    fn published_directory_is_whole_and_leaves_no_staging() {
        let (_guard, cache) = cache();
        let stage = cache.stage().unwrap();
        fs::write(stage.path().join("file"), "text").unwrap();
        let into = cache.dir("things").unwrap().join("one");
        stage.publish_dir(&into).unwrap();
        assert_eq!(fs::read_to_string(into.join("file")).unwrap(), "text");
        assert_eq!(fs::read_dir(cache.root().join("staging")).unwrap().count(), 0);
    }

    #[test]
    fn second_publisher_leaves_the_first_ones_artefact() {
        let (_guard, cache) = cache();
        let into = cache.dir("things").unwrap().join("one");
        for text in ["first", "second"] {
            let stage = cache.stage().unwrap();
            fs::write(stage.path().join("file"), text).unwrap();
            stage.publish_dir(&into).unwrap();
        }
        assert_eq!(fs::read_to_string(into.join("file")).unwrap(), "first");
        assert_eq!(fs::read_dir(cache.root().join("staging")).unwrap().count(), 0);
    }

    #[test]
    fn unpublished_staging_disappears() {
        let (_guard, cache) = cache();
        let path = cache.stage().unwrap().path().to_owned();
        assert!(!path.exists());
    }

    #[test]
    fn what_killed_processes_have_left_is_removed_by_the_next_one_and_nothing_else() {
        let (_guard, cache) = cache();
        let held = cache.stage().unwrap();
        let parent = cache.dir("staging").unwrap();
        fs::create_dir(parent.join("abandoned")).unwrap();
        fs::write(parent.join("abandoned/memory"), "half").unwrap();
        let other = cache.stage().unwrap();
        assert!(!parent.join("abandoned").exists());
        assert!(held.path().is_dir() && other.path().is_dir());
    }

    #[test]
    fn lock_is_exclusive_until_dropped() {
        let (_guard, cache) = cache();
        let held = cache.lock("build").unwrap();
        let path = cache.root().join("locks/build");
        let busy = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock);
        assert!(busy.is_err());
        drop((busy, held));
        assert!(Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).is_ok());
    }

    #[test]
    fn key_depends_on_every_part_and_on_the_borders_between_them() {
        let key = |parts: &[(&str, &str)]| {
            parts.iter().fold(Key::new(), |key, (label, text)| key.part(label, text.as_bytes())).finish()
        };
        let first = key(&[("a", "bc"), ("d", "e")]);
        assert_eq!(first.len(), KEY_DIGITS);
        assert_eq!(first, key(&[("a", "bc"), ("d", "e")]));
        for other in [&[("ab", "c"), ("d", "e")][..], &[("a", "bcd"), ("", "e")], &[("d", "e"), ("a", "bc")], &[]] {
            assert_ne!(first, key(other), "{other:?}");
        }
    }

    #[test]
    fn sha256_matches_the_standards_example() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&b"abc"[..]).unwrap(), abc);
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(mebibytes(0), "0.0 MiB");
        assert_eq!(mebibytes(1_572_864), "1.5 MiB");
        assert_eq!(mebibytes(u64::MAX), "1759218604441.5 MiB");
    }
}
