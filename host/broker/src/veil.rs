// SPDX-License-Identifier: Apache-2.0
//! Secrets taken out of what a server answers, before the guest sees it: a server that echoes the credential it was sent must not
//! hand it on. Every spelling is replaced by as many asterisks, so that lengths stay; a stream in which no secret is stays as it is,
//! byte for byte, and nothing is held back but the beginning of what may be one.
//!
//! Not covered: a secret that the server cuts, compresses, enciphers or hashes. Compression is not asked for where a credential goes.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use midge_record::SECRET_MIN_BYTES;

/// The spellings of secrets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Veil(Arc<[Finder<'static>]>);

impl Veil {
    /// For these secrets.
    pub(crate) fn new<S: AsRef<[u8]>>(secrets: impl IntoIterator<Item = S>) -> Self {
        let mut all: Vec<Vec<u8>> = secrets.into_iter().flat_map(|secret| spellings(secret.as_ref())).collect();
        all.sort_by_key(|needle| std::cmp::Reverse(needle.len()));
        all.dedup();
        Self(all.iter().map(|needle| Finder::new(needle).into_owned()).collect())
    }

    /// Whether there is nothing to hide.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Replaces every secret in `text`.
    pub(crate) fn cover(&self, text: &mut [u8]) {
        for finder in self.0.iter() {
            let length = finder.needle().len();
            let mut from = 0;
            while let Some(at) = text.get(from..).and_then(|rest| finder.find(rest)) {
                text[from + at..from + at + length].fill(b'*');
                from += at + length;
            }
        }
    }

    /// Whether a secret is in `text`.
    fn finds(&self, text: &[u8]) -> bool {
        self.0.iter().any(|finder| finder.find(text).is_some())
    }

    /// Bytes at the end of `text` with which a secret may begin.
    fn open(&self, text: &[u8]) -> usize {
        let longest = |finder: &Finder<'_>| {
            let needle = finder.needle();
            let most = (needle.len() - 1).min(text.len());
            (1..=most).rev().find(|length| text.ends_with(&needle[..*length])).unwrap_or(0)
        };
        self.0.iter().map(longest).max().unwrap_or(0)
    }
}

/// How a secret may be written by who echoes it.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let secret = secret.trim_ascii();
    // Shorter ones are refused before a run starts.
    if secret.len() < SECRET_MIN_BYTES {
        return Vec::new();
    }
    let mut json = Vec::new();
    let mut percent = Vec::new();
    for byte in secret {
        match byte {
            b'"' | b'\\' => json.extend([b'\\', *byte]),
            _ => json.push(*byte),
        }
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => percent.push(*byte),
            _ => percent.extend(format!("%{byte:02X}").bytes()),
        }
    }
    vec![secret.to_vec(), json, percent]
}

/// A veil over one stream.
#[derive(Debug)]
pub(crate) struct Veiled {
    veil: Veil,
    held: BytesMut,
}

impl Veiled {
    /// At the beginning of a stream.
    pub(crate) fn new(veil: Veil) -> Self {
        Self { veil, held: BytesMut::new() }
    }

    /// What may be passed on now that `data` has come; may be empty.
    pub(crate) fn push(&mut self, data: Bytes) -> Bytes {
        if self.veil.is_empty() {
            return data;
        }
        let data = if self.held.is_empty() {
            data
        } else {
            self.held.extend_from_slice(&data);
            self.held.split().freeze()
        };
        let open = self.veil.open(&data);
        if open == 0 && !self.veil.finds(&data) {
            return data;
        }
        let mut data = BytesMut::from(data);
        self.veil.cover(&mut data);
        // A part of what is covered now begins nothing any more.
        let open = self.veil.open(&data);
        self.held = data.split_off(data.len() - open);
        data.freeze()
    }

    /// Bytes that are held back.
    pub(crate) fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// Whether none is.
    pub(crate) fn is_drained(&self) -> bool {
        self.held.is_empty()
    }

    /// What was held back, at the end of the stream.
    pub(crate) fn end(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(secrets: &[&str], text: &[u8], cut: usize) -> Vec<u8> {
        let mut veiled = Veiled::new(Veil::new(secrets));
        let mut out: Vec<u8> =
            text.chunks(cut.max(1)).flat_map(|part| veiled.push(Bytes::copy_from_slice(part))).collect();
        out.extend(veiled.end());
        out
    }

    #[test]
    fn a_secret_is_covered_wherever_the_stream_is_cut() {
        let text = b"a: sk-12345678 b: sk-1234567 c: sk%2D12345678 sk-12345678";
        for cut in 1..text.len() + 1 {
            let out = String::from_utf8(run(&["sk-12345678"], text, cut)).unwrap();
            assert_eq!(out, "a: *********** b: sk-1234567 c: sk%2D12345678 ***********", "{cut}");
        }
    }

    #[test]
    fn spellings_are_covered() {
        let out = run(&["pass \"word\""], br#"{"x":"pass \"word\""} pass%20%22word%22"#, 5);
        assert!(!String::from_utf8(out).unwrap().contains("word"));
    }

    #[test]
    fn only_what_may_be_a_secret_is_held_back() {
        let mut veiled = Veiled::new(Veil::new(["sk-12345678"]));
        assert_eq!(veiled.push(Bytes::from_static(b"hello s")), "hello ");
        assert_eq!(veiled.push(Bytes::from_static(b"o long")), "so long");
        assert_eq!(veiled.push(Bytes::from_static(b"sk-")), "");
        assert_eq!(veiled.end(), "sk-");
    }

    proptest! {
        #[test]
        fn no_secret_comes_through_and_lengths_stay(parts in proptest::collection::vec("(aabaabaa|abaabaab|a|b|ab|c)", 0..30), cut in 1usize..20) {
            let (secrets, text) = (["aabaabaa", "abaabaab"], parts.concat());
            let out = run(&secrets, text.as_bytes(), cut);
            prop_assert_eq!(out.len(), text.len());
            let out = String::from_utf8(out).unwrap();
            prop_assert!(secrets.iter().all(|secret| !out.contains(secret)), "{}", out);
        }

        #[test]
        fn what_has_no_secret_is_untouched(text in proptest::collection::vec(any::<u8>(), 0..300), cut in 1usize..40) {
            prop_assert_eq!(run(&["sk-12345678"], &text, cut), text);
        }
    }
}
