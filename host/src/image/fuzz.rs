// SPDX-License-Identifier: Apache-2.0
//! Part of the fuzz target `erofs`: any file as an image.

use super::FileSystem;
use super::superblock::identify;

/// What is taken has room for what its superblock states. Input: the length (8 bytes), then the file.
pub(crate) fn image(data: &[u8]) {
    let Some((len, file)) = data.split_first_chunk() else { return };
    let (len, head) = (u64::from_le_bytes(*len), &file[..file.len().min(2048)]);
    let word = |at: usize| head.get(at..at + 4).map_or(0, |b| u128::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    let fits = |count: u128, bits: u128| count == 0 || len == u64::MAX || bits < 64 && count << bits <= u128::from(len);
    match identify(head, len) {
        Ok(FileSystem::Erofs) => {
            let bits = head.get(1036).map_or(0, |bits| u128::from(*bits));
            assert!(head.len() < 1064 || fits(word(1060), bits));
        }
        Ok(FileSystem::Ext4) => assert!(head.len() < 1052 || fits(word(1028) * 1024, word(1048))),
        Ok(FileSystem::Squashfs) => assert!(head.len() < 48 || word(40) | word(44) << 32 <= u128::from(len)),
        Err(problem) => assert!(!problem.to_string().contains(char::is_control)),
    }
}
