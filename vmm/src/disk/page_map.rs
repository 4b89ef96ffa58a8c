// SPDX-License-Identifier: Apache-2.0
//! Which page of an overlay lives where: two bits a page.
//!
//! Pure bookkeeping. The words are also the on-disk form of a file overlay (little endian,
//! [`BLOCK_BYTES`] at a time), so the encoding may not change without a new file version.

use std::ops::Range;

/// Bytes of a page: the unit in which an overlay keeps what changed.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes of the map that are written out together.
pub const BLOCK_BYTES: usize = 4096;

const PAGES_PER_WORD: u64 = 32;
const WORDS_PER_BLOCK: usize = BLOCK_BYTES / size_of::<u64>();
/// Bit 0 of each of the 32 pages of a word.
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// Where the content of a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// In the base.
    Base = 0,
    /// Nowhere: it reads as zeros.
    Zero = 1,
    /// In the overlay's store, whole.
    Data = 2,
}

impl PageState {
    fn from_bits(bits: u64) -> Self {
        match bits {
            0 => Self::Base,
            1 => Self::Zero,
            _ => Self::Data,
        }
    }
}

/// The state of every page of a disk, all [`PageState::Base`] at first.
#[derive(Debug)]
pub struct PageMap {
    words: Vec<u64>,
    pages: u64,
    data_pages: u64,
    /// One flag a block: changed since it was last taken by [`Self::take_dirty`].
    dirty: Vec<bool>,
}

impl PageMap {
    /// A map of `pages` pages.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        let blocks = Self::block_count(pages);
        // Zeroed memory is only touched where a page changes.
        Self { words: vec![0; blocks * WORDS_PER_BLOCK], pages, data_pages: 0, dirty: vec![false; blocks] }
    }

    /// Blocks that a map of `pages` pages fills.
    #[must_use]
    pub fn block_count(pages: u64) -> usize {
        let per_block = PAGES_PER_WORD * WORDS_PER_BLOCK as u64;
        usize::try_from(pages.div_ceil(per_block)).unwrap_or(usize::MAX)
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Number of pages in state [`PageState::Data`].
    #[must_use]
    pub fn data_pages(&self) -> u64 {
        self.data_pages
    }

    /// The state of `page`.
    #[must_use]
    pub fn get(&self, page: u64) -> PageState {
        let (word, shift) = place(page);
        PageState::from_bits(self.words[word] >> shift & 3)
    }

    /// The state of the first page of `range` and the first page after it, within `range`, that
    /// differs.
    #[must_use]
    pub fn run(&self, range: Range<u64>) -> (PageState, u64) {
        let state = self.get(range.start);
        let filled = LOW_BITS * state as u64;
        let mut page = range.start + 1;
        while page < range.end {
            if page.is_multiple_of(PAGES_PER_WORD) && self.words[place(page).0] == filled {
                page += PAGES_PER_WORD;
            } else if self.get(page) == state {
                page += 1;
            } else {
                break;
            }
        }
        (state, page.min(range.end))
    }

    /// How many pages of `range` are in state [`PageState::Data`].
    #[must_use]
    pub fn count_data(&self, range: Range<u64>) -> u64 {
        let mut count = 0;
        let mut at = range.start;
        while at < range.end {
            let (state, end) = self.run(at..range.end);
            if state == PageState::Data {
                count += end - at;
            }
            at = end;
        }
        count
    }

    /// Puts every page of `range` into `state`.
    pub fn set(&mut self, range: Range<u64>, state: PageState) {
        self.data_pages -= self.count_data(range.clone());
        if state == PageState::Data {
            self.data_pages += range.end - range.start;
        }
        let mut page = range.start;
        while page < range.end {
            let (word, shift) = place(page);
            if shift == 0 && range.end - page >= PAGES_PER_WORD {
                self.words[word] = LOW_BITS * state as u64;
                page += PAGES_PER_WORD;
            } else {
                self.words[word] = self.words[word] & !(3 << shift) | (state as u64) << shift;
                page += 1;
            }
            self.dirty[word / WORDS_PER_BLOCK] = true;
        }
    }

    /// The blocks that changed, which count as unchanged from now on.
    pub fn take_dirty(&mut self) -> Vec<usize> {
        let dirty = self.dirty.iter_mut().enumerate();
        dirty.filter_map(|(block, flag)| std::mem::take(flag).then_some(block)).collect()
    }

    /// The on-disk form of one block.
    #[must_use]
    pub fn block(&self, block: usize) -> Vec<u8> {
        let words = self.words.iter().skip(block * WORDS_PER_BLOCK).take(WORDS_PER_BLOCK);
        words.flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Takes the on-disk form of one block; false when it holds a state that does not exist or
    /// says something of pages beyond the end: the file is damaged or hostile.
    #[must_use]
    pub fn load_block(&mut self, block: usize, bytes: &[u8; BLOCK_BYTES]) -> bool {
        let first_word = block * WORDS_PER_BLOCK;
        for (i, chunk) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*chunk);
            let first_page = (first_word + i) as u64 * PAGES_PER_WORD;
            let inside = self.pages.saturating_sub(first_page).min(PAGES_PER_WORD);
            let beyond = if inside == PAGES_PER_WORD { 0 } else { u64::MAX << (2 * inside) };
            if word & word >> 1 & LOW_BITS != 0 || word & beyond != 0 {
                return false;
            }
            self.words[first_word + i] = word;
            self.data_pages += u64::from((word >> 1 & LOW_BITS).count_ones());
        }
        true
    }
}

/// The word of `page` and the shift of its two bits.
fn place(page: u64) -> (usize, u32) {
    let word = usize::try_from(page / PAGES_PER_WORD).unwrap_or(usize::MAX);
    let shift = 2 * u32::try_from(page % PAGES_PER_WORD).unwrap_or(0);
    (word, shift)
}

#[cfg(test)]
mod tests;
