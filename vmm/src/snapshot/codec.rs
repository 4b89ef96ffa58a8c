// SPDX-License-Identifier: Apache-2.0
//! Numbers and structures of a state file: little-endian, without padding, every list behind its
//! length. Reading never allocates more than the bytes that are there.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What is wrong with a state's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They end inside something.
    #[error("it ends inside {what}, {missing} bytes short")]
    Short {
        /// What was being read.
        what: &'static str,
        /// How many bytes are missing.
        missing: usize,
    },
    /// A number outside its range.
    #[error("{what} is {value}; accepted: at most {max}")]
    Range {
        /// What was being read.
        what: &'static str,
        /// The number.
        value: u64,
        /// The largest accepted.
        max: u64,
    },
    /// Bytes that belong to nothing.
    #[error("{left} bytes follow its end")]
    Trailing {
        /// How many.
        left: usize,
    },
}

/// Appends to a state.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A structure of KVM's, as it lies in memory: its layout is part of the kernel's interface.
    pub fn plain(&mut self, value: &(impl IntoBytes + Immutable)) {
        self.0.extend_from_slice(value.as_bytes());
    }

    /// A number.
    pub fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A number.
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A number.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Yes or no, as a byte.
    pub fn bool(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    /// Bytes whose length the reader knows.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The length of a list; its items follow.
    pub fn count(&mut self, count: usize) {
        // No list of a machine comes near 2^32.
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

/// Reads a state from its beginning.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn bytes(&mut self, what: &'static str, len: usize) -> Result<&'a [u8], CodecError> {
        let Some((head, rest)) = self.0.split_at_checked(len) else {
            return Err(CodecError::Short { what, missing: len.saturating_sub(self.0.len()) });
        };
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        let bytes = self.bytes(what, N)?;
        bytes.try_into().map_err(|_| CodecError::Short { what, missing: N })
    }

    /// A structure of KVM's. Any bytes are one.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn plain<T: FromBytes>(&mut self, what: &'static str) -> Result<T, CodecError> {
        let bytes = self.bytes(what, size_of::<T>())?;
        T::read_from_bytes(bytes).map_err(|_| CodecError::Short { what, missing: size_of::<T>() })
    }

    /// A number.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn u16(&mut self, what: &'static str) -> Result<u16, CodecError> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// A number.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// A number.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Yes or no.
    ///
    /// # Errors
    /// [`CodecError::Short`]; [`CodecError::Range`] for any other byte.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.array::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(CodecError::Range { what, value: u64::from(other), max: 1 }),
        }
    }

    /// The length of a list, at most `max`.
    ///
    /// # Errors
    /// [`CodecError::Short`], [`CodecError::Range`].
    pub fn count(&mut self, what: &'static str, max: usize) -> Result<usize, CodecError> {
        let value = self.u32(what)?;
        let count = usize::try_from(value).ok().filter(|count| *count <= max);
        count.ok_or(CodecError::Range { what, value: u64::from(value), max: max as u64 })
    }

    /// A list of at most `max` items.
    ///
    /// # Errors
    /// [`CodecError`]; the first of an item's.
    pub fn list<T>(
        &mut self,
        what: &'static str,
        max: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        let count = self.count(what, max)?;
        (0..count).map(|_| item(self)).collect()
    }

    /// That nothing is left.
    ///
    /// # Errors
    /// [`CodecError::Trailing`].
    pub fn finish(self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Trailing { left: self.0.len() }) }
    }
}
