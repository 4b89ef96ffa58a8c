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
