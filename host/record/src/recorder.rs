// SPDX-License-Identifier: Apache-2.0
//! The writing end: one file, one order, one latch. Blocks for a write, and for the disk where something is let out.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::{broadcast, watch};

use crate::{Entry, FORMAT, Hash, LINE_MAX_BYTES, Line, Masker, TRANSCRIPT_MAX_BYTES};

/// Longest time that a written line is not on the disk while others follow it.
const SYNC_AFTER: Duration = Duration::from_secs(1);
/// Lines that a slow listener may lag behind before it misses some.
const LISTENER_LINES: usize = 1024;

/// Why something could not be recorded. The first such error latches: the run must stop.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecordError {
    /// The transcript could not be made.
    #[error("making the transcript {path}; give the run another name, or another place for its transcript")]
    Create {
        /// Its path.
        path: PathBuf,
        /// The refusal.
        source: Arc<io::Error>,
    },
    /// A line could not be written, or not be put on the disk.
    #[error(
        "writing line {seq} of the transcript {path}: the run stops rather than go unrecorded; make room on that disk, or put the \
         transcript elsewhere"
    )]
    Write {
        /// The line's number.
        seq: u64,
        /// The transcript's path.
        path: PathBuf,
        /// The refusal.
        source: Arc<io::Error>,
    },
    /// A line would be longer than anybody reads.
    #[error(
        "writing line {seq} of the transcript: it has {bytes} bytes, at most {LINE_MAX_BYTES} are accepted; the run stops"
    )]
    TooLong {
        /// The line's number.
        seq: u64,
        /// Its length.
        bytes: usize,
    },
    /// The transcript would be longer than one may be.
    #[error("writing line {seq} of the transcript: it would have more than {max} bytes in all; the run stops")]
    Full {
        /// The line's number.
        seq: u64,
        /// What is accepted.
        max: u64,
    },
    /// An entry is no JSON.
    #[error("writing a line of the transcript as JSON: {why}; the run stops")]
    Json {
        /// In the serialiser's words.
        why: String,
    },
    /// The transcript has its root.
    #[error("writing to the transcript after its root: the run is over")]
    Finished,
}

/// Where lines go.
pub trait Sink: Send {
    /// Writes all of `bytes` at the end.
    ///
    /// # Errors
    /// Whatever the operating system says; some of `bytes` may be there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Puts all that was written on the disk.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn sync(&mut self) -> io::Result<()>;

    /// Takes away all bytes but the first `len`, after an append that failed.
    ///
    /// # Errors
    /// Whatever the operating system says; nobody can do anything about it.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

impl Sink for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}

/// A transcript in memory, for tests and for what is looked at and thrown away. Clones are the same bytes.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    /// What was written so far.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Memory {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.lock().extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.lock().truncate(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(())
    }
}

/// The writing end of a transcript. Clones write to the same one, each line whole and in one order.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    path: PathBuf,
    max_bytes: u64,
    masker: Masker,
    opened: Instant,
    chain: Mutex<Chain>,
    /// The first error.
    latch: watch::Sender<Option<RecordError>>,
    listeners: broadcast::Sender<Arc<Line>>,
}

