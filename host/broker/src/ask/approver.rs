// SPDX-License-Identifier: Apache-2.0
//! Who answers: a trait, the answerers that need nobody, and a channel to whoever draws a terminal or serves an API.

use std::time::Duration;

use midge_protocol::broker::Verdict;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::OPEN_MAX;
use crate::stream::Later;

/// A question as whoever answers sees it. All text in it is a guest's or a server's: show it as printable text only.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Asking {
    /// Its number in the transcript.
    pub question: u64,
    /// What is to happen: an object with a `kind` (`tool`, `human`, `egress`), whole.
    pub asked: Value,
    /// Which rule asks.
    pub why: String,
    /// After this long without an answer, the answer is no.
    pub timeout: Duration,
}

/// Who answers questions.
pub trait Approver: Send + Sync + 'static {
    /// Waits for the verdict; none when there is nobody to ask. The future is dropped when the time is up or the question is
    /// withdrawn: take it off the screen then.
    fn ask(&self, asking: Asking) -> Later<'_, Option<Verdict>>;
}

/// Answers without anybody: `--approve auto` and `--approve deny`. `--approve ask` is a [`channel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Automatic {
    /// Yes to everything but questions that only a human can answer.
    Allow,
    /// No to everything.
    Deny,
}

impl Approver for Automatic {
    fn ask(&self, asking: Asking) -> Later<'_, Option<Verdict>> {
        let human = asking.asked.get("kind").is_some_and(|kind| kind == "human");
        let verdict = match self {
            Self::Allow if human => None,
            Self::Allow => Some(Verdict::Allow),
            Self::Deny => {
                Some(Verdict::Deny { why: "this run denies whatever would have to be asked about".to_owned() })
            }
        };
        Box::pin(std::future::ready(verdict))
    }
}

/// A question that waits for [`Pending::answer`]. Dropped, it counts as nobody to ask.
#[derive(Debug)]
pub struct Pending {
    /// The question.
    pub asking: Asking,
    verdict: oneshot::Sender<Verdict>,
}

impl Pending {
    /// Gives the verdict; one that comes too late is not heard.
    pub fn answer(self, verdict: Verdict) {
        // Too late, or withdrawn: that is recorded already.
        let _ = self.verdict.send(verdict);
    }

    /// Waits until nobody waits for the verdict any more.
    pub async fn withdrawn(&mut self) {
        self.verdict.closed().await;
    }
}

/// An approver, and the questions that are put to it, in order. When the receiver is dropped there is nobody to ask.
#[must_use]
pub fn channel() -> (impl Approver, mpsc::Receiver<Pending>) {
    let (sender, receiver) = mpsc::channel(OPEN_MAX);
    (Channel(sender), receiver)
}

struct Channel(mpsc::Sender<Pending>);

impl Approver for Channel {
    fn ask(&self, asking: Asking) -> Later<'_, Option<Verdict>> {
        Box::pin(async move {
            let (verdict, answered) = oneshot::channel();
            self.0.send(Pending { asking, verdict }).await.ok()?;
            answered.await.ok()
        })
    }
}
