// SPDX-License-Identifier: Apache-2.0
//! A pool of things that are no sandboxes, in a time that passes when everybody waits.

use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::error::Fault;

/// How long one takes to be made.
const MAKING: Duration = Duration::from_secs(1);

/// What the makers and the made have in common.
#[derive(Debug, Default)]
struct World {
    made: AtomicUsize,
    alive: AtomicUsize,
    making: AtomicUsize,
    making_most: AtomicUsize,
    /// How many of the next cannot be made.
    failures: AtomicUsize,
    /// How many of the next die at once.
    weak: AtomicUsize,
    /// Ends what was made, by number.
    killers: Mutex<Vec<watch::Sender<bool>>>,
}

impl World {
    fn kill(&self, number: usize) {
        self.killers.lock().unwrap()[number].send_replace(true);
    }
}

#[derive(Debug, Clone, Default)]
struct Maker(Arc<World>);

#[derive(Debug)]
struct Thing {
    number: usize,
    dead: watch::Receiver<bool>,
    world: Arc<World>,
}

impl Drop for Thing {
    fn drop(&mut self) {
        self.world.alive.fetch_sub(1, SeqCst);
    }
}

/// Counts one that is being made, whatever becomes of it.
struct Making<'a>(&'a World);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.making.fetch_sub(1, SeqCst);
    }
}

fn take_one(count: &AtomicUsize) -> bool {
    count.fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1)).is_ok()
}

impl Source for Maker {
    type Item = Thing;

    async fn make(&self) -> Result<Thing, Error> {
        let world = &self.0;
        let now = world.making.fetch_add(1, SeqCst) + 1;
        let _making = Making(world);
        world.making_most.fetch_max(now, SeqCst);
        sleep(MAKING).await;
        if take_one(&world.failures) {
            return Err(Error::prepare("thing", Fault::Host, "no memory"));
        }
        let (killer, dead) = watch::channel(take_one(&world.weak));
        world.killers.lock().unwrap().push(killer);
        world.alive.fetch_add(1, SeqCst);
        Ok(Thing { number: world.made.fetch_add(1, SeqCst), dead, world: Arc::clone(world) })
    }

    fn item_max_mib(&self) -> Option<u64> {
        Some(100)
    }
}

impl Ready for Thing {
    fn is_alive(&self) -> bool {
        !*self.dead.borrow()
    }

    fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut dead = self.dead.clone();
        async move { drop(dead.wait_for(|dead| *dead).await) }
    }

    async fn dispose(self) {
        sleep(MAKING).await;
    }
}

fn pool(level: usize, under_way: usize) -> (Pool<Maker>, Arc<World>) {
    let maker = Maker::default();
    let world = Arc::clone(&maker.0);
    (Pool::new(maker, Limits { level, under_way, memory_max_mib: None }).unwrap(), world)
}

/// Looks at the status at the very moment of being woken.
struct Witness {
    status: watch::Receiver<Status>,
    ready: AtomicUsize,
}

