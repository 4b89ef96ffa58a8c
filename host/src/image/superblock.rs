// SPDX-License-Identifier: Apache-2.0
//! Which file system a file holds, told from its first bytes. Pure; the bytes are hostile.

use serde::Serialize;

/// How much of a file has to be read: the furthest superblock is ext4's, in the second KiB.
pub(super) const HEAD_BYTES: usize = 2048;

/// File systems that the guest kernels have, and that a base can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// Read-only by nature; ours.
    Erofs,
    /// Mounted read-only.
    Ext4,
    /// Read-only by nature, compressed.
    Squashfs,
}

impl FileSystem {
    /// The name for `mount -t`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }
}

/// Why a file is no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("no known file system in its first {HEAD_BYTES} bytes ({hint})")]
    Unknown { hint: &'static str },
    #[error("the {file_system} superblock says {stated_bytes} bytes, the file has {actual_bytes}: it is cut short")]
    Truncated { file_system: &'static str, stated_bytes: u64, actual_bytes: u64 },
}

/// What a file of `actual_bytes` that begins with `head` is.
pub(super) fn identify(head: &[u8], actual_bytes: u64) -> Result<FileSystem, Problem> {
    let (file_system, stated_bytes) = if le32(head, 1024) == Some(0xe0f5_e1e2) {
        (FileSystem::Erofs, erofs_bytes(head))
    } else if le16(head, 1024 + 0x38) == Some(0xef53) {
        (FileSystem::Ext4, ext4_bytes(head))
    } else if head.starts_with(b"hsqs") {
        (FileSystem::Squashfs, le64(head, 40))
    } else {
        return Err(Problem::Unknown { hint: hint(head) });
    };
    match stated_bytes {
        Some(stated_bytes) if stated_bytes > actual_bytes => {
            Err(Problem::Truncated { file_system: file_system.name(), stated_bytes, actual_bytes })
        }
        _ => Ok(file_system),
    }
}

/// Superblock: `blkszbits` at 12, `blocks` at 36.
fn erofs_bytes(head: &[u8]) -> Option<u64> {
    Some(bytes_of(le32(head, 1024 + 36)?.into(), (*head.get(1024 + 12)?).into()))
}

/// Superblock: `s_blocks_count_lo` at 4, `s_log_block_size` at 24. (Images beyond 2^32 blocks are not checked.)
fn ext4_bytes(head: &[u8]) -> Option<u64> {
    Some(bytes_of(u64::from(le32(head, 1024 + 4)?) * 1024, le32(head, 1024 + 24)?))
}

/// `count` units of `2^bits`: no file is as long as what 64 bits do not hold.
fn bytes_of(count: u64, bits: u32) -> u64 {
    count.saturating_mul(1_u64.checked_shl(bits).unwrap_or(u64::MAX))
}

/// What the file rather looks like.
fn hint(head: &[u8]) -> &'static str {
    match head {
        [0x1f, 0x8b, ..] => "it is compressed with gzip: unpack it first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed with zstd: unpack it first",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "it is compressed with xz: unpack it first",
        [b'Q', b'F', b'I', 0xfb, ..] => "it is a qcow2 image: convert it with `qemu-img convert -O raw`",
        [0x7f, b'E', b'L', b'F', ..] => "it is a program",
        _ if head.get(257..262) == Some(b"ustar") => "it is a tar archive: unpack it and name the directory",
        _ if head.get(510..512) == Some(&[0x55, 0xaa]) => "it has a partition table: only whole file systems are taken",
        _ => "it looks like nothing in particular",
    }
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES];
        for (at, part) in parts {
            bytes[*at..*at + part.len()].copy_from_slice(part);
        }
        bytes
    }

    fn erofs(blocks: u32) -> Vec<u8> {
        head(&[(1024, &0xe0f5_e1e2_u32.to_le_bytes()), (1036, &[12]), (1060, &blocks.to_le_bytes())])
    }

    #[test]
    fn each_file_system_is_known_by_its_superblock() {
        assert_eq!(identify(&erofs(2), 8192), Ok(FileSystem::Erofs));
        let ext4 = head(&[(1080, &[0x53, 0xef]), (1028, &8_u32.to_le_bytes()), (1048, &2_u32.to_le_bytes())]);
        assert_eq!(identify(&ext4, 32768), Ok(FileSystem::Ext4));
        let squashfs = head(&[(0, b"hsqs"), (40, &4096_u64.to_le_bytes())]);
        assert_eq!(identify(&squashfs, 4096), Ok(FileSystem::Squashfs));
    }

    #[test]
    fn image_cut_short_by_one_byte_is_refused_with_both_sizes() {
        let err = identify(&erofs(2), 8191).unwrap_err();
        assert_eq!(err, Problem::Truncated { file_system: "erofs", stated_bytes: 8192, actual_bytes: 8191 });
        let ext4 = head(&[(1080, &[0x53, 0xef]), (1028, &8_u32.to_le_bytes()), (1048, &2_u32.to_le_bytes())]);
        assert!(identify(&ext4, 32767).is_err());
        assert!(identify(&head(&[(0, b"hsqs"), (40, &4096_u64.to_le_bytes())]), 4095).is_err());
    }

    #[test]
    fn absurd_geometry_is_refused_and_never_a_panic() {
        // 2^9 blocks of 2^63 bytes are 2^72 bytes: what 64 bits of them hold is nothing.
        for (blocks, bits) in [(u32::MAX, 255), (1 << 9, 63), (1, 64)] {
            let mut wild = erofs(blocks);
            wild[1036] = bits;
            assert!(identify(&wild, 1 << 40).is_err(), "{blocks} blocks of 2^{bits}");
        }
        let ext4 = head(&[(1080, &[0x53, 0xef]), (1028, &[0xff; 4]), (1048, &[0xff; 4])]);
        assert!(identify(&ext4, 4096).is_err());
    }

    #[test]
    fn other_files_are_refused_with_what_they_look_like() {
        let tar = head(&[(257, b"ustar")]);
        let disk = head(&[(510, &[0x55, 0xaa])]);
        for (bytes, expect) in [
            (&b"\x1f\x8b\x08"[..], "gzip"),
            (b"QFI\xfb", "qcow2"),
            (b"\x7fELF", "program"),
            (&tar, "tar archive"),
            (&disk, "partition table"),
            (b"", "nothing in particular"),
        ] {
            let text = identify(bytes, bytes.len() as u64).unwrap_err().to_string();
            assert!(text.contains(expect), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..HEAD_BYTES), size: u64) {
            let _ = identify(&bytes, size);
        }

        #[test]
        fn any_superblock_with_a_good_magic_is_judged_without_panic(tail in prop::collection::vec(any::<u8>(), 64), size: u64) {
            let mut bytes = head(&[(1028, &tail[4..])]);
            bytes[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
            let _ = identify(&bytes, size);
            bytes[1024..1028].copy_from_slice(&[0; 4]);
            bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
            let _ = identify(&bytes, size);
        }
    }
}
