// SPDX-License-Identifier: Apache-2.0
//! EROFS images, written in one pass: the read-only lower layer of a guest's root and of its workspace.
//!
//! Flow: [`Builder`] takes a tree entry by entry (file data streams straight to the image) → `layout` places inodes and
//! directories → [`Builder::finish`] writes metadata and the superblock. [`pack_directory`] feeds it a whole directory.
//! Images are uncompressed, 4 KiB blocks, and byte for byte the same for the same input. Layout of an image:
//!
//! ```text
//! block 0        file data               directory blocks      metadata: inodes, each with xattrs and small data
//! superblock  |  whole blocks, in order  |  all but last parts |  root first
//! ```
//!
//! The module never compresses, never reads an image, and never follows a symbolic link.

mod builder;
mod directory;
mod file_writer;
mod finish;
mod layout;
pub(crate) mod spec;
pub(crate) mod walk;
mod xattr;

#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(test)]
pub(crate) mod reader;
#[cfg(fuzzing)]
pub(crate) mod reader;
#[cfg(test)]
pub(crate) mod tests;

pub use builder::{Attributes, Builder, Device, NodeId};
pub use directory::{Packed, pack_directory};
pub use file_writer::FileWriter;
pub use finish::Image;
pub use xattr::Xattr;

use std::path::PathBuf;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The image file, or the temporary file beside it, cannot be written.
    #[error("write erofs image {}: check free space and permissions there", path.display())]
    Write {
        /// The image file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An entry of the directory to pack cannot be read.
    #[error("read {} to pack it", path.display())]
    Read {
        /// The entry.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A name that no directory entry can have.
    #[error(
        "add entry {name:?}: the name has {len_bytes} bytes; accepted: 1 to 255, without '/' and NUL, not '.' or '..'"
    )]
    Name {
        /// The name, lossy.
        name: String,
        /// Its length.
        len_bytes: usize,
    },
    /// Two entries of one directory with the same name.
    #[error("write directory: entry {name:?} was added twice")]
    Duplicate {
        /// The name, lossy.
        name: String,
    },
    /// Extended attributes that do not fit beside the inode.
    #[error("add entry {name:?}: extended attributes need {bytes} bytes; accepted: up to {max_bytes} for an entry")]
    Xattrs {
        /// The entry's name, lossy.
        name: String,
        /// Bytes they would take.
        bytes: usize,
        /// What fits.
        max_bytes: usize,
    },
    /// An extended attribute outside the name spaces that the format knows.
    #[error(
        "store extended attribute {name:?}: accepted name spaces are user, trusted, security and the POSIX ACLs, names up to 255 bytes, values up to 65,535"
    )]
    XattrName {
        /// The attribute's name, lossy.
        name: String,
    },
    /// More blocks or inodes than the format can address.
    #[error("write erofs image of {blocks} blocks and {inodes} inodes: accepted are up to 2^32 - 1 of each")]
    TooLarge {
        /// Blocks of 4 KiB.
        blocks: u64,
        /// Inodes.
        inodes: u64,
    },
}
