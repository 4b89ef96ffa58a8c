// SPDX-License-Identifier: Apache-2.0
//! Paths inside a workspace, and text that is safe to print. A [`RelPath`] is the proof that a path, from whomever it came,
//! names something below the workspace and nothing else; it is made in one place only. Pure: nothing here touches a file.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest path accepted, in bytes (Linux's PATH_MAX without its NUL).
pub const PATH_MAX_BYTES: usize = 4095;
/// Longest name of one entry, in bytes (what Linux file systems and EROFS hold).
pub const NAME_MAX_BYTES: usize = 255;
/// Most components of a path.
pub const DEPTH_MAX: usize = 512;

/// A path relative to the workspace: 1 to 512 components joined by '/', none of them empty, "." or "..", none longer than 255
/// bytes, no NUL, 4,095 bytes at most. Not necessarily UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Box<[u8]>);

/// Why bytes are no [`RelPath`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// No bytes at all.
    #[error("is empty")]
    Empty,
    /// It starts with '/'.
    #[error("is absolute")]
    Absolute,
    /// An empty component: "a//b" or a '/' at the end.
    #[error("has an empty component")]
    EmptyComponent,
    /// A component "." or "..".
    #[error("has a component \".\" or \"..\"")]
    Dots,
    /// A NUL byte.
    #[error("holds a NUL byte")]
    Nul,
    /// A component too long.
    #[error("has a component of {0} bytes; accepted: up to {NAME_MAX_BYTES}")]
    LongName(usize),
    /// Too long as a whole.
    #[error("has {0} bytes; accepted: up to {PATH_MAX_BYTES}")]
    LongPath(usize),
    /// Too many components.
    #[error("has {0} components; accepted: up to {DEPTH_MAX}")]
    Deep(usize),
}

impl RelPath {
    /// Checks `bytes` against every rule of the type.
    ///
    /// # Errors
    /// The [`PathFault`] that is found first.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathFault> {
        match bytes {
            [] => return Err(PathFault::Empty),
            [b'/', ..] => return Err(PathFault::Absolute),
            _ if bytes.len() > PATH_MAX_BYTES => return Err(PathFault::LongPath(bytes.len())),
            _ if bytes.contains(&0) => return Err(PathFault::Nul),
            _ => {}
        }
        let mut depth = 0;
        for component in bytes.split(|byte| *byte == b'/') {
            depth += 1;
            match component {
                [] => return Err(PathFault::EmptyComponent),
                b"." | b".." => return Err(PathFault::Dots),
                _ if component.len() > NAME_MAX_BYTES => return Err(PathFault::LongName(component.len())),
                _ => {}
            }
        }
        if depth > DEPTH_MAX { Err(PathFault::Deep(depth)) } else { Ok(Self(bytes.into())) }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative path of the system.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Its components, at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// The last component.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.components().next_back().unwrap_or(&self.0)
    }

    /// The directory it lies in; `None` for an entry of the top.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let cut = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(Self(self.0[..cut].into()))
    }

    /// All directories above it, the nearest first, without the top.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.parent(), Self::parent)
    }

    /// Whether it lies below the directory `dir`.
    #[must_use]
    pub fn is_below(&self, dir: &Self) -> bool {
        self.0.len() > dir.0.len() && self.0.starts_with(&dir.0) && self.0[dir.0.len()] == b'/'
    }

    /// The path of `name` in the directory `parent` (`None`: the top).
    ///
    /// # Errors
    /// The [`PathFault`] of the joined path.
    pub fn join(parent: Option<&Self>, name: &[u8]) -> Result<Self, PathFault> {
        match parent {
            Some(parent) => Self::parse(&[parent.as_bytes(), b"/", name].concat()),
            None => Self::parse(name),
        }
    }
}

impl Borrow<[u8]> for RelPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// `bytes` as text that cannot steer a terminal or hide what it says: control characters, characters that turn the reading
/// direction or take no room, and bytes that are not UTF-8 are written as escapes.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_deceptive(character) {
                text.extend(character.escape_unicode());
            } else {
                text.push(character);
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// Control characters (C0, DEL, C1), line separators, invisible characters and those that turn the direction.
fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_leave_the_tree_or_hide_something_are_refused() {
        let long_name = vec![b'n'; 256];
        let long_path = [b"n".repeat(200), b"/".to_vec()].concat().repeat(21);
        let deep = [b"d/".repeat(512), b"f".to_vec()].concat();
        let cases: [(&[u8], PathFault); 14] = [
            (b"", PathFault::Empty),
            (b"/", PathFault::Absolute),
            (b"/etc", PathFault::Absolute),
            (b"..", PathFault::Dots),
            (b"a/../b", PathFault::Dots),
            (b"a/..", PathFault::Dots),
            (b"../a", PathFault::Dots),
            (b".", PathFault::Dots),
            (b"a/./b", PathFault::Dots),
            (b"a//b", PathFault::EmptyComponent),
            (b"a/", PathFault::EmptyComponent),
            (b"a\0b", PathFault::Nul),
            (&long_name, PathFault::LongName(256)),
            (&deep, PathFault::Deep(513)),
        ];
        for (bytes, fault) in cases {
            assert_eq!(RelPath::parse(bytes), Err(fault), "{bytes:?}");
        }
        assert_eq!(RelPath::parse(&long_path), Err(PathFault::LongPath(long_path.len())));
        for bytes in [&b"a"[..], b"...", b"a/..b", b"-rf", b"\xff\xfe", b"a b/c\n", &long_name[1..], &deep[2..]] {
            assert_eq!(RelPath::parse(bytes).unwrap().as_bytes(), bytes);
        }
    }

    #[test]
    fn parents_and_names() {
        let path = RelPath::parse(b"a/bc/d").unwrap();
        assert_eq!(path.name(), b"d");
        let ancestors: Vec<_> = path.ancestors().map(|path| path.to_string()).collect();
        assert_eq!(ancestors, ["a/bc", "a"]);
        assert!(path.is_below(&RelPath::parse(b"a").unwrap()));
        assert!(!path.is_below(&RelPath::parse(b"a/b").unwrap()));
        assert!(!path.is_below(&path));
    }

    #[test]
    fn printed_text_cannot_steer_a_terminal() {
        assert_eq!(printable(b"plain \xc3\xa4"), "plain ä");
        assert_eq!(printable(b"\x1b[2J\r\n\x07\xc2\x9b"), "\\u{1b}[2J\\u{d}\\u{a}\\u{7}\\u{9b}");
        assert_eq!(printable("a\u{202e}txt.exe".as_bytes()), "a\\u{202e}txt.exe");
        assert_eq!(printable(b"\xff\xc3"), "\\xff\\xc3");
    }

    proptest! {
        #[test]
        fn what_parses_never_leaves_the_tree(bytes in "[./a\0]{0,12}") {
            if let Ok(path) = RelPath::parse(bytes.as_bytes()) {
                let joined = Path::new("/top").join(path.as_path());
                prop_assert!(joined.starts_with("/top") && joined.components().all(|part| part.as_os_str() != ".."));
            }
        }
    }
}
