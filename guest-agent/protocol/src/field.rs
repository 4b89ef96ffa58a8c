// SPDX-License-Identifier: Apache-2.0
//! How single values lie in a payload: the bottom of the protocol.
//!
//! Every value knows how to put itself at the end of a buffer and how to take itself from the front of a
//! [`Payload`]. Nothing here allocates more than the payload holds, reads past its end, or panics.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Why a payload is not what its kind promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The payload ends inside a value.
    #[error("needs {needed} more bytes where {left} are left")]
    Short {
        /// Bytes the next value needs.
        needed: usize,
        /// Bytes that are left in the payload.
        left: usize,
    },
    /// All values were read and bytes remain.
    #[error("{left} bytes remain after the last field")]
    Trailing {
        /// Bytes that remain.
        left: usize,
    },
    /// A byte that selects a variant has no meaning.
    #[error("{what} is {value}, the largest known is {largest}")]
    Tag {
        /// What the byte selects.
        what: &'static str,
        /// The byte as received.
        value: u8,
        /// The largest value with a meaning.
        largest: u8,
    },
    /// A text field that is not UTF-8.
    #[error("a text field is not UTF-8 at byte {valid_up_to}")]
    NotText {
        /// Bytes that are UTF-8.
        valid_up_to: usize,
    },
    /// A list longer than its kind allows.
    #[error("a list has {count} items, at most {limit} are accepted")]
    TooMany {
        /// Items announced.
        count: usize,
        /// Items accepted.
        limit: usize,
    },
}

/// The unread rest of a payload.
#[derive(Debug)]
pub struct Payload<'a> {
    rest: &'a [u8],
}

impl<'a> Payload<'a> {
    /// All of `bytes`, unread.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], FieldError> {
        let Some((head, tail)) = self.rest.split_at_checked(len) else {
            return Err(FieldError::Short { needed: len, left: self.rest.len() });
        };
        self.rest = tail;
        Ok(head)
    }

    /// Bytes after a 32-bit length.
    fn take_block(&mut self) -> Result<&'a [u8], FieldError> {
        let len = u32::take(self)?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`FieldError::Trailing`] when bytes remain.
    pub(crate) fn finish(self) -> Result<(), FieldError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(FieldError::Trailing { left }),
        }
    }
}

/// A value with a place in payloads.
pub trait Field: Sized {
    /// Its fields or values as the byte table shows them; empty for what the table's head explains.
    const LAYOUT: &'static str = "";
    /// Appends the value to `out`.
    fn put(&self, out: &mut Vec<u8>);
    /// Takes the value from the front of `from`.
    ///
    /// # Errors
    /// Whatever [`FieldError`] describes.
    fn take(from: &mut Payload<'_>) -> Result<Self, FieldError>;
}

/// A value that may stand in a list, with the longest list of it that is accepted.
pub trait Item: Field {
    /// Longest list accepted, in items.
    const MAX_ITEMS: usize;
}

macro_rules! numbers {
    ($($number:ident)*) => {$(
        impl Field for $number {
                    fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
                let mut raw = [0; size_of::<$number>()];
                raw.copy_from_slice(from.take(size_of::<$number>())?);
                Ok(Self::from_le_bytes(raw))
            }
        }
    )*};
}
numbers!(u8 u16 u32 u64 i32 i64);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(FieldError::Tag { what: "a flag", value, largest: 1 }),
        }
    }
}

impl Field for [u8; 16] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
        let mut raw = [0; 16];
        raw.copy_from_slice(from.take(16)?);
        Ok(raw)
    }
}

fn put_block(bytes: &[u8], out: &mut Vec<u8>) {
    // A block longer than 32 bits can say exceeds every payload limit, which the frame checks.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).put(out);
    out.extend_from_slice(bytes);
}

impl Field for Vec<u8> {
    fn put(&self, out: &mut Vec<u8>) {
        put_block(self, out);
    }
    fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
        Ok(from.take_block()?.to_vec())
    }
}

impl Field for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_block(self.as_bytes(), out);
    }
    fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
        match str::from_utf8(from.take_block()?) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(FieldError::NotText { valid_up_to: error.valid_up_to() }),
        }
    }
}

