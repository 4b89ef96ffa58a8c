// SPDX-License-Identifier: Apache-2.0
//! Copy-on-write: a base that never changes, and a store for the pages that did.
//!
//! A page is read from where [`PageMap`] says it is. A page that is not [`PageState::Data`] is
//! always written whole, composed from its old content, so a store never holds half a page. A
//! page changes state only after the store has taken it: a write that fails loses nothing.
//!
//! What the store is made of is its own business: [`super::overlay_memory`],
//! [`super::overlay_file`].

use std::ops::Range;

use vm_memory::VolatileSlice;

use super::page_map::{PAGE_BYTES, PageMap, PageState};
use super::{Disk, DiskError, Layer, Pages, check_range};
use crate::virtio::vectored::{self, Rest};

const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE_BYTES);

static ZEROS: [u8; PAGE_LEN] = [0; PAGE_LEN];

/// Where changed pages are kept; offsets are those of the disk.
pub trait Store: Send {
    /// Fills `into` with what was written at `offset`; only pages written whole are asked for.
    ///
    /// # Errors
    /// [`DiskError::Shrunk`], [`DiskError::Io`].
    fn read(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError>;

    /// Keeps `from` at `offset`.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    fn write(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError>;

    /// Frees whole pages; they are written whole before they are read again.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    fn release(&mut self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Makes what was written durable, then the map that points at it.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    fn sync(&mut self, map: &mut PageMap) -> Result<(), DiskError>;

    /// The pages for a twin; `None` when they belong to one process only.
    fn pages(&self) -> Option<&dyn Pages> {
        None
    }
}

/// A writable disk over a base.
pub struct Overlay<S> {
    base: Box<dyn Disk>,
    len_bytes: u64,
    map: PageMap,
    cap_pages: u64,
    store: S,
    /// Old and new content of a page while it is put together.
    scratch: Box<[u8; PAGE_LEN]>,
}

impl<S: Store> Overlay<S> {
    /// An overlay whose `store` holds the pages that `map` says; `cap_bytes` bounds the storage
    /// it may use.
    #[must_use]
    pub fn new(base: Box<dyn Disk>, map: PageMap, cap_bytes: u64, store: S) -> Self {
        let len_bytes = base.len_bytes();
        Self { base, len_bytes, map, cap_pages: cap_bytes / PAGE_BYTES, store, scratch: Box::new([0; PAGE_LEN]) }
    }

    /// Storage in use, in bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.map.data_pages() * PAGE_BYTES
    }

    /// First and last byte of `page` on the disk, whose last page may be short.
    fn page_span(&self, page: u64) -> Range<u64> {
        let start = page * PAGE_BYTES;
        start..(start + PAGE_BYTES).min(self.len_bytes)
    }

    /// The pages that lie in `offset..end` with all their bytes.
    fn whole_pages(&self, offset: u64, end: u64) -> Range<u64> {
        let first = offset.div_ceil(PAGE_BYTES);
        let last = if end == self.len_bytes { end.div_ceil(PAGE_BYTES) } else { end / PAGE_BYTES };
        first..last.max(first)
    }

    /// Refuses a request that would bring more pages into the store than the cap allows.
    fn reserve(&self, new_pages: u64) -> Result<(), DiskError> {
        if self.map.data_pages() + new_pages <= self.cap_pages {
            return Ok(());
        }
        Err(DiskError::NoSpace {
            needed_bytes: new_pages * PAGE_BYTES,
            used_bytes: self.used_bytes(),
            cap_bytes: self.cap_pages * PAGE_BYTES,
        })
    }

    /// Hands the next bytes of `rest` to the store, as `at..stop`.
    fn store(&mut self, at: u64, stop: u64, rest: &mut Rest<'_>) -> Result<(), DiskError> {
        let mut at = at;
        while at < stop {
            let piece = rest.take(usize_of(stop - at));
            self.store.write(at, &piece)?;
            at += piece.len_bytes() as u64;
        }
        Ok(())
    }

    /// Writes the next bytes of `rest` as `at..stop`, which is a part of `page`.
    fn write_in_page(&mut self, page: u64, at: u64, stop: u64, rest: &mut Rest<'_>) -> Result<(), DiskError> {
        let state = self.map.get(page);
        if state == PageState::Data {
            return self.store(at, stop, rest);
        }
        let span = self.page_span(page);
        let content = &mut self.scratch[..usize_of(span.end - span.start)];
        if state == PageState::Base {
            self.base.read_at(span.start, &[VolatileSlice::from(&mut *content)])?;
        } else {
            content.fill(0);
        }
        let mut part = &mut content[usize_of(at - span.start)..usize_of(stop - span.start)];
        while !part.is_empty() {
            for slice in rest.take(part.len()).iter() {
                let copied = slice.copy_to(part);
                part = &mut part[copied..];
            }
        }
        self.store.write(span.start, &[VolatileSlice::from(content)])?;
        self.map.set(page..page + 1, PageState::Data);
        Ok(())
    }

    /// Zeroes `at..stop`, which is a part of `page`.
    fn zero_in_page(&mut self, page: u64, at: u64, stop: u64) -> Result<(), DiskError> {
        if self.map.get(page) == PageState::Zero {
            return Ok(());
        }
        let mut zeros = [0; PAGE_LEN];
        let zeros = [VolatileSlice::from(&mut zeros[..usize_of(stop - at)])];
        self.write_in_page(page, at, stop, &mut Rest::new(&zeros))
    }

