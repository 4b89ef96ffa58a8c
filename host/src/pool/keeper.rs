// SPDX-License-Identifier: Apache-2.0
//! The one task that owns what waits in a pool: it gives away, refills, and throws out what has ended.
//!
//! Nothing is shared and nothing is locked. It sleeps unless something happened; after a failure it makes nothing before a
//! pause is over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::{Limits, PoolError, Ready, Source, Status};
use crate::error::Error;

/// Pause after a failure; doubles with each that follows one before a sandbox is given away.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

type Taker<T> = oneshot::Sender<Result<T, PoolError>>;

/// What a pool is asked for.
pub(super) enum Ask<T> {
    Take(Taker<T>),
    Filled(oneshot::Sender<Result<(), PoolError>>),
    Drain(oneshot::Sender<()>),
}

/// When something may be made again.
struct Pause {
    until: Instant,
    next: Duration,
}

impl Pause {
    fn none() -> Self {
        Self { until: Instant::now(), next: PAUSE_MIN }
    }

    fn is_over(&self) -> bool {
        self.until <= Instant::now()
    }

    /// After a failure. Several within one pause count as one.
    fn begin(&mut self) {
        if self.is_over() {
            self.until = Instant::now() + self.next;
            self.next = (self.next * 2).min(PAUSE_MAX);
        }
    }
}

/// One that waits.
struct Waiting<T> {
    number: u64,
    item: T,
    /// What sees its end.
    watcher: AbortHandle,
}

/// Owns everything of one pool.
pub(super) struct Keeper<S: Source> {
    source: Arc<S>,
    limits: Limits,
    /// The oldest first.
    ready: VecDeque<Waiting<S::Item>>,
    makes: JoinSet<Result<S::Item, Error>>,
    /// Resolves to the number of one that has ended.
    ends: JoinSet<u64>,
    takers: VecDeque<Taker<S::Item>>,
    fillers: Vec<oneshot::Sender<Result<(), PoolError>>>,
    /// A failure that nobody has been told of.
    failure: Option<Arc<Error>>,
    pause: Pause,
    serial: u64,
    status: Status,
    told: watch::Sender<Status>,
}

impl<S: Source> Keeper<S> {
    pub(super) fn new(source: S, limits: Limits, told: watch::Sender<Status>) -> Self {
        Self {
            source: Arc::new(source),
            limits,
            ready: VecDeque::new(),
            makes: JoinSet::new(),
            ends: JoinSet::new(),
            takers: VecDeque::new(),
            fillers: Vec::new(),
            failure: None,
            pause: Pause::none(),
            serial: 0,
            status: Status::default(),
            told,
        }
    }

