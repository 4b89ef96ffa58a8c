// SPDX-License-Identifier: Apache-2.0
//! The search for one spelling of one secret. Pure; looks at each place of a text once, by its first byte.

use std::ops::Range;

/// Backslashes before one escape that are looked at: more is no encoding of anything.
const SLASHES_MAX: usize = 64;

/// What one digit of a needle matches.
#[derive(Clone, Copy)]
pub(super) enum Class {
    /// This byte.
    Byte(u8),
    /// This hexadecimal digit, in either case. Given in lower case.
    Hex(u8),
    /// This digit of base64, in either alphabet. Given in the standard one.
    Base64(u8),
    /// This unit of UTF-16, escaped.
    Unit(u16),
}

impl Class {
    fn accepts(self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => own == byte,
            Self::Hex(own) => own == byte.to_ascii_lowercase(),
            Self::Base64(b'+') => matches!(byte, b'+' | b'-'),
            Self::Base64(b'/') => matches!(byte, b'/' | b'_'),
            Self::Base64(own) => own == byte,
            Self::Unit(_) => false,
        }
    }

    /// Whether an escape with this value is it.
    fn is(self, value: u32) -> bool {
        match self {
            Self::Unit(own) => u32::from(own) == value,
            _ => u8::try_from(value).is_ok_and(|byte| self.accepts(byte)),
        }
    }
}

/// One spelling of a secret.
pub(super) struct Needle {
    digits: Vec<Class>,
    /// Whether it may be wrapped into lines.
    wrapped: bool,
    /// Digits before and after it that hold some of its bits.
    shared: (usize, usize),
    /// Bytes with which a match can begin.
    first: [bool; 256],
    /// Whether it begins with a backslash of its own.
    slash_first: bool,
}

impl Needle {
    pub(super) fn new(digits: Vec<Class>, wrapped: bool) -> Self {
        let mut first = [false; 256];
        for byte in 0..=u8::MAX {
            let own = digits.first().is_some_and(|digit| digit.accepts(byte));
            first[usize::from(byte)] = own || matches!(byte, b'%' | b'\\');
        }
        let slash_first = digits.first().is_some_and(|digit| digit.accepts(b'\\'));
        Self { digits, wrapped, shared: (0, 0), first, slash_first }
    }

    pub(super) fn with_shared(mut self, before: usize, after: usize) -> Self {
        self.shared = (before, after);
        self
    }

    /// Where the first match in `text` at `from` or later begins, and what is to be masked for it, which may begin earlier.
    pub(super) fn find(&self, text: &[u8], from: usize) -> Option<(usize, Range<usize>)> {
        // What begins with an escape begins with its first backslash: a long row of them is looked at once.
        let again = |at: usize| !self.slash_first && at > from && text[at] == b'\\' && text[at - 1] == b'\\';
        (from..text.len())
            .filter(|at| self.first[usize::from(text[*at])] && !again(*at))
            .find_map(|at| self.match_at(text, at).map(|end| (at, self.widened(text, at..end))))
    }

    /// The end of a match that begins at `at`. What is escaped can be read in several ways (`\\\\` is two backslashes, or one that is
    /// escaped): all are followed.
    fn match_at(&self, text: &[u8], at: usize) -> Option<usize> {
        let mut now = Places::default();
        now.add(at);
        for (index, digit) in self.digits.iter().enumerate() {
            let mut next = Places::default();
            for at in now.all() {
                let at = if index > 0 && self.wrapped { after_line_break(text, *at) } else { *at };
                step(*digit, text, at, &mut next);
            }
            if next.len == 0 {
                return None;
            }
            now = next;
        }
        now.all().iter().copied().max()
    }