    /// Reads from one run of pages in the same state.
    fn read_run(&mut self, state: PageState, at: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        match state {
            PageState::Base => self.base.read_at(at, into),
            PageState::Data => self.store.read(at, into),
            PageState::Zero => {
                fill_zeros(into);
                Ok(())
            }
        }
    }

    /// Makes whole pages read as zeros, giving back what they used when `may_free`.
    fn zero_whole_pages(&mut self, pages: Range<u64>, may_free: bool) -> Result<(), DiskError> {
        let mut at = pages.start;
        while at < pages.end {
            let (state, end) = self.map.run(at..pages.end);
            if state == PageState::Data && !may_free {
                for page in at..end {
                    let span = self.page_span(page);
                    self.zero_in_page(page, span.start, span.end)?;
                }
            } else {
                // The state first: a release that fails may already have freed the pages.
                self.map.set(at..end, PageState::Zero);
                if state == PageState::Data {
                    self.store.release(at * PAGE_BYTES, (end - at) * PAGE_BYTES)?;
                }
            }
            at = end;
        }
        Ok(())
    }
}

impl<S: Store> Disk for Overlay<S> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let end = check_range(offset, vectored::total_bytes(into) as u64, self.len_bytes)?;
        let mut rest = Rest::new(into);
        let mut at = offset;
        while at < end {
            let (state, run_end) = self.map.run(at / PAGE_BYTES..end.div_ceil(PAGE_BYTES));
            let stop = (run_end * PAGE_BYTES).min(end);
            if at == offset && stop == end {
                // The usual request lies in one run and needs no cutting.
                return self.read_run(state, at, into);
            }
            let piece = rest.take(usize_of(stop - at));
            self.read_run(state, at, &piece)?;
            at += piece.len_bytes() as u64;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let end = check_range(offset, vectored::total_bytes(from) as u64, self.len_bytes)?;
        if offset == end {
            return Ok(());
        }
        let touched = offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
        let new_pages = touched.end - touched.start - self.map.count_data(touched);
        if new_pages == 0 {
            return self.store.write(offset, from);
        }
        self.reserve(new_pages)?;
        let whole = self.whole_pages(offset, end);
        let mut rest = Rest::new(from);
        let mut at = offset;
        while at < end {
            let page = at / PAGE_BYTES;
            let last = if whole.contains(&page) { whole.end - 1 } else { page };
            let stop = self.page_span(last).end.min(end);
            if whole.contains(&page) {
                self.store(at, stop, &mut rest)?;
                self.map.set(page..last + 1, PageState::Data);
            } else {
                self.write_in_page(page, at, stop, &mut rest)?;
            }
            at = stop;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.store.sync(&mut self.map)
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        let end = check_range(offset, len, self.len_bytes)?;
        let pages = self.whole_pages(offset, end);
        self.zero_whole_pages(pages, true)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, may_free: bool) -> Result<(), DiskError> {
        let end = check_range(offset, len, self.len_bytes)?;
        let whole = self.whole_pages(offset, end);
        let in_base = |page| !whole.contains(&page) && self.map.get(page) == PageState::Base;
        let edges = [offset / PAGE_BYTES, end.saturating_sub(1) / PAGE_BYTES];
        let new_pages = match edges {
            _ if len == 0 => 0,
            [first, last] if first == last => u64::from(in_base(first)),
            [first, last] => u64::from(in_base(first)) + u64::from(in_base(last)),
        };
        self.reserve(new_pages)?;
        let mut at = offset;
        while at < end {
            let page = at / PAGE_BYTES;
            let last = if whole.contains(&page) { whole.end - 1 } else { page };
            let stop = self.page_span(last).end.min(end);
            if whole.contains(&page) {
                self.zero_whole_pages(page..last + 1, may_free)?;
            } else {
                self.zero_in_page(page, at, stop)?;
            }
            at = stop;
        }
        Ok(())
    }

    fn layer(&self) -> Option<Layer<'_>> {
        let base = self.base.layer()?;
        // A base that was changed itself would need a layer of its own.
        if base.changed.is_some() {
            return None;
        }
        let pages = self.store.pages()?;
        let descriptors = base.descriptors.into_iter().chain(pages.descriptor()).collect();
        Some(Layer { descriptors, changed: Some((&self.map, pages)) })
    }
}

fn fill_zeros(slices: &[VolatileSlice<'_>]) {
    for slice in slices {
        let mut left = *slice;
        while !left.is_empty() {
            left.copy_from(&ZEROS);
            let done = left.len().min(PAGE_LEN);
            let Ok(rest) = left.offset(done) else {
                unreachable!("a slice is passed by at most its length");
            };
            left = rest;
        }
    }
}

/// A length inside one request or page; both fit memory.
fn usize_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
impl<S> Overlay<S> {
    /// The map, for tests that look behind it.
    pub(super) fn map_for_tests(&self) -> &PageMap {
        &self.map
    }

    /// The store, for tests that look behind it.
    pub(super) fn store_for_tests(&self) -> &S {
        &self.store
    }
}
