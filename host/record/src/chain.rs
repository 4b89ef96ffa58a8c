// SPDX-License-Identifier: Apache-2.0
//! One line of a transcript as bytes: how it is written, what its hash is over, how it is read. No I/O, no clock.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What stands between the hashed bytes of a line and its hash.
const BEFORE_HASH: &str = ",\"hash\":\"";
/// What stands after its hash.
const AFTER_HASH: &str = "\"}";
/// Bytes of a hash in text.
const HASH_DIGITS: usize = 64;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What stands before the first line.
    pub const ZERO: Self = Self([0; 32]);

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads 64 lower-case hexadecimal digits; anything else is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != HASH_DIGITS || digits.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = (char::from(pair[0]).to_digit(16)?, char::from(pair[1]).to_digit(16)?);
            *byte = u8::try_from(high << 4 | low).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a hash has 64 lower-case hexadecimal digits"))
    }
}

/// Who says what a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// The host: it was so.
    Host,
    /// The guest: it says so.
    Guest,
}

/// A line of a transcript. Holding one proves that it is JSON of the right form; that it is in its place is `verify`'s to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its number, from 0.
    pub seq: u64,
    /// Milliseconds since the transcript was opened, by a clock that is never set.
    pub t_ms: u64,
    /// Milliseconds since 1970, by the host's wall clock.
    pub unix_ms: u64,
    /// Who says it.
    pub by: Speaker,
    /// What is said, masked; [`Line::entry`] gives it its type.
    pub entry: Value,
    /// Hash of the line before.
    pub prev: Hash,
    /// Hash of this one.
    pub hash: Hash,
}

/// A line without its hash, in the order in which it is written.
#[derive(Serialize)]
struct Unhashed<'a> {
    seq: u64,
    t_ms: u64,
    unix_ms: u64,
    by: Speaker,
    entry: &'a Value,
    prev: Hash,
}

impl Line {
    /// The entry; none when it is of a later version, or when a masked value hid its kind.
    #[must_use]
    pub fn entry(&self) -> Option<crate::Entry> {
        serde_json::from_value(self.entry.clone()).ok()
    }

    /// The kind of its entry, as it is written.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.entry.get("kind").and_then(Value::as_str).unwrap_or_default()
    }

    /// Writes a line: its bytes with the line feed, and the line with its hash put in.
    pub(crate) fn write(mut self) -> serde_json::Result<(Self, Vec<u8>)> {
        let unhashed = Unhashed {
            seq: self.seq,
            t_ms: self.t_ms,
            unix_ms: self.unix_ms,
            by: self.by,
            entry: &self.entry,
            prev: self.prev,
        };
        let mut bytes = serde_json::to_vec(&unhashed)?;
        bytes.pop();
        self.hash = Hash::of(&bytes);
        bytes.extend_from_slice(format!("{BEFORE_HASH}{}{AFTER_HASH}\n", self.hash).as_bytes());
        Ok((self, bytes))
    }

    /// Reads a line without its line feed, and holds its hash against its bytes.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let line: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("it is no line of a transcript: {error}"))?;
        let tail = BEFORE_HASH.len() + HASH_DIGITS + AFTER_HASH.len();
        let split = bytes.len().checked_sub(tail).filter(|split| bytes[*split..].starts_with(BEFORE_HASH.as_bytes()));
        let Some(split) = split else { return Err("it does not end with its hash".to_owned()) };
        let found = Hash::of(&bytes[..split]);
        if found != line.hash {
            return Err(format!("its hash should be {found}, but it says {}: it was edited", line.hash));
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line() -> Line {
        let entry = json!({"kind": "root", "lines": 3});
        Line { seq: 3, t_ms: 4, unix_ms: 5, by: Speaker::Host, entry, prev: Hash::of(b"x"), hash: Hash::ZERO }
    }

    #[test]
    fn line_reads_as_it_was_written() {
        let (line, bytes) = line().write().unwrap();
        assert_eq!(bytes.last(), Some(&b'\n'));
        assert_eq!(Line::read(&bytes[..bytes.len() - 1]).unwrap(), line);
        assert_eq!(line.entry(), Some(crate::Entry::Root { lines: 3 }));
    }

    #[test]
    fn every_changed_byte_is_found() {
        let (_, bytes) = line().write().unwrap();
        let bytes = &bytes[..bytes.len() - 1];
        for at in 0..bytes.len() {
            for flip in [1, 0x20] {
                let mut edited = bytes.to_vec();
                edited[at] ^= flip;
                assert!(Line::read(&edited).is_err(), "byte {at}: {}", String::from_utf8_lossy(&edited));
            }
        }
    }

    #[test]
    fn form_is_the_documented_one_to_the_byte() {
        let (_, bytes) = line().write().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let before = format!(
            r#"{{"seq":3,"t_ms":4,"unix_ms":5,"by":"host","entry":{{"kind":"root","lines":3}},"prev":"{}""#,
            Hash::of(b"x")
        );
        assert_eq!(text, format!("{before},\"hash\":\"{}\"}}\n", Hash::of(before.as_bytes())));
    }

    #[test]
    fn a_second_hash_or_field_is_refused() {
        let (_, bytes) = line().write().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let text = text.trim_end();
        for edited in [
            text.replacen("{\"seq\"", "{\"hash\":\"\",\"seq\"", 1),
            text.replacen("{\"seq\"", "{\"more\":1,\"seq\"", 1),
            format!("{text} "),
            text.to_uppercase(),
            String::new(),
            "[]".to_owned(),
        ] {
            assert!(Line::read(edited.as_bytes()).is_err(), "{edited}");
        }
    }

    #[test]
    fn hashes_have_one_spelling() {
        let text = Hash::of(b"").to_string();
        assert_eq!(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(Hash::parse(&text), Some(Hash::of(b"")));
        for bad in [&text[1..], &text.to_uppercase(), &text.replace('e', "g"), &text.replace('e', "é")] {
            assert_eq!(Hash::parse(bad), None);
        }
    }
}
