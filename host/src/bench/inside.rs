// SPDX-License-Identifier: Apache-2.0
//! The far end of a counted bench: the first process of an emulated host, `midge` again. Finds everything in its
//! initramfs, runs the bench as on any machine, prints the result as one line, and ends the machine.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::boot::all_runs;
use super::{BootOptions, Machine, Run};
use crate::emulated::outpost::system;
use crate::error::chain;

/// The bench's options, as JSON.
pub(super) const ORDER: &str = "/bench/order.json";
/// Begins the lines on the console that are meant for the near end.
const MARK: &str = "midge-bench: ";

/// A line for the near end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// So many boots are done.
    Done(u32),
    /// The end: where it ran, and the counted runs of each contender.
    Result { machine: Machine, runs: Vec<Vec<Run>> },
    /// The end: why there is no result.
    Failed(String),
}

impl Word {
    /// The line, without its line feed.
    fn line(&self) -> String {
        // Strings and numbers: there is no way to fail.
        format!("{MARK}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// Reads a line; `None` for one that is not meant for the near end.
    pub(super) fn read(line: &str) -> Option<Self> {
        serde_json::from_str(line.split_once(MARK)?.1).ok()
    }
}

/// Whether this process was started as the first of such a host: then nothing but [`main`] makes sense.
#[must_use]
pub fn is_called() -> bool {
    std::process::id() == 1 && Path::new(ORDER).exists()
}

/// Runs the bench; returns never.
pub fn main() -> ! {
    let word = match run() {
        Ok(runs) => Word::Result { machine: Machine::read(), runs },
        Err(text) => Word::Failed(text),
    };
    system::say(&word.line());
    system::power_off()
}

fn run() -> Result<Vec<Vec<Run>>, String> {
    system::mount_kernel().map_err(|error| error.to_string())?;
    let order = std::fs::read(ORDER).map_err(|error| format!("reading {ORDER}: {error}"))?;
    let options: BootOptions = serde_json::from_slice(&order).map_err(|error| format!("reading {ORDER}: {error}"))?;
    // A few bytes between two runs, which are over before the next one starts.
    let mut progress = |done, _| system::say(&Word::Done(done).line());
    all_runs(&options, &mut progress).map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_on_a_console_among_others() {
        let result = Word::Result { machine: Machine::read(), runs: vec![vec![Run::default()], vec![]] };
        for word in [Word::Done(3), Word::Failed("no\nway".into()), result] {
            let line = word.line();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(Word::read(&format!("[ 1.23] {line}")), Some(word));
        }
        for line in ["", "midge-bench: ", "midge-bench: {\"done\":-1}", "Kernel panic"] {
            assert_eq!(Word::read(line), None, "{line}");
        }
    }
}
