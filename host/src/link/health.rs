// SPDX-License-Identifier: Apache-2.0
//! Whether a guest can still be spoken to, and if not, why: one cell that every conversation looks at.
//!
//! Holds no stream. The first reason stays, but for one: "the VM ended" replaces any guess made before it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::Error;
use crate::monitor::End;

/// How long bytes that are still under way from a dead guest are waited for.
const DRAIN: Duration = Duration::from_secs(2);
/// How long the news of a death may take after its first sign, a broken stream.
const NEWS: Duration = Duration::from_secs(3);

/// Why a guest cannot be spoken to any more.
#[derive(Debug, Clone)]
pub(crate) enum Gone {
    /// The VM has ended.
    Ended(Arc<End>),
    /// The agent does not answer.
    Silent {
        /// For how long it had not.
        silent_ms: u64,
    },
    /// The control conversation was lost and not taken up again.
    Lost,
}

impl Gone {
    pub(crate) fn error(self, during: &'static str) -> Error {
        match self {
            Self::Ended(end) => Error::VmEnded { during, end },
            Self::Silent { silent_ms } => Error::Silent { during, silent_ms },
            Self::Lost => Error::Lost { during, source: std::io::ErrorKind::ConnectionAborted.into() },
        }
    }
}

/// The cell; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    cell: Arc<watch::Sender<Option<Gone>>>,
}

impl Health {
    /// A good state that turns to [`Gone::Ended`] when `ended` resolves.
    pub(crate) fn watching(ended: impl Future<Output = Arc<End>> + Send + 'static) -> Self {
        let health = Self { cell: Arc::new(watch::Sender::new(None)) };
        let cell = Arc::downgrade(&health.cell);
        tokio::spawn(async move {
            let end = ended.await;
            if let Some(cell) = cell.upgrade() {
                cell.send_replace(Some(Gone::Ended(end)));
            }
        });
        health
    }

    /// Gives the guest up for a reason other than its end.
    pub(crate) fn give_up(&self, gone: Gone) {
        self.cell.send_if_modified(|state| {
            let first = state.is_none();
            if first {
                tracing::warn!(?gone, "giving the guest up");
                *state = Some(gone);
            }
            first
        });
    }

    /// Resolves as soon as the guest is gone.
    pub(crate) async fn gone(&self) -> Gone {
        let mut cell = self.cell.subscribe();
        loop {
            if let Some(gone) = cell.borrow_and_update().clone() {
                return gone;
            }
            if cell.changed().await.is_err() {
                return Gone::Lost;
            }
        }
    }

    /// Resolves when the guest has been gone for so long that nothing of it can still be under way.
    pub(crate) async fn gone_for_good(&self) -> Gone {
        let gone = self.gone().await;
        tokio::time::sleep(DRAIN).await;
        self.cell.borrow().clone().unwrap_or(gone)
    }

    /// After a broken stream: the reason, if it becomes known in time.
    pub(crate) async fn reason_soon(&self) -> Option<Gone> {
        tokio::time::timeout(NEWS, self.gone()).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Cause;
    use std::future::{pending, ready};

    #[tokio::test(start_paused = true)]
    async fn a_good_guest_is_never_gone() {
        let health = Health::watching(pending());
        assert!(health.reason_soon().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_known_to_all_and_replaces_a_guess() {
        let health = Health::watching(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Arc::new(End { cause: Cause::GuestPanic, ..End::lost("x") })
        });
        health.give_up(Gone::Lost);
        health.give_up(Gone::Silent { silent_ms: 1 });
        assert!(matches!(health.gone().await, Gone::Lost));
        let Gone::Ended(end) = health.clone().gone_for_good().await else { panic!("a guess stayed") };
        assert_eq!(end.cause, Cause::GuestPanic);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_under_way_get_their_time() {
        let health = Health::watching(ready(Arc::new(End::lost("x"))));
        let before = tokio::time::Instant::now();
        health.gone().await;
        assert_eq!(before.elapsed(), Duration::ZERO);
        health.gone_for_good().await;
        assert!(before.elapsed() >= DRAIN);
    }
}
