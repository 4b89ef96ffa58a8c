// SPDX-License-Identifier: Apache-2.0
//! Templates on disk: a directory each, with a record and the files of a snapshot.
//!
//! A template is put together in a staging directory and appears under its name whole, by a rename; it never changes
//! afterwards. What it stands on (the image, the empty disk) is named by path and known by length and time; so is what it
//! brings along (the packed workspace), by a path relative to its directory. What a guest's machine reads has a name that no
//! other template's file has: an emulated host keeps what it has read of a path, also when a template is made anew.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError};
use crate::error::chain;
use crate::monitor::{Restore, SnapshotFiles, VmmConfig};
use crate::orders::Pause;
use crate::run_dir::new_id;
use crate::workspace::{Manifest, StoredError};

/// Version of the record; another one is refused.
pub const VERSION: u32 = 2;
/// Longest name, in characters.
pub const NAME_MAX: usize = 64;
const RECORD: &str = "template.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const WORKSPACE: &str = "workspace";
const WORKSPACE_MANIFEST: &str = "workspace.manifest";

/// Why a template cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not a name.
    #[error(
        "the template's name is {name:?}; accepted: 1 to {NAME_MAX} letters, digits, `-`, `_` and `.`, the first a letter \
         or digit"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// There is none.
    #[error(
        "there is no template {name:?}; `midge template list` shows those there are, `midge template create` makes one"
    )]
    Absent {
        /// Its name.
        name: String,
    },
    /// There is one.
    #[error(
        "there is a template {name:?} already; remove it with `midge template remove {name}`, or take another name"
    )]
    Exists {
        /// Its name.
        name: String,
    },
    /// Its record cannot be used.
    #[error("reading the template {name:?}: {problem}; remove it and make it anew")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// What it stands on is not what it was.
    #[error("the template {name:?} stands on {path}, which {problem}; make the template anew")]
    Changed {
        /// Its name.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// What was packed for its workspace could not be kept.
    #[error("keeping the template's workspace")]
    Workspace(#[source] StoredError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A file that a template stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foundation {
    path: PathBuf,
    len: u64,
    mtime_s: i64,
}

impl Foundation {
    /// What `path` is now, in `dir` where it is relative.
    fn of(dir: &Path, path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(dir.join(path))?;
        Ok(Self { path: path.to_owned(), len: meta.len(), mtime_s: meta.mtime() })
    }
}

/// What is known of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Its name.
    pub name: String,
    /// What the names of its files end with.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub made_s: u64,
    /// Where: `native` or `emulated`.
    pub place: String,
    /// The version of the agent in it.
    pub agent_version: String,
    /// The machine, as the monitor was told.
    pub config: VmmConfig,
    /// The image that was asked for.
    pub image: Option<String>,
    /// The command that prepared it.
    pub setup: Option<String>,
    /// The command that runs in it.
    pub warm: Option<String>,
    /// The user that commands run as.
    pub user: Option<String>,
    /// Variables for every command, lossy where they are no text.
    pub env: Vec<(String, String)>,
    /// The directory that was packed for it, lossy where it is no text.
    pub workspace: Option<String>,
    /// Bytes of its memory that are not zero.
    pub memory_bytes: u64,
    /// How long its guest stood still to be copied.
    pub pause: Pause,
    /// The guest memory that a fork writes to first, as one was seen to: guest-physical address and length of each part.
    #[serde(default)]
    pub working_set: Vec<(u64, u64)>,
    /// The files of its disks.
    pub foundations: Vec<Foundation>,
}

/// Where templates are kept.
#[derive(Debug, Clone)]
pub struct Store {
    cache: Cache,
    dir: PathBuf,
}

impl Store {
    /// The templates of a cache.
    ///
    /// # Errors
    /// [`StoreError::Cache`].
    pub fn open(cache: &Cache) -> Result<Self, StoreError> {
        Ok(Self { cache: cache.clone(), dir: cache.dir("templates")? })
    }

    /// The directory of a template, which need not exist.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub fn path(&self, name: &str) -> Result<PathBuf, StoreError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric())
            && name.len() <= NAME_MAX
            && name.chars().all(is_plain);
        if is_name { Ok(self.dir.join(name)) } else { Err(StoreError::Name { name: name.to_owned() }) }
    }

    /// The record of a template.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Damaged`].
    pub fn read(&self, name: &str) -> Result<Record, StoreError> {
        let path = self.path(name)?.join(RECORD);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Absent { name: name.to_owned() });
            }
            read => read.map_err(|source| StoreError::Io { action: "reading", path, source })?,
        };
        let damaged = |problem: String| StoreError::Damaged { name: name.to_owned(), problem };
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if record.version != VERSION {
            return Err(damaged(format!("it has version {}, this program reads {VERSION}", record.version)));
        }
        if !is_plain(&record.id) {
            return Err(damaged(format!("its id is {:?}; accepted: letters and digits", record.id)));
        }
        Ok(record)
    }

    /// Every template that can be read, by name.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be listed.
    pub fn list(&self) -> Result<Vec<Record>, StoreError> {
        let io = |source| StoreError::Io { action: "listing", path: self.dir.clone(), source };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            match self.read(&name.to_string_lossy()) {
                Ok(record) => records.push(record),
                Err(error) => tracing::warn!(%error, "a template is left out"),
            }
        }
        records.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(records)
    }

    /// Removes a template. Sandboxes that were made of it run on: they have its files open.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let staging = self.cache.stage()?;
        let grave = staging.path().join("removed");
        // Gone at once and whole; what follows is only about room.
        match fs::rename(&path, &grave) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Absent { name: name.to_owned() }),
            Err(source) => Err(StoreError::Io { action: "removing", path, source }),
        }
    }

    /// Begins a template of that name.
    ///
    /// # Errors
    /// [`StoreError::Name`], [`StoreError::Exists`].
    pub fn begin(&self, name: &str) -> Result<Draft, StoreError> {
        let into = self.path(name)?;
        if into.exists() {
            return Err(StoreError::Exists { name: name.to_owned() });
        }
        Ok(Draft { staging: self.cache.stage()?, id: new_id(), into })
    }

    /// The machine of a template with its files named, for a VM or, with `resident`, a process that makes VMs of it.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when a file that it stands on is missing or another one.
    pub fn config(&self, record: &Record, resident: bool) -> Result<VmmConfig, StoreError> {
        let dir = self.path(&record.name)?;
        for was in &record.foundations {
            let changed =
                |problem: String| StoreError::Changed { name: record.name.clone(), path: was.path.clone(), problem };
            let now = Foundation::of(&dir, &was.path).map_err(|error| changed(format!("cannot be read ({error})")))?;
            if now != *was {
                return Err(changed("has changed since".to_owned()));
            }
        }
        Ok(machine(&dir, &record.id, record, resident))
    }

    /// What was packed for the workspace of a template, if it has one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn workspace(&self, record: &Record) -> Result<Option<Manifest>, StoreError> {
        if record.workspace.is_none() {
            return Ok(None);
        }
        let dir = self.path(&record.name)?;
        let loaded = Manifest::load(&dir.join(WORKSPACE_MANIFEST), &workspace_image(&dir, &record.id));
        let damaged = |error| StoreError::Damaged { name: record.name.clone(), problem: chain(&error) };
        loaded.map(Some).map_err(damaged)
    }
}

