// SPDX-License-Identifier: Apache-2.0
//! Secrets taken out of text by their value, however they are written: as they are, percent-encoded, escaped for JSON (any number of
//! times) or for a shell, in hexadecimal, in base64 at any alignment and in either alphabet, wrapped into lines or not.
//!
//! This is for accidents: a server that echoes a header, a tool that prints a token. A secret that somebody cuts into pieces or
//! enciphers is not found; what keeps secrets from a guest is that none is ever given to it.

mod find;

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Map, Value};

use find::{Class, Needle};

/// Shortest secret that can be masked, in bytes. A shorter value is found in ordinary text by chance: masking it would
/// destroy the transcript, and passing it over would leak it. So it is refused before a run starts.
pub const SECRET_MIN_BYTES: usize = 8;
/// Longest secret, in bytes.
const SECRET_MAX_BYTES: usize = 64 << 10;
/// Most secrets of one run.
const SECRETS_MAX: usize = 256;
/// Deepest nesting of an entry that is kept as it is. What is deeper becomes a string with its JSON text: readers have a limit of 128.
const DEPTH_MAX: usize = 100;

/// Why a secret cannot be masked. Nothing of its value is said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It is found in ordinary text by chance.
    #[error(
        "masking secret {number} of the policy in the transcript: it has {len} bytes, and fewer than {SECRET_MIN_BYTES} cannot be \
         told from ordinary text; use a longer one, or none where the server takes any"
    )]
    Short {
        /// Which one, from 1.
        number: usize,
        /// Its bytes, without white space at its ends.
        len: usize,
    },
    /// It is a file, not a secret.
    #[error(
        "masking secret {number} of the policy in the transcript: it has {len} bytes, at most {SECRET_MAX_BYTES} are accepted"
    )]
    Long {
        /// Which one, from 1.
        number: usize,
        /// Its bytes.
        len: usize,
    },
    /// There are too many.
    #[error("masking the secrets of the policy in the transcript: there are more than {SECRETS_MAX}")]
    Many,
}

/// Finds and masks the secrets of one run. Its `Debug` shows none.
#[derive(Default)]
pub struct Masker {
    /// With the number of their secret.
    needles: Vec<(usize, Needle)>,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masker").field("needles", &self.needles.len()).finish()
    }
}

impl Masker {
    /// A masker of `secrets`; white space at their ends is no part of them.
    ///
    /// # Errors
    /// [`SecretError`] for a secret of fewer than [`SECRET_MIN_BYTES`] or too many bytes, and for too many secrets.
    pub fn new<S: AsRef<[u8]>>(secrets: impl IntoIterator<Item = S>) -> Result<Self, SecretError> {
        let mut needles = Vec::new();
        for (index, secret) in secrets.into_iter().enumerate() {
            let (number, secret) = (index + 1, secret.as_ref().trim_ascii());
            match secret.len() {
                _ if number > SECRETS_MAX => return Err(SecretError::Many),
                len @ ..SECRET_MIN_BYTES => return Err(SecretError::Short { number, len }),
                len if len > SECRET_MAX_BYTES => return Err(SecretError::Long { number, len }),
                _ => needles.extend(spellings(secret).into_iter().map(|needle| (number, needle))),
            }
        }
        Ok(Self { needles })
    }

    /// Whether `text` holds a secret.
    #[must_use]
    pub fn finds(&self, text: &str) -> bool {
        self.needles.iter().any(|(_, needle)| needle.find(text.as_bytes(), 0).is_some())
    }

