// SPDX-License-Identifier: Apache-2.0
//! What can be recorded. Pure data: who writes it is `recorder`, who reads it is everybody else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use midge_protocol::broker::{ChildRequest, Keep, Left, Told, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{BODY_MAX_BYTES, Speaker};

/// One thing that happened. Numbers such as `exchange`, `connection`, `question`, `child` and `tunnel` are the host's, unique
/// within a run and kind, and tie what belongs together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// The first line; the recorder writes it.
    Opened {
        /// [`crate::FORMAT`].
        format: u32,
        /// The run's name.
        run: String,
    },
    /// A run begins.
    Started(Box<Started>),
    /// The policy was narrowed while the run went on.
    Narrowed {
        /// The whole new policy, as TOML.
        policy: String,
    },
    /// A model is about to be asked.
    ModelRequest {
        /// Number of the exchange.
        exchange: u64,
        /// Path of the API, such as `/v1/messages`.
        path: String,
        /// The model that is asked.
        model: String,
        /// The request's body, whole.
        body: Value,
    },
    /// A model has answered.
    ModelAnswer {
        /// Number of the exchange.
        exchange: u64,
        /// HTTP status.
        status: u16,
        /// Headers of the answer that a replay has to give again, such as `content-type` and `retry-after`.
        headers: BTreeMap<String, String>,
        /// The answer's body as it came, events of a stream included.
        body: Body,
        /// What the provider counts.
        usage: Usage,
        /// What that costs, in millionths of a US dollar.
        money_micros: u64,
        /// From the request to the last byte.
        elapsed_ms: u64,
        /// Why the answer is not whole, if it is not: the guest hung up, the provider broke off, a limit.
        broken: Option<String>,
    },
    /// A model was not asked, or could not be reached.
    ModelRefused {
        /// Number of the exchange.
        exchange: u64,
        /// Path of the API.
        path: String,
        /// Why.
        why: String,
    },
    /// What became of a wish to reach something in the network.
    EgressDecided {
        /// Number of the connection.
        connection: u64,
        /// `CONNECT` or the method of the request.
        method: String,
        /// `http` or `https`.
        scheme: String,
        /// Host, as the policy reads it.
        host: String,
        /// TCP port.
        port: u16,
        /// Path and query, where the broker can see them.
        path: Option<String>,
        /// The rule that decided, by name; absent: the policy's default.
        rule: Option<String>,
        /// What was decided.
        decision: Decision,
        /// Why, in words.
        why: String,
        /// The address that is connected to.
        address: Option<IpAddr>,
    },
    /// A connection or a request of one has ended.
    EgressEnded {
        /// Number of the connection.
        connection: u64,
        /// Status of the answer, where the broker can see it.
        status: Option<u16>,
        /// Bytes from the guest.
        sent_bytes: u64,
        /// Bytes to the guest.
        received_bytes: u64,
        /// How long it took.
        elapsed_ms: u64,
        /// Why it was ended before its time, if it was.
        broken: Option<String>,
    },
    /// Somebody is asked.
    Asked {
        /// Number of the question.
        question: u64,
        /// The guest's own question, or one of the host's about egress and children.
        asked: Value,
        /// Which rule asks.
        why: String,
    },
    /// A question is decided.
    Decided {
        /// Number of the question.
        question: u64,
        /// What was decided.
        verdict: Verdict,
        /// Who decided.
        by: Decider,
    },
    /// A sandbox made of this one is asked for.
    ChildAsked {
        /// Number of the child.
        child: u64,
        /// The guest's request.
        request: Box<ChildRequest>,
    },
    /// There is no child.
    ChildRefused {
        /// Number of the child.
        child: u64,
        /// Why, one reason each.
        why: Vec<String>,
    },
    /// A child runs.
    ChildStarted {
        /// Number of the child.
        child: u64,
        /// Its name; its transcript has it too.
        name: String,
        /// Its policy, as TOML.
        policy: String,
        /// What was taken from this run's budgets for it.
        share: Left,
    },
    /// A child is at its end.
    ChildEnded {
        /// Number of the child.
        child: u64,
        /// Its exit code; absent: it was ended.
        code: Option<i32>,
        /// What it spent, its own children included.
        spent: Left,
        /// What it changed, one path each, with `A`, `M` or `D` before it.
        changed: Vec<String>,
    },
    /// What became of a child's changes.
    ChildKept {
        /// Number of the child.
        child: u64,
        /// The parent's wish.
        keep: Keep,
        /// Bytes of the tar.
        tar_bytes: u64,
    },
    /// A tunnel or a mailbox between two sandboxes is open.
    PeerOpened {
        /// Number of the connection.
        tunnel: u64,
        /// The other sandbox.
        peer: String,
        /// The port of the tunnel's far end; absent: messages.
        port: Option<u16>,
        /// Whether the other sandbox opened it, to here.
        inward: bool,
    },
    /// It is not.
    PeerRefused {
        /// Number of the connection.
        tunnel: u64,
        /// The other sandbox.
        peer: String,
        /// Why.
        why: String,
    },
    /// A message to or from another sandbox.
    PeerMessage {
        /// The other sandbox.
        peer: String,
        /// Whether it came from there.
        received: bool,
        /// The message.
        text: String,
    },
    /// A tunnel or a mailbox is closed.
    PeerClosed {
        /// Number of the connection.
        tunnel: u64,
        /// The other sandbox.
        peer: String,
        /// Bytes to the other sandbox.
        sent_bytes: u64,
        /// Bytes from it.
        received_bytes: u64,
    },
    /// What the guest's tool loop says. Nobody has proved it.
    Told {
        /// Its words.
        told: Told,
    },
    /// A guest said what no door understands; its connection was ended.
    Malformed {
        /// The door's name.
        door: String,
        /// What was wrong.
        why: String,
        /// The beginning of what it said.
        excerpt: String,
    },
    /// A budget is used up.
    Exhausted {
        /// Its name, as in [`Left::exhausted`].
        budget: String,
    },
    /// What the run changed in the workspace.
    Changes {
        /// One path each, with `A`, `M` or `D` before it.
        changed: Vec<String>,
        /// Whether it was taken into the user's directory.
        applied: bool,
    },
    /// The run is at its end.
    Ended {
        /// In one word: done, budget, denied, cancelled, failed.
        how: String,
        /// What `midge` exits with.
        exit_code: u8,
        /// Last words.
        text: String,
        /// What was spent in all.
        spent: Left,
    },
    /// The last line; the recorder writes it.
    Root {
        /// Lines before this one.
        lines: u64,
    },
}

