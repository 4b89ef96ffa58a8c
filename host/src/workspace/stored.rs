// SPDX-License-Identifier: Apache-2.0
//! A manifest on disk, for a workspace that outlives the process that packed it: JSON, a header on the first line, then an
//! entry on each, in the order of their paths. What is read is checked as if a stranger had written it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::manifest::{Content, Entry, MODE_MASK, Manifest, Notes};
use super::pack::PackLimits;
use super::path::RelPath;

/// Version of the format; another one is refused.
pub const VERSION: u32 = 1;
/// Longest line, in bytes: the header with all the notes that are kept, each on a path of bytes that are no text.
const LINE_MAX_BYTES: u64 = 32 << 20;

/// Why a manifest cannot be kept or had again.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// A file could not be read or written.
    #[error("{attempt} {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{}, line {line}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    #[serde(with = "lossless")]
    dir: Vec<u8>,
    entries: u64,
    bytes: u64,
    image_bytes: u64,
    notes: Notes,
}

/// Bytes that are text most of the time: a string then, else a list of numbers.
pub(super) mod lossless {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => to.serialize_str(text),
            Err(_) => bytes.serialize(to),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Either::deserialize(from)? {
            Either::Text(text) => text.into_bytes(),
            Either::Bytes(bytes) => bytes,
        })
    }
}

impl Manifest {
    /// Writes it into the new file `path`, and sees to it that file and image are on the disk.
    ///
    /// # Errors
    /// [`StoredError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), StoredError> {
        let write = || {
            // Names in a directory are for its owner.
            let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
            let mut out = BufWriter::new(file);
            let header = Header {
                version: VERSION,
                dir: self.dir.as_os_str().as_bytes().to_vec(),
                entries: self.entries.len() as u64,
                bytes: self.bytes,
                image_bytes: self.image_bytes,
                notes: self.notes.clone(),
            };
            line(&mut out, &header)?;
            for entry in &self.entries {
                line(&mut out, &entry)?;
            }
            out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            self.image.sync_all()
        };
        write().map_err(|source| StoredError::Io { attempt: "writing", path: path.into(), source })
    }

    /// The manifest in the file `path`, which describes the image in the file `image`.
    ///
    /// # Errors
    /// [`StoredError::Io`]; [`StoredError::Damaged`] for whatever [`Manifest::save`] would not have written.
    pub fn load(path: &Path, image: &Path) -> Result<Self, StoredError> {
        let open = |path: &Path| File::open(path).map_err(io_error(path));
        let (file, image_file) = (open(path)?, open(image)?);
        let image_len = image_file.metadata().map_err(io_error(image))?.len();
        let mut lines = Lines { from: BufReader::new(file), path, number: 0, buffer: Vec::new() };
        let header: Header = lines.next()?;
        check_header(&header, image_len).map_err(|problem| lines.damaged(problem))?;
        let mut manifest = Self {
            dir: PathBuf::from(OsString::from_vec(header.dir)),
            entries: BTreeMap::new(),
            files: 0,
            bytes: header.bytes,
            image_bytes: header.image_bytes,
            notes: header.notes,
            image: Arc::new(image_file),
        };
        for _ in 0..header.entries {
            let (path, entry): (RelPath, Entry) = lines.next()?;
            manifest.check(&path, &entry).map_err(|problem| lines.damaged(problem))?;
            manifest.files += u64::from(matches!(entry.content, Content::File { .. }));
            manifest.entries.insert(path, entry);
        }
        lines.end()?;
        Ok(manifest)
    }

    /// Whether the entry can come after those that are there.
    fn check(&self, path: &RelPath, entry: &Entry) -> Result<(), String> {
        let is_dir = |dir: RelPath| self.entries.get(&dir).is_some_and(|entry| entry.content == Content::Dir);
        if self.entries.last_key_value().is_some_and(|(last, _)| last >= path) {
            return Err(format!("{path} is out of order"));
        }
        if !path.parent().is_none_or(is_dir) {
            return Err(format!("{path} lies in no directory"));
        }
        if entry.mode & !MODE_MASK != 0 {
            return Err(format!("{path} has mode {:o}; accepted: up to {MODE_MASK:o}", entry.mode));
        }
        if let Content::File { size: size @ 1.., image_offset, .. } = entry.content
            && image_offset.checked_add(size).is_none_or(|end| end > self.image_bytes)
        {
            return Err(format!("{path} reaches beyond the image of {} bytes", self.image_bytes));
        }
        Ok(())
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        lossless::serialize(self.as_bytes(), to)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&lossless::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

fn check_header(header: &Header, image_len: u64) -> Result<(), String> {
    if header.version != VERSION {
        return Err(format!("it has version {}, this program reads {VERSION}", header.version));
    }
    if header.entries > PackLimits::ENTRIES_MAX {
        return Err(format!("{} entries; accepted: up to {}", header.entries, PackLimits::ENTRIES_MAX));
    }
    if header.image_bytes != image_len {
        return Err(format!("it is of an image of {} bytes; the image has {image_len}", header.image_bytes));
    }
    if header.notes.items().len() > Notes::KEPT_MAX {
        return Err(format!("{} notes; accepted: up to {}", header.notes.items().len(), Notes::KEPT_MAX));
    }
    if header.dir.first() != Some(&b'/') || header.dir.contains(&0) {
        return Err("the directory is no absolute path".to_owned());
    }
    Ok(())
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoredError {
    move |source| StoredError::Io { attempt: "reading", path: path.into(), source }
}

/// The lines of a file, each a value.
struct Lines<'a> {
    from: BufReader<File>,
    path: &'a Path,
    number: u64,
    buffer: Vec<u8>,
}

impl Lines<'_> {
    fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, StoredError> {
        self.number += 1;
        self.buffer.clear();
        let mut bounded = self.from.by_ref().take(LINE_MAX_BYTES);
        bounded.read_until(b'\n', &mut self.buffer).map_err(io_error(self.path))?;
        if self.buffer.last() != Some(&b'\n') {
            let cause = if self.buffer.is_empty() { "it ends here" } else { "the line has no end" };
            return Err(self.damaged(cause.to_owned()));
        }
        serde_json::from_slice(&self.buffer).map_err(|error| self.damaged(error.to_string()))
    }

    /// Nothing may follow.
    fn end(&mut self) -> Result<(), StoredError> {
        let rest = self.from.fill_buf().map_err(io_error(self.path))?.len();
        self.number += 1;
        if rest == 0 { Ok(()) } else { Err(self.damaged("there are more lines than entries".to_owned())) }
    }

    fn damaged(&self, problem: String) -> StoredError {
        StoredError::Damaged { path: self.path.into(), line: self.number, problem }
    }
}

#[cfg(test)]
mod tests;
