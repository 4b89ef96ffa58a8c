// SPDX-License-Identifier: Apache-2.0
//! The transcript of a run: what a sandbox asked for, what it was given, and what it said, as JSON lines in a hash chain.
//!
//! The host writes it; a guest only ever adds [`Entry::Told`]. Values of secrets are masked before anything is written.
//! A line that cannot be written latches the [`Recorder`]: everybody who notes afterwards gets the same error, and
//! [`Recorder::failed`] wakes whoever has to stop the run. Reading back treats the file as hostile input.
//!
//! One line of the file is one JSON object. The bytes from its first brace up to `,"hash":"` are what its hash is over, and
//! they hold the hash of the line before:
//!
//! ```text
//! {"seq":1,"t_ms":3,"unix_ms":1767225600003,"by":"host","entry":{"kind":"started",...},"prev":"<64 hex>","hash":"<64 hex>"}
//! hash = sha256(bytes before `,"hash":"`)         prev of line 0 = 64 zeros         the last line is `root`; its hash is the root
//! ```
//!
//! Nothing here runs a sandbox, draws progress, or decides anything.

mod chain;
mod entry;
mod export;
#[cfg(fuzzing)]
pub mod fuzz;
mod mask;
mod read;
mod recorder;
mod replay;
mod show;
mod verify;

pub use chain::{Hash, Line, Speaker};
pub use entry::{Body, Decider, Decision, Entry, Started, Usage};
pub use export::{to_html, to_json};
pub use mask::{Masker, SECRET_MIN_BYTES, SecretError};
pub use read::{Lines, ReadError, State};
pub use recorder::{Memory, RecordError, Recorder, Sink};
pub use replay::{Difference, Exchange, Recorded, Replay, ReplayError, ToolResult, differences, tool_results};
pub use show::{ShowError, printable, show, write_line};
pub use verify::{Verified, verify};

/// The version of the format, in the first line of each transcript.
pub const FORMAT: u32 = 1;

/// Longest body of one model exchange that is recorded whole, in bytes. A broker refuses a longer request before it is
/// sent; a longer answer is cut where it ends and marked, and its exchange cannot be replayed.
pub const BODY_MAX_BYTES: usize = 32 << 20;

/// Longest line of a transcript, in bytes, with its line feed. A longer one is neither written nor read.
pub const LINE_MAX_BYTES: usize = 64 << 20;

/// Longest transcript, in bytes. A guest can make its own transcript long, but not without end: the run stops.
pub const TRANSCRIPT_MAX_BYTES: u64 = 16 << 30;
