// SPDX-License-Identifier: Apache-2.0
//! Changes as a unified diff in git's form: written to a file it is a patch that `git apply` takes; written to a terminal,
//! nothing in it can steer the terminal. Work and memory for one file are bounded, whatever the guest made of it.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use similar::{ChangeTag, TextDiff};

use super::changes::{After, AfterContent, Change, ChangeSet};
use super::manifest::Content;
use super::path::{RelPath, printable};

/// How a diff is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffOptions {
    /// Colours for a terminal.
    pub color: bool,
    /// Content goes to a terminal: write control characters as escapes. Otherwise it is written byte for byte.
    pub for_terminal: bool,
    /// Files larger than this on either side are only named.
    pub file_max_bytes: u64,
    /// Unchanged lines around a change.
    pub context_lines: usize,
    /// After this time a file's diff gets coarser instead of better.
    pub file_timeout_ms: u64,
    /// Files after this many bytes of diff are not shown.
    pub total_max_bytes: u64,
    /// After this time all diffs are coarse.
    pub total_timeout_ms: u64,
}

impl Default for DiffOptions {
    fn default() -> Self {
        Self {
            color: false,
            for_terminal: true,
            file_max_bytes: 1 << 20,
            context_lines: 3,
            file_timeout_ms: 1000,
            total_max_bytes: 8 << 20,
            total_timeout_ms: 10_000,
        }
    }
}

/// Bytes of a file looked at to tell whether it is binary (as git does: is there a NUL).
const BINARY_PROBE_BYTES: usize = 8000;

/// One side of a file's diff.
struct Side {
    /// `100644`, `100755` or `120000`; `None` when there is nothing on this side.
    mode: Option<&'static str>,
    size: u64,
    content: Vec<u8>,
}

/// Lines added and removed in a text file; `None` for what has no text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// Lines only the run's version has.
    pub added: usize,
    /// Lines only the packed version has.
    pub removed: usize,
}

impl ChangeSet {
    /// Writes the diff of all changed files and links; directories have none. Where the limits of `options` cut it, the last
    /// line says so.
    ///
    /// # Errors
    /// What `out`, the image or the spool say.
    pub fn write_diff(&self, out: &mut dyn Write, options: &DiffOptions) -> io::Result<()> {
        let start = Instant::now();
        let mut out = Counted { out, bytes: 0 };
        for (index, change) in self.changes().iter().enumerate() {
            if out.bytes > options.total_max_bytes {
                let (left, bytes) = (self.changes().len() - index, out.bytes);
                return writeln!(out, "... {left} more changes are not shown: the diff has {bytes} bytes");
            }
            let spent_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            let file_timeout_ms = options.file_timeout_ms.min(options.total_timeout_ms.saturating_sub(spent_ms));
            self.write_change_diff(change, &mut out, &DiffOptions { file_timeout_ms, ..*options })?;
        }
        Ok(())
    }

    /// Writes the diff of one change.
    ///
    /// # Errors
    /// What `out`, the image or the spool say.
    pub fn write_change_diff(&self, change: &Change, out: &mut dyn Write, options: &DiffOptions) -> io::Result<()> {
        let (old, new) = (self.old_side(change, options)?, self.new_side(change, options)?);
        let kind = |side: &Side| side.mode.map(|mode| &mode[..3]);
        if old.mode.is_some() && new.mode.is_some() && kind(&old) != kind(&new) {
            // A file that became a link, or the other way: git shows one going and one coming.
            let nothing = || Side { mode: None, size: 0, content: Vec::new() };
            write_file(out, &change.path, &old, &nothing(), options)?;
            return write_file(out, &change.path, &nothing(), &new, options);
        }
        write_file(out, &change.path, &old, &new, options)
    }

