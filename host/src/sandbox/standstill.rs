// SPDX-License-Identifier: Apache-2.0
//! A guest is brought to a stand, something is done with it, and it goes on, whatever becomes of whoever asked.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::error::{Error, Fault};
use crate::link::Link;

/// Who brings a guest to a stand waits for whoever does so already.
#[derive(Debug, Clone, Default)]
pub(super) struct Standstill(Arc<Mutex<()>>);

impl Standstill {
    /// Does `work` while everything in the guest stands still. Once begun it goes to its end, in a task of its own: a caller
    /// that gives up leaves no guest frozen, and nothing that the agent holds is let go while somebody else works with it.
    pub(super) async fn during<T: Send + 'static>(
        &self,
        link: &Link,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = Arc::clone(&self.0).lock_owned().await;
        let link = link.clone();
        let done = tokio::spawn(async move {
            let _turn = turn;
            link.freeze(false).await?;
            let done = work.await;
            // Whatever came of it, the guest goes on.
            let thawed = link.thaw().await;
            let done = done?;
            thawed.map(|()| done)
        });
        done.await.unwrap_or_else(|error| Err(Error::prepare("guest at a stand", Fault::Midge, error)))
    }

    /// Brings everything in the guest to a stand for good; `work` is done with it there.
    pub(super) async fn for_good<T>(
        &self,
        link: &Link,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let _turn = self.0.lock().await;
        link.freeze(true).await?;
        work.await
    }
}

#[cfg(test)]
mod tests;
