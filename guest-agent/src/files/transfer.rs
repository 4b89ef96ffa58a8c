// SPDX-License-Identifier: Apache-2.0
//! Content of files, in pieces. A file that is replaced is replaced whole: other programs see the old or the new one.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use midge_protocol::{FileRead, FileWrite, MAX_DATA_BYTES, Message as _, Owner, ToAgent, ToHost, WriteHow};

use super::{FileError, MODE_MASK, absolute, attempt, make_dirs, owner_of};
use crate::link::{Conversation, LinkError};
use crate::sys::fd::rename_new;

/// Mode of a file that is made without one.
const DEFAULT_MODE: u32 = 0o644;
/// Mode of parent directories that are made on the way.
const DEFAULT_DIR_MODE: u32 = 0o755;

/// Content that comes from the host: everything until `End`.
#[derive(Debug)]
pub(super) struct Content<'a> {
    conversation: &'a mut Conversation,
    piece: Vec<u8>,
    at: usize,
    broken: Option<LinkError>,
}

impl<'a> Content<'a> {
    pub(super) const fn new(conversation: &'a mut Conversation) -> Self {
        Self { conversation, piece: Vec::new(), at: 0, broken: None }
    }

    /// The next piece; `None` after `End`.
    fn next(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        if !self.conversation.awaits_content {
            return Ok(None);
        }
        match self.conversation.receive()? {
            Some(ToAgent::Data(bytes)) => Ok(Some(bytes)),
            Some(ToAgent::End) => {
                self.conversation.awaits_content = false;
                Ok(None)
            }
            Some(other) => Err(LinkError::Misplaced { name: other.name() }),
            None => Err(LinkError::Unfinished),
        }
    }

    /// Reads on to `End`. What broke the conversation comes out here.
    pub(super) fn finish(mut self) -> Result<(), LinkError> {
        match self.broken.take() {
            Some(error) => Err(error),
            None => {
                while self.next()?.is_some() {}
                Ok(())
            }
        }
    }

    /// Tells a broken conversation from a failed request.
    pub(super) fn blame(&mut self, error: FileError) -> FileError {
        self.broken.take().map_or(error, FileError::Link)
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            self.at = 0;
            self.piece = match self.next() {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(0),
                Err(error) => {
                    self.broken = Some(error);
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            };
        }
        let len = buffer.len().min(self.piece.len() - self.at);
        buffer[..len].copy_from_slice(&self.piece[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// After a failure: lets the rest of the content pass, so that the next request is found.
pub(super) fn skip_content(conversation: &mut Conversation) -> Result<(), LinkError> {
    Content::new(conversation).finish()
}

/// Sends what is written to it as `Data`.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    conversation: &'a mut Conversation,
    piece: Vec<u8>,
    pub(super) broken: Option<LinkError>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(conversation: &'a mut Conversation) -> Self {
        Self { conversation, piece: Vec::with_capacity(MAX_DATA_BYTES), broken: None }
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(MAX_DATA_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..len]);
        if self.piece.len() == MAX_DATA_BYTES {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(MAX_DATA_BYTES));
        self.conversation.send(&ToHost::Data(piece)).map_err(|error| {
            self.broken = Some(error);
            io::ErrorKind::BrokenPipe.into()
        })
    }
}

/// Exactly `left` bytes of a file that may change meanwhile: cut, or filled up with zeros.
#[derive(Debug)]
pub(super) struct Exactly {
    pub(super) file: File,
    pub(super) left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..len];
        let got = match self.file.read(buffer)? {
            0 => {
                buffer.fill(0);
                len
            }
            got => got,
        };
        self.left -= got as u64;
        Ok(got)
    }
}

