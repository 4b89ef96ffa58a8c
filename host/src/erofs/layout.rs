// SPDX-License-Identifier: Apache-2.0
//! Where metadata goes: inodes to slots, names to directory blocks. Pure arithmetic on sizes, no file is touched.

use super::spec::{BLOCK, BLOCK_BYTES, DIRENT_BYTES, INODE_BYTES, SLOT_BYTES, XATTR_HEADER_BYTES, dirent};

/// One name of a directory, ready to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirEntry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) nid: u64,
    pub(crate) file_type: u8,
}

/// Gives out slots of the metadata area, in order. Node numbers 0 and 1 are never given: programs take inode 0 for "none".
#[derive(Debug)]
pub(crate) struct Slots {
    next: u64,
}

impl Slots {
    pub(crate) fn new() -> Self {
        Self { next: 2 * SLOT_BYTES }
    }

    /// The offset in the metadata area of a record of `len_bytes` (at most a block), which never crosses a block border:
    /// data that follows its inode must lie in the same block (`erofs_map_blocks_flatmode`).
    pub(crate) fn place(&mut self, len_bytes: u64) -> u64 {
        assert!(len_bytes <= BLOCK, "a record of {len_bytes} bytes is larger than a block");
        let at = self.next.next_multiple_of(SLOT_BYTES);
        let at = if at % BLOCK + len_bytes > BLOCK { at.next_multiple_of(BLOCK) } else { at };
        self.next = at + len_bytes;
        at
    }

    /// Whole blocks used so far, with room for an attribute header behind the last inode: `fsck.erofs` 1.5 reads one there
    /// even when there is none, and takes the end of the image for damage.
    pub(crate) fn blocks(&self) -> u64 {
        (self.next + XATTR_HEADER_BYTES as u64).div_ceil(BLOCK)
    }
}

/// Whether a tail of `tail_bytes` fits behind its inode and attributes.
pub(crate) fn fits_inline(xattr_bytes: usize, tail_bytes: u64) -> bool {
    (INODE_BYTES + xattr_bytes) as u64 + tail_bytes <= BLOCK
}

/// Size of a directory with names of these lengths, in their sorted order.
pub(crate) fn directory_bytes(name_lens: impl Iterator<Item = usize>) -> u64 {
    let (mut whole, mut used) = (0, 0);
    for len in name_lens {
        let needed = (DIRENT_BYTES + len) as u64;
        if used + needed > BLOCK {
            whole += BLOCK;
            used = 0;
        }
        used += needed;
    }
    whole + used
}

/// The directory's bytes for entries sorted by name: in each block first the entries, then the names without separator;
/// every block but the last is filled up with zeroes.
pub(crate) fn encode_directory(entries: &[DirEntry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
        let (block, later) = rest.split_at(entries_in_block(rest));
        let mut name_offset = block.len() * DIRENT_BYTES;
        for entry in block {
            let offset = u16::try_from(name_offset).expect("names start within the block");
            out.extend(dirent(entry.nid, offset, entry.file_type));
            name_offset += entry.name.len();
        }
        block.iter().for_each(|entry| out.extend_from_slice(entry.name));
        rest = later;
    }
    out
}

fn entries_in_block(entries: &[DirEntry<'_>]) -> usize {
    let mut used = 0;
    entries
        .iter()
        .take_while(|entry| {
            used += DIRENT_BYTES + entry.name.len();
            used <= BLOCK_BYTES
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_that_would_cross_a_block_border_starts_the_next_block() {
        let mut slots = Slots::new();
        assert_eq!(slots.place(64), 64);
        assert_eq!(slots.place(BLOCK - 128), 128, "exactly up to the border");
        assert_eq!(slots.place(65), BLOCK);
        assert_eq!(slots.place(64), BLOCK + 96, "slots are 32 bytes");
        assert_eq!(slots.place(BLOCK), 2 * BLOCK);
        assert_eq!(slots.blocks(), 4, "three, and room behind the last inode");
    }

    #[test]
    fn the_metadata_area_goes_on_behind_an_inode_at_the_end_of_a_block() {
        let mut slots = Slots::new();
        slots.place(BLOCK - 64 - XATTR_HEADER_BYTES as u64);
        assert_eq!(slots.blocks(), 1);
        let mut slots = Slots::new();
        slots.place(BLOCK - 64 - XATTR_HEADER_BYTES as u64 + 1);
        assert_eq!(slots.blocks(), 2);
    }

    #[test]
    fn inline_data_ends_at_the_block_border() {
        assert!(fits_inline(0, 4096 - 64));
        assert!(!fits_inline(0, 4096 - 63));
        assert!(!fits_inline(4, 4096 - 64));
    }

    proptest! {
        #[test]
        fn directory_size_is_what_is_encoded(lens in proptest::collection::vec(1usize..=255, 0..400)) {
            let names: Vec<Vec<u8>> = lens.iter().map(|len| vec![b'n'; *len]).collect();
            let entries: Vec<_> = names.iter().map(|name| DirEntry { name, nid: 1, file_type: 1 }).collect();
            prop_assert_eq!(encode_directory(&entries).len() as u64, directory_bytes(lens.iter().copied()));
        }
    }
}