    /// Keeps the pool until it is drained; when nobody can ask any more this task is ended from outside.
    pub(super) async fn keep(mut self, mut asks: mpsc::Receiver<Ask<S::Item>>) {
        loop {
            self.refill();
            self.tell();
            let is_waiting = !self.pause.is_over() && self.is_wanting();
            tokio::select! {
                asked = asks.recv() => match asked {
                    Some(Ask::Take(taker)) => self.give(taker),
                    Some(Ask::Filled(filler)) => self.note_filler(filler),
                    Some(Ask::Drain(done)) => {
                        self.drain().await;
                        // Whoever asked may have gone away.
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                Some(made) = self.makes.join_next() => self.take_in(made),
                Some(ended) = self.ends.join_next() => self.throw_out(ended),
                () = sleep_until(self.pause.until), if is_waiting => {}
            }
        }
    }

    /// Whether fewer wait or are under way than are wanted.
    fn is_wanting(&self) -> bool {
        self.ready.len() + self.makes.len() < self.limits.level + self.takers.len()
    }

    fn refill(&mut self) {
        // Those who have gone away need nothing.
        self.takers.retain(|taker| !taker.is_closed());
        while self.is_wanting() && self.makes.len() < self.limits.under_way && self.pause.is_over() {
            let source = Arc::clone(&self.source);
            self.makes.spawn(async move { source.make().await });
        }
    }

    /// The status first: who waited for the level and looks at once must not see the one before.
    fn tell(&mut self) {
        let status = Status { ready: self.ready.len(), under_way: self.makes.len(), ..self.status };
        self.told.send_if_modified(|told| std::mem::replace(told, status) != status);
        if self.ready.len() >= self.limits.level {
            for filler in self.fillers.drain(..) {
                let _ = filler.send(Ok(()));
            }
        }
    }

    /// Gives away what waits longest. What has ended, seen or not, goes to nobody.
    fn give(&mut self, taker: Taker<S::Item>) {
        while let Some(Waiting { number, item, watcher }) = self.ready.pop_front() {
            if !item.is_alive() {
                watcher.abort();
                self.note_death();
                continue;
            }
            match taker.send(Ok(item)) {
                Ok(()) => {
                    watcher.abort();
                    self.note_taken();
                }
                Err(Ok(item)) => self.ready.push_front(Waiting { number, item, watcher }),
                Err(Err(_)) => {}
            }
            return;
        }
        match self.failure.take() {
            // Nobody is told of the same failure twice.
            Some(failure) => drop(taker.send(Err(PoolError::Refill(failure)))),
            None => self.takers.push_back(taker),
        }
    }

    fn note_taken(&mut self) {
        self.status.taken += 1;
        self.pause.next = PAUSE_MIN;
    }

    fn note_filler(&mut self, filler: oneshot::Sender<Result<(), PoolError>>) {
        match self.failure.take() {
            Some(failure) => drop(filler.send(Err(PoolError::Refill(failure)))),
            None => self.fillers.push(filler),
        }
    }

    /// One that was made, or that could not be.
    fn take_in(&mut self, made: Result<Result<S::Item, Error>, JoinError>) {
        match made {
            Ok(Ok(item)) => {
                self.failure = None;
                self.hand_or_keep(item);
            }
            Ok(Err(error)) => self.fail(error),
            Err(error) => self.fail(Error::prepare("sandbox", crate::error::Fault::Midge, error)),
        }
    }

    fn hand_or_keep(&mut self, mut item: S::Item) {
        while let Some(taker) = self.takers.pop_front() {
            match taker.send(Ok(item)) {
                Ok(()) => return self.note_taken(),
                Err(Ok(back)) => item = back,
                Err(Err(_)) => return,
            }
        }
        self.serial += 1;
        let (number, ended) = (self.serial, item.ended());
        let watcher = self.ends.spawn(async move {
            ended.await;
            number
        });
        self.ready.push_back(Waiting { number, item, watcher });
    }

    /// Tells those who wait; else whoever asks in vain next.
    fn fail(&mut self, error: Error) {
        tracing::debug!(%error, "a pool could not be refilled");
        self.status.failed += 1;
        self.pause.begin();
        let error = Arc::new(error);
        let is_told = !self.takers.is_empty() || !self.fillers.is_empty();
        for taker in self.takers.drain(..) {
            let _ = taker.send(Err(PoolError::Refill(Arc::clone(&error))));
        }
        for filler in self.fillers.drain(..) {
            let _ = filler.send(Err(PoolError::Refill(Arc::clone(&error))));
        }
        self.failure = if is_told { None } else { Some(error) };
    }

    /// One that has ended while it waited.
    fn throw_out(&mut self, ended: Result<u64, JoinError>) {
        // An error: it was given away.
        let Ok(number) = ended else { return };
        let before = self.ready.len();
        self.ready.retain(|waiting| waiting.number != number);
        if self.ready.len() < before {
            self.note_death();
        }
    }

    /// What dies as fast as it is made is made slowly.
    fn note_death(&mut self) {
        self.status.died += 1;
        self.pause.begin();
    }

    /// Ends everything, all at once.
    async fn drain(&mut self) {
        self.ends.abort_all();
        let mut going = JoinSet::new();
        for waiting in self.ready.drain(..) {
            going.spawn(waiting.item.dispose());
        }
        // What is half made is made whole, so that it can be ended in good order.
        while let Some(made) = self.makes.join_next().await {
            if let Ok(Ok(item)) = made {
                going.spawn(item.dispose());
            }
        }
        while going.join_next().await.is_some() {}
    }
}