impl Field for OsString {
    fn put(&self, out: &mut Vec<u8>) {
        put_block(self.as_bytes(), out);
    }
    fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
        Ok(Self::from_vec(from.take_block()?.to_vec()))
    }
}

impl Field for PathBuf {
    fn put(&self, out: &mut Vec<u8>) {
        put_block(self.as_os_str().as_bytes(), out);
    }
    fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
        OsString::take(from).map(Self::from)
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
        if bool::take(from)? { T::take(from).map(Some) } else { Ok(None) }
    }
}

impl<T: Item> Field for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        for item in self {
            item.put(out);
        }
    }
    fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
        let count = usize::try_from(u32::take(from)?).unwrap_or(usize::MAX);
        if count > T::MAX_ITEMS {
            return Err(FieldError::TooMany { count, limit: T::MAX_ITEMS });
        }
        // No reservation on the word of the sender: the list grows with what is really there.
        let mut items = Self::new();
        for _ in 0..count {
            items.push(T::take(from)?);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken<T: Field>(bytes: &[u8]) -> Result<T, FieldError> {
        let mut payload = Payload::new(bytes);
        let value = T::take(&mut payload)?;
        payload.finish().map(|()| value)
    }

    #[test]
    fn numbers_are_little_endian() {
        assert_eq!(taken::<u32>(&[1, 2, 3, 4]), Ok(0x0403_0201));
        let mut out = Vec::new();
        0x0102_0304_0506_0708_u64.put(&mut out);
        assert_eq!(out, [8, 7, 6, 5, 4, 3, 2, 1]);
    }

    #[test]
    fn a_short_value_says_what_is_missing() {
        assert_eq!(taken::<u32>(&[1, 2, 3]), Err(FieldError::Short { needed: 4, left: 3 }));
        assert_eq!(taken::<Vec<u8>>(&[3, 0, 0, 0, 7]), Err(FieldError::Short { needed: 3, left: 1 }));
    }

    #[test]
    fn a_length_of_four_gibibytes_allocates_nothing() {
        let huge = taken::<Vec<u8>>(&[0xff; 8]);
        assert_eq!(huge, Err(FieldError::Short { needed: 0xffff_ffff, left: 4 }));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert_eq!(taken::<u8>(&[1]), Ok(1));
        assert_eq!(taken::<u8>(&[1, 2]), Err(FieldError::Trailing { left: 1 }));
    }

    #[test]
    fn flags_are_zero_or_one() {
        assert_eq!(taken::<bool>(&[0]), Ok(false));
        assert_eq!(taken::<bool>(&[1]), Ok(true));
        let two = FieldError::Tag { what: "a flag", value: 2, largest: 1 };
        assert_eq!(taken::<bool>(&[2]), Err(two.clone()));
        assert_eq!(taken::<Option<u8>>(&[2, 9]), Err(two));
    }

    #[test]
    fn text_must_be_utf8_but_paths_need_not() {
        let bytes = [2, 0, 0, 0, b'a', 0xff];
        assert_eq!(taken::<String>(&bytes), Err(FieldError::NotText { valid_up_to: 1 }));
        let path = taken::<PathBuf>(&bytes).unwrap();
        assert_eq!(path.as_os_str().as_bytes(), [b'a', 0xff]);
    }

    impl Item for u16 {
        const MAX_ITEMS: usize = 2;
    }

    #[test]
    fn lists_are_bounded_by_their_kind_not_by_the_sender() {
        assert_eq!(taken::<Vec<u16>>(&[2, 0, 0, 0, 1, 0, 2, 0]), Ok(vec![1, 2]));
        let three = [3, 0, 0, 0, 1, 0, 2, 0, 3, 0];
        assert_eq!(taken::<Vec<u16>>(&three), Err(FieldError::TooMany { count: 3, limit: 2 }));
        assert_eq!(taken::<Vec<u16>>(&[2, 0, 0, 0, 1, 0]), Err(FieldError::Short { needed: 2, left: 0 }));
    }
}
