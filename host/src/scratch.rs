// SPDX-License-Identifier: Apache-2.0
//! Scratch disks: empty, formatted ext4 images that copy-on-write overlays are taken over.
//!
//! One sparse file for each size, shared by all sandboxes and never written after it was made. What costs time at the first
//! mount, and space in every overlay, is left out: no journal (a scratch disk does not outlive its sandbox), no
//! reserved blocks, no checksums of metadata, and inode tables that are marked as zeroed already, so that no thread
//! of the guest goes on zeroing them.

use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::{Cache, CacheError, Key};

/// Sizes that a scratch disk can have, in MiB.
pub const SIZE_MIB: RangeInclusive<u64> = 16..=(1 << 20);

/// How `mkfs.ext4` is called, but for the file: part of the key.
const OPTIONS: [&str; 16] = [
    "-q",
    "-F",
    "-b",
    "4096",
    "-I",
    "256",
    "-i",
    "16384",
    "-m",
    "0",
    "-O",
    "^has_journal,^metadata_csum,^resize_inode,^uninit_bg,^orphan_file,sparse_super2",
    "-E",
    "lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard,root_owner=0:0",
    "-U",
    "6d696467-6520-7363-7261-746368000000",
];

/// Directories with administrators' programs, which a user's PATH may lack.
const SYSTEM_DIRS: &str = "/usr/sbin:/sbin";

/// Why there is no scratch disk.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A size that no disk can have.
    #[error("making a scratch disk of {size_mib} MiB: accepted are {} to {} MiB (--disk)", SIZE_MIB.start(), SIZE_MIB.end())]
    Size {
        /// The size asked for.
        size_mib: u64,
    },
    /// `mkfs.ext4` failed, or is not there.
    #[error(
        "making a scratch disk: mkfs.ext4: {problem}; it is in the package e2fsprogs, 1.47 or later: `apt-get install e2fsprogs`"
    )]
    Format {
        /// What it said.
        problem: String,
    },
    /// The operating system refused something.
    #[error("{doing} {path}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

/// The scratch disk of `size_mib`, formatted now when there is none yet (a tenth of a second).
///
/// # Errors
/// [`ScratchError`]: a size out of range, no `mkfs.ext4`, no space.
pub fn ensure(cache: &Cache, size_mib: u64) -> Result<PathBuf, ScratchError> {
    if !SIZE_MIB.contains(&size_mib) {
        return Err(ScratchError::Size { size_mib });
    }
    let key = Key::new().part("options", OPTIONS.join(" ").as_bytes()).finish();
    let into = cache.dir("scratch")?.join(format!("{size_mib}-{key}.ext4"));
    if !into.exists() {
        let stage = cache.stage()?;
        format(&stage.path().join("disk"), size_mib)?;
        stage.publish_file("disk", &into)?;
    }
    Ok(into)
}

/// `mkfs.ext4` is installed.
///
/// # Errors
/// [`ScratchError::Format`] names its package.
pub fn check_tool() -> Result<(), ScratchError> {
    let path = format!("{}:{SYSTEM_DIRS}", std::env::var("PATH").unwrap_or_default());
    let is_there = std::env::split_paths(&path).any(|dir| dir.join("mkfs.ext4").is_file());
    if is_there { Ok(()) } else { Err(ScratchError::Format { problem: "not found".to_owned() }) }
}

fn format(path: &Path, size_mib: u64) -> Result<(), ScratchError> {
    let io = |source| ScratchError::Io { doing: "making the sparse file", path: path.to_owned(), source };
    File::create(path).and_then(|file| file.set_len(size_mib << 20)).map_err(io)?;
    let path_var = std::env::var("PATH").unwrap_or_default();
    let out = Command::new("mkfs.ext4")
        .args(OPTIONS)
        .arg(path)
        .env("PATH", format!("{path_var}:{SYSTEM_DIRS}"))
        // The settings of the machine must not decide what the key does not say.
        .env("MKE2FS_CONFIG", "/dev/null")
        .stdin(Stdio::null())
        .output()
        .map_err(|err| ScratchError::Format { problem: err.to_string() })?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(ScratchError::Format { problem: said.trim().replace('\n', "; ") });
    }
    // Shared by every sandbox: nobody has a reason to write it.
    let mut permissions = fs::metadata(path).map_err(io)?.permissions();
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        (dir, cache)
    }

    #[test]
    fn disk_has_its_size_and_costs_next_to_nothing() {
        let (_guard, cache) = cache();
        let path = ensure(&cache, 1024).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 1 << 20, "{} KiB allocated", meta.blocks() / 2);
        assert!(meta.permissions().readonly());
    }

    #[test]
    fn disk_is_an_ext4_file_system_without_a_journal() {
        let (_guard, cache) = cache();
        let bytes = fs::read(ensure(&cache, 16).unwrap()).unwrap();
        assert_eq!(bytes[1080..1082], [0x53, 0xef]);
        let compatible = u32::from_le_bytes(*bytes[1024 + 0x5c..].first_chunk().unwrap());
        assert_eq!(compatible & 4, 0, "it has a journal");
        // Block group descriptor 0, flags at 0x12: INODE_ZEROED, and neither of the two UNINIT flags.
        assert_eq!(bytes[4096 + 0x12] & 7, 4);
    }

    #[test]
    fn disk_of_a_size_is_made_once() {
        let (_guard, cache) = cache();
        let path = ensure(&cache, 64).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        assert_eq!(fs::metadata(ensure(&cache, 64).unwrap()).unwrap().ino(), inode);
        assert_ne!(ensure(&cache, 65).unwrap(), path);
    }

    #[test]
    fn sizes_out_of_range_are_refused_with_the_range() {
        let (_guard, cache) = cache();
        for size_mib in [0, 15, (1 << 20) + 1, u64::MAX] {
            let text = ensure(&cache, size_mib).unwrap_err().to_string();
            assert!(text.contains(&size_mib.to_string()) && text.contains("16 to 1048576 MiB"), "{text}");
        }
        ensure(&cache, 16).unwrap();
    }
}
