// SPDX-License-Identifier: Apache-2.0
//! What a monitor says on its stdout: one JSON object a line.
//!
//! Console text and the console's tail are the guest's words: bounded here, and never to be written to a
//! terminal without [`printable`].

use std::collections::BTreeMap;

use serde::Deserialize;

/// Longest line that is read; the console's tail of 64 KiB, escaped in the worst way, is shorter.
pub const LINE_MAX_BYTES: usize = 1 << 20;
/// Longest piece of a monitor's text that is kept, in characters: a console's line, the detail of an end.
pub const TEXT_MAX_CHARS: usize = 4096;
/// Most of a console's last lines that are kept, and most causes of exits.
pub const ITEMS_MAX: usize = 64;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A stage of the start was reached.
    Stage {
        /// Its name.
        name: String,
        /// Microseconds since the monitor was executed.
        t_us: u64,
        /// The same moment on the monotonic clock of the monitor's machine.
        #[serde(default)]
        mono_ns: Option<u64>,
    },
    /// A line from the guest's console.
    Console {
        /// Lossy UTF-8, without the line feed.
        text: String,
    },
    /// The VM has ended; the last event.
    Exit(Exit),
    /// An event that a later monitor may know.
    #[serde(other)]
    Unknown,
}

/// How a VM ended, in the monitor's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Exit {
    /// The kind of end.
    pub reason: Reason,
    /// One line more about it.
    #[serde(default)]
    pub detail: String,
    /// The console's last lines.
    #[serde(default)]
    pub console_tail: Vec<String>,
    /// How often the vCPUs left the guest, by cause.
    #[serde(default)]
    pub exits: BTreeMap<String, u64>,
    /// The memory that the guest has written to, if that was to be told.
    #[serde(default)]
    pub written: Vec<(u64, u64)>,
}

/// The kind of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The guest reset itself in good order.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// The guest's CPU gave up.
    TripleFault,
    /// We, or a signal, asked for it.
    Stopped,
    /// The host failed the monitor.
    HostError,
    /// The configuration was refused.
    Config,
}

/// Parses one line.
///
/// # Errors
/// When it is not an event: why, as one [`printable`] line, since the parser quotes what it has read.
pub fn parse(line: &[u8]) -> Result<Event, String> {
    serde_json::from_slice(line).map_err(|error| printable(&error.to_string()))
}

/// The beginning of `text`, if it is longer than [`TEXT_MAX_CHARS`].
#[must_use]
pub fn bounded(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(TEXT_MAX_CHARS) {
        text.truncate(end);
        text.shrink_to_fit();
    }
    text
}

/// `text` without what a terminal would obey: control characters become visible marks.
#[must_use]
pub fn printable(text: &str) -> String {
    let visible = |c: char| match c {
        '\t' => '\t',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(visible).collect()
}

/// Splits bytes as they come into lines of at most [`LINE_MAX_BYTES`]; longer ones are dropped whole.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    dropping: bool,
}

impl Lines {
    /// Takes the next bytes and hands each finished line, without its line feed, to `each`.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(at) = bytes.iter().position(|b| *b == b'\n') {
            self.hold(&bytes[..at]);
            if !self.dropping {
                each(&self.held);
            }
            self.held.clear();
            self.dropping = false;
            bytes = &bytes[at + 1..];
        }
        self.hold(bytes);
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.held.len() + bytes.len() > LINE_MAX_BYTES {
            self.dropping = true;
        }
        if self.dropping {
            self.held.clear();
        } else {
            self.held.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, |line| seen.push(line.to_vec()));
        }
        seen
    }

    #[test]
    fn every_event_of_the_contract_is_understood() {
        let stage = parse(br#"{"event":"stage","name":"exec","t_us":3,"mono_ns":9}"#).unwrap();
        assert_eq!(stage, Event::Stage { name: "exec".into(), t_us: 3, mono_ns: Some(9) });
        let exit = br#"{"event":"exit","reason":"panic","detail":"d","console_tail":["l"],"exits":{"io":2},"written":[[4096,8192]]}"#;
        let Event::Exit(exit) = parse(exit).unwrap() else { panic!("no exit") };
        assert_eq!((exit.reason, exit.detail.as_str(), exit.exits["io"]), (Reason::Panic, "d", 2));
        assert_eq!(exit.written, [(4096, 8192)]);
        assert_eq!(parse(br#"{"event":"console","text":"x"}"#).unwrap(), Event::Console { text: "x".into() });
        assert_eq!(parse(br#"{"event":"later"}"#).unwrap(), Event::Unknown);
        assert!(parse(b"Segmentation fault").is_err());
    }

    #[test]
    fn lines_survive_any_cut() {
        assert_eq!(lines(&[b"ab", b"c\nd", b"\n\n"]), [b"abc".to_vec(), b"d".to_vec(), b"".to_vec()]);
        assert!(lines(&[b"unfinished"]).is_empty());
    }

    #[test]
    fn endless_line_is_dropped_and_the_next_one_kept() {
        let fits = vec![b'x'; LINE_MAX_BYTES];
        assert_eq!(lines(&[&fits, b"\n"]).len(), 1);
        assert_eq!(lines(&[&fits, b"x", &fits, b"\nnext\n"]), [b"next".to_vec()]);
    }

    #[test]
    fn text_is_cut_between_two_characters() {
        for fits in ["", "x", &"é".repeat(TEXT_MAX_CHARS)] {
            assert_eq!(bounded(fits.to_owned()), fits);
        }
        assert_eq!(bounded("é".repeat(TEXT_MAX_CHARS + 1)), "é".repeat(TEXT_MAX_CHARS));
    }

    #[test]
    fn what_is_no_event_cannot_steer_a_terminal() {
        let error = parse("{\"event\":\"exit\",\"reason\":\"\\u001b[2J\u{9b}\"}".as_bytes()).unwrap_err();
        assert!(error.contains("`\u{fffd}[2J\u{fffd}`"), "{error:?}");
    }

    #[test]
    fn console_text_cannot_steer_a_terminal() {
        assert_eq!(printable("a\tb\u{1b}[2Jc\u{9b}d\r"), "a\tb\u{fffd}[2Jc\u{fffd}d\u{fffd}");
    }
}
