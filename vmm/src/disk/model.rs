// SPDX-License-Identifier: Apache-2.0
//! What an overlay should do, as a plain array of bytes, for tests of every store.

use proptest::prelude::*;
use vm_memory::VolatileSlice;

use super::fake::FakeBase;
use super::{Disk, DiskError};

const PAGE: usize = 4096;

/// One request.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Read { at: usize, len: usize, cut: usize },
    Write { at: usize, len: usize, fill: u8, cut: usize },
    Discard { at: usize, len: usize },
    WriteZeroes { at: usize, len: usize, may_free: bool },
    Flush,
}

/// Requests on a disk of `disk_len` bytes: most near page borders, some long, all inside.
pub(super) fn any_op(disk_len: usize) -> impl Strategy<Value = Op> {
    let place = (0..disk_len, prop::sample::select(vec![1, 512, 4096]), 0_usize..3 * PAGE, 0_u8..20).prop_map(
        move |(at, align, len, long)| {
            let at = at / align * align;
            let len = if long == 0 { disk_len } else { len / align * align };
            (at, len.min(disk_len - at))
        },
    );
    let cut = prop::sample::select(vec![usize::MAX, 1, 100, 512, 4096, 5000]);
    (place, cut, 1_u8..=255, any::<bool>(), 0..10).prop_map(|((at, len), cut, fill, may_free, kind)| match kind {
        0..=2 => Op::Read { at, len, cut },
        3..=6 => Op::Write { at, len, fill, cut },
        7 => Op::Discard { at, len },
        8 => Op::WriteZeroes { at, len, may_free },
        _ => Op::Flush,
    })
}

/// Content of a base: no page is like another, none is zero.
pub(super) fn base_content(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i / 512 * 7 + i) % 255).unwrap() | 1).collect()
}

/// A base of these bytes.
pub(crate) fn base_of(bytes: Vec<u8>) -> impl Disk {
    let len_bytes = bytes.len() as u64;
    let fill = move |at: u64, into: &mut [u8]| {
        let at = usize::try_from(at).unwrap();
        into.copy_from_slice(&bytes[at..at + into.len()]);
    };
    FakeBase { len_bytes, fill }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Page {
    Base,
    Zero,
    Data,
}

/// The expected content, the state of every page, and what a crash may leave of every byte.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) bytes: Vec<u8>,
    pages: Vec<Page>,
    cap_pages: usize,
    /// A set of byte values for each byte: those since the last flush.
    possible: Vec<[u64; 4]>,
}

impl Model {
    pub(super) fn new(base: &[u8], cap_bytes: usize) -> Self {
        let mut model = Self {
            bytes: base.to_vec(),
            pages: vec![Page::Base; base.len().div_ceil(PAGE)],
            cap_pages: cap_bytes / PAGE,
            possible: vec![[0; 4]; base.len()],
        };
        model.flushed();
        model
    }

    pub(super) fn used_bytes(&self) -> usize {
        PAGE * self.pages.iter().filter(|page| **page == Page::Data).count()
    }

    /// Bytes of `page` that lie in the request, and whether these are all it has.
    fn part(&self, page: usize, at: usize, len: usize) -> (std::ops::Range<usize>, bool) {
        let span = page * PAGE..((page + 1) * PAGE).min(self.bytes.len());
        let part = at.max(span.start)..(at + len).min(span.end);
        let whole = part == span;
        (part, whole)
    }

    fn touched(at: usize, len: usize) -> std::ops::Range<usize> {
        if len == 0 { 0..0 } else { at / PAGE..(at + len).div_ceil(PAGE) }
    }

    fn fits(&self, new_pages: usize) -> bool {
        self.used_bytes() / PAGE + new_pages <= self.cap_pages
    }

    fn put(&mut self, at: usize, value: u8) {
        self.bytes[at] = value;
        self.possible[at][usize::from(value / 64)] |= 1 << (value % 64);
    }

