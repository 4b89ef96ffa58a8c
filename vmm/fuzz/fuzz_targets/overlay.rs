// SPDX-License-Identifier: Apache-2.0
//! Any file as an overlay, and any requests on it: what does not belong to its base is refused, what
//! does is read as the table of the format says, written as a plain array of bytes would be, kept
//! below its cap, and found again when it is opened the next time.
//!
//! `./dev fuzz 60 overlay`. Input: sectors of the base (1 byte), the cap in pages (1), changes of the
//! file (1); so many changes of 6 bytes: where (2), how many (1), value (1), of the map only (1), not
//! used (1); then requests of 6 bytes: what (1), first byte (2), number (2), value (1).
#![no_main]

use std::io;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use midge_vmm::disk::fake::FakeBase;
use midge_vmm::disk::overlay::Overlay;
use midge_vmm::disk::overlay_file::Backing;
use midge_vmm::disk::{Disk, DiskError};
use vm_memory::VolatileSlice;

const PAGE: usize = 4096;

/// A file in memory; clones are the same file.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("one thread")
    }
}

impl Backing for Memory {
    /// One slice and at most 5,000 bytes at a time: short transfers are the rule.
    fn read_at(&self, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
        let file = self.lock();
        let rest = usize::try_from(offset).ok().and_then(|at| file.get(at..)).unwrap_or(&[]);
        let Some(slice) = into.first() else { return Ok(0) };
        let count = rest.len().min(slice.len()).min(5000);
        slice.copy_from(&rest[..count]);
        Ok(count)
    }
    fn write_at(&mut self, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
        let Some(slice) = from.first() else { return Ok(0) };
        let mut bytes = vec![0; slice.len().min(5000)];
        slice.copy_to(&mut bytes[..]);
        let (mut file, at) = (self.lock(), usize::try_from(offset).expect("small"));
        if file.len() < at + bytes.len() {
            file.resize(at + bytes.len(), 0);
        }
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let (from, len) = (usize::try_from(offset).expect("small"), usize::try_from(len).expect("small"));
        self.lock()[from..from + len].fill(0xdd);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().len() as u64)
    }
    fn grow(&mut self, len_bytes: u64) -> io::Result<()> {
        self.lock().resize(usize::try_from(len_bytes).expect("small"), 0);
        Ok(())
    }
}

fn base_byte(at: usize) -> u8 {
    (at / 512 * 7 + at) as u8 | 1
}

/// No page of it is like another, none is zero.
fn base(len: usize) -> Box<dyn Disk> {
    let fill = |at: u64, into: &mut [u8]| {
        let at = usize::try_from(at).expect("small");
        into.iter_mut().zip(at..).for_each(|(byte, at)| *byte = base_byte(at));
    };
    Box::new(FakeBase { len_bytes: len as u64, fill })
}

#[derive(Clone, Copy, PartialEq)]
enum Page {
    Base,
    Zero,
    Data,
}

/// The disk as it should be.
struct Model {
    bytes: Vec<u8>,
    pages: Vec<Page>,
    cap_pages: usize,
}

impl Model {
    /// What the format's table says of a file; `None` when its map is none.
    fn of(file: &[u8], len: usize, cap_pages: usize) -> Option<Self> {
        let count = len.div_ceil(PAGE);
        let (map, data) = (&file[PAGE..2 * PAGE], &file[2 * PAGE..]);
        let mut model = Self { bytes: Vec::new(), pages: Vec::new(), cap_pages };
        if map[count.div_ceil(4)..].iter().any(|byte| *byte != 0) {
            return None;
        }
        for page in 0..count.next_multiple_of(4) {
            let state = match map[page / 4] >> (2 * (page % 4)) & 3 {
                0 => Page::Base,
                1 if page < count => Page::Zero,
                2 if page < count => Page::Data,
                _ => return None,
            };
            if page < count {
                model.pages.push(state);
                let span = page * PAGE..(PAGE * (page + 1)).min(len);
                match state {
                    Page::Base => model.bytes.extend(span.map(base_byte)),
                    Page::Zero => model.bytes.resize(span.end, 0),
                    Page::Data => model.bytes.extend(&data[span]),
                }
            }
        }
        Some(model)
    }

    fn used_pages(&self) -> usize {
        self.pages.iter().filter(|page| **page == Page::Data).count()
    }

    /// The part of `page` in `at..end`, and whether that is all of it.
    fn part(&self, page: usize, at: usize, end: usize) -> (std::ops::Range<usize>, bool) {
        let span = page * PAGE..((page + 1) * PAGE).min(self.bytes.len());
        let part = at.max(span.start)..end.min(span.end);
        let is_whole = part == span;
        (part, is_whole)
    }

    /// False when the cap forbids it.
    fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        let touched = if bytes.is_empty() { 0..0 } else { at / PAGE..(at + bytes.len()).div_ceil(PAGE) };
        let new = touched.clone().filter(|page| self.pages[*page] != Page::Data).count();
        if new != 0 && self.used_pages() + new > self.cap_pages {
            return false;
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.pages[touched].fill(Page::Data);
        true
    }

