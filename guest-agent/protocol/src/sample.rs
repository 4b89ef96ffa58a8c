// SPDX-License-Identifier: Apache-2.0
//! Test support: any message from a string of random bytes, so that every kind that is added is tested at once.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::field::Item;

/// Choices, taken from random bytes; all zero when they are used up.
pub(crate) struct Source {
    bytes: std::vec::IntoIter<u8>,
}

impl Source {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: bytes.into_iter() }
    }

    fn byte(&mut self) -> u8 {
        self.bytes.next().unwrap_or(0)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (usize::from(self.byte()) << 8 | usize::from(self.byte())) % bound
    }

    fn string(&mut self) -> Vec<u8> {
        let len = self.below(40);
        (0..len).map(|_| self.byte()).collect()
    }
}

/// A value made from random choices.
pub(crate) trait Sample {
    fn sample(source: &mut Source) -> Self;
}

macro_rules! sampled_numbers {
    ($($number:ident)*) => {$(
        impl Sample for $number {
            fn sample(source: &mut Source) -> Self {
                Self::from_le_bytes([(); size_of::<$number>()].map(|()| source.byte()))
            }
        }
    )*};
}
sampled_numbers!(u8 u16 u32 u64 i32 i64);

impl Sample for bool {
    fn sample(source: &mut Source) -> Self {
        source.byte() & 1 == 1
    }
}

impl Sample for [u8; 16] {
    fn sample(source: &mut Source) -> Self {
        [(); 16].map(|()| source.byte())
    }
}

impl Sample for Vec<u8> {
    fn sample(source: &mut Source) -> Self {
        source.string()
    }
}

impl Sample for String {
    fn sample(source: &mut Source) -> Self {
        Self::from_utf8_lossy(&source.string()).into_owned()
    }
}

impl Sample for OsString {
    fn sample(source: &mut Source) -> Self {
        Self::from_vec(source.string())
    }
}

impl Sample for PathBuf {
    fn sample(source: &mut Source) -> Self {
        Self::from(OsString::sample(source))
    }
}

impl<T: Sample> Sample for Option<T> {
    fn sample(source: &mut Source) -> Self {
        bool::sample(source).then(|| T::sample(source))
    }
}

impl<T: Sample + Item> Sample for Vec<T> {
    fn sample(source: &mut Source) -> Self {
        let len = source.below(5);
        (0..len).map(|_| T::sample(source)).collect()
    }
}
