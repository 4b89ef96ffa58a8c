// SPDX-License-Identifier: Apache-2.0
//! `midge bench exec`: how long a command and a ping take in a sandbox that runs already, beside Firecracker's guest with
//! the same agent, in turn.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use midge_protocol::{AGENT_PORT, ToAgent, ToHost};

use super::firecracker::{Restored, Snapshot, run_true};
use super::greeting::{Greeter, since_us};
use super::lab::{self, Ground, LabOptions};
use super::launch::{Payload, Started, prepare};
use super::talk::{Talk, connect};
use super::{BenchError, Contender, Jail, Report, Sample, Series, Unit};
use crate::monitor::VmmConfig;
use crate::progress::Watch;
use crate::run_dir;
use crate::sandbox::{Sandbox, binaries};

const LIBRARY: &str = "midge library";
const MIDGE: &str = "midge";
const FIRECRACKER: &str = "firecracker";
/// Runs of each that are not counted: the guest's memory is touched by them.
const WARM_UP_COUNT: u32 = 5;

/// Where a sandbox of this process has its guest's ports.
fn socket_of(sandbox: &Sandbox) -> PathBuf {
    run_dir::default_base().join(sandbox.id()).join("v.sock")
}

/// A command by a blocking client on a fresh stream, with nothing around it.
fn raw(who: &'static str, uds: &Path, limit: Duration) -> Result<u64, BenchError> {
    let start = Instant::now();
    let late = || start.elapsed() > limit;
    let ran = connect(uds, AGENT_PORT, limit).and_then(Talk::over).and_then(|mut talk| run_true(&mut talk, late));
    ran.map_err(|text| BenchError::Guest { contender: who, text })?;
    Ok(since_us(start))
}

/// A guest with nothing but an agent, and its control conversation.
struct Pinged {
    started: Started,
    talk: Talk,
    _dir: tempfile::TempDir,
}

impl Pinged {
    fn boot(contender: &Contender, payload: &Payload) -> Result<Self, BenchError> {
        let who = contender.name();
        let dir = tempfile::Builder::new().prefix("midge-bench-").tempdir().map_err(prepare(who))?;
        let greeter = Greeter::bind(&dir.path().join("v.sock")).map_err(prepare(who))?;
        let mut started = Started::contender(contender, dir.path(), payload)?;
        match greeter.greet(started.start, || started.is_late()).map_err(started.guest())? {
            Some(greeted) => Ok(Self { started, talk: greeted.talk, _dir: dir }),
            None => Err(started.late()),
        }
    }

    fn ping(&mut self, number: u32, limit: Duration) -> Result<u64, BenchError> {
        let start = Instant::now();
        let number = u64::from(number) + 100;
        let pong = |talk: &mut Talk| talk.expect(&ToHost::Pong(number), || start.elapsed() > limit);
        let answered = self.talk.send(&[ToAgent::Ping(number)]).and_then(|()| pong(&mut self.talk));
        answered.map_err(self.started.guest())?;
        Ok(since_us(start))
    }
}

/// Those who are asked by blocking clients.
struct Asked {
    peer: Option<(Snapshot, Restored)>,
    pinged: Vec<Pinged>,
}

impl Asked {
    fn boot(options: &LabOptions, config: &VmmConfig) -> Result<Self, BenchError> {
        let payload = Payload {
            kernel: config.kernel.clone().unwrap_or_default(),
            initramfs: config.initramfs.clone().unwrap_or_default(),
            mem_mib: config.mem_mib,
            disk: None,
            limit: options.limit,
        };
        let mut contenders = vec![Contender::Midge { program: binaries::vmm()?, jail: Jail::On }];
        let mut peer = None;
        if let Some(program) = &options.firecracker {
            contenders.push(Contender::Firecracker { program: program.clone() });
            let snapshot = Snapshot::make(program, config, options.limit)?;
            let restored = snapshot.restored()?;
            peer = Some((snapshot, restored));
        }
        let pinged = contenders.iter().map(|contender| Pinged::boot(contender, &payload)).collect::<Result<_, _>>()?;
        Ok(Self { peer, pinged })
    }
}

/// Runs the bench.
///
/// # Errors
/// The first run that fails ends it.
pub async fn exec(options: &LabOptions, watch: &dyn Watch) -> Result<Report, BenchError> {
    options.check()?;
    let ground = Ground::prepare(options, watch).await?;
    let config = &ground.template.record().config;
    let mut asked = tokio::task::block_in_place(|| Asked::boot(options, config))?;
    let sandbox = ground.hold(Jail::On).await?.fork().await?;
    let title =
        format!("exec: of /bin/true in a running sandbox, n = {} in turn, {} MiB", options.runs, config.mem_mib);
    let mut report = Report::begin("exec", &title)
        .option("runs", options.runs)
        .option("mem_mib", config.mem_mib)
        .event("start", "the command is asked for; no connection is open for it")
        .event("exec", "its exit status has reached the host")
        .event("request", "how the guest is, asked and answered on the control conversation: no process is made")
        .event(
            "ping",
            "a ping on the control conversation of a guest with an agent and no root: nothing is done for it",
        )
        .event(LIBRARY, "as users of the library do it")
        .event(MIDGE, "the same guest, by a blocking client, as Firecracker's is asked");
    let uds = socket_of(&sandbox);
    let (mut library, mut request, mut ours, mut theirs) = (vec![], vec![], vec![], vec![]);
    let mut pings = vec![Vec::new(); asked.pinged.len()];
    watch.begin("running commands in turn", u64::from(options.runs));
    for run in 0..options.runs + WARM_UP_COUNT {
        let start = Instant::now();
        lab::answer(&sandbox).await?;
        library.push(since_us(start));
        let start = Instant::now();
        sandbox.stats().await?;
        request.push(since_us(start));
        tokio::task::block_in_place(|| {
            ours.push(raw(MIDGE, &uds, options.limit)?);
            if let Some((_, peer)) = &asked.peer {
                theirs.push(raw(FIRECRACKER, &peer.started.uds, options.limit)?);
            }
            for (pinged, pings) in asked.pinged.iter_mut().zip(&mut pings) {
                pings.push(pinged.ping(run, options.limit)?);
            }
            Ok::<_, BenchError>(())
        })?;
        watch.at(u64::from(run.saturating_sub(WARM_UP_COUNT)));
    }
    watch.end("");
    sandbox.kill().await;
    let counted = |all: Vec<u64>| all.into_iter().skip(WARM_UP_COUNT as usize).map(Sample::from);
    report.add(Series::new(LIBRARY, "exec", Unit::Us, counted(library)));
    report.add(Series::new(LIBRARY, "request", Unit::Us, counted(request)));
    report.add(Series::new(MIDGE, "exec", Unit::Us, counted(ours)));
    report.add(Series::new(FIRECRACKER, "exec", Unit::Us, counted(theirs)));
    for (pinged, pings) in asked.pinged.iter().zip(pings) {
        report.add(Series::new(pinged.started.who, "ping", Unit::Us, counted(pings)));
    }
    report.ratio((MIDGE, "ping"), (FIRECRACKER, "ping"), None);
    report.ratio((MIDGE, "exec"), (FIRECRACKER, "exec"), None);
    Ok(report)
}
