// SPDX-License-Identifier: Apache-2.0
//! The end of an image: inodes get their slots, then directories, inodes and the superblock are written.
//! Until here only file data is in the image; nothing here looks at the tree that was packed.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::builder::{Builder, Data, Node, NodeId, block_number};
use super::layout::{DirEntry, Slots, directory_bytes, encode_directory};
use super::spec::{BLOCK, FORMAT_INLINE, FORMAT_PLAIN, FileType, INODE_BYTES, Inode, SuperBlock};
use super::{ErofsError, xattr};

/// A finished image.
#[derive(Debug)]
pub struct Image {
    /// Size of the image, a multiple of 4 KiB.
    pub len_bytes: u64,
    /// Number of inodes.
    pub inodes: u64,
    /// Open for reading and writing.
    pub file: File,
    data_at: Vec<u64>,
}

impl Image {
    /// Where in the image the content of a regular file or the target of a symbolic link starts: it is always one piece.
    #[must_use]
    pub fn content_offset(&self, node: NodeId) -> u64 {
        self.data_at[node.0 as usize]
    }
}

impl Builder {
    /// Places the inodes, writes directories, inodes and the superblock, and hands the image out.
    ///
    /// # Errors
    /// [`ErofsError::Duplicate`], [`ErofsError::TooLarge`], [`ErofsError::Write`].
    pub fn finish(mut self) -> Result<Image, ErofsError> {
        self.sort_directories()?;
        let order = self.order();
        let dirs_at = self.at;
        let slots = self.place(&order);
        self.write_directory_blocks(&order)?;
        let meta_at = self.at;
        let first_dir_block = block_number(dirs_at);
        let data_at = self.write_metadata(&order, first_dir_block)?;
        let (blocks, inodes) = (meta_at / BLOCK + slots.blocks(), order.len() as u64);
        let blocks = u32::try_from(blocks).map_err(|_| ErofsError::TooLarge { blocks, inodes })?;
        let root_nid = u16::try_from(self.nodes[0].nid()).expect("the root has the first slot");
        let superblock = SuperBlock { root_nid, inodes, blocks, meta_block: block_number(meta_at) };
        let path = self.path;
        let write = |source| ErofsError::Write { path: path.clone(), source };
        let file = self.image.into_inner().map_err(|error| write(error.into_error()))?;
        file.write_all_at(&superblock.encode(), 0).map_err(write)?;
        let len_bytes = u64::from(blocks) * BLOCK;
        file.set_len(len_bytes).map_err(write)?;
        Ok(Image { len_bytes, inodes, file, data_at })
    }

