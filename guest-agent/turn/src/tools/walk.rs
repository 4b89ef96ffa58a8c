// SPDX-License-Identifier: Apache-2.0
//! A walk through a directory as `list` and `search` do it: in order of names, without following links, past what git ignores.

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use ignore::{Walk, WalkBuilder};

/// Most entries of one walk, in number; what comes after is told, not shown.
pub(super) const ENTRIES_MAX: usize = 200_000;

/// What is walked past.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Include {
    /// Names that begin with a dot too.
    pub(super) hidden: bool,
    /// What `.gitignore` and `.ignore` name too.
    pub(super) ignored: bool,
}

/// The walk, from `root` down to `depth` (all when absent).
pub(super) fn walk(root: &Path, include: Include, depth: Option<usize>) -> Walk {
    let mut builder = WalkBuilder::new(root);
    builder.hidden(!include.hidden).max_depth(depth).follow_links(false).sort_by_file_name(Ord::cmp);
    let honoured = !include.ignored;
    builder.git_ignore(honoured).git_exclude(honoured).git_global(false).ignore(honoured).parents(honoured);
    builder.require_git(false);
    // git's own directory is no part of the work, hidden or not.
    builder.filter_entry(|entry| entry.file_name() != ".git" || entry.depth() == 0);
    builder.build()
}

/// A glob as people write it: without a slash it is about names, with one about the path from where the walk begins.
pub(super) fn glob(pattern: &str) -> Result<GlobMatcher, String> {
    let whole =
        if pattern.contains('/') { pattern.trim_start_matches("./").to_owned() } else { format!("**/{pattern}") };
    let built = GlobBuilder::new(&whole).literal_separator(true).backslash_escape(true).build();
    built.map(|glob| glob.compile_matcher()).map_err(|error| format!("{pattern:?} is no glob: {}", error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_glob_without_a_slash_is_about_names() {
        let rust = glob("*.rs").unwrap();
        assert!(rust.is_match("a.rs") && rust.is_match("x/y/a.rs") && !rust.is_match("a.rs/b"));
        let source = glob("src/*.rs").unwrap();
        assert!(source.is_match("src/a.rs") && !source.is_match("src/b/a.rs") && !source.is_match("x/src/a.rs"));
        assert!(glob("./src/**/*.{rs,toml}").unwrap().is_match("src/a/b.toml"));
        assert!(glob("a[").unwrap_err().contains("a["));
    }

    proptest! {
        #[test]
        fn any_glob_is_taken_or_refused(pattern in ".{0,20}", name in ".{0,10}") {
            let _ = glob(&pattern).map(|glob| glob.is_match(name));
        }
    }
}
