// SPDX-License-Identifier: Apache-2.0
//! The tool `read`: lines of a text file, numbered. It streams: a file of any size costs a bounded amount of memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::spool::NOTES_MAX_BYTES;
use super::{Cancel, Context, OUTCOME_MAX_BYTES, Outcome, Spec, Tool, clip, files, input};

/// Lines that are given when the model does not say.
const LINES_DEFAULT: u64 = 2000;
/// Most lines that it may ask for.
const LINES_MAX: u64 = 20_000;
/// Most bytes of one line that are given.
const LINE_MAX_BYTES: usize = 2000;
/// Bytes at the beginning that tell whether a file is text.
const PROBE_BYTES: usize = 8 << 10;
/// Most bytes that are looked through for the first line, and to count the lines after the last.
const SCAN_MAX_BYTES: u64 = 256 << 20;

/// The tool.
#[derive(Debug)]
pub(super) struct ReadFile {
    /// Where relative paths begin.
    pub(super) cwd: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    path: String,
    #[serde(default)]
    offset: Option<u64>,
    #[serde(default)]
    limit: Option<u64>,
}

impl Tool for ReadFile {
    fn spec(&self) -> Spec {
        let description = format!(
            "Reads a text file: lines as number, tab, text. Gives {LINES_DEFAULT} lines from line offset on unless limit says \
             otherwise, at most {} KiB; of a line at most {LINE_MAX_BYTES} bytes. Relative paths begin at {}.",
            (OUTCOME_MAX_BYTES - NOTES_MAX_BYTES) >> 10,
            files::shown(&self.cwd),
        );
        let input_schema = json!({
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "offset": {"type": "integer", "minimum": 1, "description": "first line, default 1"},
                "limit": {"type": "integer", "minimum": 1, "maximum": LINES_MAX, "description": "number of lines"},
            },
            "required": ["path"],
            "additionalProperties": false,
        });
        Spec { name: "read".into(), description, input_schema }
    }

    fn reads_only(&self) -> bool {
        true
    }

    fn call(&self, input: Value, context: &Context<'_>) -> Outcome {
        self.read(input, context.cancel).unwrap_or_else(|outcome| outcome)
    }
}

impl ReadFile {
    fn read(&self, input: Value, cancel: &Cancel) -> Result<Outcome, Outcome> {
        let input: Input = input::parse(input)?;
        let offset = input::within("offset", input.offset, 1, 1..=u64::MAX, "(a line)")?;
        let limit = input::within("limit", input.limit, LINES_DEFAULT, 1..=LINES_MAX, "lines")?;
        let path = files::resolve(&self.cwd, &input.path).map_err(Outcome::failed)?;
        let (file, metadata) = files::open(&path).map_err(Outcome::failed)?;
        let refused = |error: io::Error| Outcome::failed(format!("`{}` cannot be read: {error}", files::shown(&path)));
        let mut reader = BufReader::with_capacity(PROBE_BYTES, file);
        let probe = reader.fill_buf().map_err(refused)?;
        if probe.contains(&0) {
            let hex: Vec<String> = probe.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            let (name, length) = (files::shown(&path), metadata.len());
            return Err(Outcome::failed(format!("`{name}` is binary, {length} bytes, beginning {}", hex.join(" "))));
        }
        let mut lines = Lines { reader: reader.take(SCAN_MAX_BYTES), cancel };
        lines.page(offset, limit).map_err(refused)
    }
}

/// The lines of a file, one after the other.
struct Lines<'a> {
    reader: io::Take<BufReader<File>>,
    cancel: &'a Cancel,
}

/// One line, or as much of it as is given.
#[derive(Debug, Default)]
struct Line {
    bytes: Vec<u8>,
    /// Bytes that are not given.
    more_bytes: u64,
    /// Whether a carriage return stood before its end.
    returns: bool,
}

