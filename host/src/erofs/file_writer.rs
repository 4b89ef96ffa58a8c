// SPDX-License-Identifier: Apache-2.0
//! One file's data on its way into the image: whole blocks go straight on, a small file waits beside the image until inodes
//! are placed. Memory in use is bounded by [`INLINE_MAX_BYTES`], whatever the file's size.

use std::io::Write;

use super::ErofsError;
use super::builder::{Attributes, Builder, Data, INLINE_MAX_BYTES, NodeId, block_number};
use super::spec::{BLOCK, FileType};

/// A regular file being added; see [`Builder::file`]. Dropping it without [`FileWriter::end`] adds nothing.
#[derive(Debug)]
pub struct FileWriter<'a> {
    builder: &'a mut Builder,
    parent: NodeId,
    name: &'a [u8],
    attributes: &'a Attributes,
    file_type: FileType,
    /// All data while it may still become inline.
    small: Vec<u8>,
    first: Option<u32>,
    size: u64,
}

impl<'a> FileWriter<'a> {
    pub(super) fn new(builder: &'a mut Builder, parent: NodeId, name: &'a [u8], attributes: &'a Attributes) -> Self {
        Self {
            builder,
            parent,
            name,
            attributes,
            file_type: FileType::Regular,
            small: Vec::new(),
            first: None,
            size: 0,
        }
    }

    /// What is written becomes the target of a symbolic link.
    pub(super) fn become_symlink(&mut self) {
        self.file_type = FileType::Symlink;
    }

    /// Appends data.
    ///
    /// # Errors
    /// [`ErofsError::Write`]; [`ErofsError::TooLarge`] when the image passes 16 TiB.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.size += bytes.len() as u64;
        if self.first.is_none() {
            self.small.extend_from_slice(bytes);
            if self.small.len() > INLINE_MAX_BYTES {
                let small = std::mem::take(&mut self.small);
                self.first = Some(block_number(self.builder.at));
                self.append(&small)?;
            }
            return Ok(());
        }
        self.append(bytes)
    }

    /// Ends the file and enters it into its directory.
    ///
    /// # Errors
    /// As [`Builder::directory`], and [`ErofsError::Write`].
    pub fn end(self) -> Result<NodeId, ErofsError> {
        let builder = self.builder;
        let data = match self.first {
            Some(first) => {
                builder.pad(builder.at.next_multiple_of(BLOCK))?;
                Data::Blocks { first }
            }
            None if self.size == 0 => Data::Nothing,
            None => {
                let spilled_at = builder.spilled;
                builder.spilled += self.size;
                let written = builder.spill.write_all(&self.small);
                written.map_err(|source| ErofsError::Write { path: builder.path.clone(), source })?;
                Data::Small { spilled_at }
            }
        };
        builder.child(self.parent, self.name, self.file_type, self.attributes, self.size, data)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        let blocks = (self.builder.at + bytes.len() as u64).div_ceil(BLOCK);
        if blocks >= u64::from(u32::MAX) {
            return Err(ErofsError::TooLarge { blocks, inodes: self.builder.nodes.len() as u64 });
        }
        self.builder.append(bytes)
    }
}
