// SPDX-License-Identifier: Apache-2.0
//! The path of a request, as rules are held against it: one spelling, or none when servers could read it differently.

/// A path without its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Path {
    /// Every server reads it the same; characters that need no percent sign have none.
    Clear(String),
    /// Servers differ, and why.
    Ambiguous(&'static str),
}

impl Path {
    /// Reads the path of a request line; what is after `?` does not count.
    pub(crate) fn read(target: &str) -> Self {
        let raw = target.split_once('?').map_or(target, |(path, _)| path);
        let path = match decode(raw) {
            Ok(path) => path,
            Err(why) => return Self::Ambiguous(why),
        };
        if !path.starts_with('/') {
            return Self::Ambiguous("does not begin with /");
        }
        if path.contains("//") {
            return Self::Ambiguous("has an empty segment");
        }
        // Some servers drop what follows a semicolon before they look for dots.
        let dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
        if path.split('/').any(dots) {
            return Self::Ambiguous("has a dot segment");
        }
        Self::Clear(path)
    }
}

/// Percent signs taken off characters that need none (RFC 3986 §2.3); anything that a second reader could see differently refused.
fn decode(raw: &str) -> Result<String, &'static str> {
    let mut path = String::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits =
                    [rest.next(), rest.next()].map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16)));
                let [Some(high), Some(low)] = digits else { return Err("has a percent sign that encodes nothing") };
                match char::from_u32(high * 16 + low) {
                    Some(c) if c.is_ascii_alphanumeric() || "-._~".contains(c) => path.push(c),
                    Some('/' | '\\' | '%' | '\0'..='\u{1f}' | '\u{7f}') => {
                        return Err("has an encoded slash, backslash, percent sign or control character");
                    }
                    _ => path.push_str(&format!("%{high:X}{low:X}")),
                }
            }
            b'\\' => return Err("has a backslash"),
            b'#' => return Err("has a fragment"),
            0x21..=0x7e => path.push(char::from(byte)),
            _ => return Err("has a blank, a control character or one beyond ASCII"),
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