/// Whether an id is nothing but a part of a name.
fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.len() <= NAME_MAX && id.chars().all(|c| c.is_ascii_alphanumeric())
}

/// The machine of a template whose files lie in `dir`.
fn machine(dir: &Path, id: &str, record: &Record, resident: bool) -> VmmConfig {
    let SnapshotFiles { state, memory, layers } = files(dir, id, &record.config);
    let mut layers = layers.into_iter();
    let layers = record.config.disks.iter().map(|disk| if disk.is_writable() { layers.next() } else { None }).collect();
    let restore = Restore { state, memory, layers, resident, working_set: record.working_set.clone() };
    let mut config = record.config.clone();
    config.disks.iter_mut().for_each(|disk| disk.path = dir.join(&disk.path));
    VmmConfig { kernel: None, initramfs: None, restore: Some(restore), ..config }
}

/// The files of a snapshot of such a machine in `dir`.
fn files(dir: &Path, id: &str, config: &VmmConfig) -> SnapshotFiles {
    let count = config.disks.iter().filter(|disk| disk.is_writable()).count();
    let file = |name: &str| dir.join(format!("{name}-{id}"));
    let layers = (0..count).map(|index| file(&format!("layer{index}"))).collect();
    SnapshotFiles { state: file(STATE), memory: file(MEMORY), layers }
}

/// The packed workspace in `dir`.
fn workspace_image(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{WORKSPACE}-{id}.erofs"))
}

/// A template that is being put together; gone when it is dropped.
#[derive(Debug)]
pub struct Draft {
    staging: crate::cache::Staging,
    id: String,
    into: PathBuf,
}

impl Draft {
    /// Where the snapshot goes.
    #[must_use]
    pub fn files(&self, config: &VmmConfig) -> SnapshotFiles {
        files(self.staging.path(), &self.id, config)
    }

    /// The machine of `record` as it is in the draft.
    #[must_use]
    pub fn config(&self, record: &Record) -> VmmConfig {
        machine(self.staging.path(), &self.id, record, false)
    }

    /// Where the packed workspace goes.
    #[must_use]
    pub fn workspace_image(&self) -> PathBuf {
        workspace_image(self.staging.path(), &self.id)
    }

    /// Keeps what was packed into [`Draft::workspace_image`].
    ///
    /// # Errors
    /// [`StoreError::Workspace`].
    pub fn keep_workspace(&self, manifest: &Manifest) -> Result<(), StoreError> {
        manifest.save(&self.staging.path().join(WORKSPACE_MANIFEST)).map_err(StoreError::Workspace)
    }

    /// Lets it appear under its name. `record` is completed by its id and by what it stands on; what lies beside it is named
    /// relative to it.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when another one was faster, [`StoreError::Io`].
    pub fn publish(self, mut record: Record) -> Result<Record, StoreError> {
        let dir = self.staging.path();
        record.id.clone_from(&self.id);
        for disk in &mut record.config.disks {
            disk.path = disk.path.strip_prefix(dir).unwrap_or(&disk.path).to_owned();
        }
        let disks = record.config.disks.iter();
        record.foundations = disks
            .map(|disk| {
                Foundation::of(dir, &disk.path).map_err(|source| StoreError::Io {
                    action: "examining",
                    path: disk.path.clone(),
                    source,
                })
            })
            .collect::<Result<_, _>>()?;
        let path = self.staging.path().join(RECORD);
        let write = || {
            fs::write(&path, serde_json::to_vec_pretty(&record)?)?;
            File::open(&path)?.sync_all()?;
            File::open(self.staging.path())?.sync_all()
        };
        write().map_err(|source| StoreError::Io { action: "writing", path: path.clone(), source })?;
        // A rename onto a directory that is not empty fails: of two creations one wins.
        match rename_new(self.staging.path(), &self.into) {
            Ok(()) => Ok(record),
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
                Err(StoreError::Exists { name: record.name })
            }
            Err(source) => Err(StoreError::Io { action: "publishing", path: self.into.clone(), source }),
        }
    }
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

#[cfg(test)]
mod tests;
