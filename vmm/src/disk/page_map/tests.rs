// SPDX-License-Identifier: Apache-2.0
//! The map against a plain list of states.

use proptest::prelude::*;

use super::*;

const PAGES: usize = 20_000;

fn state(kind: u8) -> PageState {
    [PageState::Base, PageState::Zero, PageState::Data][usize::from(kind)]
}

proptest! {
    #[test]
    fn map_agrees_with_a_list(sets in prop::collection::vec((0..PAGES, 0_usize..600, 0_u8..3), 0..40)) {
        let mut map = PageMap::new(PAGES as u64);
        let mut list = vec![PageState::Base; PAGES];
        let mut dirty = [false; 2];
        for (start, len, kind) in sets {
            let end = (start + len).min(PAGES);
            map.set(start as u64..end as u64, state(kind));
            list[start..end].fill(state(kind));
            (start..end).for_each(|page| dirty[page / 16384] = true);
        }
        let data = list.iter().filter(|state| **state == PageState::Data).count();
        prop_assert_eq!(map.data_pages(), data as u64);
        let mut at = 0;
        while at < PAGES {
            let (state, end) = map.run(at as u64..PAGES as u64);
            let end = usize::try_from(end).unwrap();
            prop_assert!(list[at..end].iter().all(|other| *other == state));
            prop_assert!(end == PAGES || list[end] != state);
            at = end;
        }
        let marked: Vec<_> = (0..2).filter(|block| dirty[*block]).collect();
        prop_assert_eq!(map.take_dirty(), marked);
        prop_assert!(map.take_dirty().is_empty());

        let mut copy = PageMap::new(PAGES as u64);
        for block in 0..2 {
            prop_assert!(copy.load_block(block, &map.block(block).try_into().unwrap()));
        }
        prop_assert_eq!(&copy.words, &map.words);
        prop_assert_eq!(copy.data_pages(), map.data_pages());
    }
}

#[test]
fn run_stays_inside_its_range() {
    let map = PageMap::new(1000);
    assert_eq!(map.run(5..6), (PageState::Base, 6));
    assert_eq!(map.run(31..40), (PageState::Base, 40));
    assert_eq!(map.run(0..1000), (PageState::Base, 1000));
}

#[test]
fn unknown_state_or_page_beyond_the_end_is_refused() {
    let mut bytes = [0; BLOCK_BYTES];
    bytes[3] = 0b1100_0000;
    assert!(!PageMap::new(100).load_block(0, &bytes), "state 3");
    bytes[3] = 0b1000_0000;
    assert!(PageMap::new(16).load_block(0, &bytes), "page 15 of 16");
    assert!(!PageMap::new(15).load_block(0, &bytes), "page 15 of 15");
    bytes[3] = 0;
    bytes[BLOCK_BYTES - 1] = 1;
    assert!(!PageMap::new(100).load_block(0, &bytes));
}

/// Every range of a map that ends in the middle of a word, in every state, over every kind of neighbourhood.
#[test]
fn every_range_is_set_found_and_counted_as_in_a_list() {
    const PAGES: usize = 70;
    for before in [|_| 0, |page: usize| u8::try_from(page % 3).unwrap(), |page: usize| u8::from(page < 40) * 2] {
        let list: Vec<PageState> = (0..PAGES).map(|page| state(before(page))).collect();
        for start in 0..PAGES {
            for end in start..=PAGES {
                for kind in 0..3 {
                    let mut map = PageMap::new(PAGES as u64);
                    list.iter().zip(0..).for_each(|(state, page)| map.set(page..page + 1, *state));
                    map.set(start as u64..end as u64, state(kind));
                    let now = |page: usize| if (start..end).contains(&page) { state(kind) } else { list[page] };
                    assert!((0..PAGES).all(|page| map.get(page as u64) == now(page)), "{start}..{end}");
                    let data = (0..PAGES).filter(|page| now(*page) == PageState::Data).count() as u64;
                    assert_eq!((map.data_pages(), map.count_data(0..PAGES as u64)), (data, data));
                    let stop = (start + 1..PAGES).find(|page| now(*page) != now(start)).unwrap_or(PAGES);
                    assert_eq!(map.run(start as u64..PAGES as u64), (now(start), stop as u64));
                }
            }
        }
    }
}

/// Every value of every byte around the end of a map: what is taken says nothing of pages that are not there, holds no
/// state that does not exist, and is given back as it was.
#[test]
fn every_byte_of_a_block_is_taken_as_it_is_or_refused() {
    for pages in [1_u64, 3, 4, 5, 31, 32, 33, 63, 64, 65] {
        for at in 0..18 {
            let mut bytes = [0; BLOCK_BYTES];
            for value in 0..=u8::MAX {
                bytes[at] = value;
                let states: Vec<u8> = (0..4).map(|page| value >> (2 * page) & 3).collect();
                let is_there = |page: usize| ((4 * at + page) as u64) < pages;
                let is_sound = (0..4).all(|page| states[page] == 0 || (states[page] < 3 && is_there(page)));
                let mut map = PageMap::new(pages);
                assert_eq!(map.load_block(0, &bytes), is_sound, "{value:#x} at {at} of {pages} pages");
                if is_sound {
                    assert_eq!(map.data_pages(), states.iter().filter(|state| **state == 2).count() as u64);
                    assert_eq!(map.block(0)[..20], bytes[..20]);
                }
            }
        }
    }
}
