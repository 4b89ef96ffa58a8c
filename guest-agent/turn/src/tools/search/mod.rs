// SPDX-License-Identifier: Apache-2.0
//! The tool `search`: lines of files that match a regular expression, found as ripgrep finds them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use globset::GlobMatcher;
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use super::spool::NOTES_MAX_BYTES;
use super::walk::{self, ENTRIES_MAX, Include};
use super::{Context, OUTCOME_MAX_BYTES, Outcome, Spec, Tool, files, input};
use found::Found;

mod found;

/// Matches (or files) that are given when the model does not say.
const MATCHES_DEFAULT: u64 = 100;
/// Most matches that it may ask for.
const MATCHES_MAX: u64 = 2000;
/// Most lines around a match.
const CONTEXT_MAX_LINES: u64 = 20;
/// Most bytes that a file's line may make the searcher keep.
const HEAP_MAX_BYTES: usize = 16 << 20;
/// Most bytes of a compiled expression.
const REGEX_MAX_BYTES: usize = 10 << 20;

/// The tool.
#[derive(Debug)]
pub(super) struct Search {
    /// Where relative paths begin.
    pub(super) cwd: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    pattern: String,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    glob: Option<String>,
    #[serde(default)]
    ignore_case: bool,
    #[serde(default)]
    literal: bool,
    #[serde(default)]
    multiline: bool,
    #[serde(default)]
    context: Option<u64>,
    #[serde(default)]
    files_only: bool,
    #[serde(default)]
    hidden: bool,
    #[serde(default)]
    ignored: bool,
    #[serde(default)]
    limit: Option<u64>,
}

impl Tool for Search {
    fn spec(&self) -> Spec {
        let description = format!(
            "Searches files for a regular expression (Rust syntax: no look-around, no back-references). Gives path:line:text for matches \
             and path-line-text for lines around them, at most {MATCHES_DEFAULT} matches unless limit says otherwise. Leaves out binary \
             files, hidden names and what git ignores. Relative paths begin at {}.",
            files::shown(&self.cwd),
        );
        let input_schema = json!({
            "type": "object",
            "properties": {
                "pattern": {"type": "string"},
                "path": {"type": "string", "description": "file or directory, default the working directory"},
                "glob": {"type": "string", "description": "only files like this: *.rs, src/**/*.py"},
                "ignore_case": {"type": "boolean", "description": "default false"},
                "literal": {"type": "boolean", "description": "pattern is plain text; default false"},
                "multiline": {"type": "boolean", "description": "a match may span lines, . matches line ends; default false"},
                "context": {
                    "type": "integer", "minimum": 0, "maximum": CONTEXT_MAX_LINES,
                    "description": "lines before and after each match, default 0",
                },
                "files_only": {"type": "boolean", "description": "only names of files that match; default false"},
                "hidden": {"type": "boolean", "description": "names that begin with a dot too; default false"},
                "ignored": {"type": "boolean", "description": "what git ignores too; default false"},
                "limit": {"type": "integer", "minimum": 1, "maximum": MATCHES_MAX, "description": "number of matches (or files)"},
            },
            "required": ["pattern"],
            "additionalProperties": false,
        });
        Spec { name: "search".into(), description, input_schema }
    }

    fn reads_only(&self) -> bool {
        true
    }

    fn call(&self, input: Value, context: &Context<'_>) -> Outcome {
        self.search(input, context).unwrap_or_else(|outcome| outcome)
    }
}

