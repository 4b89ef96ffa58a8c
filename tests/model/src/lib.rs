// SPDX-License-Identifier: Apache-2.0
//! A model server that says what a script says: for tests of the tool loop, of the broker, and of whoever else asks a model.
//!
//! It speaks Anthropic Messages, `OpenAI` Responses and Chat Completions, streamed or whole. It is as strict with requests as the
//! real ones are known to be, remembers every request, and does on demand what real servers do on bad days.

pub mod check;
mod http;
mod say;
pub mod script;
mod server;
mod template;

pub use server::{Asked, Listener, Server, Stream};

/// A wire format, by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    /// Anthropic Messages.
    Anthropic,
    /// `OpenAI` Responses.
    Responses,
    /// Chat Completions.
    Chat,
}

impl Wire {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Anthropic, Self::Responses, Self::Chat];

    /// The path of its requests.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Anthropic => "/v1/messages",
            Self::Responses => "/v1/responses",
            Self::Chat => "/v1/chat/completions",
        }
    }

    /// The format whose requests go to `path`, whatever stands after a question mark.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        let path = path.split('?').next().unwrap_or_default();
        Self::ALL.into_iter().find(|wire| wire.path() == path)
    }

    /// An error in the format's own way.
    #[must_use]
    pub fn error(self, kind: &str, message: &str) -> serde_json::Value {
        match self {
            Self::Anthropic => serde_json::json!({"type": "error", "error": {"type": kind, "message": message}}),
            Self::Responses | Self::Chat => {
                serde_json::json!({"error": {"message": message, "type": kind, "param": null, "code": kind}})
            }
        }
    }
}
