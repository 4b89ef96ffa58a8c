// SPDX-License-Identifier: Apache-2.0
//! A small reader for tests, written from the kernel's documentation and not from our structs, so that a mistake in the
//! writer cannot agree with itself. It checks everything it passes and panics on what is wrong.

use std::collections::BTreeMap;

/// What an image says of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) nid: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    pub(crate) rdev: u32,
    /// File content or link target; empty for others.
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All paths of an image, the root as the empty path.
pub(crate) fn walk(image: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    let sb = &image[1024..1024 + 128];
    assert_eq!(u32_at(sb, 0), 0xE0F5_E1E2, "magic");
    assert_eq!(sb[12], 12, "block bits");
    assert_eq!(image.len(), u32_at(sb, 36) as usize * 4096, "blocks");
    let reader = Reader { image, meta: u32_at(sb, 40) as usize * 4096 };
    let root = u64::from(u16_at(sb, 14));
    let mut found = BTreeMap::new();
    reader.directory(root, root, &[], &mut found);
    let inodes: std::collections::BTreeSet<u64> = found.values().map(|entry| entry.nid).collect();
    assert_eq!(u64_at(sb, 16), inodes.len() as u64, "inos");
    found
}

struct Reader<'a> {
    image: &'a [u8],
    meta: usize,
}

impl Reader<'_> {
    fn directory(&self, nid: u64, parent: u64, path: &[u8], found: &mut BTreeMap<Vec<u8>, Found>) {
        let dir = self.inode(nid);
        assert_eq!(dir.mode & 0o170_000, 0o040_000, "directory at {path:?}");
        let entries = split_directory(&dir.data);
        assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0), "names of {path:?} are sorted");
        let mut subdirectories = 0;
        for (name, child, file_type) in entries {
            match name.as_slice() {
                b"." => assert_eq!(child, nid),
                b".." => assert_eq!(child, parent),
                _ => {
                    let full = if path.is_empty() { name } else { [path, b"/", &name].concat() };
                    let entry = self.inode(child);
                    let expected = match entry.mode >> 12 {
                        0o10 => 1,
                        0o4 => 2,
                        0o2 => 3,
                        0o6 => 4,
                        0o1 => 5,
                        0o14 => 6,
                        0o12 => 7,
                        other => panic!("file type {other:o}"),
                    };
                    assert_eq!(file_type, expected, "type of {full:?}");
                    if file_type == 2 {
                        subdirectories += 1;
                        self.directory(child, nid, &full, found);
                    } else {
                        found.insert(full, entry);
                    }
                }
            }
        }
        assert_eq!(dir.links, 2 + subdirectories, "links of {path:?}");
        found.insert(path.to_vec(), Found { data: Vec::new(), ..dir });
    }

    fn inode(&self, nid: u64) -> Found {
        let at = self.meta + usize::try_from(nid).unwrap() * 32;
        let raw = &self.image[at..at + 64];
        let (format, icount, size) = (u16_at(raw, 0), u16_at(raw, 2), usize::try_from(u64_at(raw, 8)).unwrap());
        assert_eq!(format & 1, 1, "extended inode");
        let xattr_len = if icount == 0 { 0 } else { 12 + 4 * (usize::from(icount) - 1) };
        let body = at + 64;
        let mode = u32::from(u16_at(raw, 4));
        let (address, has_data) = (u32_at(raw, 16), matches!(mode >> 12, 0o10 | 0o4 | 0o12));
        let data = match format >> 1 {
            _ if !has_data => Vec::new(),
            0 if size == 0 => Vec::new(),
            0 => self.image[address as usize * 4096..][..size].to_vec(),
            2 => {
                let whole = (size.div_ceil(4096) - 1) * 4096;
                let tail = &self.image[body + xattr_len..][..size - whole];
                assert_eq!(
                    (body + xattr_len) / 4096,
                    (body + xattr_len + tail.len() - 1) / 4096,
                    "tail crosses a block"
                );
                [&self.image[address as usize * 4096..][..if whole == 0 { 0 } else { whole }], tail].concat()
            }
            other => panic!("layout {other}"),
        };
        Found {
            nid,
            mode,
            uid: u32_at(raw, 24),
            gid: u32_at(raw, 28),
            mtime: (i64::from_le_bytes(raw[32..40].try_into().unwrap()), u32_at(raw, 40)),
            links: u32_at(raw, 44),
            rdev: if has_data { 0 } else { address },
            data,
            xattrs: xattrs(&self.image[body..body + xattr_len]),
        }
    }
}

fn split_directory(data: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
    let mut entries = Vec::new();
    for block in data.chunks(4096) {
        let count = usize::from(u16_at(block, 8)) / 12;
        assert!(count > 0, "a directory block holds an entry");
        for index in 0..count {
            let start = usize::from(u16_at(block, index * 12 + 8));
            let end = if index + 1 < count {
                usize::from(u16_at(block, index * 12 + 20))
            } else {
                block[start..].iter().position(|byte| *byte == 0).map_or(block.len(), |len| start + len)
            };
            assert!((1..=255).contains(&(end - start)), "name length");
            entries.push((block[start..end].to_vec(), u64_at(block, index * 12), block[index * 12 + 10]));
        }
    }
    entries
}

fn xattrs(body: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut at = 12;
    while at < body.len() {
        let (name_len, space, value_len) = (usize::from(body[at]), body[at + 1], usize::from(u16_at(body, at + 2)));
        let prefix: &[u8] = match space {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            other => panic!("name space {other}"),
        };
        let name = &body[at + 4..][..name_len];
        found.insert([prefix, name].concat(), body[at + 4 + name_len..][..value_len].to_vec());
        at += (4 + name_len + value_len).next_multiple_of(4);
    }
    found
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
