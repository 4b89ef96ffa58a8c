// SPDX-License-Identifier: Apache-2.0
//! A transcript for a person at a terminal. Nothing that a guest or a model wrote reaches it but as printable text, indented, so that
//! it can neither move the cursor nor look like a line of ours.

mod words;

use std::io::{self, BufRead, Write};

use crate::{Line, Lines, ReadError, Speaker, State};

pub(crate) use words::{Words, words};

/// Lines of text that are shown of one entry unless all is asked for.
const TEXT_LINES: usize = 12;
/// Characters of one such line.
const LINE_CHARS: usize = 400;

/// Why a transcript could not be shown or exported.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// It cannot be read further.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Whoever reads what is shown is gone, or has no room.
    #[error("writing what the transcript says")]
    Write(#[from] io::Error),
}

/// `text` without anything that a terminal would obey or that turns the order of letters: such characters become U+FFFD. Line feeds
/// and tabs stay.
#[must_use]
pub fn printable(text: &str) -> String {
    let safe = |c: char| match c {
        '\n' | '\t' => c,
        // Marks of direction, and what is not seen.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}' => {
            '\u{fffd}'
        }
        '\u{e0000}'..='\u{e0fff}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(safe).collect()
}

/// Writes a transcript, line by line as it is read: what stands before a broken line is shown, and then the error is given.
///
/// # Errors
/// [`ShowError`].
pub fn show(reader: impl BufRead, out: &mut impl Write, all: bool) -> Result<State, ShowError> {
    let mut lines = Lines::new(reader);
    for line in &mut lines {
        write_line(out, &line?, all)?;
    }
    if let State::Unfinished { .. } = lines.state() {
        writeln!(out, "(unfinished: there is no root)")?;
    }
    Ok(lines.state())
}

/// Writes one line.
///
/// # Errors
/// What `out` says.
pub fn write_line(out: &mut impl Write, line: &Line, all: bool) -> io::Result<()> {
    let Words { head, text } = words(line);
    let by = match line.by {
        Speaker::Host => "host ",
        Speaker::Guest => "guest",
    };
    let head = printable(&head).replace(['\n', '\t'], " ");
    let (seconds, ms) = (line.t_ms / 1000, line.t_ms % 1000);
    writeln!(out, "{:>5} {:>4}:{:02}.{ms:03} {by}  {}", line.seq, seconds / 60, seconds % 60, shortened(&head, all))?;
    let text = printable(&text);
    let count = text.lines().count();
    let shown = if all { count } else { count.min(TEXT_LINES) };
    for one in text.lines().take(shown) {
        writeln!(out, "      | {}", shortened(one, all))?;
    }
    if shown < count {
        writeln!(out, "      | ... {} more lines", count - shown)?;
    }
    Ok(())
}

fn shortened(text: &str, all: bool) -> String {
    match text.char_indices().nth(LINE_CHARS) {
        Some((end, _)) if !all => format!("{} ... {} more bytes", &text[..end], text.len() - end),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
