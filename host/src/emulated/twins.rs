// SPDX-License-Identifier: Apache-2.0
//! Orders to monitors on an emulated host, to freeze, fork, save and drop memory: what `crate::monitor` does natively, asked for across.

use std::path::PathBuf;

use tokio::io::BufReader;

use super::wire::{self, Op};
use super::{EmulatedError, EmulatedHost, RemoteMonitor, extents, follow, io_error};
use crate::groups::Usage;
use crate::orders::Pause;

impl EmulatedHost {
    /// Has the monitor of `id` twin itself into a resident; says how long its guest stood still.
    ///
    /// # Errors
    /// [`EmulatedError::Refused`] with the monitor's reason, or the emulated host is gone.
    pub async fn freeze(&self, id: &str, resident: &str) -> Result<(RemoteMonitor, Pause), EmulatedError> {
        const DOING: &str = "freezing a VM";
        let op = Op::Freeze { id: id.to_owned(), resident: resident.to_owned() };
        let mut connection = self.ask(op, DOING).await?;
        let pause = connection.answer().await.and_then(|line| Ok(serde_json::from_str(&line)?));
        Ok((follow(connection), pause.map_err(|source| io_error(DOING, source))?))
    }

    /// Has a resident make a VM called `id`.
    ///
    /// # Errors
    /// [`EmulatedError::Refused`] with the resident's reason, or the emulated host is gone.
    pub async fn fork(&self, resident: &str, id: &str) -> Result<RemoteMonitor, EmulatedError> {
        let op = Op::Fork { resident: resident.to_owned(), id: id.to_owned() };
        Ok(follow(self.ask(op, "forking a VM").await?))
    }

    /// Has the monitor of `id` drop these guest-physical ranges; returns how many bytes it has dropped.
    ///
    /// # Errors
    /// [`EmulatedError::Refused`] with the monitor's reason, or the emulated host is gone.
    pub async fn discard(&self, id: &str, ranges: Vec<(u64, u64)>) -> Result<u64, EmulatedError> {
        const DOING: &str = "dropping guest memory";
        let mut connection = self.ask(Op::Discard { id: id.to_owned(), ranges }, DOING).await?;
        let bytes = connection.answer().await.and_then(|line| Ok(serde_json::from_str(&line)?));
        bytes.map_err(|source| io_error(DOING, source))
    }

    /// What the monitor of `id` has of the emulated host; `None` when that has no control group for it.
    ///
    /// # Errors
    /// [`EmulatedError::Refused`] when it does not run, or the emulated host is gone.
    pub async fn usage(&self, id: &str) -> Result<Option<Usage>, EmulatedError> {
        const DOING: &str = "asking for a control group";
        let mut connection = self.ask(Op::Usage { id: id.to_owned() }, DOING).await?;
        let usage = connection.answer().await.and_then(|line| Ok(serde_json::from_str(&line)?));
        usage.map_err(|source| io_error(DOING, source))
    }

    /// Brings what a resident holds into new files: state, memory, layers. Returns the bytes of memory that were not
    /// zero.
    ///
    /// # Errors
    /// [`EmulatedError::Refused`] with the resident's reason, [`EmulatedError::Io`].
    pub async fn save(&self, resident: &str, files: &[PathBuf]) -> Result<u64, EmulatedError> {
        const DOING: &str = "writing a snapshot";
        let layers = files.len().saturating_sub(2);
        let mut connection = self.ask(Op::Save { resident: resident.to_owned(), layers }, DOING).await?;
        let received = async {
            let memory_bytes = serde_json::from_str(&connection.answer().await?)?;
            let mut reader = BufReader::with_capacity(wire::EXTENT_MAX_BYTES, &mut connection.reader);
            for path in files {
                extents::receive(&mut reader, path).await?;
            }
            Ok(memory_bytes)
        };
        received.await.map_err(|source| io_error(DOING, source))
    }
}