/// What the lock guards: where the chain ends.
struct Chain {
    sink: Box<dyn Sink>,
    seq: u64,
    prev: Hash,
    len_bytes: u64,
    synced: Instant,
    finished: bool,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Makes the transcript `path` of the run `run`, readable by its owner only, and writes its first line.
    ///
    /// # Errors
    /// [`RecordError::Create`] when there is something of that name or it cannot be made; the others as [`Recorder::note`].
    pub fn create(path: &Path, run: &str, masker: Masker) -> Result<Self, RecordError> {
        let refused = |source| RecordError::Create { path: path.to_owned(), source: Arc::new(source) };
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path).map_err(refused)?;
        Self::on(Box::new(file), path, run, masker)
    }

    /// A transcript in memory.
    ///
    /// # Errors
    /// As [`Recorder::note`].
    pub fn in_memory(run: &str, masker: Masker) -> Result<(Self, Memory), RecordError> {
        let memory = Memory::default();
        Ok((Self::on(Box::new(memory.clone()), Path::new("(in memory)"), run, masker)?, memory))
    }

    /// A transcript on any sink; `path` is for error messages.
    ///
    /// # Errors
    /// As [`Recorder::note`].
    pub fn on(sink: Box<dyn Sink>, path: &Path, run: &str, masker: Masker) -> Result<Self, RecordError> {
        Self::up_to(sink, path, run, masker, TRANSCRIPT_MAX_BYTES)
    }

    fn up_to(sink: Box<dyn Sink>, path: &Path, run: &str, masker: Masker, max_bytes: u64) -> Result<Self, RecordError> {
        let now = Instant::now();
        let chain = Chain { sink, seq: 0, prev: Hash::ZERO, len_bytes: 0, synced: now, finished: false };
        let recorder = Self(Arc::new(Shared {
            path: path.to_owned(),
            max_bytes,
            masker,
            opened: now,
            chain: Mutex::new(chain),
            latch: watch::Sender::new(None),
            listeners: broadcast::Sender::new(LISTENER_LINES),
        }));
        recorder.note(&Entry::Opened { format: FORMAT, run: run.to_owned() })?;
        Ok(recorder)
    }

    /// Where the transcript is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Masks and writes one line, and gives its number. When this returns, the line survives the end of this process. It is on the
    /// disk when [`Entry::lets_out`] says that it has to be, when nothing was put there for a second, and at the end.
    ///
    /// # Errors
    /// Any [`RecordError`]; it latches, and is what everybody gets from then on. What was to be recorded must not happen.
    pub fn note(&self, entry: &Entry) -> Result<u64, RecordError> {
        let done = self.0.masked(entry).and_then(|value| self.0.append(&mut self.0.lock(), entry, value));
        self.0.latched(done.map(|line| line.seq))
    }

    /// Writes the root, puts everything on the disk, and gives the hash that stands for the whole transcript.
    ///
    /// # Errors
    /// As [`Recorder::note`]; [`RecordError::Finished`] the second time.
    pub fn finish(&self) -> Result<Hash, RecordError> {
        let mut chain = self.0.lock();
        let entry = Entry::Root { lines: chain.seq };
        let done = self.0.masked(&entry).and_then(|value| self.0.append(&mut chain, &entry, value)).and_then(|root| {
            chain.finished = true;
            self.0.sync(&mut chain).map(|()| root.hash)
        });
        self.0.latched(done)
    }

    /// The error that latched, if one did.
    #[must_use]
    pub fn error(&self) -> Option<RecordError> {
        self.0.latch.borrow().clone()
    }

    /// Waits until something could not be recorded. Whoever runs the sandbox waits for this beside everything else, and stops.
    pub async fn failed(&self) -> RecordError {
        let mut latch = self.0.latch.subscribe();
        // The sender lives as long as `self`: there is an error, or there is no end of waiting.
        let found = latch.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        match found {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// The lines that are written from now on, masked. A listener that lags is told how many it missed.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Arc<Line>> {
        self.0.listeners.subscribe()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Chain> {
        // A line is whole or latched before anything can unwind.
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latched<T>(&self, done: Result<T, RecordError>) -> Result<T, RecordError> {
        if let Err(error) = &done {
            self.latch.send_if_modified(|latch| {
                // Late notes are refused, but a finished transcript has not failed.
                let first = latch.is_none() && !matches!(error, RecordError::Finished);
                if first {
                    *latch = Some(error.clone());
                }
                first
            });
        }
        done
    }

    /// The entry as it is written. Long bodies take their time: nobody waits for that but who notes them.
    fn masked(&self, entry: &Entry) -> Result<Value, RecordError> {
        let mut value = serde_json::to_value(entry).map_err(no_json)?;
        self.masker.mask_entry(&mut value);
        Ok(value)
    }

    fn append(&self, chain: &mut Chain, entry: &Entry, value: Value) -> Result<Arc<Line>, RecordError> {
        if let Some(error) = self.latch.borrow().clone() {
            return Err(error);
        }
        if chain.finished {
            return Err(RecordError::Finished);
        }
        let seq = chain.seq;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line {
            seq,
            t_ms: millis(self.opened.elapsed()),
            unix_ms: millis(unix),
            by: entry.speaker(),
            entry: value,
            prev: chain.prev,
            hash: Hash::ZERO,
        };
        let (line, bytes) = line.write().map_err(no_json)?;
        if bytes.len() > LINE_MAX_BYTES {
            return Err(RecordError::TooLong { seq, bytes: bytes.len() });
        }
        if chain.len_bytes + bytes.len() as u64 > self.max_bytes {
            return Err(RecordError::Full { seq, max: self.max_bytes });
        }
        if let Err(source) = chain.sink.append(&bytes) {
            // Half a line is taken away, so that what is there stays a whole chain. The error that counts is the first.
            let _ = chain.sink.truncate(chain.len_bytes);
            return Err(self.refused(seq, source));
        }
        chain.len_bytes += bytes.len() as u64;
        chain.prev = line.hash;
        chain.seq += 1;
        if entry.lets_out() || chain.synced.elapsed() >= SYNC_AFTER {
            self.sync(chain)?;
        }
        let line = Arc::new(line);
        // Nobody has to listen.
        let _ = self.listeners.send(Arc::clone(&line));
        Ok(line)
    }

    fn sync(&self, chain: &mut Chain) -> Result<(), RecordError> {
        chain.sink.sync().map_err(|source| self.refused(chain.seq.saturating_sub(1), source))?;
        chain.synced = Instant::now();
        Ok(())
    }

    fn refused(&self, seq: u64, source: io::Error) -> RecordError {
        RecordError::Write { seq, path: self.path.clone(), source: Arc::new(source) }
    }
}

fn no_json(error: serde_json::Error) -> RecordError {
    RecordError::Json { why: error.to_string() }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