impl Lines<'_> {
    /// `limit` lines from `offset` on, as many as fit.
    fn page(&mut self, offset: u64, limit: u64) -> io::Result<Outcome> {
        let mut text = String::new();
        let mut number = 0;
        let mut returns = false;
        let mut last = None;
        while let Some(line) = self.next()? {
            number += 1;
            returns |= line.returns;
            if number < offset || last.is_some() {
                continue;
            }
            let more = if line.more_bytes > 0 { format!(" [{} more bytes]", line.more_bytes) } else { String::new() };
            let given = format!("{number:>6}\t{}{more}\n", clip::line_of(&line.bytes));
            if number - offset == limit || text.len() + given.len() > OUTCOME_MAX_BYTES - NOTES_MAX_BYTES {
                last = Some(number - 1);
            } else {
                text += &given;
            }
        }
        if self.cancel.is_cancelled() {
            return Ok(Outcome::cancelled("cancelled while reading"));
        }
        let all = if self.reader.limit() == 0 { format!("more than {number}") } else { number.to_string() };
        if let Some(last) = last {
            text += &format!("[lines {offset} to {last} of {all}; go on with offset {}]\n", last + 1);
        } else if number < offset && !(number == 0 && offset == 1) {
            let scanned = SCAN_MAX_BYTES >> 20;
            return Ok(Outcome::failed(format!(
                "there is no line {offset}; there are {all} in the first {scanned} MiB"
            )));
        } else if self.reader.limit() == 0 {
            text += &format!("[the file goes on; only its first {} MiB are read, use shell]\n", SCAN_MAX_BYTES >> 20);
        } else if number == 0 {
            text += "[the file is empty]\n";
        }
        if returns {
            text += "[lines end with CR LF]\n";
        }
        Ok(Outcome::done(text))
    }

    fn next(&mut self) -> io::Result<Option<Line>> {
        let mut line = Line::default();
        let mut length = 0_u64;
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() || self.cancel.is_cancelled() {
                return Ok((length > 0 && !self.cancel.is_cancelled()).then_some(line));
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            let room = (LINE_MAX_BYTES - line.bytes.len()).min(part.len());
            line.bytes.extend_from_slice(&part[..room]);
            line.more_bytes += (part.len() - room) as u64;
            let used = part.len() + usize::from(end.is_some());
            length += used as u64;
            self.reader.consume(used);
            if end.is_some() {
                line.returns = line.more_bytes == 0 && line.bytes.pop_if(|byte| *byte == b'\r').is_some();
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, call};
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tool() -> (tempfile::TempDir, ReadFile) {
        let dir = tempfile::tempdir().unwrap();
        let cwd = dir.path().to_owned();
        (dir, ReadFile { cwd })
    }

    #[test]
    fn lines_are_numbered_and_paged() {
        let (dir, tool) = tool();
        fs::write(dir.path().join("a"), "one\r\ntwo\r\nthree").unwrap();
        let text = |input| call(&tool, input).text;
        assert_eq!(text(json!({"path": "a"})), "     1\tone\n     2\ttwo\n     3\tthree\n[lines end with CR LF]\n");
        let page = text(json!({"path": "a", "offset": 2, "limit": 1}));
        assert_eq!(page, "     2\ttwo\n[lines 2 to 2 of 3; go on with offset 3]\n[lines end with CR LF]\n");
        assert_eq!(text(json!({"path": "a", "offset": 3, "limit": 1})), "     3\tthree\n[lines end with CR LF]\n");
        assert!(call(&tool, json!({"path": "a", "offset": 4})).is_error());
        assert!(text(json!({"path": "a", "offset": 0})).contains("`offset` is 0"));
        fs::write(dir.path().join("empty"), "").unwrap();
        assert_eq!(text(json!({"path": "empty"})), "[the file is empty]\n");
    }

    #[test]
    fn long_files_and_long_lines_are_cut_and_told() {
        let (dir, tool) = tool();
        fs::write(dir.path().join("long"), "y".repeat(1 << 20)).unwrap();
        let outcome = call(&tool, json!({"path": "long"}));
        assert!(outcome.text.contains("[1046576 more bytes]") && outcome.text.len() < 3000);
        let many: String = (0..50_000).map(|n| format!("{n}\n")).collect();
        fs::write(dir.path().join("many"), many).unwrap();
        let page = call(&tool, json!({"path": "many", "limit": 20_000})).text;
        assert!(page.len() <= OUTCOME_MAX_BYTES && page.contains("of 50000; go on with offset"), "{}", page.len());
    }

    #[test]
    fn what_has_no_end_is_not_read() {
        let (dir, tool) = tool();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), rustix::fs::Mode::RWXU).unwrap();
        symlink("/dev/zero", dir.path().join("zero")).unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        for path in ["fifo", "zero", "a", ".", "/dev/zero", "", "no\0no", "missing"] {
            assert!(call(&tool, json!({"path": path})).is_error(), "{path:?}");
        }
        let sparse = File::create(dir.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        assert!(call(&tool, json!({"path": "sparse"})).text.contains("binary, 1099511627776 bytes"));
        assert!(call(&tool, json!({"path": "/proc/self/status"})).text.contains("Name:"));
        fs::write(dir.path().join("grüße \u{1}"), "x").unwrap();
        assert_eq!(call(&tool, json!({"path": "grüße \u{1}"})).text, "     1\tx\n");
    }

    #[test]
    fn a_line_without_end_costs_little_and_can_be_cancelled() {
        let (dir, tool) = tool();
        let path = dir.path().join("line");
        let mut file = File::create(&path).unwrap();
        io::Write::write_all(&mut file, &[b'x'; PROBE_BYTES]).unwrap();
        file.set_len(1 << 40).unwrap();
        let outcome = call(&tool, json!({"path": "line"}));
        assert!(outcome.text.contains("only its first 256 MiB"), "{}", outcome.text);
        let cancel = Cancel::new().unwrap();
        cancel.cancel();
        let outcome = testing::call_with(&tool, json!({"path": "line"}), &cancel);
        assert_eq!(outcome.ending, super::super::Ending::Cancelled);
    }

    #[test]
    fn what_its_schema_admits_the_tool_accepts() {
        let (_dir, tool) = tool();
        assert!(input::parse::<Input>(testing::sample(&tool.spec().input_schema)).is_ok());
    }

    proptest! {
        #[test]
        fn no_input_and_no_bytes_panic(input in testing::any_json(), bytes in proptest::collection::vec(any::<u8>(), 0..99)) {
            let (dir, tool) = tool();
            fs::write(dir.path().join("x"), bytes).unwrap();
            call(&tool, json!({"path": "x"}));
            call(&tool, input);
        }
    }
}
