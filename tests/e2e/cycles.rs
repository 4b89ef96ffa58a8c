// SPDX-License-Identifier: Apache-2.0
//! Forks that are made, used and ended in a row, as a service does all day: nothing of them stays, and the last ones are as
//! fast as the first. `MIDGE_TEST_RUNS=10000` makes it long.

use std::path::Path;
use std::time::{Duration, Instant};

use midge::exec::Exec;
use midge::template::{Held, Plan};

use crate::context::Context;
use crate::library::inside;
use crate::ps::itself;
use crate::templates::{held, rounds};

crate::tests!("cycles":
    Guest forks_in_a_row_leave_nothing,
);

fn forks_in_a_row_leave_nothing(context: &Context) {
    inside(context, "cycled");
}

/// What forks could leave behind in this process, in the one they come from, and on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    children: usize,
    files: usize,
}

fn count(dir: impl AsRef<Path>) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

impl Holdings {
    fn now() -> Self {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let runtime = std::env::var("XDG_RUNTIME_DIR").expect("is set by the harness");
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            children: children.split_whitespace().count(),
            files: count(Path::new(&runtime).join("midge")) + count(std::env::temp_dir()),
        }
    }

    /// Once what is given back in the background is back.
    async fn settled(before: Self) -> Self {
        let mut now = Self::now();
        for _ in 0..100 {
            if now == before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            now = Self::now();
        }
        now
    }
}

/// Memory of a process that no other one shares, in KiB; `None` for one of another machine.
pub(crate) fn private_kib(pid: Option<u32>) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pid?)).ok()?;
    let fields = text.lines().filter(|line| line.starts_with("Private_"));
    Some(fields.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
}

async fn cycle(held: &Held) -> Duration {
    let start = Instant::now();
    let fork = held.fork().await.expect("forks");
    let output = fork.exec(Exec::new(["/bin/true"])).await.expect("starts").output().await.expect("ends");
    let answered = start.elapsed();
    assert!(output.status.is_success(), "{}", output.status);
    fork.kill().await;
    answered
}

/// The time that `share` of these did not exceed.
pub(crate) fn quantile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = (share * (sorted.len() - 1) as f64) as usize;
    sorted[index]
}

/// Most that this process may have grown by, in KiB: what an allocator keeps, and not a page for each fork.
const GROWN_MAX_KIB: u64 = 4096;

pub(crate) async fn cycled() {
    let held = held("cycled", Plan::default()).await;
    let runs = usize::try_from(rounds(200, 4)).expect("fits");
    let tenth = (runs / 10).max(1);
    // The first ones make what stays by intent: threads, an allocator's arenas.
    for _ in 0..tenth {
        cycle(&held).await;
    }
    let own = Some(std::process::id());
    let before = Holdings::settled(Holdings::now()).await;
    let (own_before, held_before) = (private_kib(own), private_kib(held.pid().map(|pid| itself(Some(pid)))));
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        times.push(cycle(&held).await);
    }
    let after = Holdings::settled(before).await;
    assert_eq!(after, before, "after {runs} forks");
    let (own_after, held_after) = (private_kib(own), private_kib(held.pid().map(|pid| itself(Some(pid)))));
    for (before, after) in [(own_before, own_after), (held_before, held_after)] {
        let grown_kib = after.unwrap_or(0).saturating_sub(before.unwrap_or(0));
        assert!(grown_kib <= GROWN_MAX_KIB, "grown by {grown_kib} KiB in {runs} forks");
    }
    let (first, last) = (&times[..tenth], &times[runs - tenth..]);
    let [p50, p99] = [0.5, 0.99].map(|share| (quantile(first, share), quantile(last, share)));
    println!("{runs} forks: first tenth p50 {:?} p99 {:?}, last tenth p50 {:?} p99 {:?}", p50.0, p99.0, p50.1, p99.1);
    println!("{after:?}; own {own_before:?} then {own_after:?} KiB, resident {held_before:?} then {held_after:?} KiB");
    // A machine that is busy with something else for a while is no leak; a cost that grows with each fork doubles this soon.
    assert!(p50.1 < 3 * p50.0, "forks become slower: {p50:?}");
}
