// SPDX-License-Identifier: Apache-2.0
//! The far end of a counted bench: the first process of an emulated host, `midge` again. Finds everything in its
//! initramfs, runs the bench as on any machine, prints the report as one line, and ends the machine.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{BenchError, BootOptions, LabOptions, Report, boot, fork};
use crate::emulated::outpost::system;
use crate::error::chain;
use crate::progress::Watch;

/// What is to be done, as JSON.
pub(super) const ORDER: &str = "/bench/order.json";
/// Begins the lines on the console that are meant for the near end.
const MARK: &str = "midge-bench: ";

/// Which bench, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Of cold boots.
    Boot(BootOptions),
    /// Of forks, restores and boots of whole sandboxes.
    Fork(LabOptions),
}

/// A line for the near end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// A step begins, so long.
    Begin { what: String, total: u64 },
    /// So much of it is done.
    At(u64),
    /// It is over, with a note or none.
    End(String),
    /// The end: what was measured.
    Result(Box<Report>),
    /// The end: why there is no result.
    Failed(String),
}

impl Word {
    /// The line, without its line feed.
    fn line(&self) -> String {
        // Strings and numbers: there is no way to fail.
        format!("{MARK}{}", serde_json::to_string(self).unwrap_or_default())
    }

    fn say(&self) {
        system::say(&self.line());
    }

    /// Reads a line; `None` for one that is not meant for the near end.
    pub(super) fn read(line: &str) -> Option<Self> {
        serde_json::from_str(line.split_once(MARK)?.1).ok()
    }
}

/// Tells the near end how far it is: a few bytes between two runs, which are over before the next one starts.
struct Console;

impl Watch for Console {
    fn begin(&self, what: &str, total: u64) {
        Word::Begin { what: what.to_owned(), total }.say();
    }

    fn at(&self, done: u64) {
        Word::At(done).say();
    }

    fn end(&self, note: &str) {
        Word::End(note.to_owned()).say();
    }
}

/// Whether this process was started as the first of such a host: then nothing but [`main`] makes sense.
#[must_use]
pub fn is_called() -> bool {
    std::process::id() == 1 && Path::new(ORDER).exists()
}

/// Runs the bench; returns never.
pub fn main() -> ! {
    match run() {
        Ok(report) => Word::Result(Box::new(report)),
        Err(text) => Word::Failed(text),
    }
    .say();
    system::power_off()
}

fn run() -> Result<Report, String> {
    system::mount_kernel().map_err(|error| error.to_string())?;
    let order = std::fs::read(ORDER).map_err(|error| format!("reading {ORDER}: {error}"))?;
    let order = serde_json::from_slice(&order).map_err(|error| format!("reading {ORDER}: {error}"))?;
    obey(&order).map_err(|error| chain(&error))
}

fn obey(order: &Order) -> Result<Report, BenchError> {
    match order {
        Order::Boot(options) => {
            Console.begin("booting", u64::from(options.boots()));
            let report = boot(options, &mut |done, _| Console.at(u64::from(done)));
            Console.end("");
            report
        }
        Order::Fork(options) => {
            // One thread for one processor, as there would be by default.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let failed = |source| BenchError::Prepare { contender: "everybody", source };
            runtime.map_err(failed)?.block_on(fork(options, &Console))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_on_a_console_among_others() {
        let result = Word::Result(Box::new(Report::begin("fork", "of \"something\"")));
        let begin = Word::Begin { what: "booting".into(), total: 3 };
        for word in [begin, Word::At(3), Word::End(String::new()), Word::Failed("no\nway".into()), result] {
            let line = word.line();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(Word::read(&format!("[ 1.23] {line}")), Some(word));
        }
        for line in ["", "midge-bench: ", "midge-bench: {\"at\":-1}", "Kernel panic"] {
            assert_eq!(Word::read(line), None, "{line}");
        }
    }
}