    /// How many lines a change adds and removes; `None` for binary and large files and for what is no file.
    ///
    /// # Errors
    /// What the image or the spool say.
    pub fn line_counts(&self, change: &Change, options: &DiffOptions) -> io::Result<Option<LineCounts>> {
        let (old, new) = (self.old_side(change, options)?, self.new_side(change, options)?);
        if (old.mode.is_none() && new.mode.is_none()) || !is_text(&old, options) || !is_text(&new, options) {
            return Ok(None);
        }
        let mut counts = LineCounts::default();
        with_diff(&old, &new, options, |diff| {
            for op in diff.ops().iter().filter(|op| op.tag() != similar::DiffTag::Equal) {
                counts.removed += op.old_range().len();
                counts.added += op.new_range().len();
            }
            Ok(())
        })?;
        Ok(Some(counts))
    }

    fn old_side(&self, change: &Change, options: &DiffOptions) -> io::Result<Side> {
        let side = |mode, size, content| Ok(Side { mode, size, content });
        match change.before.as_ref().map(|entry| (&entry.content, entry.mode)) {
            None | Some((Content::Dir, _)) => side(None, 0, Vec::new()),
            Some((Content::Symlink { target }, _)) => side(Some("120000"), target.len() as u64, target.clone()),
            Some((Content::File { size, .. }, mode)) => {
                let max = if *size > options.file_max_bytes { 0 } else { *size };
                side(Some(git_mode(mode)), *size, self.read_before(change, max)?)
            }
        }
    }

    fn new_side(&self, change: &Change, options: &DiffOptions) -> io::Result<Side> {
        let side = |mode, size, content| Ok(Side { mode, size, content });
        match &change.after {
            None | Some(After { content: AfterContent::Dir, .. }) => side(None, 0, Vec::new()),
            Some(After { content: AfterContent::Symlink { target }, .. }) => {
                side(Some("120000"), target.len() as u64, target.clone())
            }
            Some(After { content: AfterContent::File { size, .. }, mode }) => {
                let max = if *size > options.file_max_bytes { 0 } else { *size };
                let content = match change.kind {
                    super::ChangeKind::ModeChanged => self.read_before(change, max)?, // the spool has no copy
                    _ => self.read_after(change, max)?,
                };
                side(Some(git_mode(*mode)), *size, content)
            }
        }
    }
}

/// The two modes git knows for files.
fn git_mode(mode: u32) -> &'static str {
    if mode & 0o100 == 0 { "100644" } else { "100755" }
}

fn is_text(side: &Side, options: &DiffOptions) -> bool {
    side.size <= options.file_max_bytes && !side.content[..side.content.len().min(BINARY_PROBE_BYTES)].contains(&0)
}

fn write_file(out: &mut dyn Write, path: &RelPath, old: &Side, new: &Side, options: &DiffOptions) -> io::Result<()> {
    let same_content = old.mode.is_some() && new.mode.is_some() && old.content == new.content && old.size == new.size;
    if old.mode == new.mode && (old.mode.is_none() || (same_content && old.size <= options.file_max_bytes)) {
        return Ok(());
    }
    let (a, b) = (quoted("a/", path), quoted("b/", path));
    let mut painter = Painter { out, color: options.color };
    painter.line(Paint::Head, &format!("diff --git {a} {b}"))?;
    match (old.mode, new.mode) {
        (Some(old), Some(new)) if old != new => {
            painter.line(Paint::Head, &format!("old mode {old}"))?;
            painter.line(Paint::Head, &format!("new mode {new}"))?;
        }
        (None, Some(new)) => painter.line(Paint::Head, &format!("new file mode {new}"))?,
        (Some(old), None) => painter.line(Paint::Head, &format!("deleted file mode {old}"))?,
        _ => {}
    }
    if same_content {
        return Ok(());
    }
    let a = if old.mode.is_some() { a } else { "/dev/null".into() };
    let b = if new.mode.is_some() { b } else { "/dev/null".into() };
    if !is_text(old, options) || !is_text(new, options) {
        let large = old.size.max(new.size) > options.file_max_bytes;
        let kind = if large { "Large" } else { "Binary" };
        let text = format!("{kind} files {a} ({} bytes) and {b} ({} bytes) differ", old.size, new.size);
        return painter.line(Paint::Head, &text);
    }
    if old.content.is_empty() && new.content.is_empty() {
        return Ok(());
    }
    painter.line(Paint::Head, &format!("--- {a}"))?;
    painter.line(Paint::Head, &format!("+++ {b}"))?;
    with_diff(old, new, options, |diff| write_hunks(&mut painter, diff, options))
}

