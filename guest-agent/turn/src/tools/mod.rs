// SPDX-License-Identifier: Apache-2.0
//! The tools that a language model calls inside the guest: what one is, and what its caller gives and gets.
//!
//! A tool works on the guest as the guest's user: it holds no policy and protects nothing. What it says is text for a model, bounded
//! in bytes; what it is given was written by a model, so it is checked before anything is done and nothing in it may cause a panic.
//! A call that fails is an [`Outcome`] as well: the model reads why, and goes on.

use midge_protocol::broker::{Asked, Item, Verdict};
use serde_json::Value;

mod ask;
mod cancel;
mod clip;
mod edit;
mod files;
mod fork;
mod input;
mod lines;
mod list;
mod mcp;
mod peer;
mod read;
mod search;
mod shell;
mod spool;
#[cfg(test)]
mod testing;
mod todo;
mod toolbox;
mod tree;
mod walk;
mod write;

pub use cancel::{Cancel, Waited};
pub use peer::PEER;
pub use toolbox::{Place, Ruling, Toolbox, ToolboxError};

/// Most bytes of text that one call gives the model. What is more is cut in the middle and can be read by offset.
pub const OUTCOME_MAX_BYTES: usize = 32 << 10;

/// What a model is told of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Its name: 1 to 64 of `[a-zA-Z0-9_-]`, which is what every provider takes.
    pub name: String,
    /// What it does, with its units and limits.
    pub description: String,
    /// JSON Schema of its input, an object.
    pub input_schema: Value,
}

/// A call that the model asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The provider's name for it.
    pub id: String,
    /// The tool.
    pub name: String,
    /// What it is called with.
    pub input: Value,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What the model is told, at most [`OUTCOME_MAX_BYTES`].
    pub text: String,
    /// How it ended.
    pub ending: Ending,
    /// Bytes of output that `text` leaves out and that can be read by offset.
    pub elided_bytes: u64,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The tool did what it was asked; a command's exit code is part of that.
    Done,
    /// It could not, and the text says why.
    Failed,
    /// The policy or a human said no.
    Denied,
    /// The flag was set; the text says what was done until then.
    Cancelled,
}

impl Outcome {
    /// It was done, and this is what it says.
    #[must_use]
    pub fn done(text: impl Into<String>) -> Self {
        Self { text: text.into(), ending: Ending::Done, elided_bytes: 0 }
    }

    /// It failed, and this is why.
    #[must_use]
    pub fn failed(text: impl Into<String>) -> Self {
        Self { text: text.into(), ending: Ending::Failed, elided_bytes: 0 }
    }

    /// It was not allowed, and this is why.
    #[must_use]
    pub fn denied(text: impl Into<String>) -> Self {
        Self { text: text.into(), ending: Ending::Denied, elided_bytes: 0 }
    }

    /// It was ended early.
    #[must_use]
    pub fn cancelled(text: impl Into<String>) -> Self {
        Self { text: text.into(), ending: Ending::Cancelled, elided_bytes: 0 }
    }

    /// Whether the provider is told that the call failed.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.ending != Ending::Done
    }
}

/// What a tool says while a call goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step<'a> {
    /// The call begins, with this input (which a human may have changed since the model asked).
    Began(&'a Value),
    /// Words for whoever watches: output of a command, what a server says. Not for the model.
    Words(&'a str),
    /// The list of what is to be done is now this one, whole.
    Todo(&'a [Item]),
    /// The call has ended.
    Ended(&'a Outcome),
}

/// Told of each step with the call's id, from the thread that does the call.
pub type Progress<'a> = &'a (dyn Fn(&str, Step<'_>) + Sync);

/// What a call is done with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The provider's name for the call.
    pub call_id: &'a str,
    /// Ends it early.
    pub cancel: &'a Cancel,
    /// Is told what goes on.
    pub progress: Progress<'a>,
}

impl Context<'_> {
    /// Tells a step of this call.
    pub fn tell(&self, step: Step<'_>) {
        (self.progress)(self.call_id, step);
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("call_id", &self.call_id).finish_non_exhaustive()
    }
}

/// A tool. It may be called from several threads at once when it [`reads only`](Tool::reads_only), from one otherwise.
pub trait Tool: Send + Sync {
    /// What the model is told of it.
    fn spec(&self) -> Spec;

    /// Whether a call changes nothing that another call of the same turn can see.
    fn reads_only(&self) -> bool {
        false
    }

    /// Does a call. It returns soon after `context.cancel` is set, and leaves no process of its own behind then.
    fn call(&self, input: Value, context: &Context<'_>) -> Outcome;
}

/// Who answers for the run: the door `ask`, or a test.
pub trait Asker: Send + Sync {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// Why there is none, in words for the model; a flag that was set is one such reason.
    fn ask(&self, asked: &Asked, cancel: &Cancel) -> Result<Verdict, String>;
}
