// SPDX-License-Identifier: Apache-2.0
//! Files of the guest: requests and what they answer.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::field::{Field, FieldError, Payload};
use crate::shape::{choices, records};

records! {
    /// Read a file: answered by `Data`* and `End`, or `Error`.
    FileRead {
        /// Absolute path in the guest.
        path: PathBuf,
        /// First byte wanted.
        offset: u64,
        /// Bytes wanted at most; `u64::MAX` for all.
        len: u64,
    }

    /// Write a file: followed by `Data`* and `End`, answered by `Done` or `Error`.
    FileWrite {
        /// Absolute path in the guest.
        path: PathBuf,
        /// Permission bits of a new file; a replaced file keeps its own where this is `None`.
        mode: Option<u32>,
        /// Owner; without one the owner of the file that is replaced, else of the directory.
        owner: Option<Owner>,
        /// What happens to a file that is there.
        how: WriteHow,
        /// Make missing parent directories.
        parents: bool,
    }

    /// Numeric owner of a file.
    Owner {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    }

    /// Make a directory: answered by `Done` or `Error`.
    Mkdir {
        /// Absolute path in the guest.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
        /// Owner; without one the owner of the parent directory.
        owner: Option<Owner>,
        /// Make missing parents too, and do not mind if it exists.
        parents: bool,
    }

    /// Ask what a path is: answered by `Metadata` or `Error`.
    Stat {
        /// Absolute path in the guest.
        path: PathBuf,
        /// Follow a symlink at the end of the path.
        follow: bool,
    }

    /// List a directory: answered by `Entry`* and `End`, or `Error`.
    List {
        /// Absolute path in the guest.
        path: PathBuf,
    }

    /// Remove a file or directory: answered by `Done` or `Error`.
    Remove {
        /// Absolute path in the guest.
        path: PathBuf,
        /// A directory's content too.
        recursive: bool,
    }

    /// Rename within the guest: answered by `Done` or `Error`.
    Move {
        /// Absolute path of what is there.
        from: PathBuf,
        /// Absolute path it shall have.
        to: PathBuf,
        /// Replace what is at `to`.
        replace: bool,
    }

    /// Unpack a tar archive: followed by `Data`* and `End`, answered by `Done` or `Error`.
    TarIn {
        /// Absolute path of the directory to unpack into; made where it is missing.
        dir: PathBuf,
        /// Owner of everything unpacked; without one the archive's numbers count.
        owner: Option<Owner>,
    }

    /// Pack a tar archive: answered by `Data`* and `End`, or `Error`.
    TarOut {
        /// Absolute path of the directory (its content is packed) or file.
        path: PathBuf,
    }

    /// List what a run changed: answered by (`Change`, `Data`*)* and `End`, or `Error`.
    Changes {
        /// Which overlay.
        layer: Layer,
    }

    /// What a path is.
    Metadata {
        /// Its type.
        kind: FileKind,
        /// Permission bits, with set-uid, set-gid and sticky.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Size in bytes.
        size: u64,
        /// Last change of content, in nanoseconds since 1970.
        mtime_ns: i64,
        /// Where a symlink leads.
        target: Option<PathBuf>,
    }

    /// One entry of a directory.
    Entry {
        /// Its name, without a slash.
        name: OsString,
        /// What it is, symlinks not followed.
        metadata: Metadata,
    }

    /// One path that a run changed. A file is followed by exactly `size` bytes in `Data`.
    Change {
        /// Path below the overlay's root, without a leading slash. Parents come before children.
        path: PathBuf,
        /// What happened.
        kind: ChangeKind,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Last change of content, in nanoseconds since 1970.
        mtime_ns: i64,
        /// Bytes that follow.
        size: u64,
        /// Where a symlink leads.
        target: Option<PathBuf>,
    }
}

choices! {
    /// What a write does with a file that is there.
    WriteHow("what a write does") {
        /// Replaces it at once and whole, when `End` has come: readers see the old or the new content.
        Replace = 0,
        /// Adds to its end.
        Append = 1,
        /// Fails.
        CreateNew = 2,
    }

    /// Type of a file.
    FileKind("the type of a file") {
        /// Regular file.
        File = 0,
        /// Directory.
        Dir = 1,
        /// Symbolic link.
        Symlink = 2,
        /// Device, pipe or socket.
        Special = 3,
    }

    /// One of the guest's overlays.
    Layer("an overlay") {
        /// The workspace.
        Workspace = 0,
        /// The root file system.
        Root = 1,
    }

    /// What happened to a path.
    ChangeKind("a kind of change") {
        /// It is gone.
        Whiteout = 0,
        /// A directory that hides everything the base has at this path.
        OpaqueDir = 1,
        /// A directory: new, changed, or the parent of a change.
        Dir = 2,
        /// A regular file, new or changed.
        File = 3,
        /// A symlink, new or changed.
        Symlink = 4,
        /// A device, pipe or socket, new or changed.
        Special = 5,
    }
}