impl Wake for Witness {
    fn wake(self: Arc<Self>) {
        self.ready.store(self.status.borrow().ready, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_hears_that_the_level_is_reached_finds_it_in_the_status() {
    let (pool, _) = pool(3, 2);
    let witness = Arc::new(Witness { status: pool.status.clone(), ready: AtomicUsize::new(0) });
    let waker = Waker::from(Arc::clone(&witness));
    let mut filled = pin!(pool.filled());
    while filled.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        sleep(MAKING / 10).await;
    }
    assert_eq!(witness.ready.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn the_level_is_kept_and_nothing_is_given_twice() {
    let (pool, world) = pool(3, 2);
    pool.filled().await.unwrap();
    assert_eq!((pool.status().ready, world.making_most.load(SeqCst)), (3, 2));
    let start = Instant::now();
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(pool.take().await.unwrap());
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "they were there");
    for _ in 0..4 {
        taken.push(pool.take().await.unwrap());
    }
    assert!(start.elapsed() <= MAKING * 2, "two at a time: {:?}", start.elapsed());
    let numbers: Vec<usize> = taken.iter().map(|thing| thing.number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6]);
    pool.filled().await.unwrap();
    drop(taken);
    sleep(MAKING * 20).await;
    assert_eq!((pool.status().ready, pool.status().taken, world.made.load(SeqCst)), (3, 7, 10), "nothing came back");
    assert_eq!(world.making_most.load(SeqCst), 2);
    pool.drain().await;
    assert_eq!(world.alive.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_served_beyond_the_level_and_within_the_limit_of_what_is_under_way() {
    let (pool, world) = pool(1, 4);
    let pool = Arc::new(pool);
    let takers: Vec<_> = (0..12)
        .map(|_| {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pool.take().await.unwrap().number })
        })
        .collect();
    let mut numbers = Vec::new();
    for taker in takers {
        numbers.push(taker.await.unwrap());
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!((numbers.len(), world.making_most.load(SeqCst)), (12, 4));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_once_and_tried_again_after_pauses_that_grow() {
    let (pool, world) = pool(1, 1);
    world.failures.store(6, SeqCst);
    let error = pool.take().await.unwrap_err();
    assert!(matches!(&error, PoolError::Refill(source) if crate::error::chain(&**source).contains("no memory")));
    let start = Instant::now();
    // Nobody asks: 0.2 + 0.4 + 0.8 + 1.6 + 3.2 seconds of pauses and as many failures behind the first pause of 0.1.
    sleep(Duration::from_secs(60)).await;
    assert_eq!((pool.status().failed, pool.status().ready), (6, 1));
    let tries = u64::try_from(world.killers.lock().unwrap().len()).unwrap() + pool.status().failed;
    assert_eq!(tries, 7, "one try a pause");
    assert!(pool.take().await.is_ok(), "what failed is forgotten once one could be made");
    world.failures.store(1, SeqCst);
    sleep(MAKING * 2).await;
    assert_eq!(pool.status().failed, 7);
    assert!(matches!(pool.take().await, Err(PoolError::Refill(_))), "told to the next who asks in vain");
    assert!(pool.take().await.is_ok(), "and only once");
    assert!(start.elapsed() < Duration::from_secs(80));
}

#[tokio::test(start_paused = true)]
async fn what_dies_while_it_waits_is_replaced_and_never_given_away() {
    let (pool, world) = pool(2, 2);
    pool.filled().await.unwrap();
    world.kill(0);
    // Before anybody has seen it.
    assert_eq!(pool.take().await.unwrap().number, 1);
    assert_eq!(pool.status().died, 1);
    pool.filled().await.unwrap();
    world.kill(2);
    sleep(MAKING * 20).await;
    assert_eq!((pool.status().died, pool.status().ready), (2, 2), "seen though nobody asked");
    assert!(pool.take().await.unwrap().is_alive());
}

#[tokio::test(start_paused = true)]
async fn what_dies_as_soon_as_it_is_made_is_not_made_in_a_busy_loop() {
    let (pool, world) = pool(4, 4);
    world.weak.store(1_000_000, SeqCst);
    sleep(Duration::from_secs(3600)).await;
    let made = world.made.load(SeqCst);
    assert!((100..=4 * 400).contains(&made), "{made} in an hour");
    world.weak.store(0, SeqCst);
    assert!(pool.take().await.unwrap().is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_taker_who_goes_away_leaves_the_thing_in_the_pool() {
    let (pool, world) = pool(1, 1);
    assert!(timeout(MAKING / 2, pool.take()).await.is_err());
    sleep(MAKING * 20).await;
    assert_eq!((pool.status().ready, pool.status().taken, world.made.load(SeqCst)), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_everything_and_dropping_ends_it_too() {
    let (first, world) = pool(3, 3);
    first.filled().await.unwrap();
    drop(first.take().await.unwrap());
    sleep(MAKING / 2).await;
    assert_eq!(world.making.load(SeqCst), 1, "one is under way");
    first.drain().await;
    assert_eq!((world.making.load(SeqCst), world.alive.load(SeqCst), world.made.load(SeqCst)), (0, 0, 4));
    let (second, world) = pool(3, 2);
    sleep(MAKING + MAKING / 2).await;
    assert_eq!((world.making.load(SeqCst), world.alive.load(SeqCst)), (1, 2));
    drop(second);
    sleep(Duration::from_millis(1)).await;
    assert_eq!((world.making.load(SeqCst), world.alive.load(SeqCst)), (0, 0));
}

#[tokio::test]
async fn limits_outside_their_ranges_are_refused_by_name() {
    let refused = |limits| Pool::new(Maker::default(), limits).unwrap_err().to_string();
    let with = |level, under_way, memory_max_mib| Limits { level, under_way, memory_max_mib };
    assert!(refused(with(0, 1, None)).contains("level is 0; accepted: 1 to 10000"));
    assert!(refused(with(10_001, 1, None)).contains("10001"));
    assert!(refused(with(1, 0, None)).contains("at once is 0; accepted: 1 to 64"));
    assert!(refused(with(1, 65, None)).contains("65"));
    assert!(refused(with(11, 1, Some(1000))).contains("at most 10: each sandbox may take 100 MiB of the 1000"));
    assert!(Pool::new(Maker::default(), with(10, 64, Some(1000))).is_ok());
}
