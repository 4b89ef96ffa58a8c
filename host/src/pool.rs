// SPDX-License-Identifier: Apache-2.0
//! Pools: sandboxes that are made before somebody asks for them.
//!
//! A pool keeps a number of forks of a template ready, and makes another for each that is taken. A sandbox is given
//! away for good: whoever takes it owns it, and nothing ever comes back into a pool.
//!
//! ```no_run
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! use midge::exec::Exec;
//! use midge::pool::{Limits, Pool};
//! use midge::template::Template;
//!
//! let held = Template::open("tools")?.hold().await?;
//! let pool = Pool::new(held, Limits { level: 8, ..Limits::default() })?;
//! let sandbox = pool.take().await?;
//! sandbox.exec(Exec::new(["./run"])).await?.wait().await?;
//! sandbox.kill().await;
//! pool.drain().await;
//! # Ok(())
//! # }
//! ```

mod keeper;

use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::sandbox::Sandbox;
use crate::template::Held;
use keeper::{Ask, Keeper};

/// Range of [`Limits::level`].
pub const LEVEL_RANGE: RangeInclusive<usize> = 1..=10_000;
/// Range of [`Limits::under_way`].
pub const UNDER_WAY_RANGE: RangeInclusive<usize> = 1..=64;
/// Takers that may have asked and not been heard; the next ones wait to ask.
const ASKS_MAX: usize = 64;

/// How much a pool keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sandboxes that wait to be taken, within [`LEVEL_RANGE`].
    pub level: usize,
    /// Sandboxes that are made at once, within [`UNDER_WAY_RANGE`]. More than the level only when so many are asked for.
    pub under_way: usize,
    /// Most memory that what waits may come to if every guest used all that it may, in MiB; a level that could come to
    /// more is refused. Without it: no limit but the level. A fork that does nothing holds a few MiB.
    pub memory_max_mib: Option<u64>,
}

impl Default for Limits {
    /// One that waits; four under way.
    fn default() -> Self {
        Self { level: 1, under_way: 4, memory_max_mib: None }
    }
}

/// Why a pool gives no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A limit lies outside its range.
    #[error("{what} is {value}; accepted: {accepted}")]
    Limit {
        /// Which one.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What would have been accepted.
        accepted: String,
    },
    /// None waits, and the latest one could not be made. The pool tries again by itself.
    #[error("making a sandbox for the pool")]
    Refill(#[source] Arc<Error>),
    /// The runtime that the pool lives on has been shut down.
    #[error("taking from a pool whose runtime has ended")]
    Gone,
}

/// Where the sandboxes of a pool come from. A [`Held`] template is one; one of your own can do more to each sandbox
/// before somebody takes it.
pub trait Source: Send + Sync + 'static {
    /// What it makes.
    type Item: Ready;

    /// Makes another.
    fn make(&self) -> impl Future<Output = Result<Self::Item, Error>> + Send;

    /// The memory that one of them can come to use, in MiB, if that is known.
    fn item_max_mib(&self) -> Option<u64> {
        None
    }
}

/// What can wait in a pool. Dropping it ends it.
pub trait Ready: Send + 'static {
    /// Whether it can still be given away.
    fn is_alive(&self) -> bool;

    /// Resolves when it has ended.
    fn ended(&self) -> impl Future<Output = ()> + Send + 'static;

    /// Ends it, and waits until nothing of it is left.
    fn dispose(self) -> impl Future<Output = ()> + Send;
}

impl Source for Held {
    type Item = Sandbox;

    async fn make(&self) -> Result<Sandbox, Error> {
        self.fork().await
    }

    fn item_max_mib(&self) -> Option<u64> {
        Some(self.fork_max_mib())
    }
}

impl<S: Source> Source for Arc<S> {
    type Item = S::Item;

    fn make(&self) -> impl Future<Output = Result<Self::Item, Error>> + Send {
        S::make(self)
    }

    fn item_max_mib(&self) -> Option<u64> {
        S::item_max_mib(self)
    }
}

impl Ready for Sandbox {
    fn is_alive(&self) -> bool {
        self.end().is_none()
    }

    fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let end = self.watch_end();
        async move { drop(end.await) }
    }

    async fn dispose(self) {
        self.kill().await;
    }
}

/// How a pool stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Sandboxes that wait.
    pub ready: usize,
    /// Sandboxes that are being made.
    pub under_way: usize,
    /// Sandboxes that were given away.
    pub taken: u64,
    /// Sandboxes that ended while they waited.
    pub died: u64,
    /// How often one could not be made.
    pub failed: u64,
}

/// A pool. Dropping it ends what waits in it, soon after; [`Pool::drain`] does so and waits for it.
#[derive(Debug)]
pub struct Pool<S: Source = Held> {
    asks: mpsc::Sender<Ask<S::Item>>,
    status: watch::Receiver<Status>,
    keeper: JoinHandle<()>,
}

impl<S: Source> Pool<S> {
    /// A pool over `source`, which begins to fill at once. Lives on the tokio runtime that it is made on.
    ///
    /// # Errors
    /// [`PoolError::Limit`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(source: S, limits: Limits) -> Result<Self, PoolError> {
        check(&limits, source.item_max_mib())?;
        let (asks, heard) = mpsc::channel(ASKS_MAX);
        let (told, status) = watch::channel(Status::default());
        let keeper = tokio::spawn(Keeper::new(source, limits, told).keep(heard));
        Ok(Self { asks, status, keeper })
    }

    /// A sandbox of the caller's own: one that waits, at once, or else the next that is made.
    ///
    /// # Errors
    /// [`PoolError::Refill`] when none waits and the latest could not be made. It is told once: the next call waits for
    /// the next try, which comes after a pause that grows to ten seconds.
    pub async fn take(&self) -> Result<S::Item, PoolError> {
        let (taker, given) = oneshot::channel();
        self.asks.send(Ask::Take(taker)).await.map_err(|_| PoolError::Gone)?;
        given.await.map_err(|_| PoolError::Gone)?
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Waits until as many sandboxes wait as the level says.
    ///
    /// # Errors
    /// [`PoolError::Refill`] when one cannot be made, [`PoolError::Gone`].
    pub async fn filled(&self) -> Result<(), PoolError> {
        let (asker, told) = oneshot::channel();
        self.asks.send(Ask::Filled(asker)).await.map_err(|_| PoolError::Gone)?;
        told.await.map_err(|_| PoolError::Gone)?
    }

    /// Makes no more, ends everything that waits or is under way, and waits until it is gone.
    pub async fn drain(mut self) {
        let (done, drained) = oneshot::channel();
        if self.asks.send(Ask::Drain(done)).await.is_ok() {
            // An error means that the keeper is gone, and with it everything.
            let _ = drained.await;
        }
        let _ = (&mut self.keeper).await;
    }
}

impl<S: Source> Drop for Pool<S> {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

fn check(limits: &Limits, item_max_mib: Option<u64>) -> Result<(), PoolError> {
    in_range("the pool's level", limits.level, &LEVEL_RANGE)?;
    in_range("the number of sandboxes that a pool makes at once", limits.under_way, &UNDER_WAY_RANGE)?;
    let (Some(most_mib), Some(each_mib)) = (limits.memory_max_mib, item_max_mib) else { return Ok(()) };
    let fits = most_mib / each_mib.max(1);
    if u64::try_from(limits.level).unwrap_or(u64::MAX) > fits {
        return Err(PoolError::Limit {
            what: "the pool's level",
            value: u64::try_from(limits.level).unwrap_or(u64::MAX),
            accepted: format!("at most {fits}: each sandbox may take {each_mib} MiB of the {most_mib} allowed"),
        });
    }
    Ok(())
}

fn in_range(what: &'static str, value: usize, range: &RangeInclusive<usize>) -> Result<(), PoolError> {
    if range.contains(&value) {
        return Ok(());
    }
    let accepted = format!("{} to {}", range.start(), range.end());
    Err(PoolError::Limit { what, value: u64::try_from(value).unwrap_or(u64::MAX), accepted })
}

#[cfg(test)]
mod tests;
