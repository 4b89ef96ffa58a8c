// SPDX-License-Identifier: Apache-2.0
//! A command's output: from the program's pipe or terminal into its replay buffer, as far as that has room.

use std::fs::File;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use midge_protocol::OutputStream;

use super::replay::Replay;
use super::sink;
use crate::link::ReadBuffer;
use crate::sys::fd::Watch;

/// After the command's end its output goes on as long as something comes within this time: what it started in the
/// background may still be writing its last words.
const QUIET: Duration = Duration::from_millis(100);
/// After this time since the command's end, or since the client let us wait, its output ends in any case.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Output after the command's end that is read at most, in bytes: more than any pipe holds.
const DRAIN_MAX_BYTES: usize = 2 * 1024 * 1024;

/// One stream out of a program.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stream: OutputStream,
    pub(crate) replay: Replay,
    source: Option<File>,
    /// When something came last.
    active_at: Instant,
    /// When something could not be taken last.
    stalled_at: Option<Instant>,
    /// Bytes that came after the command's end.
    late_bytes: usize,
}

impl Output {
    /// Output from `source`, whose reads do not wait. Without a source it is at its end.
    pub(crate) fn new(stream: OutputStream, source: Option<File>, keep_bytes: usize) -> Self {
        let (replay, active_at) = (Replay::new(keep_bytes), Instant::now());
        Self { stream, replay, source, active_at, stalled_at: None, late_bytes: 0 }
    }

    /// Nothing more will come.
    pub(crate) const fn is_closed(&self) -> bool {
        self.source.is_none()
    }

    pub(crate) fn watch(&self) -> Watch {
        match &self.source {
            Some(source) if self.replay.room() > 0 => Watch::new(source, true, false),
            _ => Watch::idle(),
        }
    }

    /// Reads once; `is_late` after the command's end.
    pub(crate) fn read(&mut self, buffer: &mut ReadBuffer, is_late: bool) {
        let Some(source) = &mut self.source else { return };
        match buffer.read(source, self.replay.room()) {
            Ok(bytes) if !bytes.is_empty() => {
                self.replay.push(bytes);
                self.active_at = Instant::now();
                self.late_bytes += if is_late { bytes.len() } else { 0 };
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The end of a pipe; a terminal whose programs are gone answers EIO.
            _ => self.source = None,
        }
    }

    /// Until when to wait for more once the command has ended at `ended`. `None` when there is nothing to wait for, and
    /// while the client takes nothing: what cannot be read now may have been written before the end.
    pub(crate) fn patience(&mut self, ended: Instant, now: Instant) -> Option<Instant> {
        self.source.as_ref()?;
        if self.late_bytes > DRAIN_MAX_BYTES {
            return Some(now);
        }
        if self.replay.room() == 0 {
            self.stalled_at = Some(now);
            return None;
        }
        let since = self.stalled_at.map_or(ended, |stalled| stalled.max(ended));
        Some((self.active_at.max(since) + QUIET).min(since + DRAIN_MAX))
    }

    /// Ends the stream though somebody still holds its other end.
    pub(crate) fn abandon(&mut self, is_terminal: bool) {
        match self.source.take() {
            // Closing our end of a terminal hangs it up, as a user's leaving would.
            Some(source) if !is_terminal => sink::take(source),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