    /// Does `op` here; false when the cap forbids it.
    pub(super) fn apply(&mut self, op: &Op) -> bool {
        match *op {
            Op::Read { .. } => true,
            Op::Write { at, len, fill, .. } => {
                let touched = Self::touched(at, len);
                let new = touched.clone().filter(|page| self.pages[*page] != Page::Data).count();
                if !self.fits(new) {
                    return false;
                }
                (at..at + len).for_each(|i| self.put(i, pattern(fill, i)));
                touched.for_each(|page| self.pages[page] = Page::Data);
                true
            }
            Op::Discard { at, len } => {
                for page in Self::touched(at, len) {
                    if let (part, true) = self.part(page, at, len) {
                        part.for_each(|i| self.put(i, 0));
                        self.pages[page] = Page::Zero;
                    }
                }
                true
            }
            Op::WriteZeroes { at, len, may_free } => {
                let touched = Self::touched(at, len);
                let is_new = |page: &usize| !self.part(*page, at, len).1 && self.pages[*page] == Page::Base;
                let new = touched.clone().filter(is_new).count();
                // The real thing asks only when it needs something.
                if !self.fits(new) {
                    return false;
                }
                for page in touched {
                    let (part, whole) = self.part(page, at, len);
                    part.for_each(|i| self.put(i, 0));
                    self.pages[page] = match (self.pages[page], whole) {
                        (Page::Data, true) if !may_free => Page::Data,
                        (_, true) | (Page::Zero, false) => Page::Zero,
                        (_, false) => Page::Data,
                    };
                }
                true
            }
            Op::Flush => {
                self.flushed();
                true
            }
        }
    }

    /// From now on only the present content may be found after a crash.
    pub(super) fn flushed(&mut self) {
        for (set, value) in self.possible.iter_mut().zip(&self.bytes) {
            *set = [0; 4];
            set[usize::from(value / 64)] |= 1 << (value % 64);
        }
    }

    /// The first byte that could not have come out of a crash.
    pub(super) fn impossible(&self, found: &[u8]) -> Option<usize> {
        let allowed = |(i, value): (usize, &u8)| self.possible[i][usize::from(value / 64)] >> (value % 64) & 1 == 1;
        found.iter().enumerate().position(|byte| !allowed(byte))
    }
}

fn pattern(fill: u8, at: usize) -> u8 {
    fill ^ u8::try_from(at / 512 % 128).unwrap()
}

/// Does `op` on the disk, with its memory cut into buffers of `cut` bytes; returns what was read.
pub(super) fn run(disk: &mut dyn Disk, op: &Op) -> Result<Vec<u8>, DiskError> {
    let mut memory = match *op {
        Op::Read { len, .. } => vec![0xcc; len],
        Op::Write { at, len, fill, .. } => (at..at + len).map(|i| pattern(fill, i)).collect(),
        _ => Vec::new(),
    };
    match *op {
        Op::Read { at, cut, .. } => {
            let slices: Vec<_> = memory.chunks_mut(cut).map(VolatileSlice::from).collect();
            disk.read_at(at as u64, &slices)?;
        }
        Op::Write { at, cut, .. } => {
            let slices: Vec<_> = memory.chunks_mut(cut).map(VolatileSlice::from).collect();
            disk.write_at(at as u64, &slices)?;
        }
        Op::Discard { at, len } => disk.discard(at as u64, len as u64)?,
        Op::WriteZeroes { at, len, may_free } => disk.write_zeroes(at as u64, len as u64, may_free)?,
        Op::Flush => disk.flush()?,
    }
    Ok(memory)
}

/// All of the disk's content.
pub(super) fn content(disk: &mut dyn Disk) -> Vec<u8> {
    let len = usize::try_from(disk.len_bytes()).unwrap();
    run(disk, &Op::Read { at: 0, len, cut: usize::MAX }).unwrap()
}

/// Does `op` on both and compares outcome and content.
pub(super) fn step(disk: &mut dyn Disk, model: &mut Model, op: &Op) -> Result<(), TestCaseError> {
    let fits = model.apply(op);
    match run(disk, op) {
        Ok(read) => {
            prop_assert!(fits, "the cap was passed");
            if let Op::Read { at, len, .. } = *op {
                prop_assert!(read == model.bytes[at..at + len], "read other bytes than were written");
            }
        }
        Err(DiskError::NoSpace { .. }) => prop_assert!(!fits, "refused below the cap"),
        Err(error) => prop_assert!(false, "{error}"),
    }
    Ok(())
}
