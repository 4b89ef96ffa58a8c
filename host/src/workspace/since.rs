// SPDX-License-Identifier: Apache-2.0
//! What changed in a workspace between two moments of one sandbox, or between a sandbox and its copy: two comparisons with what was
//! packed, compared with each other. What only one of them tells is as it was packed in the other. The data goes into a tar.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use tar::{Builder, EntryType, Header};

use super::changes::{After, AfterContent, Change, ChangeKind, ChangeSet, State, differs};
use super::manifest::{Content, Entry};
use super::path::RelPath;
use super::spool::SpoolDir;

/// A workspace as it was once, told by its differences from what was packed; without data.
#[derive(Debug, Default)]
pub struct Moment(BTreeMap<RelPath, Change>);

/// What changed since a [`Moment`], with the data.
#[derive(Debug)]
pub struct Since {
    steps: Vec<Step>,
    spool: Arc<SpoolDir>,
    image: Arc<File>,
}

/// One change.
#[derive(Debug)]
struct Step {
    path: RelPath,
    kind: ChangeKind,
    now: Option<Now>,
}

/// What is there now, and where its data lies.
#[derive(Debug)]
enum Now {
    /// In the spool, or of no data.
    Told(After),
    /// As it was packed.
    Packed(Entry),
}

impl ChangeSet {
    /// The state that it tells of.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment(self.changes().iter().map(|change| (change.path.clone(), change.clone())).collect())
    }

    /// What changed from `earlier` to here. Both must have been collected against the same manifest.
    #[must_use]
    pub fn since(self, earlier: &Moment) -> Since {
        let mut steps = Vec::new();
        for change in self.changes() {
            let before = match earlier.0.get(&change.path) {
                Some(earlier) => earlier.after.as_ref().map(State::of_after),
                None => change.before.as_ref().map(State::of_entry),
            };
            let Some(kind) = differs(before, change.after.as_ref().map(State::of_after)) else { continue };
            let now = change.after.clone().map(|after| match (&change.before, change.spooled()) {
                // Nothing but its mode is other than packed: its data is not in the spool.
                (Some(entry), None) if matches!(after.content, AfterContent::File { .. }) => {
                    Now::Packed(Entry { mode: after.mode, content: entry.content.clone() })
                }
                _ => Now::Told(after),
            });
            steps.push(Step { path: change.path.clone(), kind, now });
        }
        let told: BTreeSet<&RelPath> = self.changes().iter().map(|change| &change.path).collect();
        for (path, change) in earlier.0.iter().filter(|(path, _)| !told.contains(path)) {
            // Since then it has become again what was packed.
            let (before, now) = (change.after.as_ref().map(State::of_after), change.before.clone());
            let Some(kind) = differs(before, now.as_ref().map(State::of_entry)) else { continue };
            steps.push(Step { path: path.clone(), kind, now: now.map(Now::Packed) });
        }
        steps.sort_by(|a, b| a.path.cmp(&b.path));
        let (spool, image) = self.into_data();
        Since { steps, spool, image }
    }
}

impl Since {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The private directory that the data lies in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.spool.path()
    }

    /// Every path with `A`, `M` or `D` before it.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.steps.iter().map(|step| format!("{} {}", step.kind.letter(), step.path)).collect()
    }

    /// Paths that are gone, without those below another of them. What is no UTF-8 is replaced, and names nothing then.
    #[must_use]
    pub fn removed(&self) -> Vec<String> {
        let gone: BTreeSet<&RelPath> =
            self.steps.iter().filter(|step| step.now.is_none()).map(|step| &step.path).collect();
        let tops = gone.iter().filter(|path| !path.ancestors().any(|above| gone.contains(&above)));
        tops.map(|path| path.as_path().to_string_lossy().into_owned()).collect()
    }

    /// Bytes of the files in the tar.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        let size = |step: &Step| match &step.now {
            Some(Now::Told(After { content: AfterContent::File { size, .. }, .. }))
            | Some(Now::Packed(Entry { content: Content::File { size, .. }, .. })) => *size,
            _ => 0,
        };
        self.steps.iter().map(size).fold(0, u64::saturating_add)
    }

    /// Writes a tar of what is new or other, directories before what is in them.
    ///
    /// # Errors
    /// What the spool, the packed image or `out` says.
    pub fn write_tar(&self, out: impl Write) -> io::Result<()> {
        let mut tar = Builder::new(out);
        for Step { path, now, .. } in &self.steps {
            let path = path.as_path();
            match now {
                None => {}
                Some(Now::Told(After { mode, content })) => match content {
                    AfterContent::Dir => append(&mut tar, path, EntryType::Directory, *mode, 0, io::empty())?,
                    AfterContent::Symlink { target } => link(&mut tar, path, target)?,
                    AfterContent::File { size, number, .. } => {
                        let data = File::open(self.spool.data(*number))?.take(*size);
                        append(&mut tar, path, EntryType::Regular, *mode, *size, data)?;
                    }
                },
                Some(Now::Packed(Entry { mode, content })) => match content {
                    Content::Dir => append(&mut tar, path, EntryType::Directory, *mode, 0, io::empty())?,
                    Content::Symlink { target } => link(&mut tar, path, target)?,
                    Content::File { size, image_offset, .. } => {
                        let data = At { file: &self.image, offset: *image_offset }.take(*size);
                        append(&mut tar, path, EntryType::Regular, *mode, *size, data)?;
                    }
                },
            }
        }
        tar.into_inner()?.flush()
    }
}

fn append(
    tar: &mut Builder<impl Write>,
    path: &Path,
    kind: EntryType,
    mode: u32,
    size: u64,
    data: impl Read,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    tar.append_data(&mut header, path, data)
}

fn link(tar: &mut Builder<impl Write>, path: &Path, target: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_mode(0o777);
    header.set_size(0);
    header.set_mtime(0);
    let target = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(target);
    tar.append_link(&mut header, path, Path::new(target))
}

/// A file from an offset on.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buf, self.offset)?;
        self.offset += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
