// SPDX-License-Identifier: Apache-2.0
//! What is wrong with a policy file: all of it at once, each with its place, the value, what is accepted and what to do.

use std::fmt;

use serde::Serialize;

/// Most problems that are told of one file.
pub(crate) const PROBLEMS_MAX: usize = 100;
/// Longest value of a file that is repeated in a problem, in characters.
const VALUE_MAX_CHARS: usize = 80;
/// Longest sentence, in characters.
const SENTENCE_MAX_CHARS: usize = 1000;

/// One thing that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The field, such as `network.rules[0].ports[1]`; empty for the file as a whole.
    pub field: String,
    /// The value as it stands in the file, shortened; empty when there is none.
    pub value: String,
    /// What is wrong with it.
    pub what: String,
    /// What is accepted; empty when that says nothing.
    pub accepted: String,
    /// What to do.
    pub next: String,
}

/// Everything that is wrong with one file; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Problems {
    /// The file or the profile.
    pub origin: String,
    /// In the order of their places.
    pub problems: Vec<Problem>,
    /// How many more there are than are told.
    pub more: usize,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        if !self.value.is_empty() {
            write!(f, "{} ", self.value)?;
        }
        f.write_str(&self.what)?;
        if !self.accepted.is_empty() {
            write!(f, "; accepted: {}", self.accepted)?;
        }
        if !self.next.is_empty() {
            write!(f, "\n  -> {}", self.next)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{}:{problem}", self.origin)?;
        }
        if self.more > 0 {
            write!(f, "\n{}: and {} more", self.origin, self.more)?;
        }
        Ok(())
    }
}

/// A value of the file, fit for a terminal and shortened.
pub(crate) fn shown(text: &str) -> String {
    printable(text, VALUE_MAX_CHARS)
}

/// A sentence with names of others in it, fit for a terminal.
pub(crate) fn sentence(text: &str) -> String {
    printable(text, SENTENCE_MAX_CHARS)
}

fn printable(text: &str, max_chars: usize) -> String {
    let mut printable = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == max_chars {
            printable.push_str("...");
            break;
        }
        if is_plain(c) { printable.push(c) } else { printable.extend(c.escape_unicode()) }
    }
    printable
}

/// Whether a terminal shows `c` as one character in its place: no control characters, none that turn the direction of writing.
pub(crate) fn is_plain(c: char) -> bool {
    const UNSEEN: [std::ops::RangeInclusive<char>; 8] = [
        '\u{ad}'..='\u{ad}',
        '\u{61c}'..='\u{61c}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{feff}'..='\u{feff}',
        '\u{fff9}'..='\u{fffb}',
        '\u{e0000}'..='\u{e0fff}',
    ];
    !c.is_control() && !UNSEEN.iter().any(|range| range.contains(&c))
}

/// Line and column of a byte of a text, both counted from 1.
pub(crate) fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