fn with_diff<R>(
    old: &Side,
    new: &Side,
    options: &DiffOptions,
    use_it: impl FnOnce(&TextDiff<'_, '_, [u8]>) -> io::Result<R>,
) -> io::Result<R> {
    let lines = |side| -> Vec<&[u8]> { <[u8]>::split_inclusive(side, |byte| *byte == b'\n').collect() };
    let (old, new) = (lines(&old.content), lines(&new.content));
    let mut config = TextDiff::configure();
    config.timeout(Duration::from_millis(options.file_timeout_ms));
    use_it(&config.diff_slices(&old, &new))
}

fn write_hunks(painter: &mut Painter<'_>, diff: &TextDiff<'_, '_, [u8]>, options: &DiffOptions) -> io::Result<()> {
    for hunk in diff.unified_diff().context_radius(options.context_lines).iter_hunks() {
        painter.line(Paint::Hunk, &hunk.header().to_string())?;
        for change in hunk.iter_changes() {
            let (sign, paint) = match change.tag() {
                ChangeTag::Equal => (b' ', Paint::Plain),
                ChangeTag::Delete => (b'-', Paint::Removed),
                ChangeTag::Insert => (b'+', Paint::Added),
            };
            let (text, ended) = match change.value().strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (change.value(), false),
            };
            let text = if options.for_terminal { terminal_line(text).into_bytes() } else { text.to_vec() };
            painter.bytes(paint, &[&[sign], &text[..]].concat())?;
            if !ended {
                painter.line(Paint::Plain, "\\ No newline at end of file")?;
            }
        }
    }
    Ok(())
}

/// A line of content for a terminal: tabs stay, and so does a carriage return at the end (unseen there).
fn terminal_line(line: &[u8]) -> String {
    let (line, end) = match line.strip_suffix(b"\r") {
        Some(line) => (line, "\r"),
        None => (line, ""),
    };
    let parts: Vec<String> = line.split(|byte| *byte == b'\t').map(printable).collect();
    parts.join("\t") + end
}

/// Counts what passes through.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        self.bytes += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[derive(Clone, Copy)]
enum Paint {
    Plain,
    Head,
    Hunk,
    Added,
    Removed,
}

struct Painter<'a> {
    out: &'a mut dyn Write,
    color: bool,
}

impl Painter<'_> {
    fn line(&mut self, paint: Paint, text: &str) -> io::Result<()> {
        self.bytes(paint, text.as_bytes())
    }

    fn bytes(&mut self, paint: Paint, text: &[u8]) -> io::Result<()> {
        let start: &[u8] = match paint {
            _ if !self.color => b"",
            Paint::Plain => b"",
            Paint::Head => b"\x1b[1m",
            Paint::Hunk => b"\x1b[36m",
            Paint::Added => b"\x1b[32m",
            Paint::Removed => b"\x1b[31m",
        };
        let end: &[u8] = if start.is_empty() { b"\n" } else { b"\x1b[m\n" };
        self.out.write_all(&[start, text, end].concat())
    }
}

/// A path as git writes it in a diff: in quotes with C escapes when a byte is not plain printable ASCII.
fn quoted(prefix: &str, path: &RelPath) -> String {
    let plain = |byte: &u8| (0x20..0x7f).contains(byte) && *byte != b'"' && *byte != b'\\';
    if path.as_bytes().iter().all(plain) {
        return prefix.to_owned() + &String::from_utf8_lossy(path.as_bytes());
    }
    let mut text = format!("\"{prefix}");
    for byte in path.as_bytes() {
        match byte {
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            byte if plain(byte) => text.push(char::from(*byte)),
            byte => text.push_str(&format!("\\{byte:03o}")),
        }
    }
    text + "\""
}

#[cfg(test)]
mod tests;
