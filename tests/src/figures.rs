// SPDX-License-Identifier: Apache-2.0
//! Counts of the tree: sizes, test share, unsafe sites. Numbers for people and for the ratchet;
//! decides nothing.

use std::fmt;

use crate::source::{Source, has_word};

/// The figures of a set of files.
#[derive(Debug, PartialEq, Eq)]
pub struct Figures {
    /// Files with any product code.
    pub files: usize,
    /// Product lines, comments and blank lines included.
    pub product_lines: usize,
    /// Test lines.
    pub test_lines: usize,
    /// Product lines of the median file.
    pub median_lines: usize,
    /// Product lines of the largest file, and which that is.
    pub largest: (usize, String),
    /// Lines of the longest product function, and which that is.
    pub longest_function: (usize, String),
    /// Documentation lines (`//!`, `///`) a hundred product lines.
    pub doc_percent: usize,
    /// `unsafe` blocks, functions and impls outside tests.
    pub unsafe_sites: usize,
}

impl Figures {
    /// Counts over the files whose path starts with `prefix`.
    #[must_use]
    pub fn of(sources: &[Source], prefix: &str) -> Self {
        let files: Vec<&Source> = sources.iter().filter(|source| source.path.starts_with(prefix)).collect();
        let mut sizes: Vec<(usize, String)> = files
            .iter()
            .map(|source| (source.non_test_lines(), source.path.clone()))
            .filter(|(lines, _)| *lines > 0)
            .collect();
        sizes.sort();
        let all: usize = files.iter().map(|source| source.test.len()).sum();
        let product_lines = sizes.iter().map(|(lines, _)| lines).sum();
        let docs: usize = files.iter().map(|source| doc_lines(source)).sum();
        Self {
            files: sizes.len(),
            product_lines,
            test_lines: all - product_lines,
            median_lines: sizes.get(sizes.len() / 2).map_or(0, |(lines, _)| *lines),
            largest: sizes.last().cloned().unwrap_or_default(),
            longest_function: files.iter().filter_map(|source| longest(source)).max().unwrap_or_default(),
            doc_percent: (docs * 100).checked_div(product_lines).unwrap_or(0),
            unsafe_sites: files.iter().map(|source| unsafe_sites(source)).sum(),
        }
    }

    /// Test lines of all lines, in percent.
    #[must_use]
    pub fn test_percent(&self) -> usize {
        (self.test_lines * 100).checked_div(self.test_lines + self.product_lines).unwrap_or(0)
    }
}

/// Lines with `unsafe` as a word of product code.
#[must_use]
pub fn unsafe_sites(source: &Source) -> usize {
    source.product_code().filter(|(_, code)| has_word(code, "unsafe")).count()
}

fn doc_lines(source: &Source) -> usize {
    let lines = source.raw.iter().zip(&source.test).filter(|(_, test)| !**test);
    lines.filter(|(line, _)| line.trim_start().starts_with("///") || line.trim_start().starts_with("//!")).count()
}

fn longest(source: &Source) -> Option<(usize, String)> {
    let product = source.functions().into_iter().filter(|function| !source.test[function.lines.start]);
    product.map(|function| (function.lines.len(), format!("{} in {}", function.name, source.path))).max()
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} files, {} product + {} test lines (tests {} %), median file {}, largest {} ({}), longest function {} ({}), docs {} %, unsafe {}",
            self.files,
            self.product_lines,
            self.test_lines,
            self.test_percent(),
            self.median_lines,
            self.largest.0,
            self.largest.1,
            self.longest_function.0,
            self.longest_function.1,
            self.doc_percent,
            self.unsafe_sites
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_two_files() {
        let sources = [
            Source::new(
                "a/x.rs",
                "//! Doc.\nfn a() {\n  unsafe { }\n}\n#[cfg(test)]\nmod tests {\n  unsafe fn b() {}\n}\n",
            ),
            Source::new("b/y.rs", "fn c() {}\n"),
        ];
        let figures = Figures::of(&sources, "a/");
        assert_eq!((figures.files, figures.product_lines, figures.test_lines), (1, 4, 4));
        assert_eq!((figures.unsafe_sites, figures.doc_percent, figures.test_percent()), (1, 25, 50));
        assert_eq!(figures.longest_function, (3, "a in a/x.rs".to_owned()));
        assert_eq!(Figures::of(&sources, "").files, 2);
        assert_eq!(Figures::of(&sources, "none").test_percent(), 0);
    }
}
