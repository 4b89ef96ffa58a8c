// SPDX-License-Identifier: Apache-2.0
//! The reading end: lines in bounded memory, each held against the one before. What a transcript says is hostile input here; whoever
//! gets a [`Line`] from [`Lines`] has one that is unchanged since it was written, and in its place.

use std::io::{self, BufRead, Read as _};

use crate::{Entry, FORMAT, Hash, LINE_MAX_BYTES, Line};

/// Why a transcript cannot be read further. Line numbers count from 1, as editors do.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system refused.
    #[error("reading line {line} of the transcript")]
    Io {
        /// The line.
        line: u64,
        /// The refusal.
        source: io::Error,
    },
    /// The chain is broken: what follows from here on was not written like this.
    #[error("line {line} of the transcript is not what was recorded there: {why}")]
    Broken {
        /// The first line that is wrong.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// It is a transcript of another time.
    #[error(
        "the transcript has format {format}, and this version reads up to {FORMAT}; read it with the version that wrote it"
    )]
    Format {
        /// What it says of itself.
        format: u32,
    },
    /// Nothing is there.
    #[error("the transcript is empty: its run ended before anything was recorded, or this is no transcript")]
    Empty,
}

/// How a transcript ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// With its root: nothing is missing.
    Finished {
        /// The hash of the root line.
        root: Hash,
    },
    /// Without: the run goes on, or was killed, or somebody cut the end off. What is there is unchanged.
    Unfinished {
        /// Bytes of a last line that is not whole.
        torn_bytes: usize,
    },
}

/// The lines of a transcript, in order. Ends at the first error.
pub struct Lines<R> {
    reader: R,
    max_bytes: usize,
    run: String,
    /// Lines read.
    count: u64,
    prev: Hash,
    state: State,
    over: bool,
}

impl<R> std::fmt::Debug for Lines<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("count", &self.count).field("state", &self.state).finish_non_exhaustive()
    }
}

impl<R: BufRead> Lines<R> {
    /// The lines of `reader`.
    pub fn new(reader: R) -> Self {
        Self::up_to(reader, LINE_MAX_BYTES)
    }

    fn up_to(reader: R, max_bytes: usize) -> Self {
        let state = State::Unfinished { torn_bytes: 0 };
        Self { reader, max_bytes, run: String::new(), count: 0, prev: Hash::ZERO, state, over: false }
    }

    /// The run's name, after the first line.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Lines read so far.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.count
    }

    /// How the transcript ends, after the last line.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    fn step(&mut self) -> Result<Option<Line>, ReadError> {
        let number = self.count + 1;
        let mut bytes = Vec::new();
        let limit = self.max_bytes as u64 + 1;
        let refused = |source| ReadError::Io { line: number, source };
        (&mut self.reader).take(limit).read_until(b'\n', &mut bytes).map_err(refused)?;
        let broken = |why: String| ReadError::Broken { line: number, why };
        if bytes.is_empty() {
            return if self.count == 0 { Err(ReadError::Empty) } else { Ok(None) };
        }
        if let State::Finished { .. } = self.state {
            return Err(broken("it stands after the root".to_owned()));
        }
        if bytes.len() > self.max_bytes {
            return Err(broken(format!("it is longer than {} bytes", self.max_bytes)));
        }
        if bytes.pop() != Some(b'\n') {
            self.state = State::Unfinished { torn_bytes: bytes.len() + 1 };
            return Ok(None);
        }
        let line = Line::read(&bytes).map_err(broken)?;
        self.in_place(&line)?;
        self.count = number;
        self.prev = line.hash;
        Ok(Some(line))
    }

    /// Holds a line against what came before it.
    fn in_place(&mut self, line: &Line) -> Result<(), ReadError> {
        let broken = |why: String| Err(ReadError::Broken { line: self.count + 1, why });
        if line.seq != self.count {
            return broken(format!(
                "it has number {}, but {} belongs there: lines were taken out or moved",
                line.seq, self.count
            ));
        }
        if line.prev != self.prev {
            return broken(format!(
                "it follows a line with hash {}, but the one before it has {}",
                line.prev, self.prev
            ));
        }
        match line.entry() {
            Some(Entry::Opened { format, run }) if self.count == 0 => {
                if format == 0 || format > FORMAT {
                    return Err(ReadError::Format { format });
                }
                self.run = run;
            }
            _ if self.count == 0 => return broken("the first line does not open a transcript".to_owned()),
            Some(Entry::Opened { .. }) => return broken("it opens a transcript a second time".to_owned()),
            Some(Entry::Root { lines }) if lines != self.count => {
                return broken(format!("the root is one of {lines} lines, but {} stand before it", self.count));
            }
            Some(Entry::Root { .. }) => self.state = State::Finished { root: line.hash },
            _ => {}
        }
        Ok(())
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Line, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let item = self.step().transpose();
        self.over = !matches!(item, Some(Ok(_)));
        item
    }
}

#[cfg(test)]
mod tests;
