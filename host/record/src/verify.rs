// SPDX-License-Identifier: Apache-2.0
//! Whether a transcript is what was recorded.

use std::io::BufRead;

use crate::{Lines, ReadError, State};

/// A transcript in which nothing was changed, moved, put in, or taken out of the middle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The run's name.
    pub run: String,
    /// Its lines.
    pub lines: u64,
    /// How it ends. Only [`State::Finished`] says that nothing was cut off; only a root that is known from elsewhere says that
    /// the whole was not written anew.
    pub state: State,
}

/// Reads a whole transcript.
///
/// # Errors
/// [`ReadError`] at the first line that is not what was recorded.
pub fn verify(reader: impl BufRead) -> Result<Verified, ReadError> {
    let mut lines = Lines::new(reader);
    for line in &mut lines {
        line?;
    }
    Ok(Verified { run: lines.run().to_owned(), lines: lines.number(), state: lines.state() })
}
