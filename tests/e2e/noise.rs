// SPDX-License-Identifier: Apache-2.0
//! A sandbox among neighbours that try to hurt whoever is beside them. Each is held by its own kernel, its monitor's bounds and
//! its control group, so that commands next door take a few times as long at most. `MIDGE_TEST_NEIGHBOURS`
//! says how many there are, or natively `MIDGE_TEST_RUNS`.

use std::time::{Duration, Instant};

use midge::exec::Exec;
use midge::groups::{OVERHEAD_MIB, Share};
use midge::sandbox::{Sandbox, Where};
use midge::template::{Held, Plan, Template};
use tokio::io::AsyncReadExt as _;

use crate::context::Context;
use crate::cycles::{private_kib, quantile};
use crate::forks::{is_emulated, name, small};
use crate::groups::{has_cpu, inside, settles, usage};
use crate::harness::{asked, skip};
use crate::templates::rounds;

crate::tests!("noise":
    Guest neighbours_that_try_to_hurt_are_held,
);

fn neighbours_that_try_to_hurt_are_held(context: &Context) {
    if context.scaled(!has_cpu(), false) {
        skip("this machine gives no control groups that limit processor time");
    }
    inside(context, "noisy", None);
}

/// What neighbours do, as root of their guests, for ever: one thing each, in turns, or several where there are fewer of them.
const HURTS: [(&str, &str); 7] = [
    ("spin", "while :; do :; done"),
    ("fork bomb", "bomb() { bomb | bomb & }; while :; do bomb; sleep 0.01; done"),
    ("memory hog", "while :; do tail /dev/zero; done"),
    ("disk filler", "while :; do cat /dev/zero > /var/tmp/fill; rm -f /var/tmp/fill; done"),
    ("log flood", "while :; do echo flood > /dev/kmsg; done"),
    ("output flood", "exec yes"),
    (
        "connection flood",
        "exec python3 -c '
import socket
while True:
    for port in range(1, 1 << 16):
        held = [socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) for _ in range(8)]
        for one in held:
            one.setblocking(False)
            one.connect_ex((2, port))
'",
    ),
];

/// Commands that are measured, alone and beside them; fewer where they are slow.
const TRIPS: u64 = 100;
const TRIPS_EMULATED: u64 = 40;
/// Processor time that all neighbours may have together, in percent of one processor.
const NEIGHBOURS_CPU_PERCENT: u32 = 50;
/// Most that the slow commands of a sandbox may be slowed down by its neighbours.
const SLOWDOWN_MAX: f64 = 5.0;
/// What this process may hold for the neighbours, each, in KiB: their doors, and what they said and nobody has read yet.
const HELD_MAX_KIB: u64 = 4096;

struct Neighbour {
    what: String,
    sandbox: Sandbox,
    memory_max_mib: u64,
    cpu_us: u64,
}

impl Neighbour {
    async fn start(held: &Held, index: usize, count: usize) -> Self {
        let mine = || (index % HURTS.len()..HURTS.len()).step_by(count).map(|which| HURTS[which]);
        let what = mine().map(|(what, _)| what).collect::<Vec<_>>().join(", ");
        let sandbox = held.fork().await.unwrap_or_else(|error| panic!("{what}: {}", midge::error::chain(&error)));
        for (_, script) in mine() {
            let hurt = Exec::new(["sh", "-c", script]).user("root");
            let mut running =
                sandbox.exec(hurt).await.unwrap_or_else(|error| panic!("{what}: {}", midge::error::chain(&error)));
            let mut said = running.stdout.take().expect("piped");
            // It is listened to: what a neighbour says costs the host something.
            tokio::spawn(async move {
                let (_running, mut buffer) = (running, vec![0; 64 << 10]);
                while said.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
            });
        }
        Self { what, sandbox, memory_max_mib: held.fork_max_mib(), cpu_us: 0 }
    }