impl Entry {
    /// Who says it.
    #[must_use]
    pub fn speaker(&self) -> Speaker {
        match self {
            Self::Told { .. } => Speaker::Guest,
            _ => Speaker::Host,
        }
    }

    /// Whether it has to be on the disk before what it tells of may happen: what a decision of somebody lets out. Uses of the
    /// model and of the network are written before, and synchronised a little later: see [`crate::Recorder::note`].
    #[must_use]
    pub fn lets_out(&self) -> bool {
        match self {
            Self::Started(_) | Self::ChildStarted { .. } | Self::PeerOpened { port: Some(_), .. } => true,
            Self::Decided { verdict, .. } => {
                matches!(verdict, Verdict::Allow | Verdict::AllowForRun | Verdict::Edited { .. })
            }
            Self::Changes { applied, .. } => *applied,
            _ => false,
        }
    }
}

/// What a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// What is to be done, in words; a command for a child that runs one.
    pub task: String,
    /// The policy, as TOML.
    pub policy: String,
    /// The model's provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// The template that the sandbox was forked from.
    pub template: Option<String>,
    /// The run that this is a child of.
    pub parent: Option<String>,
    /// The transcript whose answers are given again instead of a model's.
    pub replay_of: Option<String>,
    /// What there is to spend.
    pub budget: Left,
    /// Versions and hashes of the parts: midge, kernel, image.
    pub versions: BTreeMap<String, String>,
}

/// A body of a model's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// Its text; what is no UTF-8 is replaced.
    pub text: String,
    /// Bytes that were cut off its end. An exchange that lacks some cannot be replayed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut_bytes: u64,
}

/// Serde calls it with a reference.
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Body {
    /// `bytes` as a body, cut at [`BODY_MAX_BYTES`].
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self::up_to(bytes, BODY_MAX_BYTES)
    }

    fn up_to(bytes: &[u8], max: usize) -> Self {
        let mut end = bytes.len().min(max);
        // Not in the middle of a character; four bytes are the longest.
        while end > 0 && end < bytes.len() && bytes[end] & 0xc0 == 0x80 && bytes.len().min(max) - end < 4 {
            end -= 1;
        }
        Self { text: String::from_utf8_lossy(&bytes[..end]).into_owned(), cut_bytes: (bytes.len() - end) as u64 }
    }
}

/// What the provider counts in one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Tokens in, without those of a cache.
    pub input_tokens: u64,
    /// Tokens out, those of thinking included.
    pub output_tokens: u64,
    /// Tokens read from the provider's cache.
    pub cache_read_tokens: u64,
    /// Tokens written to it.
    pub cache_write_tokens: u64,
    /// Tool calls that the answer asks for.
    pub tool_calls: u64,
    /// Whether some of these counts are the broker's estimate, the provider's own being missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

impl Usage {
    /// All tokens.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        [self.output_tokens, self.cache_read_tokens, self.cache_write_tokens]
            .into_iter()
            .fold(self.input_tokens, u64::saturating_add)
    }
}

/// What becomes of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It is granted.
    Allow,
    /// It is not.
    Deny,
}

/// Who decided a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decider {
    /// Somebody, at the terminal or through the API.
    Approver,
    /// An earlier answer for the whole run.
    Remembered,
    /// Nobody answered in time.
    TimeOut,
    /// Nobody can be asked any more, or too much is asked at once.
    Nobody,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_cut_between_characters_and_say_so() {
        assert_eq!(Body::up_to("aé".as_bytes(), 3), Body { text: "aé".into(), cut_bytes: 0 });
        assert_eq!(Body::up_to("aé".as_bytes(), 2), Body { text: "a".into(), cut_bytes: 2 });
        assert_eq!(Body::up_to(b"ab\xff", 3).text, "ab\u{fffd}");
        assert_eq!(
            Body::up_to(&[0x80; 9], 8).cut_bytes,
            5,
            "no valid text: not more than one character is looked back"
        );
        assert_eq!(Body::up_to(b"", 0), Body::default());
    }

    #[test]
    fn guests_speak_for_themselves_only() {
        let told = Entry::Told { told: Told::Said { text: "I am the host".into() } };
        assert_eq!((told.speaker(), told.lets_out()), (Speaker::Guest, false));
        assert_eq!(Entry::Root { lines: 1 }.speaker(), Speaker::Host);
    }

    #[test]
    fn what_lets_something_out_is_known() {
        let decided = |verdict| Entry::Decided { question: 1, verdict, by: Decider::Approver }.lets_out();
        assert!(decided(Verdict::Allow) && decided(Verdict::AllowForRun));
        assert!(!decided(Verdict::Deny { why: String::new() }));
    }
}