/// Opens a regular file: opening a pipe or a device could wait for ever, or do something.
pub(super) fn open_regular(path: &Path) -> Result<File, FileError> {
    const READING: &str = "reading";
    let metadata = attempt(READING, path, fs::metadata(path))?;
    if metadata.is_dir() {
        return attempt(READING, path, Err(io::ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() {
        return Err(not_regular(READING, path));
    }
    attempt(READING, path, OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path))
}

fn not_regular(attempt: &'static str, path: &Path) -> FileError {
    FileError::Refused { attempt, path: path.to_owned(), reason: "it is a device, pipe or socket, not a file" }
}

pub(super) fn read(conversation: &mut Conversation, request: &FileRead) -> Result<ToHost, FileError> {
    const READING: &str = "reading";
    let path = absolute(READING, &request.path)?;
    let mut file = open_regular(path)?;
    attempt(READING, path, file.seek(SeekFrom::Start(request.offset)))?;
    let mut left = request.len;
    loop {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_DATA_BYTES);
        let mut piece = vec![0; want];
        let len = if want == 0 { 0 } else { attempt(READING, path, file.read(&mut piece))? };
        if len == 0 {
            return Ok(ToHost::End);
        }
        piece.truncate(len);
        left -= len as u64;
        conversation.send(&ToHost::Data(piece))?;
    }
}

pub(super) fn write(conversation: &mut Conversation, request: &FileWrite) -> Result<ToHost, FileError> {
    const WRITING: &str = "writing";
    let path = absolute(WRITING, &request.path)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    if request.parents {
        attempt("making the directory", parent, make_dirs(parent, DEFAULT_DIR_MODE, request.owner.as_ref()))?;
    }
    // A symlink stays and its target is written.
    let is_symlink = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    let path = if is_symlink && request.how != WriteHow::CreateNew {
        attempt(WRITING, path, fs::canonicalize(path))?
    } else {
        path.to_owned()
    };
    let old = fs::metadata(&path).ok();
    match &old {
        Some(old) if old.is_dir() => return attempt(WRITING, &path, Err(io::ErrorKind::IsADirectory.into())),
        Some(old) if !old.is_file() => return Err(not_regular(WRITING, &path)),
        Some(_) if request.how == WriteHow::CreateNew => {
            return attempt(WRITING, &path, Err(io::ErrorKind::AlreadyExists.into()));
        }
        _ => {}
    }
    let mut content = Content::new(conversation);
    let written = match request.how {
        WriteHow::Append => append(&mut content, &path, request, old.is_none()),
        WriteHow::Replace | WriteHow::CreateNew => replace(&mut content, &path, request, old.as_ref()),
    };
    attempt(WRITING, &path, written).map_err(|error| content.blame(error))?;
    content.finish()?;
    Ok(ToHost::Done)
}

fn append(content: &mut Content<'_>, path: &Path, request: &FileWrite, is_new: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    if is_new {
        let owner = request.owner.clone().map_or_else(|| owner_of(path.parent().unwrap_or(path)), Ok)?;
        dress(&file, &owner, request.mode.unwrap_or(DEFAULT_MODE))?;
    }
    io::copy(content, &mut file).map(drop)
}

fn replace(content: &mut Content<'_>, path: &Path, request: &FileWrite, old: Option<&fs::Metadata>) -> io::Result<()> {
    let inherited = || match old {
        Some(old) => Ok(Owner { uid: old.uid(), gid: old.gid() }),
        None => owner_of(path.parent().unwrap_or(path)),
    };
    let owner = request.owner.clone().map_or_else(inherited, Ok)?;
    let mode = request.mode.or(old.map(MetadataExt::mode)).unwrap_or(DEFAULT_MODE);
    let temporary = Temporary::beside(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary.0)?;
    io::copy(content, &mut file)?;
    dress(&file, &owner, mode)?;
    match request.how {
        WriteHow::CreateNew => rename_new(&temporary.0, path),
        _ => fs::rename(&temporary.0, path),
    }
}

/// Owner first: giving a file away takes its set-uid bit.
fn dress(file: &File, owner: &Owner, mode: u32) -> io::Result<()> {
    let metadata = file.metadata()?;
    if (metadata.uid(), metadata.gid()) != (owner.uid, owner.gid) {
        fchown(file, Some(owner.uid), Some(owner.gid))?;
    }
    file.set_permissions(Permissions::from_mode(mode & MODE_MASK))
}

/// A name that is free, in the directory of the file it will become. Removed unless renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(path: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self(dir.join(format!(".midge-{}-{number}.tmp", std::process::id()))))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing of this name.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn a_file_that_shrinks_is_filled_up_and_one_that_grows_is_cut() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        let mut all = Vec::new();
        Exactly { file: file.try_clone().unwrap(), left: 5 }.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abc\0\0");
        all.clear();
        (&file).seek(SeekFrom::Start(0)).unwrap();
        Exactly { file, left: 2 }.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"ab");
    }

    #[test]
    fn temporary_names_never_repeat() {
        let path = Path::new("/x/y");
        assert_ne!(Temporary::beside(path).unwrap().0, Temporary::beside(path).unwrap().0);
    }
}