    /// Processor time since this was asked for last, in microseconds. What it has of everything else is within its bounds.
    async fn used_us(&mut self) -> u64 {
        let used = usage(&self.sandbox).await;
        let what = &self.what;
        let mib = used.memory_bytes.unwrap_or(0) >> 20;
        assert!(mib <= self.memory_max_mib + self.memory_max_mib / 64 + OVERHEAD_MIB, "{what}: {used:?}");
        assert_eq!(used.oom_kills.unwrap_or(0), 0, "{what}: its monitor must do with what it has: {used:?}");
        assert!(used.processes.is_none_or(|count| count < 40), "{what}: {used:?}");
        let cpu_us = used.cpu_us.expect("counted");
        cpu_us - std::mem::replace(&mut self.cpu_us, cpu_us)
    }
}

/// How long commands take that do nothing, one after the other.
async fn round_trips(sandbox: &Sandbox, count: u64) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let output = sandbox.exec(Exec::new(["/bin/true"])).await.expect("starts").output().await.expect("ends");
        times.push(start.elapsed());
        assert!(output.status.is_success(), "{}", output.status);
    }
    times
}

fn tell(when: &str, times: &[Duration]) {
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| quantile(times, share));
    println!("{when}: p50 {p50:?}, p90 {p90:?}, p99 {p99:?}, max {max:?}, n {}", times.len());
}

async fn held(neighbours: u32) -> Held {
    let name = name("noise");
    let template = Template::create(&name, small(), Plan::default()).await.expect("is made");
    let cpu_percent = Some((NEIGHBOURS_CPU_PERCENT / neighbours).max(1));
    let held = template.hold_at(Where::Auto.sharing(Share { cpu_percent, io_mib_s: None }), false).await;
    Template::remove(&name).expect("goes");
    held.expect("comes up")
}

/// The time from an exec to its end, alone and among neighbours, in one run.
pub(crate) async fn noisy() {
    let count = asked("MIDGE_TEST_NEIGHBOURS").unwrap_or_else(|| rounds(50, 3));
    let count = u32::try_from(count).expect("fits");
    let trips = if is_emulated() { TRIPS_EMULATED } else { TRIPS };
    let measured = small().start().await.expect("starts");
    let held = held(count).await;
    round_trips(&measured, 3).await;
    let quiet = round_trips(&measured, trips).await;
    tell("alone", &quiet);
    let own = Some(std::process::id());
    let before_kib = private_kib(own).unwrap_or(0);
    let held = std::sync::Arc::new(held);
    let mut starting = tokio::task::JoinSet::new();
    for index in 0..count as usize {
        let held = std::sync::Arc::clone(&held);
        starting.spawn(async move { Neighbour::start(&held, index, count as usize).await });
    }
    let mut neighbours = Vec::new();
    while let Some(started) = starting.join_next().await {
        neighbours.push(started.expect("starts"));
    }
    for neighbour in &mut neighbours {
        neighbour.used_us().await;
    }
    let start = Instant::now();
    let loud = round_trips(&measured, trips).await;
    tell(&format!("beside {count}"), &loud);
    let mut used_us = 0;
    for neighbour in &mut neighbours {
        used_us += neighbour.used_us().await;
    }
    let share = used_us as f64 / start.elapsed().as_micros() as f64;
    println!("they used {:.0} % of a processor", share * 100.0);
    // They were there, and were held: a period's part may be on either side.
    let most = f64::from((NEIGHBOURS_CPU_PERCENT / count).max(1) * count) / 100.0;
    assert!((most / 4.0..most * 1.3).contains(&share), "{share} of {most}");
    let held_kib = private_kib(own).unwrap_or(0).saturating_sub(before_kib);
    println!("this process holds {held_kib} KiB for them");
    assert!(held_kib <= HELD_MAX_KIB * u64::from(count), "{held_kib} KiB");
    let slowdown = quantile(&loud, 0.99).as_secs_f64() / quantile(&quiet, 0.99).as_secs_f64();
    println!("p99 is {slowdown:.1} times that of a quiet machine");
    assert!(slowdown <= SLOWDOWN_MAX, "{slowdown}");
    for neighbour in neighbours {
        neighbour.sandbox.kill().await;
    }
    drop(held);
    settles(&measured, 0).await;
    assert_eq!(round_trips(&measured, 1).await.len(), 1);
    measured.kill().await;
}
