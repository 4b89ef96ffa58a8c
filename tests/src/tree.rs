// SPDX-License-Identifier: Apache-2.0
//! The repository's files, read once for all rules. Never follows a symlink, never looks into
//! build output or version control.

use std::io;
use std::path::{Path, PathBuf};

use crate::source::Source;

/// Directories that hold nothing of ours.
const SKIPPED: [&str; 5] = ["target", ".git", "node_modules", "__pycache__", "corpus"];

/// Everything the rules look at.
#[derive(Debug)]
pub struct Tree {
    /// The repository's root.
    pub root: PathBuf,
    /// Rust sources, test modules already marked as such.
    pub sources: Vec<Source>,
    /// Every text file, Rust included: (path relative to the root, content).
    pub texts: Vec<(String, String)>,
}

impl Tree {
    /// Reads the tree under `root`.
    ///
    /// # Errors
    /// A directory or file that cannot be read.
    pub fn read(root: &Path) -> io::Result<Self> {
        let mut texts = Vec::new();
        collect(root, root, &mut texts)?;
        texts.sort();
        let rust = texts.iter().filter(|(path, _)| path.ends_with(".rs"));
        let mut sources: Vec<Source> = rust.map(|(path, text)| Source::new(path, text)).collect();
        mark_test_modules(&mut sources);
        Ok(Self { root: root.to_owned(), sources, texts })
    }

    /// The content of the file at `path` below the root, if it is there.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts.iter().find(|(name, _)| name == path).map(|(_, text)| text.as_str())
    }
}

/// Adds every readable UTF-8 file below `dir` to `texts`.
fn collect(root: &Path, dir: &Path, texts: &mut Vec<(String, String)>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, entry.path());
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            collect(root, &path, texts)?;
        }
        if kind.is_file() && name != "Cargo.lock" {
            let Ok(text) = String::from_utf8(std::fs::read(&path)?) else {
                continue;
            };
            let relative = path.strip_prefix(root).unwrap_or(&path);
            texts.push((relative.to_string_lossy().into_owned(), text));
        }
    }
    Ok(())
}

/// Marks files of modules that are declared behind `#[cfg(test)]` as test code, and what is below them.
fn mark_test_modules(sources: &mut [Source]) {
    let homes = sources.iter().flat_map(|source| {
        let home = module_dir(&source.path);
        source.test_modules().into_iter().map(move |name| format!("{home}/{name}"))
    });
    let homes: Vec<String> = homes.collect();
    for source in sources {
        let stem = source.path.trim_end_matches(".rs");
        if homes.iter().any(|home| stem == home || stem.starts_with(&format!("{home}/"))) {
            source.test.fill(true);
        }
    }
}

/// Where the modules declared in the file at `path` live: `a/b.rs` → `a/b`, `a/mod.rs` → `a`.
fn module_dir(path: &str) -> String {
    let stem = path.trim_end_matches(".rs");
    match stem.rsplit_once('/') {
        Some((dir, "mod" | "lib" | "main")) => dir.to_owned(),
        _ => stem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_live_below_their_file() {
        assert_eq!(module_dir("a/b.rs"), "a/b");
        assert_eq!(module_dir("a/mod.rs"), "a");
        assert_eq!(module_dir("vmm/src/lib.rs"), "vmm/src");
    }

    #[test]
    fn file_of_a_test_module_is_test_code() {
        let mut sources = vec![
            Source::new("v/mod.rs", "mod queue;\n#[cfg(test)]\nmod fake;\n"),
            Source::new("v/fake.rs", "fn a() {}\n"),
            Source::new("v/fake/deep.rs", "fn a() {}\n"),
            Source::new("v/queue.rs", "fn a() {}\n"),
        ];
        mark_test_modules(&mut sources);
        let counts: Vec<usize> = sources.iter().map(Source::non_test_lines).collect();
        assert_eq!(counts, [1, 0, 0, 1]);
    }
}
