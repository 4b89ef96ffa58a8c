// SPDX-License-Identifier: Apache-2.0
//! What a long step (a kernel build, an image, a start of the emulated host) tells whoever watches.
//!
//! Everything goes to standard error: standard output belongs to the command that a user runs. Never decides
//! anything; a step works the same with [`Silent`].

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often a step of unknown length redraws its spinner.
const SPINNER_PERIOD: Duration = Duration::from_millis(120);

/// In how many parts a step of known length is told where there is no terminal to redraw.
const PLAIN_PARTS: u64 = 10;

/// One who watches long steps, one step at a time.
pub trait Watch: Send + Sync {
    /// A step begins. `total` is its length in whatever it counts; 0 says that nobody knows.
    fn begin(&self, what: &str, total: u64);
    /// The step has got to `done` of its total.
    fn at(&self, done: u64);
    /// The step is over; `note` sums it up in one line, and an empty one says nothing.
    fn end(&self, note: &str);
}

/// Watches nothing: for libraries and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Watch for Silent {
    fn begin(&self, _what: &str, _total: u64) {}
    fn at(&self, _done: u64) {}
    fn end(&self, _note: &str) {}
}

/// Draws a bar on a terminal, and prints a line for every tenth of a step where there is none.
#[derive(Debug, Default)]
pub struct Bar {
    state: Mutex<State>,
}

/// What is being drawn.
#[derive(Debug, Default)]
struct State {
    bar: Option<ProgressBar>,
    plain: Plain,
}

impl Bar {
    /// A watcher for a command line.
    pub fn new() -> Self {
        Self::default()
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Watch for Bar {
    fn begin(&self, what: &str, total: u64) {
        self.with(|state| {
            if std::io::stderr().is_terminal() {
                state.bar = Some(draw(what, total));
            } else {
                say(&state.plain.begin(what, total));
            }
        });
    }

    fn at(&self, done: u64) {
        self.with(|state| match &state.bar {
            Some(bar) => bar.set_position(done),
            None => state.plain.at(done).iter().for_each(|line| say(line)),
        });
    }

    fn end(&self, note: &str) {
        self.with(|state| {
            if let Some(bar) = state.bar.take() {
                bar.finish_and_clear();
            }
            if !note.is_empty() {
                say(&format!("midge: {note}"));
            }
        });
    }
}

/// A bar with a length, or a spinner.
fn draw(what: &str, total: u64) -> ProgressBar {
    let (bar, template) = if total == 0 {
        (ProgressBar::new_spinner(), "{spinner} {msg} [{elapsed}]")
    } else {
        (ProgressBar::new(total), "{msg} [{bar:32}] {percent}% [{elapsed}, {eta} left]")
    };
    // A template that does not parse would be our own mistake; the default style still tells the story.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(SPINNER_PERIOD);
    bar
}

/// A lost line of progress is no reason to fail what is being watched.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Lines for a log: which ones to print is decided here, printing is done elsewhere.
#[derive(Debug, Default)]
struct Plain {
    what: String,
    total: u64,
    told_parts: u64,
}

impl Plain {
    fn begin(&mut self, what: &str, total: u64) -> String {
        *self = Self { what: what.to_owned(), total, told_parts: 0 };
        format!("midge: {what} ...")
    }

    /// A line when another tenth has been reached.
    fn at(&mut self, done: u64) -> Option<String> {
        let parts = done.saturating_mul(PLAIN_PARTS).checked_div(self.total)?.min(PLAIN_PARTS);
        (parts > self.told_parts).then(|| {
            self.told_parts = parts;
            format!("midge: {} {}%", self.what, parts * 100 / PLAIN_PARTS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_come_once_for_every_tenth() {
        let mut plain = Plain::default();
        assert_eq!(plain.begin("building", 1000), "midge: building ...");
        let lines: Vec<String> = (0..=1000).filter_map(|done| plain.at(done)).collect();
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[0], "midge: building 10%");
        assert_eq!(lines[9], "midge: building 100%");
    }

    #[test]
    fn more_work_than_announced_never_passes_the_whole() {
        let mut plain = Plain::default();
        plain.begin("building", 10);
        assert_eq!(plain.at(25).as_deref(), Some("midge: building 100%"));
        assert_eq!(plain.at(u64::MAX), None);
    }

    #[test]
    fn unknown_length_is_silent_between_begin_and_end() {
        let mut plain = Plain::default();
        plain.begin("starting", 0);
        assert_eq!(plain.at(5), None);
    }

    #[test]
    fn next_step_starts_from_nothing() {
        let mut plain = Plain::default();
        plain.begin("one", 10);
        plain.at(10);
        plain.begin("two", 10);
        assert_eq!(plain.at(1).as_deref(), Some("midge: two 10%"));
    }
}
