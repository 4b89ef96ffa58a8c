// SPDX-License-Identifier: Apache-2.0
//! The image builder: takes entries in any order with parents first, streams file data to the image at once, keeps only
//! names and attributes in memory (about 200 bytes an entry). `finish` writes the metadata.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::file_writer::FileWriter;
use super::layout::fits_inline;
use super::spec::{BLOCK, BLOCK_BYTES, FileType, NAME_MAX_BYTES, SLOT_BYTES, device_number};
use super::{ErofsError, Xattr, xattr};

/// Files up to this size lie behind their inode. Larger ones would spread the inodes and slow down a walk that only
/// looks at them (`git status`): at this size four share a block in the worst case.
pub(crate) const INLINE_MAX_BYTES: usize = 1024;

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// An entry of the image being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u32);

/// Owner, permissions, time and extended attributes of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, 0 to 0o7777; others are ignored.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime_s: i64,
    /// Its nanoseconds.
    pub mtime_ns: u32,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
}

/// A file that is neither regular, directory nor symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

#[derive(Debug)]
pub(super) enum Data {
    Nothing,
    Device(u32),
    Blocks {
        first: u32,
    },
    /// Small data waits in the spill file until inodes are placed.
    Small {
        spilled_at: u64,
    },
    Directory {
        parent: NodeId,
        children: Vec<(Box<[u8]>, NodeId)>,
    },
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) file_type: FileType,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_s: i64,
    pub(super) mtime_ns: u32,
    pub(super) xattrs: Box<[u8]>,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) data: Data,
    /// Offset in the metadata area, once placed.
    pub(super) at: u64,
}

impl Node {
    pub(super) fn nid(&self) -> u64 {
        self.at / SLOT_BYTES
    }

    /// Bytes of data that follow the inode.
    pub(super) fn tail_bytes(&self) -> u64 {
        match self.data {
            Data::Small { .. } => self.size,
            Data::Directory { .. } if fits_inline(self.xattrs.len(), self.size % BLOCK) => self.size % BLOCK,
            _ => 0,
        }
    }
}

/// Builds one image; see the module's header.
#[derive(Debug)]
pub struct Builder {
    pub(super) path: PathBuf,
    pub(super) image: BufWriter<File>,
    /// Next byte of the image to write; a multiple of the block size between entries.
    pub(super) at: u64,
    pub(super) spill: BufWriter<File>,
    pub(super) spilled: u64,
    pub(super) nodes: Vec<Node>,
}

impl Builder {
    /// Starts an image in the new or emptied file `path`, with a root directory that has `root`'s attributes.
    /// An unnamed temporary file beside it holds small data meanwhile.
    ///
    /// # Errors
    /// [`ErofsError::Write`] when a file cannot be made.
    pub fn create(path: &Path, root: &Attributes) -> Result<Self, ErofsError> {
        let write = |source| ErofsError::Write { path: path.into(), source };
        // Whose files are packed need not be everybody's to read.
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(path).map_err(write)?;
        let beside = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let spill = tempfile::tempfile_in(beside).map_err(write)?;
        let mut builder = Self {
            path: path.into(),
            image: BufWriter::with_capacity(BUFFER_BYTES, file),
            at: 0,
            spill: BufWriter::with_capacity(BUFFER_BYTES, spill),
            spilled: 0,
            nodes: Vec::new(),
        };
        builder.append(&[0; BLOCK_BYTES])?; // the superblock comes last
        builder.node(b"/", FileType::Directory, root, Data::Directory { parent: NodeId(0), children: Vec::new() })?;
        Ok(builder)
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// The image file while it is written, to recognise it in a tree that is being packed.
    #[must_use]
    pub fn image_file(&self) -> &File {
        self.image.get_ref()
    }

    /// Adds an empty directory.
    ///
    /// # Errors
    /// [`ErofsError::Name`], [`ErofsError::Xattrs`] and [`ErofsError::XattrName`] as their texts say.
    pub fn directory(&mut self, parent: NodeId, name: &[u8], attributes: &Attributes) -> Result<NodeId, ErofsError> {
        self.child(parent, name, FileType::Directory, attributes, 0, Data::Directory { parent, children: Vec::new() })
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As [`Builder::directory`], and [`ErofsError::Write`].
    pub fn symlink(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
        target: &[u8],
    ) -> Result<NodeId, ErofsError> {
        let mut writer = self.file(parent, name, attributes)?;
        writer.become_symlink();
        writer.write(target)?;
        writer.end()
    }

    /// Adds a device, pipe or socket.
    ///
    /// # Errors
    /// As [`Builder::directory`].
    pub fn device(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
        device: Device,
    ) -> Result<NodeId, ErofsError> {
        let (file_type, data) = match device {
            Device::Fifo => (FileType::Fifo, Data::Nothing),
            Device::Socket => (FileType::Socket, Data::Nothing),
            Device::Char { major, minor } => (FileType::Char, Data::Device(device_number(major, minor))),
            Device::Block { major, minor } => (FileType::Block, Data::Device(device_number(major, minor))),
        };
        self.child(parent, name, file_type, attributes, 0, data)
    }

    /// Starts a regular file; it enters the directory with [`FileWriter::end`].
    ///
    /// # Errors
    /// As [`Builder::directory`].
    pub fn file<'a>(
        &'a mut self,
        parent: NodeId,
        name: &'a [u8],
        attributes: &'a Attributes,
    ) -> Result<FileWriter<'a>, ErofsError> {
        check_name(name)?;
        Ok(FileWriter::new(self, parent, name, attributes))
    }

