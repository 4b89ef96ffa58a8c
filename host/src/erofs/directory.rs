// SPDX-License-Identifier: Apache-2.0
//! A whole directory as an image, as it is: owners, modes, times, extended attributes, devices, hard links. For root file
//! systems that we or the user prepared; a user's workspace goes through [`crate::workspace`], which changes owners.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::walk::{Step, Walk};
use super::{Attributes, Builder, Device, ErofsError, NodeId, Xattr};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 18;

/// What [`pack_directory`] did.
#[derive(Debug)]
pub struct Packed {
    /// Size of the image.
    pub len_bytes: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Files that changed size while they were read, or went away after they were listed.
    pub changed: Vec<PathBuf>,
}

/// Packs `dir` into the image file `out`, which is written beside it first and then renamed, flushed to the disk.
/// File systems mounted below `dir` are left out: their mount points become empty directories.
///
/// # Errors
/// [`ErofsError::Read`] naming the entry, [`ErofsError::Write`], and what [`Builder`]'s methods return.
pub fn pack_directory(dir: &Path, out: &Path) -> Result<Packed, ErofsError> {
    let read = |source| ErofsError::Read { path: dir.into(), source };
    let write = |source| ErofsError::Write { path: out.into(), source };
    let beside = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unfinished = tempfile::Builder::new().prefix(".erofs-").tempfile_in(beside).map_err(write)?;
    let walk = Walk::open(dir).map_err(read)?;
    let top = rustix::fs::fstat(walk.dir()).map_err(|errno| read(errno.into()))?;
    let builder = Builder::create(unfinished.path(), &attributes(dir, &top)?)?;
    let image = rustix::fs::fstat(builder.image_file()).map_err(|errno| write(errno.into()))?;
    let mut packing = Packing {
        dir,
        parents: vec![builder.root()],
        builder,
        walk,
        linked: HashMap::new(),
        device: top.st_dev,
        changed: Vec::new(),
        image: (image.st_dev, image.st_ino),
    };
    while packing.step()? {}
    let Packing { builder, changed, .. } = packing;
    let image = builder.finish()?;
    image.file.sync_all().map_err(write)?;
    unfinished.persist(out).map_err(|error| write(error.error))?;
    Ok(Packed { len_bytes: image.len_bytes, inodes: image.inodes, changed })
}

struct Packing<'a> {
    dir: &'a Path,
    builder: Builder,
    walk: Walk,
    /// Nodes of the directories entered.
    parents: Vec<NodeId>,
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), NodeId>,
    device: u64,
    changed: Vec<PathBuf>,
    /// The image itself, should it lie in the directory.
    image: (u64, u64),
}

impl Packing<'_> {
    fn step(&mut self) -> Result<bool, ErofsError> {
        match self.walk.step().map_err(|source| self.fault(source))? {
            None => return Ok(false),
            Some(Step::Gone) => self.changed.push(self.path()),
            Some(Step::Leave) => drop(self.parents.pop()),
            Some(Step::Entry { stat, .. }) if (stat.st_dev, stat.st_ino) == self.image => {}
            Some(Step::Entry { name, stat }) => self.entry(&name, &stat)?,
        }
        Ok(true)
    }

    fn entry(&mut self, name: &CStr, stat: &Stat) -> Result<(), ErofsError> {
        let parent = *self.parents.last().expect("the root is left last");
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let attributes = attributes(&self.path(), stat)?;
        let identity = (stat.st_dev, stat.st_ino);
        if file_type != FileType::Directory
            && stat.st_nlink > 1
            && let Some(node) = self.linked.get(&identity)
        {
            return self.builder.link(parent, name.to_bytes(), *node);
        }
        let bytes = name.to_bytes();
        let node = match file_type {
            FileType::Directory => return self.directory(parent, name, &attributes, stat),
            FileType::Symlink => match self.walk.read_link(name).map_err(|source| self.fault(source))? {
                Some(target) => Some(self.builder.symlink(parent, bytes, &attributes, &target)?),
                None => None,
            },
            FileType::RegularFile => match self.walk.open_file(name).map_err(|source| self.fault(source))? {
                Some((file, _)) => Some(self.file(parent, bytes, &attributes, file, stat)?),
                None => None,
            },
            special => Some(self.builder.device(parent, bytes, &attributes, device(special, stat))?),
        };
        let Some(node) = node else {
            self.changed.push(self.path());
            return Ok(());
        };
        if stat.st_nlink > 1 {
            self.linked.insert(identity, node);
        }
        Ok(())
    }

    fn directory(
        &mut self,
        parent: NodeId,
        name: &CStr,
        attributes: &Attributes,
        stat: &Stat,
    ) -> Result<(), ErofsError> {
        let node = self.builder.directory(parent, name.to_bytes(), attributes)?;
        if stat.st_dev == self.device {
            self.walk.enter(name).map_err(|source| self.fault(source))?;
            self.parents.push(node);
        }
        Ok(())
    }

    fn file(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
        mut file: File,
        stat: &Stat,
    ) -> Result<NodeId, ErofsError> {
        let path = self.path();
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(stat.st_size).unwrap_or(0) + 1)];
        let mut read_bytes: i64 = 0;
        let mut writer = self.builder.file(parent, name, attributes)?;
        // A file that grows as fast as it is read must not keep us for ever: what came after its listed size is left out.
        while read_bytes <= stat.st_size {
            let len = file.read(&mut chunk).map_err(|source| ErofsError::Read { path: path.clone(), source })?;
            if len == 0 {
                break;
            }
            writer.write(&chunk[..len])?;
            read_bytes += i64::try_from(len).expect("a chunk is small");
        }
        if read_bytes != stat.st_size {
            self.changed.push(path);
        }
        writer.end()
    }

    fn path(&self) -> PathBuf {
        self.dir.join(OsStr::from_bytes(self.walk.path()))
    }

    fn fault(&self, source: io::Error) -> ErofsError {
        ErofsError::Read { path: self.path(), source }
    }
}

fn attributes(path: &Path, stat: &Stat) -> Result<Attributes, ErofsError> {
    let xattrs = read_xattrs(path).map_err(|errno| ErofsError::Read { path: path.into(), source: errno.into() })?;
    Ok(Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_s: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        xattrs,
    })
}

fn device(file_type: FileType, stat: &Stat) -> Device {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    match file_type {
        FileType::CharacterDevice => Device::Char { major, minor },
        FileType::BlockDevice => Device::Block { major, minor },
        FileType::Socket => Device::Socket,
        _ => Device::Fifo,
    }
}

/// Extended attributes of `path` itself, without those that name the host's security labels: a guest has its own policy.
fn read_xattrs(path: &Path) -> Result<Vec<Xattr>, Errno> {
    let names = match grow(|buffer| rustix::fs::llistxattr(path, buffer)) {
        Err(Errno::NOTSUP | Errno::NOENT) => return Ok(Vec::new()),
        names => names?,
    };
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && *name != b"security.selinux") {
        let name = OsString::from_vec(name.to_vec());
        match grow(|buffer| rustix::fs::lgetxattr(path, &name, buffer)) {
            Ok(value) => xattrs.push(Xattr { name: name.into_vec(), value }),
            Err(Errno::NODATA | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(xattrs)
}

/// Calls `fill` with a buffer that grows until the answer fits (64 KiB is the kernel's own limit).
fn grow(mut fill: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 1 << 10];
    loop {
        match fill(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 16 => buffer.resize(1 << 16, 0),
            Err(errno) => return Err(errno),
        }
    }
}