    fn sort_directories(&mut self) -> Result<(), ErofsError> {
        for index in 0..self.nodes.len() {
            let Data::Directory { children, .. } = &mut self.nodes[index].data else { continue };
            children.sort_unstable();
            if let Some(pair) = children.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(ErofsError::Duplicate { name: String::from_utf8_lossy(&pair[0].0).into_owned() });
            }
            let size = directory_bytes([1, 2].into_iter().chain(children.iter().map(|(name, _)| name.len())));
            self.nodes[index].size = self.directory_size(index, size);
        }
        Ok(())
    }

    /// Exact size of a directory: "." and ".." are sorted among the names, which may shift a block border.
    fn directory_size(&self, index: usize, estimate: u64) -> u64 {
        if estimate <= BLOCK {
            return estimate; // one block, whatever the order
        }
        directory_bytes(self.directory_entries(index).iter().map(|entry| entry.name.len()))
    }

    /// All inodes, the entries of one directory side by side, so that listing it with attributes reads few blocks.
    fn order(&self) -> Vec<u32> {
        let mut order = vec![0];
        let mut seen = vec![false; self.nodes.len()];
        let mut waiting = vec![0];
        while let Some(dir) = waiting.pop() {
            let Data::Directory { children, .. } = &self.nodes[dir as usize].data else { continue };
            let subdirectories = waiting.len();
            for (_, NodeId(child)) in children {
                if !std::mem::replace(&mut seen[*child as usize], true) {
                    order.push(*child);
                    if self.nodes[*child as usize].file_type == FileType::Directory {
                        waiting.push(*child);
                    }
                }
            }
            waiting[subdirectories..].reverse();
        }
        order
    }

    fn place(&mut self, order: &[u32]) -> Slots {
        let mut slots = Slots::new();
        for index in order {
            let node = &mut self.nodes[*index as usize];
            node.at = slots.place((INODE_BYTES + node.xattrs.len()) as u64 + node.tail_bytes());
        }
        slots
    }

    fn write_directory_blocks(&mut self, order: &[u32]) -> Result<(), ErofsError> {
        for index in order {
            let node = &self.nodes[*index as usize];
            if matches!(node.data, Data::Directory { .. }) && node.size > node.tail_bytes() {
                let inline = usize::try_from(node.tail_bytes()).expect("less than a block");
                let bytes = encode_directory(&self.directory_entries(*index as usize));
                self.append(&bytes[..bytes.len() - inline])?;
                self.pad(self.at.next_multiple_of(BLOCK))?;
            }
        }
        Ok(())
    }

    /// Writes inodes, attributes and small data; returns where each node's content starts in the image.
    fn write_metadata(&mut self, order: &[u32], first_dir_block: u32) -> Result<Vec<u64>, ErofsError> {
        let write = |path: &Path, source| ErofsError::Write { path: path.into(), source };
        self.spill.flush().map_err(|source| write(&self.path, source))?;
        let meta_at = self.at;
        let mut next_dir_block = first_dir_block;
        let mut data_at = vec![0; self.nodes.len()];
        for (number, index) in order.iter().enumerate() {
            let node = &self.nodes[*index as usize];
            let tail = self.tail(*index as usize).map_err(|source| write(&self.path, source))?;
            let first_block = match node.data {
                Data::Blocks { first } => first,
                Data::Directory { .. } => next_dir_block,
                Data::Device(number) => number,
                Data::Nothing | Data::Small { .. } => 0,
            };
            let record_at = meta_at + node.at;
            data_at[*index as usize] = match node.data {
                Data::Blocks { first } => u64::from(first) * BLOCK,
                _ => record_at + (INODE_BYTES + node.xattrs.len()) as u64,
            };
            if matches!(node.data, Data::Directory { .. }) {
                next_dir_block += block_number((node.size - node.tail_bytes()).next_multiple_of(BLOCK));
            }
            let number = u32::try_from(number + 1).expect("node() bounds the count");
            let mut record = inode(node, number, first_block).encode().to_vec();
            record.extend_from_slice(&node.xattrs);
            record.extend_from_slice(&tail);
            self.pad(record_at)?;
            self.append(&record)?;
        }
        Ok(data_at)
    }

    fn tail(&self, index: usize) -> io::Result<Vec<u8>> {
        let node = &self.nodes[index];
        let mut tail = vec![0; usize::try_from(node.tail_bytes()).expect("less than a block")];
        match node.data {
            Data::Small { spilled_at } => self.spill.get_ref().read_exact_at(&mut tail, spilled_at)?,
            Data::Directory { .. } => {
                let bytes = encode_directory(&self.directory_entries(index));
                let len = tail.len();
                tail.copy_from_slice(&bytes[bytes.len() - len..]);
            }
            _ => {}
        }
        Ok(tail)
    }

    /// The entries of a directory with "." and "..", sorted as bytes ("+x" comes before ".").
    fn directory_entries(&self, index: usize) -> Vec<DirEntry<'_>> {
        let Data::Directory { parent, children } = &self.nodes[index].data else { return Vec::new() };
        let entry = |name, node: &Node| DirEntry { name, nid: node.nid(), file_type: node.file_type.dirent_type() };
        let mut entries =
            vec![entry(b".".as_slice(), &self.nodes[index]), entry(b"..", &self.nodes[parent.0 as usize])];
        entries.extend(children.iter().map(|(name, id)| entry(name, &self.nodes[id.0 as usize])));
        entries.sort_unstable_by_key(|entry| entry.name);
        entries
    }
}

fn inode(node: &Node, number: u32, address: u32) -> Inode {
    Inode {
        format: if node.tail_bytes() > 0 { FORMAT_INLINE } else { FORMAT_PLAIN },
        xattr_count: xattr::count(&node.xattrs),
        mode: node.mode,
        size: node.size,
        address,
        number,
        uid: node.uid,
        gid: node.gid,
        mtime_s: node.mtime_s,
        mtime_ns: node.mtime_ns,
        links: node.links,
    }
}
