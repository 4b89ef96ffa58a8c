// SPDX-License-Identifier: Apache-2.0
//! Body of the fuzz target `erofs`: a tree is written by [`Builder`] and read by the reader of the tests,
//! which was written from the format's documentation. Uses a directory in `$TMPDIR`.

use std::collections::BTreeMap;

use super::reader::{Found, walk};
use super::{Attributes, Builder, Device, NodeId, Xattr};
use crate::image::fuzz::image;

thread_local! {
    static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory");
}

/// What an entry should be: mode with its type, links, data, attributes.
type Expected = (u32, u32, Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>);

fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    taken
}

/// Sizes around the borders of the layouts.
fn size(number: u8) -> usize {
    let near = [0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 9000];
    near.get(usize::from(number)).copied().unwrap_or(usize::from(number) * 16)
}

struct Trees {
    builder: Builder,
    /// What each name is a name of.
    names: BTreeMap<Vec<u8>, usize>,
    expected: Vec<Expected>,
    dirs: Vec<(NodeId, Vec<u8>)>,
    files: Vec<(NodeId, Vec<u8>)>,
}

impl Trees {
    /// One entry of the input; `None` at its end.
    fn add(&mut self, input: &mut &[u8]) -> Option<()> {
        let ([what, place, number, len], rest) = input.split_first_chunk()?;
        *input = rest;
        let name = take(input, usize::from(len & 31)).to_vec();
        let name = if len & 0x80 != 0 { name.repeat(16) } else { name };
        let (parent, above) = self.dirs[usize::from(*place) % self.dirs.len()].clone();
        let path = if above.is_empty() { name.clone() } else { [&above[..], b"/", &name].concat() };
        if self.names.contains_key(&path) {
            return Some(());
        }
        let mode = u32::from(*number) << 4 & 0o7777;
        let xattrs: Vec<Xattr> = (0..usize::from(what >> 6))
            .map(|index| Xattr {
                name: format!("user.{}", "n".repeat(1 + index)).into_bytes(),
                value: take(input, usize::from(what >> 3 & 7)).to_vec(),
            })
            .collect();
        let pairs: BTreeMap<_, _> = xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect();
        let attributes = Attributes { mode, uid: 1, gid: 70_000, mtime_s: -1, mtime_ns: 5, xattrs };
        let data = || (0..size(*number)).map(|at| at.to_le_bytes()[0] ^ number).collect::<Vec<u8>>();
        let is_sound = !matches!(&name[..], b"" | b"." | b"..")
            && name.len() <= 255
            && !name.contains(&0)
            && !name.contains(&b'/');
        let builder = &mut self.builder;
        let (made, kind, data) = match what % 6 {
            0 => (builder.directory(parent, &name, &attributes), 0o4, Vec::new()),
            1 => (builder.symlink(parent, &name, &attributes, &data()), 0o12, data()),
            2 => (builder.device(parent, &name, &attributes, Device::Fifo), 0o1, Vec::new()),
            3 if !self.files.is_empty() => {
                let (node, of) = self.files[usize::from(*number) % self.files.len()].clone();
                if is_sound {
                    builder.link(parent, &name, node).expect("a sound name");
                    let index = self.names[&of];
                    self.expected[index].1 += 1;
                    self.names.insert(path, index);
                }
                return Some(());
            }
            _ => {
                let written = builder.file(parent, &name, &attributes).and_then(|mut file| {
                    data().chunks(1000).try_for_each(|piece| file.write(piece))?;
                    file.end()
                });
                (written, 0o10, data())
            }
        };
        assert_eq!(made.is_ok(), is_sound, "{name:?}");
        let Ok(node) = made else { return Some(()) };
        if kind == 0o4 {
            self.dirs.push((node, path.clone()));
            self.expected[self.names[&above]].1 += 1;
        } else if kind == 0o10 {
            self.files.push((node, path.clone()));
        }
        self.names.insert(path, self.expected.len());
        self.expected.push((kind << 12 | mode, if kind == 0o4 { 2 } else { 1 }, data, pairs));
        Some(())
    }
}

fn tree(mut input: &[u8]) {
    DIR.with(|dir| {
        let path = dir.path().join("image");
        let root = Attributes { mode: 0o755, ..Attributes::default() };
        let builder = Builder::create(&path, &root).expect("a file can be made");
        let top = builder.root();
        let names = BTreeMap::from([(Vec::new(), 0)]);
        let expected = vec![(0o40_755, 2, Vec::new(), BTreeMap::new())];
        let mut trees = Trees { builder, names, expected, dirs: vec![(top, Vec::new())], files: Vec::new() };
        for _ in 0..64 {
            if trees.add(&mut input).is_none() {
                break;
            }
        }
        trees.builder.finish().expect("it can be written");
        let found = walk(&std::fs::read(&path).expect("it was written"));
        let as_expected = |found: Found| (found.mode, found.links, found.data, found.xattrs);
        let found: BTreeMap<_, _> = found.into_iter().map(|(path, entry)| (path, as_expected(entry))).collect();
        for (path, index) in &trees.names {
            assert_eq!(found.get(path), Some(&trees.expected[*index]), "{path:?}");
        }
        assert_eq!(found.len(), trees.names.len());
    });
}

/// Input: which of both (1 byte); then a file for [`image`], or entries: what (1), where (1), size and
/// mode (1), length of the name (1), name, values.
pub fn erofs(data: &[u8]) {
    match data.split_first() {
        Some((0, file)) => image(file),
        Some((_, entries)) => tree(entries),
        None => {}
    }
}