impl Search {
    fn search(&self, input: Value, context: &Context<'_>) -> Result<Outcome, Outcome> {
        let input: Input = input::parse(input)?;
        let limit = input::within("limit", input.limit, MATCHES_DEFAULT, 1..=MATCHES_MAX, "matches")?;
        let around = input::within("context", input.context, 0, 0..=CONTEXT_MAX_LINES, "lines")?;
        let matcher = matcher(&input).map_err(|why| Outcome::failed(format!("`pattern`: {why}")))?;
        let glob = input.glob.as_deref().map(walk::glob).transpose();
        let glob = glob.map_err(|why| Outcome::failed(format!("`glob`: {why}")))?;
        let root = files::resolve(&self.cwd, input.path.as_deref().unwrap_or(".")).map_err(Outcome::failed)?;
        let mut searcher = SearcherBuilder::new();
        let around = usize::try_from(around).unwrap_or(0);
        searcher.line_number(true).multi_line(input.multiline).heap_limit(Some(HEAP_MAX_BYTES));
        if !input.files_only {
            searcher.before_context(around).after_context(around);
        }
        searcher.binary_detection(BinaryDetection::quit(0));
        let found = Found::new(limit, OUTCOME_MAX_BYTES - NOTES_MAX_BYTES, input.files_only, context.cancel);
        let mut run = Run { searcher: searcher.build(), matcher, found, troubles: Vec::new() };
        if fs::metadata(&root).is_ok_and(|metadata| metadata.is_dir()) {
            run.below(&root, Include { hidden: input.hidden, ignored: input.ignored }, glob.as_ref());
        } else {
            let (file, _) = files::open(&root).map_err(Outcome::failed)?;
            let name = input.path.as_deref().unwrap_or(".");
            run.file(&files::shown(name), &file);
        }
        if context.cancel.is_cancelled() {
            return Err(Outcome::cancelled("cancelled while searching"));
        }
        Ok(Outcome::done(run.told()))
    }
}

/// The expression, with what the model is told when it is none.
fn matcher(input: &Input) -> Result<RegexMatcher, String> {
    let mut builder = RegexMatcherBuilder::new();
    builder
        .case_insensitive(input.ignore_case)
        .multi_line(true)
        .fixed_strings(input.literal)
        .size_limit(REGEX_MAX_BYTES);
    if input.multiline {
        builder.dot_matches_new_line(true);
    } else {
        builder.line_terminator(Some(b'\n'));
    }
    builder.build(&input.pattern).map_err(|error| {
        let hint =
            if input.literal { "" } else { "; set literal to search for plain text, multiline to match line ends" };
        format!("{}{hint}", error.to_string().trim_end())
    })
}

/// One search.
struct Run<'a> {
    searcher: Searcher,
    matcher: RegexMatcher,
    found: Found<'a>,
    troubles: Vec<String>,
}

impl Run<'_> {
    fn below(&mut self, root: &Path, include: Include, glob: Option<&GlobMatcher>) {
        for (count, entry) in walk::walk(root, include, None).enumerate() {
            if self.found.is_over() {
                return;
            }
            if count >= ENTRIES_MAX {
                self.troubles
                    .push(format!("only the first {ENTRIES_MAX} entries were searched; name a directory below"));
                return;
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.trouble(&error.to_string());
                    continue;
                }
            };
            let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let is_file = entry.file_type().is_some_and(|kind| kind.is_file());
            if !is_file || glob.is_some_and(|glob| !glob.is_match(path)) {
                continue;
            }
            match files::open(entry.path()) {
                Ok((file, _)) => self.file(&files::shown(path), &file),
                Err(why) => self.trouble(&why),
            }
        }
    }

    fn file(&mut self, name: &str, file: &File) {
        self.found.begin(name);
        if let Err(error) = self.searcher.search_file(&self.matcher, file, &mut self.found) {
            self.trouble(&format!("`{name}`: {error}"));
        }
    }

    fn trouble(&mut self, text: &str) {
        const SHOWN: usize = 3;
        if self.troubles.len() < SHOWN {
            self.troubles.push(files::shown(input::shortened(text)));
        }
    }

    fn told(self) -> String {
        let mut text = self.found.told();
        for trouble in self.troubles {
            text += &format!("[{trouble}]\n");
        }
        text
    }
}

#[cfg(test)]
mod tests;
