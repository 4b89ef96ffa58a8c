// SPDX-License-Identifier: Apache-2.0
//! The numbers of the EROFS on-disk format (Linux `Documentation/filesystems/erofs.rst`, `fs/erofs/erofs_fs.h`) and the
//! encoders of its fixed records. Each number appears here once; nothing here touches a file.

/// Bytes of a file system block in every image we write (`blkszbits` 12).
pub(crate) const BLOCK_BYTES: usize = 4096;
/// The same as a `u64`, for offsets.
pub(crate) const BLOCK: u64 = 4096;
/// Longest file name (`EROFS_NAME_LEN`).
pub(crate) const NAME_MAX_BYTES: usize = 255;
/// Where the superblock lies in block 0 (`EROFS_SUPER_OFFSET`).
pub(crate) const SUPER_OFFSET: usize = 1024;
/// `EROFS_SUPER_MAGIC_V1`.
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
/// Bytes of an inode slot: a node number counts these from the start of the metadata area.
pub(crate) const SLOT_BYTES: u64 = 32;
/// Bytes of `struct erofs_inode_extended`.
pub(crate) const INODE_BYTES: usize = 64;
/// Bytes of `struct erofs_dirent`.
pub(crate) const DIRENT_BYTES: usize = 12;
/// Bytes of `struct erofs_xattr_ibody_header`.
pub(crate) const XATTR_HEADER_BYTES: usize = 12;

/// `EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME`.
const FEATURE_COMPAT: u32 = 0x1 | 0x2;
/// log2 of [`BLOCK_BYTES`].
const BLOCK_BITS: u8 = 12;
const _: () = assert!(1 << BLOCK_BITS == BLOCK_BYTES && BLOCK_BYTES as u64 == BLOCK);

/// `i_format` of an extended inode whose data lies in whole blocks (`EROFS_INODE_FLAT_PLAIN`).
pub(crate) const FORMAT_PLAIN: u16 = 1;
/// `i_format` of an extended inode whose last partial block follows it (`EROFS_INODE_FLAT_INLINE`).
pub(crate) const FORMAT_INLINE: u16 = 1 | (2 << 1);

/// File type bits of `i_mode` and the `FT_*` number of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileType {
    Regular,
    Directory,
    Char,
    Block,
    Fifo,
    Socket,
    Symlink,
}

impl FileType {
    /// The `S_IFMT` bits.
    pub(crate) fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::Char => 0o020_000,
            Self::Directory => 0o040_000,
            Self::Block => 0o060_000,
            Self::Regular => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }

    /// `FT_*` as in `include/linux/fs_types.h`.
    pub(crate) fn dirent_type(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::Char => 3,
            Self::Block => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }
}

/// What of the superblock differs between images.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SuperBlock {
    pub(crate) root_nid: u16,
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    pub(crate) meta_block: u32,
}

impl SuperBlock {
    /// Block 0 of the image, checksum set.
    ///
    /// | at (from 1024) | bytes | field |
    /// | --- | --- | --- |
    /// | 0 | 4 | magic |
    /// | 4 | 4 | crc32c of the block from 1024 on, this field zero |
    /// | 8 | 4 | feature_compat |
    /// | 12 | 1 | blkszbits |
    /// | 14 | 2 | root_nid |
    /// | 16 | 8 | inos |
    /// | 36 | 4 | blocks |
    /// | 40 | 4 | meta_blkaddr |
    pub(crate) fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let fields = &mut block[SUPER_OFFSET..];
        put(fields, 0, MAGIC.to_le_bytes());
        put(fields, 8, FEATURE_COMPAT.to_le_bytes());
        put(fields, 12, [BLOCK_BITS]);
        put(fields, 14, self.root_nid.to_le_bytes());
        put(fields, 16, self.inodes.to_le_bytes());
        put(fields, 36, self.blocks.to_le_bytes());
        put(fields, 40, self.meta_block.to_le_bytes());
        let checksum = crc32c(fields);
        put(fields, 4, checksum.to_le_bytes());
        block
    }
}

/// An extended inode: the only kind we write, as a compact one has no time of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inode {
    pub(crate) format: u16,
    pub(crate) xattr_count: u16,
    pub(crate) mode: u16,
    pub(crate) size: u64,
    /// First data block, or the encoded device number.
    pub(crate) address: u32,
    pub(crate) number: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    pub(crate) links: u32,
}

impl Inode {
    /// `struct erofs_inode_extended`: i_format 0, i_xattr_icount 2, i_mode 4, i_size 8, i_u 16, i_ino 20, i_uid 24, i_gid 28,
    /// i_mtime 32, i_mtime_nsec 40, i_nlink 44.
    pub(crate) fn encode(&self) -> [u8; INODE_BYTES] {
        let mut inode = [0; INODE_BYTES];
        put(&mut inode, 0, self.format.to_le_bytes());
        put(&mut inode, 2, self.xattr_count.to_le_bytes());
        put(&mut inode, 4, self.mode.to_le_bytes());
        put(&mut inode, 8, self.size.to_le_bytes());
        put(&mut inode, 16, self.address.to_le_bytes());
        put(&mut inode, 20, self.number.to_le_bytes());
        put(&mut inode, 24, self.uid.to_le_bytes());
        put(&mut inode, 28, self.gid.to_le_bytes());
        put(&mut inode, 32, self.mtime_s.to_le_bytes());
        put(&mut inode, 40, self.mtime_ns.to_le_bytes());
        put(&mut inode, 44, self.links.to_le_bytes());
        inode
    }
}

/// `struct erofs_dirent`: nid 0, nameoff 8, file_type 10.
pub(crate) fn dirent(nid: u64, name_offset: u16, file_type: u8) -> [u8; DIRENT_BYTES] {
    let mut entry = [0; DIRENT_BYTES];
    put(&mut entry, 0, nid.to_le_bytes());
    put(&mut entry, 8, name_offset.to_le_bytes());
    put(&mut entry, 10, [file_type]);
    entry
}

/// A device number as `new_encode_dev` of the kernel writes it.
pub(crate) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// CRC-32C as the kernel's `crc32c(~0, ...)`: reflected, no final inversion.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    bytes
        .iter()
        .fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL * (crc & 1))))
}

fn put<const N: usize>(record: &mut [u8], at: usize, bytes: [u8; N]) {
    record[at..at + N].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_agrees_with_the_published_check_value() {
        // RFC 3720 B.4: the check value of "123456789" is 0xE3069283 with the final inversion.
        assert_eq!(crc32c(b"123456789") ^ u32::MAX, 0xE306_9283);
    }

    #[test]
    fn device_numbers_split_the_minor_around_the_major() {
        assert_eq!(device_number(1, 3), 0x103);
        assert_eq!(device_number(8, 0x1_23), 0x0010_0823);
    }
}