    /// `text` with every secret in it replaced by `[secret N]`; none when there is none in it.
    #[must_use]
    pub fn masked(&self, text: &str) -> Option<String> {
        let mut found: Vec<(Range<usize>, usize)> = Vec::new();
        for (number, needle) in &self.needles {
            let mut from = 0;
            while let Some((at, range)) = needle.find(text.as_bytes(), from) {
                // One byte further, not behind it: matches of one needle may overlap.
                from = at + 1;
                found.push((range, *number));
            }
        }
        if found.is_empty() {
            return None;
        }
        found.sort_by_key(|(range, _)| (range.start, range.end));
        let mut out = String::with_capacity(text.len());
        let (mut copied, mut open) = (0, 0..0);
        for (range, number) in found {
            if range.start >= open.end {
                out += &text[copied..range.start];
                out += &format!("[secret {number}]");
                open = range;
            } else {
                open.end = open.end.max(range.end);
            }
            copied = open.end;
        }
        out += &text[copied..];
        Some(out)
    }

    /// Masks every text, key and number in `value`, and flattens what is nested too deep to be read again.
    pub fn mask(&self, value: &mut Value) {
        self.walk(value, 0);
    }

    /// The same for an entry: the names of its fields and its kind are ours, and stay.
    pub(crate) fn mask_entry(&self, entry: &mut Value) {
        match entry {
            Value::Object(map) => {
                map.iter_mut().filter(|(key, _)| *key != "kind").for_each(|(_, value)| self.walk(value, 1));
            }
            other => self.walk(other, 0),
        }
    }

    fn walk(&self, value: &mut Value, depth: usize) {
        match value {
            Value::String(text) => {
                if let Some(masked) = self.masked(text) {
                    *text = masked;
                }
            }
            Value::Number(number) => {
                if let Some(masked) = self.masked(&number.to_string()) {
                    *value = Value::String(masked);
                }
            }
            Value::Array(_) | Value::Object(_) if depth >= DEPTH_MAX => {
                *value = Value::String(value.to_string());
                self.walk(value, depth);
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.walk(item, depth + 1)),
            Value::Object(map) => {
                if map.keys().any(|key| self.finds(key)) {
                    *map = self.keys(std::mem::take(map));
                }
                map.values_mut().for_each(|item| self.walk(item, depth + 1));
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// The object with masked keys. Keys that become the same are told apart by a number, so that no value is lost.
    fn keys(&self, map: Map<String, Value>) -> Map<String, Value> {
        let mut out = Map::new();
        for (key, value) in map {
            let key = self.masked(&key).unwrap_or(key);
            let mut name = key.clone();
            let mut more = 1;
            while out.contains_key(&name) {
                more += 1;
                name = format!("{key} ({more})");
            }
            out.insert(name, value);
        }
        out
    }
}

/// The ways in which a secret is written.
fn spellings(secret: &[u8]) -> Vec<Needle> {
    let plain = Needle::new(secret.iter().map(|byte| Class::Byte(*byte)).collect(), false);
    let hex = secret.iter().flat_map(|byte| format!("{byte:02x}").into_bytes());
    let mut all = vec![plain, Needle::new(hex.map(Class::Hex).collect(), true)];
    all.extend((0..3).map(|before| base64_at(secret, before)));
    if let Some(text) = std::str::from_utf8(secret).ok().filter(|text| !text.is_ascii()) {
        let unit = |unit: u16| u8::try_from(unit).ok().filter(u8::is_ascii).map_or(Class::Unit(unit), Class::Byte);
        all.push(Needle::new(text.encode_utf16().map(unit).collect(), false));
    }
    all
}

/// The digits of base64 that nothing but `secret` decides, when `before` bytes (modulo 3) stand before it; the digits at its
/// ends, which hold a few of its bits, are masked with them.
fn base64_at(secret: &[u8], before: usize) -> Needle {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(secret);
    let digits = STANDARD_NO_PAD.encode(&bytes).into_bytes();
    let first = [0, 2, 3][before];
    let shared_end = usize::from(!bytes.len().is_multiple_of(3));
    let sure = digits[first..digits.len() - shared_end].iter().map(|digit| Class::Base64(*digit)).collect();
    Needle::new(sure, true).with_shared(usize::from(before != 0), shared_end)
}

#[cfg(test)]
mod tests;