    fn discard(&mut self, at: usize, len: usize) {
        for page in at / PAGE..(at + len).div_ceil(PAGE) {
            if let (part, true) = self.part(page, at, at + len) {
                self.bytes[part].fill(0);
                self.pages[page] = Page::Zero;
            }
        }
    }

    /// False when the cap forbids it.
    fn zero(&mut self, at: usize, len: usize, may_free: bool) -> bool {
        let touched = if len == 0 { 0..0 } else { at / PAGE..(at + len).div_ceil(PAGE) };
        let is_new = |page: &usize| self.pages[*page] == Page::Base && !self.part(*page, at, at + len).1;
        if self.used_pages() + touched.clone().filter(is_new).count() > self.cap_pages {
            return false;
        }
        for page in touched {
            let (part, is_whole) = self.part(page, at, at + len);
            self.bytes[part].fill(0);
            self.pages[page] = match (self.pages[page], is_whole) {
                (Page::Data, true) if !may_free => Page::Data,
                (_, true) | (Page::Zero, false) => Page::Zero,
                (_, false) => Page::Data,
            };
        }
        true
    }
}

fn read(disk: &mut dyn Disk, at: usize, len: usize, cut: usize) -> Vec<u8> {
    let mut bytes = vec![0xcc; len];
    let slices: Vec<_> = bytes.chunks_mut(cut).map(VolatileSlice::from).collect();
    disk.read_at(at as u64, &slices).expect("it is in range");
    bytes
}

fn fits(done: Result<(), DiskError>) -> bool {
    match done {
        Ok(()) => true,
        Err(DiskError::NoSpace { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn request(disk: &mut dyn Disk, model: &mut Model, [what, a0, a1, n0, n1, value]: [u8; 6]) {
    let len = model.bytes.len();
    let align = [1, 512, 4096][usize::from(what / 8) % 3];
    let (at, count) = (usize::from(u16::from_le_bytes([a0, a1])), usize::from(u16::from_le_bytes([n0, n1])));
    let at = at * 2 / align * align % len;
    let count = (count / align * align).min(len - at);
    let cut = [usize::MAX, 1000, 4096, 5000][usize::from(what / 32) % 4];
    match what % 8 {
        0 | 1 => {
            assert!(read(disk, at, count, cut) == model.bytes[at..at + count], "read other bytes than were written")
        }
        2..=4 => {
            let mut bytes: Vec<u8> = (at..at + count).map(|at| value ^ (at / 512) as u8).collect();
            let does_fit = model.write(at, &bytes);
            let slices: Vec<_> = bytes.chunks_mut(cut).map(VolatileSlice::from).collect();
            assert_eq!(fits(disk.write_at(at as u64, &slices)), does_fit);
        }
        5 => {
            model.discard(at, count);
            disk.discard(at as u64, count as u64).expect("it is in range");
        }
        6 => {
            let may_free = value & 1 != 0;
            let does_fit = model.zero(at, count, may_free);
            assert_eq!(fits(disk.write_zeroes(at as u64, count as u64, may_free)), does_fit);
        }
        _ if value < 128 => disk.flush().expect("memory does not fail"),
        _ => {
            let far = len as u64 - at as u64 + 1;
            assert!(matches!(disk.discard(at as u64, far), Err(DiskError::Range { .. })));
            assert!(matches!(disk.write_zeroes(u64::MAX, far, true), Err(DiskError::Range { .. })));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [sectors, cap, changes, data @ ..] = data else { return };
    let len = 512 * (1 + usize::from(*sectors) % 80);
    let cap_pages = usize::from(*cap) % 16;
    let file = Memory::default();
    let open = || Overlay::in_backing(base(len), file.clone(), (cap_pages * PAGE) as u64);
    drop(open().expect("a new file"));
    let (records, _) = data.as_chunks::<6>();
    let (changes, requests) = records.split_at(usize::from(*changes).min(records.len()));
    for [w0, w1, count, value, map_only, _] in changes {
        let (mut bytes, at) = (file.lock(), usize::from(u16::from_le_bytes([*w0, *w1])));
        let at = if map_only % 4 != 0 { PAGE + at % 16 } else { at * 4 };
        let end = (at + 1 + usize::from(*count)).min(bytes.len());
        if at < end {
            bytes[at..end].fill(*value);
        }
    }
    let found = file.lock().clone();
    let whole = Model::of(&found, len, cap_pages);
    let Ok(mut overlay) = open() else {
        let fresh = Memory::default();
        drop(Overlay::in_backing(base(len), fresh.clone(), 0).expect("a new file"));
        assert!(whole.is_none() || found[..40] != fresh.lock()[..40], "a sound file was refused");
        return;
    };
    let mut model = whole.expect("a map with states that do not exist was taken");
    for record in requests.iter().take(200) {
        request(&mut overlay, &mut model, *record);
        assert_eq!(overlay.used_bytes(), (model.used_pages() * PAGE) as u64);
    }
    assert!(read(&mut overlay, 0, len, usize::MAX) == model.bytes, "other bytes than were written");
    overlay.flush().expect("memory does not fail");
    drop(overlay);
    let mut again = open().expect("what we wrote");
    assert!(read(&mut again, 0, len, 4096) == model.bytes, "other bytes than were there before");
});
