// SPDX-License-Identifier: Apache-2.0
//! Output that is too long for the model: kept in files of bounded size, read by offset through the tool `output`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, OUTCOME_MAX_BYTES, Outcome, Spec, Tool, clip, input};

/// Most bytes that are kept of one call's output: its beginning.
pub(super) const KEPT_MAX_BYTES: u64 = 8 << 20;
/// Most outputs that are kept, in files; the oldest go.
pub(super) const KEPT_MAX_FILES: usize = 16;
/// Bytes of the model's text that a mark and the last line may take.
pub(super) const NOTES_MAX_BYTES: usize = 1 << 10;

/// The outputs that are kept.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the next output.
    next: u64,
    kept: VecDeque<u64>,
}

/// One output that is being kept.
#[derive(Debug)]
pub(super) struct Kept {
    /// Its name for the model.
    pub(super) id: String,
    /// Bytes in the file.
    pub(super) written_bytes: u64,
    /// What went wrong with the file; nothing is written after that.
    pub(super) trouble: Option<String>,
    file: Option<File>,
}

impl Kept {
    /// Adds bytes up to the limit. Trouble is kept for whoever tells the model, a call does not fail for it.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let room = usize::try_from(KEPT_MAX_BYTES - self.written_bytes).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        let Some(file) = self.file.as_mut().filter(|_| self.trouble.is_none()) else { return };
        match file.write_all(bytes) {
            Ok(()) => self.written_bytes += bytes.len() as u64,
            Err(error) => self.trouble = Some(error.to_string()),
        }
    }

    /// The mark that stands for `elided_bytes` from `offset` on.
    pub(super) fn mark(&self, offset: u64, elided_bytes: u64) -> String {
        let id = &self.id;
        let mut mark = format!("[{elided_bytes} bytes left out here");
        if offset < self.written_bytes {
            mark += &format!("; read on with the tool output: {{\"id\":\"{id}\",\"offset\":{offset}}}");
        }
        if offset + elided_bytes > self.written_bytes {
            mark += &format!("; only the first {} bytes of all were kept", self.written_bytes);
        }
        if let Some(trouble) = &self.trouble {
            mark += &format!(" ({trouble})");
        }
        mark + "]"
    }
}

impl Spool {
    /// Keeps files in `dir`, which is made when the first one is.
    pub(super) fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { dir, state: Mutex::default() })
    }

    /// A new output. It never fails: what cannot be kept says so when it is asked for.
    pub(super) fn begin(&self) -> Kept {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.next;
        state.next += 1;
        if state.kept.len() >= KEPT_MAX_FILES
            && let Some(oldest) = state.kept.pop_front()
        {
            // What is not there need not go.
            let _ = fs::remove_file(self.path(oldest));
        }
        state.kept.push_back(number);
        let opened = fs::create_dir_all(&self.dir).and_then(|()| File::create(self.path(number)));
        let (file, trouble) = match opened {
            Ok(file) => (Some(file), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Kept { id: format!("o{number}"), written_bytes: 0, trouble, file }
    }

    /// `text` for the model: itself, or its ends with a mark between, the whole being kept.
    pub(super) fn outcome(&self, text: &str) -> Outcome {
        let room = OUTCOME_MAX_BYTES - NOTES_MAX_BYTES;
        let (head, tail) = clip::ends(text, room);
        if tail.is_empty() {
            return Outcome::done(text);
        }
        let mut kept = self.begin();
        kept.write(text.as_bytes());
        let elided = (text.len() - head.len() - tail.len()) as u64;
        let mark = kept.mark(head.len() as u64, elided);
        Outcome { elided_bytes: elided, ..Outcome::done(format!("{head}\n{mark}\n{tail}")) }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("output-{number}"))
    }

    /// Up to `limit` bytes of output `id` from `offset` on, and the length of what is kept of it.
    fn read(&self, id: &str, offset: u64, limit: usize) -> io::Result<(Vec<u8>, u64)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = id.strip_prefix('o').and_then(|number| number.parse::<u64>().ok());
        let number = number.filter(|number| state.kept.contains(number)).ok_or_else(|| {
            let ids: Vec<String> = state.kept.iter().map(|number| format!("o{number}")).collect();
            io::Error::other(format!("there is no output {:?}; kept are: {}", input::shortened(id), ids.join(", ")))
        })?;
        let mut file = File::open(self.path(number))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(limit as u64).read_to_end(&mut bytes)?;
        Ok((bytes, length))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        for number in &self.state.get_mut().unwrap_or_else(PoisonError::into_inner).kept {
            // The directory goes with the guest.
            let _ = fs::remove_file(self.dir.join(format!("output-{number}")));
        }
    }
}

/// The tool `output`.
#[derive(Debug)]
pub(super) struct Output(pub(super) Arc<Spool>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    id: String,
    #[serde(default)]
    offset: u64,
}

impl Tool for Output {
    fn spec(&self) -> Spec {
        let description = format!(
            "Reads on in the output of an earlier call that was too long to be shown whole. Gives up to {} bytes from a byte offset. \
             The first {} MiB of each of the last {KEPT_MAX_FILES} such outputs are kept.",
            OUTCOME_MAX_BYTES - NOTES_MAX_BYTES,
            KEPT_MAX_BYTES >> 20,
        );
        let input_schema = json!({
            "type": "object",
            "properties": {
                "id": {"type": "string", "description": "as in the mark where bytes were left out, like o3"},
                "offset": {"type": "integer", "minimum": 0, "description": "first byte, default 0"},
            },
            "required": ["id"],
            "additionalProperties": false,
        });
        Spec { name: "output".into(), description, input_schema }
    }

    fn reads_only(&self) -> bool {
        true
    }

    fn call(&self, input: Value, _context: &Context<'_>) -> Outcome {
        let input: Input = match input::parse(input) {
            Ok(input) => input,
            Err(outcome) => return outcome,
        };
        let (bytes, length) = match self.0.read(&input.id, input.offset, OUTCOME_MAX_BYTES - NOTES_MAX_BYTES) {
            Ok(read) => read,
            Err(error) => return Outcome::failed(format!("the output could not be read: {error}")),
        };
        // Text may be longer than its bytes; what it is cut to must be said in bytes of the file.
        let mut used = bytes.len();
        let mut text = clip::text_of(&bytes);
        while text.len() > OUTCOME_MAX_BYTES - NOTES_MAX_BYTES {
            used = used * 3 / 4;
            text = clip::text_of(&bytes[..used]);
        }
        let end = input.offset + used as u64;
        let more = if end < length { "read on from there" } else { "that is all" };
        let first = input.offset;
        if used == 0 {
            return Outcome::done(format!("[output {} has {length} bytes; there is nothing at {first}]", input.id));
        }
        let left = length.saturating_sub(end);
        Outcome { elided_bytes: left, ..Outcome::done(format!("{text}\n[bytes {first} to {end} of {length}; {more}]")) }
    }
}

#[cfg(test)]
mod tests;
