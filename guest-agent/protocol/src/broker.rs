// SPDX-License-Identifier: Apache-2.0
//! What a guest's programs and the broker of its host say to each other, other than HTTP.
//!
//! One JSON object a line, at most [`LINE_MAX_BYTES`] with its line feed. What a guest says is a claim: the broker believes none
//! of it, holds it against the policy, and records it as said by the guest.

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod ask;
mod child;
mod left;
mod peer;
mod run;
mod told;

pub use ask::{Answer, Asked, Question, Verdict};
pub use child::{Base, ChildEvent, ChildRequest, Keep, Work};
pub use left::Left;
pub use peer::{MESSAGE_MAX_BYTES, PeerEvent, PeerOpen, PeerSend};
pub use run::{Mcp, Rule, Run, Tools, Wire};
pub use told::{End, Item, ItemState, Noted, Told};

/// Longest line in either direction, in bytes, with its line feed.
pub const LINE_MAX_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests;
