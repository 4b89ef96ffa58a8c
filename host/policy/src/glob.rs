// SPDX-License-Identifier: Apache-2.0
//! Wildcards for names (`claude-*`) and files (`docs/**`). Each also says whether it holds another: a star of the other is
//! matched by a star only, so "holds" may be denied in doubt, never affirmed.

use std::fmt;
use std::str::FromStr;

use crate::text::{Malformed, text_type};

/// Longest pattern in bytes.
pub(crate) const GLOB_MAX_BYTES: usize = 512;

/// `*` stands for any characters, none included; all else for itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wildcard(String);

/// Paths below the workspace: `*` stands for characters of one segment, a segment `**` for any number of segments.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileGlob(String);

text_type!(Wildcard, "midge-wildcard", "1 to 512 printable characters; * stands for any");
text_type!(
    FileGlob,
    "midge-file-glob",
    "a relative path without . and .. segments; * within a segment, ** for any number of segments"
);

impl Wildcard {
    /// Whether `text` is one of them.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        wild(self.0.as_bytes(), text.as_bytes())
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        wild(self.0.as_bytes(), other.0.as_bytes())
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FileGlob {
    /// Whether `path`, relative to the workspace and with `/` between segments, is one of them, or is below one of them.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        // A file may be called `**`.
        self.takes(path, |_| true)
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.takes(other.0.as_bytes(), |segment| segment != b"**")
    }

    /// Whether it takes the path, or what that is below; a segment that is not `one` is taken by `**` only.
    fn takes(&self, path: &[u8], one: impl Fn(&[u8]) -> bool) -> bool {
        let pattern: Vec<&[u8]> = self.0.split('/').map(str::as_bytes).collect();
        let path: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        (1..=path.len()).any(|depth| segments(&pattern, &path[..depth], &one))
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` matches; a star in `text` is a character that only a star of the pattern takes. Linear but for the last star.
fn wild(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut back) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((star, from)) = back else { return false };
                back = Some((star, from + 1));
                (p, t) = (star + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Whether the segments of a path match; one that is not `one` is taken by `**` of the pattern only.
fn segments(pattern: &[&[u8]], path: &[&[u8]], one: impl Fn(&[u8]) -> bool) -> bool {
    // reached[n]: the pattern so far matches the first n segments.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        for at in 0..=path.len() {
            next[at] = if *part == b"**" {
                reached[at] || (at > 0 && next[at - 1])
            } else {
                at > 0 && reached[at - 1] && one(path[at - 1]) && wild(part, path[at - 1])
            };
        }
        reached = next;
    }
    reached[path.len()]
}

impl FromStr for Wildcard {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.is_empty() || text.len() > GLOB_MAX_BYTES {
            return Err(Malformed::new(format!("is empty, or longer than {GLOB_MAX_BYTES} bytes")));
        }
        if text.chars().any(char::is_control) {
            return Err(Malformed::new("has a control character"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for FileGlob {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Wildcard::from_str(text)?;
        if text.starts_with('/') {
            return Err(Malformed::new("begins with /: it is relative to the workspace"));
        }
        for segment in text.split('/') {
            if matches!(segment, "" | "." | "..") {
                return Err(Malformed::new("has a segment that is empty, . or .."));
            }
            if segment.contains("**") && segment != "**" {
                return Err(Malformed::new("has ** that is not a whole segment"));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Wildcard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for FileGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