    /// Adds another name for `node`, which is no directory: a hard link.
    ///
    /// # Errors
    /// As [`Builder::directory`].
    pub fn link(&mut self, parent: NodeId, name: &[u8], node: NodeId) -> Result<(), ErofsError> {
        assert!(!matches!(self.nodes[node.0 as usize].data, Data::Directory { .. }), "hard link to a directory");
        self.nodes[node.0 as usize].links += 1;
        self.enter(parent, name, node)
    }

    /// Adds a file of its own that shares the data blocks of the regular file `node`.
    ///
    /// # Errors
    /// As [`Builder::directory`].
    pub fn twin(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
        node: NodeId,
    ) -> Result<NodeId, ErofsError> {
        let of = &self.nodes[node.0 as usize];
        let (size, data) = match of.data {
            Data::Blocks { first } => (of.size, Data::Blocks { first }),
            Data::Small { spilled_at } => (of.size, Data::Small { spilled_at }),
            _ => (0, Data::Nothing),
        };
        self.child(parent, name, FileType::Regular, attributes, size, data)
    }

    pub(super) fn child(
        &mut self,
        parent: NodeId,
        name: &[u8],
        file_type: FileType,
        attributes: &Attributes,
        size: u64,
        data: Data,
    ) -> Result<NodeId, ErofsError> {
        check_name(name)?;
        let id = self.node(name, file_type, attributes, data)?;
        self.nodes[id.0 as usize].size = size;
        if file_type == FileType::Directory {
            self.nodes[parent.0 as usize].links += 1; // its ".."
        }
        self.enter(parent, name, id)?;
        Ok(id)
    }

    fn node(
        &mut self,
        name: &[u8],
        file_type: FileType,
        attributes: &Attributes,
        data: Data,
    ) -> Result<NodeId, ErofsError> {
        let inodes = self.nodes.len() as u64 + 1;
        let id = u32::try_from(inodes - 1).map_err(|_| ErofsError::TooLarge { blocks: self.at / BLOCK, inodes })?;
        let permissions = u16::try_from(attributes.mode & 0o7777).expect("12 bits");
        self.nodes.push(Node {
            file_type,
            mode: file_type.mode_bits() | permissions,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime_s: attributes.mtime_s,
            mtime_ns: attributes.mtime_ns,
            xattrs: xattr::encode(name, &attributes.xattrs)?.into(),
            links: if file_type == FileType::Directory { 2 } else { 1 },
            size: 0,
            data,
            at: 0,
        });
        Ok(NodeId(id))
    }

    fn enter(&mut self, parent: NodeId, name: &[u8], node: NodeId) -> Result<(), ErofsError> {
        check_name(name)?;
        let Data::Directory { children, .. } = &mut self.nodes[parent.0 as usize].data else {
            unreachable!("the parent of an entry is a directory");
        };
        children.push((name.into(), node));
        Ok(())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        // Zeroes that fill whole blocks become a hole.
        let hole = self.at.is_multiple_of(BLOCK)
            && bytes.len().is_multiple_of(BLOCK_BYTES)
            && bytes.iter().all(|byte| *byte == 0);
        self.at += bytes.len() as u64;
        let written =
            if hole { self.image.seek(SeekFrom::Start(self.at)).map(drop) } else { self.image.write_all(bytes) };
        written.map_err(|source| ErofsError::Write { path: self.path.clone(), source })
    }

    /// Fills the image with zeroes up to `to`.
    pub(super) fn pad(&mut self, to: u64) -> Result<(), ErofsError> {
        let zeroes = [0; BLOCK_BYTES];
        while self.at < to {
            let len = usize::try_from(to - self.at).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
            self.append(&zeroes[..len])?;
        }
        Ok(())
    }
}

/// The block that starts at `offset`; `FileWriter::append` keeps data below 2^32 blocks, and `finish` checks the whole.
pub(super) fn block_number(offset: u64) -> u32 {
    u32::try_from(offset / BLOCK).unwrap_or(u32::MAX)
}

fn check_name(name: &[u8]) -> Result<(), ErofsError> {
    let valid = (1..=NAME_MAX_BYTES).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| *byte == b'/' || *byte == 0);
    if valid {
        return Ok(());
    }
    Err(ErofsError::Name { name: String::from_utf8_lossy(name).into_owned(), len_bytes: name.len() })
}