    /// The match up to the ends of characters, and with the digits at its ends that hold some of its bits.
    fn widened(&self, text: &[u8], found: Range<usize>) -> Range<usize> {
        let is_inside = |at: &usize| text[*at] & 0xc0 == 0x80;
        let start = (0..=found.start).rev().find(|at| !is_inside(at)).unwrap_or(0);
        let end = (found.end..text.len()).find(|at| !is_inside(at)).unwrap_or(text.len());
        let is_digit = |at: &usize| text[*at].is_ascii_alphanumeric() || b"+/-_".contains(&text[*at]);
        let before = (0..start).rev().take(self.shared.0).take_while(is_digit).count();
        let after = (end..text.len()).take(self.shared.1).take_while(is_digit).count();
        start - before..end + after
    }
}

/// Places of a text that a match has come to. More ways than fit are not followed: only a secret of little but backslashes and
/// percent signs has so many.
#[derive(Default)]
struct Places {
    at: [usize; Self::MAX],
    len: usize,
}

impl Places {
    /// Places that are kept at once.
    const MAX: usize = 16;

    fn add(&mut self, at: usize) {
        if self.len < Self::MAX && !self.all().contains(&at) {
            self.at[self.len] = at;
            self.len += 1;
        }
    }

    fn all(&self) -> &[usize] {
        &self.at[..self.len]
    }
}

/// Adds every place behind what writes `digit` at `at`: itself, `%xx` (its percent sign encoded any number of times), `\uxxxx`,
/// a shell's `\xxx`, a short escape, `+` for a space. Every escape may have any number of backslashes.
fn step(digit: Class, text: &[u8], at: usize, next: &mut Places) {
    let Some(byte) = text.get(at) else { return };
    if digit.accepts(*byte) {
        next.add(at + 1);
    }
    match byte {
        b'%' => percent(digit, text, at, next),
        b'\\' => escape(digit, text, at, next),
        b'+' if digit.accepts(b' ') => next.add(at + 1),
        _ => {}
    }
}

fn percent(digit: Class, text: &[u8], at: usize, next: &mut Places) {
    let mut at = at + 1;
    while let Some((value, end)) = hex(text, at, 2) {
        if u8::try_from(value).is_ok_and(|byte| digit.accepts(byte)) {
            next.add(end);
        }
        if value != u32::from(b'%') {
            return;
        }
        // `%25` may be the percent sign of one more escape.
        at = end;
    }
}

fn escape(digit: Class, text: &[u8], at: usize, next: &mut Places) {
    let slashes = text[at..].iter().take(SLASHES_MAX).take_while(|byte| **byte == b'\\').count();
    let after = at + slashes;
    let value = match text.get(after) {
        Some(b'u') => hex(text, after + 1, 4),
        Some(b'x') => hex(text, after + 1, 2),
        Some(short) => Some((u32::from(unescaped(*short)), after + 1)),
        None => None,
    };
    if let Some((value, end)) = value
        && digit.is(value)
    {
        next.add(end);
    }
    if digit.accepts(b'\\') {
        // Escaped once or more often: two, four, eight of them.
        (1..usize::BITS)
            .map(|times| 1 << times)
            .take_while(|count| *count <= slashes)
            .for_each(|count| next.add(at + count));
    }
}

/// What a backslash and this byte write.
fn unescaped(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'f' => 12,
        other => other,
    }
}

/// A number of so many hexadecimal digits at `at`, and where it ends.
fn hex(text: &[u8], at: usize, digits: usize) -> Option<(u32, usize)> {
    let all = text.get(at..at + digits)?;
    let value = all.iter().try_fold(0, |value, byte| Some(value << 4 | char::from(*byte).to_digit(16)?))?;
    Some((value, at + digits))
}

/// Behind a line break at `at`, raw or escaped; `at` when there is none.
fn after_line_break(text: &[u8], at: usize) -> usize {
    let mut now = at;
    loop {
        let rest = &text[now..];
        let slashes = rest.iter().take(SLASHES_MAX).take_while(|byte| **byte == b'\\').count();
        now += match rest {
            [b'\r' | b'\n', ..] => 1,
            [b'%', b'0', b'a' | b'A' | b'd' | b'D', ..] => 3,
            _ if slashes > 0 && matches!(rest.get(slashes), Some(b'r' | b'n')) => slashes + 1,
            _ => return now,
        };
    }
}
