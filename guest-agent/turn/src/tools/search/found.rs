// SPDX-License-Identifier: Apache-2.0
//! What a search has found, as text within its limits.

use std::io;

use grep_searcher::{Searcher, Sink, SinkContext, SinkFinish, SinkMatch};

use super::super::{Cancel, clip};

/// Most bytes of a line that are given.
const LINE_MAX_BYTES: usize = 500;
/// Most bytes of one match that spans lines.
const MATCH_MAX_BYTES: usize = 4 << 10;

/// Matches, one file after the other.
pub(super) struct Found<'a> {
    text: String,
    name: String,
    matches: u64,
    files: u64,
    binary: u64,
    in_file: u64,
    limit: u64,
    text_max_bytes: usize,
    files_only: bool,
    full: bool,
    cancel: &'a Cancel,
}

impl<'a> Found<'a> {
    /// Nothing yet; at most `limit` matches (files, when those are all that is wanted) in at most `text_max_bytes`.
    pub(super) fn new(limit: u64, text_max_bytes: usize, files_only: bool, cancel: &'a Cancel) -> Self {
        let (text, name) = (String::new(), String::new());
        Self {
            text,
            name,
            matches: 0,
            files: 0,
            binary: 0,
            in_file: 0,
            limit,
            text_max_bytes,
            files_only,
            full: false,
            cancel,
        }
    }

    /// What is found now is in this file.
    pub(super) fn begin(&mut self, name: &str) {
        name.clone_into(&mut self.name);
        self.in_file = 0;
    }

    /// Whether nothing more is wanted.
    pub(super) fn is_over(&self) -> bool {
        self.full || self.cancel.is_cancelled()
    }

    /// For the model.
    pub(super) fn told(mut self) -> String {
        let what = if self.files_only { "files" } else { "matches" };
        if self.full {
            let count = if self.files_only { self.files } else { self.matches };
            self.text += &format!("[there are more than these {count} {what}; narrow the search or raise limit]\n");
        } else if self.matches == 0 {
            self.text += "[no match]\n";
        }
        if self.binary > 0 {
            self.text += &format!("[{} binary files left out]\n", self.binary);
        }
        self.text
    }

    /// Adds a line; whether it fitted.
    fn add(&mut self, line: &str) -> bool {
        if self.text.len() + line.len() > self.text_max_bytes {
            self.full = true;
            return false;
        }
        self.text += line;
        true
    }

    fn lines(&mut self, mark: char, first: Option<u64>, bytes: &[u8]) -> bool {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let bytes = &bytes[..bytes.len().min(MATCH_MAX_BYTES)];
        for (number, line) in (first.unwrap_or(1)..).zip(bytes.split(|byte| *byte == b'\n')) {
            let line = clip::line_of(line.strip_suffix(b"\r").unwrap_or(line));
            let shown = clip::head(&line, LINE_MAX_BYTES);
            let cut = if shown.len() < line.len() { " [cut]" } else { "" };
            let line = format!("{}{mark}{number}{mark}{shown}{cut}\n", self.name);
            if !self.add(&line) {
                return false;
            }
        }
        true
    }
}

impl Sink for Found<'_> {
    type Error = io::Error;

    fn matched(&mut self, _searcher: &Searcher, found: &SinkMatch<'_>) -> Result<bool, io::Error> {
        let count = if self.files_only { self.files } else { self.matches };
        if count == self.limit {
            self.full = true;
            return Ok(false);
        }
        self.in_file += 1;
        let fits = if self.files_only {
            let line = format!("{}\n", self.name);
            self.files += u64::from(self.add(&line));
            self.matches += 1;
            return Ok(false);
        } else {
            self.lines(':', found.line_number(), found.bytes())
        };
        self.matches += u64::from(fits);
        Ok(fits && !self.cancel.is_cancelled())
    }

    fn context(&mut self, _searcher: &Searcher, context: &SinkContext<'_>) -> Result<bool, io::Error> {
        Ok(self.lines('-', context.line_number(), context.bytes()) && !self.cancel.is_cancelled())
    }

    fn context_break(&mut self, _searcher: &Searcher) -> Result<bool, io::Error> {
        Ok(self.add("--\n"))
    }

    fn finish(&mut self, _searcher: &Searcher, end: &SinkFinish) -> Result<(), io::Error> {
        self.binary += u64::from(end.binary_byte_offset().is_some());
        Ok(())
    }
}
