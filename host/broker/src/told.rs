// SPDX-License-Identifier: Apache-2.0
//! The door `record`: what the guest's tool loop says that it does. It is written down as said by the guest, and answered with what is
//! left of the budgets. Who says more than anybody reads waits; who says nonsense is cut off.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use midge_protocol::Door;
use midge_protocol::broker::Noted;
use midge_record::{Entry, Recorder};
use tokio::sync::{Mutex, Semaphore};

use crate::ledger::Ledger;
use crate::lines::{LineError, Lines, Pace, note_nonsense, unrecorded, write_line};
use crate::stream::Stream;

/// Lines a second, of all connections; more wait.
const LINES_PER_SECOND: u32 = 200;
/// Lines that may come at once.
const LINES_BURST: u32 = 1000;
/// KiB a second; more wait.
const KIB_PER_SECOND: u32 = 4 << 10;
/// KiB that may come at once.
const KIB_BURST: u32 = 16 << 10;
/// Most bytes of one run.
const RUN_MAX_BYTES: u64 = 1 << 30;
/// Most connections at once; more wait.
const CONNECTIONS_MAX: usize = 8;

/// The door of one sandbox.
pub struct ToldDoor {
    recorder: Recorder,
    ledger: Ledger,
    pace: Mutex<(Pace, Pace)>,
    told_bytes: AtomicU64,
    places: Semaphore,
}

impl std::fmt::Debug for ToldDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ToldDoor").field("told_bytes", &self.told_bytes).finish_non_exhaustive()
    }
}

impl ToldDoor {
    /// A door that writes to `recorder` and tells what is left in `ledger`.
    #[must_use]
    pub fn new(recorder: Recorder, ledger: Ledger) -> Arc<Self> {
        let second = Duration::from_secs(1);
        let pace = (Pace::new(LINES_PER_SECOND, second, LINES_BURST), Pace::new(KIB_PER_SECOND, second, KIB_BURST));
        let places = Semaphore::new(CONNECTIONS_MAX);
        Arc::new(Self { recorder, ledger, pace: Mutex::new(pace), told_bytes: AtomicU64::new(0), places })
    }

    /// Serves one connection to its end.
    ///
    /// # Errors
    /// The connection failed, something could not be recorded, or what came was refused.
    pub async fn serve(&self, stream: impl Stream) -> io::Result<()> {
        let Ok(_place) = self.places.acquire().await else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let (read, mut out) = tokio::io::split(stream);
        let mut lines = Lines::new(read);
        loop {
            let line = match lines.next().await {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(()),
                Err(LineError::Io(error)) => return Err(error),
                Err(error) => return Err(self.refused(b"", &error.to_string())),
            };
            self.at_pace(line.len()).await;
            let len = line.len() as u64;
            if self.told_bytes.fetch_add(len, Ordering::Relaxed).saturating_add(len) > RUN_MAX_BYTES {
                return Err(self.refused(b"", &format!("more than {RUN_MAX_BYTES} bytes were told in this run")));
            }
            match serde_json::from_slice::<Noted>(&line) {
                Ok(noted) => {
                    self.recorder.note(&Entry::Told { told: noted.told }).map_err(unrecorded)?;
                    write_line(&mut out, &self.ledger.left()).await?;
                }
                Err(error) => return Err(self.refused(&line, &error.to_string())),
            }
        }
    }

    async fn at_pace(&self, bytes: usize) {
        let mut pace = self.pace.lock().await;
        pace.0.wait(1).await;
        pace.1.wait(u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX)).await;
    }

    fn refused(&self, line: &[u8], why: &str) -> io::Error {
        match note_nonsense(&self.recorder, Door::Record.name(), line, why) {
            Ok(()) => io::Error::new(io::ErrorKind::InvalidData, why.to_owned()),
            Err(error) => unrecorded(error),
        }
    }
}

#[cfg(test)]
mod tests;
