// SPDX-License-Identifier: Apache-2.0
//! Files in the guest: read, write, list, and whole trees as tar archives.
//!
//! Paths are absolute paths of the guest and are resolved there: no path of the guest is ever opened on the
//! host. Content is streamed; nothing is held whole unless the caller asks for it.

mod content;

use std::ffi::OsString;
use std::path::PathBuf;

pub use midge_protocol::{FileKind, Metadata, Owner, WriteHow};
use midge_protocol::{FileRead, FileWrite, List, Mkdir, Move, Remove, Stat, TarIn, TarOut, ToAgent, ToHost};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::Error;
use crate::link::{Conversation, Link};

/// Most entries that [`Files::list`] gives: a bound against a guest that never ends its answer.
pub const LIST_MAX_ENTRIES: usize = 1 << 20;

/// How to write a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOptions {
    /// Permission bits of a new file; a replaced file keeps its own where this is `None`.
    pub mode: Option<u32>,
    /// Owner; without one that of the replaced file, else of the directory.
    pub owner: Option<Owner>,
    /// What happens to a file that is there.
    pub how: WriteHow,
    /// Make missing parent directories.
    pub parents: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { mode: None, owner: None, how: WriteHow::Replace, parents: false }
    }
}

/// The guest's files. From [`Sandbox::files`](crate::sandbox::Sandbox::files).
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    link: &'a Link,
}

impl<'a> Files<'a> {
    pub(crate) fn new(link: &'a Link) -> Self {
        Self { link }
    }

    /// The whole content of a file of at most `max_bytes`.
    ///
    /// # Errors
    /// [`Error::Failed`] when the guest cannot read it, [`Error::Unexpected`] when it is longer, or the
    /// reason why the guest is gone.
    pub async fn read(&self, path: impl Into<PathBuf>, max_bytes: u64) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        // One byte more than allowed tells a file that is too long from one that just fits.
        let got = self.read_range(path, 0, max_bytes.saturating_add(1), &mut content).await?;
        if got > max_bytes {
            let got = format!("more than {max_bytes} bytes");
            return Err(Error::Unexpected { during: content::READING, got, expected: "a file within the limit" });
        }
        Ok(content)
    }

    /// Copies `len` bytes of a file from `offset` on into `into`; returns how many there were.
    ///
    /// # Errors
    /// [`Error::Local`] when `into` fails, otherwise as for [`Files::read`].
    pub async fn read_range(
        &self,
        path: impl Into<PathBuf>,
        offset: u64,
        len: u64,
        into: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, Error> {
        let request = ToAgent::FileRead(FileRead { path: path.into(), offset, len });
        let mut conversation = self.link.open(&request, content::READING).await?;
        content::receive(&mut conversation, content::READING, len, into).await
    }

    /// Writes a file from everything `content` gives.
    ///
    /// # Errors
    /// [`Error::Failed`] when the guest cannot write it, [`Error::Local`] when `content` fails, or the
    /// reason why the guest is gone.
    pub async fn write(
        &self,
        path: impl Into<PathBuf>,
        options: WriteOptions,
        content: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), Error> {
        let WriteOptions { mode, owner, how, parents } = options;
        let request = ToAgent::FileWrite(FileWrite { path: path.into(), mode, owner, how, parents });
        let conversation = self.link.open(&request, content::WRITING).await?;
        content::send(conversation, content::WRITING, content).await
    }

    /// What a path is, and whether a symlink at its end is followed.
    ///
    /// # Errors
    /// [`Error::Failed`] when there is nothing, or the reason why the guest is gone.
    pub async fn stat(&self, path: impl Into<PathBuf>, follow: bool) -> Result<Metadata, Error> {
        const DURING: &str = "examining a file of the guest";
        let request = ToAgent::Stat(Stat { path: path.into(), follow });
        let mut conversation = self.link.open(&request, DURING).await?;
        match conversation.receiver.next().await? {
            ToHost::Metadata(metadata) => Ok(metadata),
            other => Err(conversation.receiver.unexpected(other, "Metadata")),
        }
    }

    /// A directory's entries, symlinks not followed, in no particular order.
    ///
    /// # Errors
    /// [`Error::Failed`] when it cannot be listed, [`Error::Unexpected`] beyond [`LIST_MAX_ENTRIES`], or
    /// the reason why the guest is gone.
    pub async fn list(&self, path: impl Into<PathBuf>) -> Result<Vec<(OsString, Metadata)>, Error> {
        const DURING: &str = "listing a directory of the guest";
        let request = ToAgent::List(List { path: path.into() });
        let Conversation { mut receiver, .. } = self.link.open(&request, DURING).await?;
        let mut entries = Vec::new();
        loop {
            match receiver.next().await? {
                ToHost::Entry(entry) if entries.len() < LIST_MAX_ENTRIES => entries.push((entry.name, entry.metadata)),
                ToHost::End => return Ok(entries),
                other => return Err(receiver.unexpected(other, "an entry within the limit, or End")),
            }
        }
    }

    /// Makes a directory; with `parents` also what is missing above it, and it may exist.
    ///
    /// # Errors
    /// [`Error::Failed`] when it cannot be made, or the reason why the guest is gone.
    pub async fn mkdir(&self, path: impl Into<PathBuf>, mode: u32, parents: bool) -> Result<(), Error> {
        let request = Mkdir { path: path.into(), mode, owner: None, parents };
        self.done(&ToAgent::Mkdir(request), "making a directory in the guest").await
    }

    /// Removes a file, or a directory: with `recursive` also one with content.
    ///
    /// # Errors
    /// [`Error::Failed`] when it cannot be removed, or the reason why the guest is gone.
    pub async fn remove(&self, path: impl Into<PathBuf>, recursive: bool) -> Result<(), Error> {
        let request = Remove { path: path.into(), recursive };
        self.done(&ToAgent::Remove(request), "removing a file of the guest").await
    }

    /// Renames a file or directory; with `replace` over one that is there.
    ///
    /// # Errors
    /// [`Error::Failed`] when it cannot be renamed, or the reason why the guest is gone.
    pub async fn rename(&self, from: impl Into<PathBuf>, to: impl Into<PathBuf>, replace: bool) -> Result<(), Error> {
        let request = Move { from: from.into(), to: to.into(), replace };
        self.done(&ToAgent::Move(request), "renaming a file of the guest").await
    }

    /// Unpacks a tar archive into a directory, which is made where it is missing.
    ///
    /// # Errors
    /// As for [`Files::write`].
    pub async fn unpack(
        &self,
        dir: impl Into<PathBuf>,
        owner: Option<Owner>,
        archive: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), Error> {
        let request = ToAgent::TarIn(TarIn { dir: dir.into(), owner });
        let conversation = self.link.open(&request, content::UNPACKING).await?;
        content::send(conversation, content::UNPACKING, archive).await
    }

    /// Packs a file, or the content of a directory, as a tar archive; returns its length in bytes.
    ///
    /// The archive is the guest's work: whoever unpacks it on the host has to distrust its paths.
    ///
    /// # Errors
    /// As for [`Files::read_range`].
    pub async fn pack(&self, path: impl Into<PathBuf>, archive: &mut (impl AsyncWrite + Unpin)) -> Result<u64, Error> {
        let request = ToAgent::TarOut(TarOut { path: path.into() });
        let mut conversation = self.link.open(&request, content::PACKING).await?;
        content::receive(&mut conversation, content::PACKING, u64::MAX, archive).await
    }

    async fn done(&self, request: &ToAgent, during: &'static str) -> Result<(), Error> {
        self.link.open(request, during).await?.receiver.done().await
    }
}

#[cfg(test)]
mod tests;
