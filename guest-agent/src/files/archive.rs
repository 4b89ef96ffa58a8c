// SPDX-License-Identifier: Apache-2.0
//! Trees as tar archives, streamed both ways. No file descriptor, name list or file is held for longer than its turn.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, lchown};
use std::path::{Component, Path, PathBuf};

use midge_protocol::{Owner, TarIn, TarOut, ToHost};
use tar::{Archive, Builder, EntryType, Header};

use super::transfer::{Content, Exactly, Pieces, open_regular};
use super::{FileError, absolute, attempt, make_dirs};
use crate::link::Conversation;
use crate::sys::process::own_ids;

/// Mode of the directory to unpack into, when it is made.
const DEFAULT_DIR_MODE: u32 = 0o755;

pub(super) fn unpack(conversation: &mut Conversation, request: &TarIn) -> Result<ToHost, FileError> {
    const UNPACKING: &str = "unpacking into";
    let dir = absolute(UNPACKING, &request.dir)?;
    attempt(UNPACKING, dir, make_dirs(dir, DEFAULT_DIR_MODE, request.owner.as_ref()))?;
    let mut content = Content::new(conversation);
    let result = unpack_entries(&mut content, dir, request.owner.as_ref());
    result.map_err(|error| content.blame(error))?;
    content.finish()?;
    Ok(ToHost::Done)
}

fn unpack_entries(content: &mut Content<'_>, dir: &Path, owner: Option<&Owner>) -> Result<(), FileError> {
    const UNPACKING: &str = "unpacking into";
    let mut archive = Archive::new(content);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(owner.is_none() && own_ids().0 == 0);
    archive.set_unpack_xattrs(false);
    for entry in attempt(UNPACKING, dir, archive.entries())? {
        let mut entry = attempt(UNPACKING, dir, entry)?;
        let name = attempt(UNPACKING, dir, entry.path())?.into_owned();
        if !attempt("unpacking", &name, entry.unpack_in(dir))? {
            let reason = "its name leads out of the directory";
            return Err(FileError::Refused { attempt: "unpacking", path: name, reason });
        }
        if let Some(owner) = owner {
            let path: PathBuf = name.components().filter(|part| matches!(part, Component::Normal(_))).collect();
            attempt("giving away", &name, lchown(dir.join(path), Some(owner.uid), Some(owner.gid)))?;
        }
    }
    Ok(())
}

pub(super) fn pack(conversation: &mut Conversation, request: &TarOut) -> Result<ToHost, FileError> {
    let path = absolute("packing", &request.path)?;
    let mut pieces = Pieces::new(conversation);
    let packed = pack_tree(&mut pieces, path).and_then(|()| attempt("packing", path, pieces.flush()));
    match (packed, pieces.broken.take()) {
        (_, Some(error)) => Err(FileError::Link(error)),
        (packed, None) => packed.map(|()| ToHost::End),
    }
}

fn pack_tree(pieces: &mut Pieces<'_>, root: &Path) -> Result<(), FileError> {
    const PACKING: &str = "packing";
    let mut builder = Builder::new(pieces);
    builder.follow_symlinks(false);
    if !attempt(PACKING, root, fs::metadata(root))?.is_dir() {
        let name = root.file_name().map(PathBuf::from).unwrap_or_default();
        append(&mut builder, root, &name)?;
    } else {
        let mut pending = vec![PathBuf::new()];
        while let Some(name) = pending.pop() {
            let path = root.join(&name);
            if !append(&mut builder, &path, &name)? {
                continue;
            }
            let mut names = Vec::new();
            for entry in attempt(PACKING, &path, fs::read_dir(&path))? {
                names.push(name.join(attempt(PACKING, &path, entry)?.file_name()));
            }
            // Last in, first out: the archive lists names in order.
            names.sort_unstable_by(|a, b| b.cmp(a));
            pending.append(&mut names);
        }
    }
    attempt(PACKING, root, builder.into_inner()).map(drop)
}

/// Appends one path; true when it is a directory whose entries come next.
fn append(builder: &mut Builder<&mut Pieces<'_>>, path: &Path, name: &Path) -> Result<bool, FileError> {
    const PACKING: &str = "packing";
    let metadata = attempt(PACKING, path, fs::symlink_metadata(path))?;
    let kind = metadata.file_type();
    let name = if name.as_os_str().is_empty() { Path::new("./") } else { name };
    let mut header = Header::new_gnu();
    header.set_metadata(&metadata);
    let appended = if kind.is_file() {
        header.set_size(metadata.len());
        let content = Exactly { file: open_regular(path)?, left: metadata.len() };
        builder.append_data(&mut header, name, content)
    } else if kind.is_dir() {
        header.set_size(0);
        builder.append_data(&mut header, name, io::empty())
    } else if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, name, attempt(PACKING, path, fs::read_link(path))?)
    } else if kind.is_socket() {
        // A socket is nothing without the process behind it.
        Ok(())
    } else {
        builder.append_path_with_name(path, name)
    };
    attempt(PACKING, path, appended).map(|()| kind.is_dir())
}
