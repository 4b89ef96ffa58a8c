// SPDX-License-Identifier: Apache-2.0
//! The wire protocol between a Midge host and the agent in its guest: both ends use this crate.
//!
//! Between the vsock streams of a sandbox and the code that acts on messages. It performs no I/O, starts nothing, never
//! panics on received bytes and never holds more than one frame.
//!
//! **Conversations.** Every conversation is a stream of its own.
//! - *Control*: the agent connects to the host's port [`READY_PORT`] as soon as a command can be answered and says
//!   `Hello`; the host answers `Welcome`. The stream stays open for `Ping`, `GetStats`, `OpenDoors`, `Quiesce`, `Freeze`, `Shutdown`.
//!   When it is lost the agent connects again and says `Hello` again, but not while it is frozen.
//! - *A command*: the host connects to the guest's port [`AGENT_PORT`] and sends `Exec` or `Attach`. The agent answers
//!   `Started`, then output as it comes, then `Exited`, and closes; or `Refused`. Closing the host's half of the stream
//!   means the same as `StdinEof`; a stream that is gone in both directions loses the client.
//! - *Files*: the host connects to [`AGENT_PORT`] and sends file requests, each after the answer to the one before.
//! - *A port of the guest's loopback*: the host connects to [`AGENT_PORT`] and sends `Dial`. After `Done` the stream has no frames any more,
//!   but the bytes of a TCP connection; `Error` says why there is none.
//!
//! **Copies of a machine.** `Freeze` on the control conversation brings the guest to a stand: conversations that are
//! opened then wait unanswered, and nothing but the agent runs. `Thaw` ends it in the same machine. In a copy every
//! conversation is broken, and the agent calls nobody: the host opens a conversation with `Resume`, whose `Welcome`
//! makes the copy unique before anything else runs in it. When that fails the answer is `Error`, or one comes after
//! `Done` and ends the conversation; the guest stays frozen then, and another `Resume` may be tried. Commands that ran
//! go on in the copy without their client, whether or not they keep a replay to `Attach` to. `SetClock` after it makes the
//! wall clock right by a guest that has its wits together: a cold one may take 10 ms to hear `Resume`.
//!
//! **Memory that goes back.** Between `Freeze` and `Thaw` the host may send `Gather`, again and again: the agent takes free
//! memory from its kernel, holds it, and answers `Gathered` with its place. Nothing else can use it before `Thaw` or
//! `Resume`, so the host may drop its content until then; afterwards the guest's kernel takes it for used and no longer
//! needed. The pages of one answer stay where they are until the next `Gather`, `Thaw` or `Resume`, no longer.
//!
//! **Doors.** `OpenDoors` gives the guest's programs a way to what its host has for them ([`Door`]): sockets of the guest, each
//! connection to which becomes a stream to the host's port of that door. None is open before.
//!
//! A command's standard input has a window, so that `Signal` and `Resize` never queue behind bytes the command does not
//! read: the sender stops [`STDIN_WINDOW_BYTES`] beyond the last `StdinTaken`.
//!
#![doc = include_str!("byte_table.md")]

#[cfg(feature = "broker")]
pub mod broker;
mod door;
mod field;
mod frame;
mod message;
mod records;
#[cfg(test)]
mod sample;
mod shape;
mod version;

pub use door::{COMMANDS_GROUP, Door, GUEST_DIR};
pub use field::{Field, FieldError, Item, Payload};
pub use frame::{DecodeError, Decoder, EncodeError, OutputStream, encode, encode_output};
pub use message::{Message, ToAgent, ToHost, kind_name};
pub use records::{
    Attach, Change, ChangeKind, Changes, Entry, EnvVar, ErrorCode, Exec, Exited, Failure, FileKind, FileRead,
    FileWrite, Freeze, Gathered, Hello, InitFailed, Layer, List, Metadata, Mkdir, Move, Outcome, Output, Owner,
    PageRange, Refused, Remove, Stage, Started, Stat, Stats, TarIn, TarOut, Usage, Welcome, WindowSize, WriteHow,
};
pub use version::{VersionMismatch, negotiate};

/// Oldest version of the protocol this crate speaks.
pub const OLDEST_VERSION: u16 = 1;
/// Newest version of the protocol this crate speaks.
pub const NEWEST_VERSION: u16 = 1;

/// The guest's vsock port where the agent takes conversations.
pub const AGENT_PORT: u32 = 1024;
/// The host's vsock port where the agent reports for the control conversation.
pub const READY_PORT: u32 = 1025;

/// Length of a frame's header, in bytes.
pub const HEADER_BYTES: usize = 8;
/// Longest payload to the agent, in bytes: room for the command lines of long scripts.
pub const MAX_PAYLOAD_TO_AGENT_BYTES: usize = 512 * 1024;
/// Longest payload to the host, in bytes: a full piece of data and its offset.
pub const MAX_PAYLOAD_TO_HOST_BYTES: usize = MAX_DATA_BYTES + 1024;
/// Longest piece of data that senders put in one message, in bytes.
pub const MAX_DATA_BYTES: usize = 64 * 1024;

/// Standard input that may be under way to a command, in bytes.
pub const STDIN_WINDOW_BYTES: u64 = 256 * 1024;
/// Most output that is kept for a client that comes back, per stream, in bytes.
pub const MAX_REPLAY_BYTES: u32 = 16 * 1024 * 1024;
/// Least entropy in a `Welcome`, in bytes.
pub const MIN_ENTROPY_BYTES: usize = 32;
/// Most pages in a `Gathered`: 8 MiB.
pub const MAX_GATHERED_PAGES: usize = 2048;
/// Connections by `Dial` that an agent holds at once.
pub const MAX_DIALED: usize = 64;
/// Conversations that an agent serves at once, the control conversation not counted.
pub const MAX_CONVERSATIONS: usize = 1024;

#[cfg(test)]
mod tests;
