// SPDX-License-Identifier: Apache-2.0
//! Numbers for tests that look random, the same for the same seed: those here, and by path those of `tests/guest`.

/// A generator, with its seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.roll() % list.len() as u64).unwrap()]
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.roll().is_multiple_of(count)
    }
}
