// SPDX-License-Identifier: Apache-2.0
//! `midge bench boot`: how long from the start of a monitor to the guest's first answer, beside other monitors with
//! the same kernel and initramfs, in alternating runs. Clean-up is not timed.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::greeting::{Greeted, Greeter, since_us};
use super::launch::{Payload, Started, prepare};
use super::{Aim, BenchError, Contender, Exits, Jail, Report, Sample, Series, Unit, check_runs, exits, memory};
use crate::ps;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOptions {
    /// Runs of each contender; one more of each is made first and not counted.
    pub runs: u32,
    /// The monitor under test.
    pub vmm: PathBuf,
    /// Who it is compared with.
    pub against: Vec<Contender>,
    /// The guest kernel, the same for all.
    pub kernel: PathBuf,
    /// The initramfs with the agent, the same for all.
    pub initramfs: PathBuf,
    /// Guest memory, in MiB.
    pub mem_mib: u64,
    /// Whether our monitor takes part without its jail as well, for what that costs.
    pub jail: Jail,
    /// Longest a run may take.
    pub limit: Duration,
}

/// One boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// From just before the monitor's process was made to the first byte that its guest's first program sent.
    pub first_output_us: u64,
    /// To the answer to the host's first request, where the contender has a way to ask.
    pub first_reply_us: Option<u64>,
    /// The stages the monitor told of, from its own start.
    pub stages: Vec<(String, u64)>,
    /// The stages the agent told of, by the guest's own clock, which starts with the VM.
    pub guest_stages: Vec<(String, u64)>,
    /// Private memory of the monitor's process that is not the guest's, in KiB, at the first reply.
    pub own_memory_kib: Option<u64>,
    /// Exits of the VM up to its last event, where the host's KVM shows them.
    pub exits: Exits,
}

/// Runs the bench on this machine; `progress` is told (runs done, runs in all).
///
/// # Errors
/// The first run that fails ends the bench.
pub fn boot(options: &BootOptions, progress: &mut dyn FnMut(u32, u32)) -> Result<Report, BenchError> {
    let report = begin(options);
    let runs = all_runs(options, progress)?;
    Ok(filled(report, options, runs))
}

fn begin(options: &BootOptions) -> Report {
    let title = format!(
        "boot, n = {} of each in turn, {} MiB, one vCPU, kernel {}",
        options.runs,
        options.mem_mib,
        options.kernel.display()
    );
    Report::begin("boot", &title)
        .jail(options.jail)
        .option("runs", options.runs)
        .option("mem_mib", options.mem_mib)
        .option("kernel", options.kernel.display())
        .event("start", "right before the monitor's process is made")
        .event(
            "first_output",
            "the agent's hello reaches the host over vsock; QEMU: the guest's first byte on the serial port",
        )
        .event("first_reply", "the agent's answer to the host's first request has reached the host")
        .event("own_memory", "private memory of the monitor's process that is not the guest's, at the first reply")
        .event("own_clock", "the guest's start by its own clock, which begins with the VM")
}

fn filled(mut report: Report, options: &BootOptions, runs: Vec<Vec<Run>>) -> Report {
    let names: Vec<&str> = options.contenders().iter().map(Contender::name).collect();
    for (who, runs) in names.iter().zip(&runs) {
        let us = |of: fn(&Run) -> Option<Sample>| runs.iter().filter_map(of);
        let reply = |run: &Run| Some(Sample { value: run.first_reply_us?, stages: run.stages.clone() });
        let inside = |run: &Run| {
            let value = run.guest_stages.iter().map(|(_, us)| *us).max()?;
            Some(Sample { value, stages: run.guest_stages.clone() })
        };
        report.add(Series::new(who, "first_output", Unit::Us, us(|run| Some(run.first_output_us.into()))));
        report.add(Series::new(who, "first_reply", Unit::Us, us(reply)));
        report.add(Series::new(who, "own_clock", Unit::Us, us(inside)));
        report.add(Series::new(who, "own_memory", Unit::Kib, runs.iter().filter_map(|run| run.own_memory_kib)));
        report.count(who, runs.iter().map(|run| &run.exits));
    }
    for other in names.iter().skip(1) {
        let aim = (*other == "firecracker").then_some(Aim::AtMost(0.4));
        let theirs = if other.starts_with("midge") { "first_reply" } else { "first_output" };
        report.ratio(("midge", "first_reply"), (other, theirs), aim);
    }
    report
}

/// The counted runs of each contender, in the order of [`BootOptions::contenders`].
fn all_runs(options: &BootOptions, progress: &mut dyn FnMut(u32, u32)) -> Result<Vec<Vec<Run>>, BenchError> {
    check_runs(options.runs)?;
    let contenders = options.contenders();
    let mut runs = vec![Vec::new(); contenders.len()];
    let all = options.boots();
    let mut done = 0;
    // Round 0 warms the page cache and shows early what does not run at all.
    for round in 0..=options.runs {
        for turn in 0..contenders.len() {
            // Another one begins each round, so that nobody always runs in the wake of the same one.
            let index = (turn + round as usize) % contenders.len();
            let run = once(&contenders[index], options)?;
            if round > 0 {
                runs[index].push(run);
            }
            done += 1;
            progress(done, all);
        }
    }
    Ok(runs)
}

impl BootOptions {
    /// How many boots the bench makes, those that only warm up among them.
    #[must_use]
    pub fn boots(&self) -> u32 {
        let contenders = u32::try_from(self.contenders().len()).unwrap_or(u32::MAX);
        contenders.saturating_mul(self.runs.saturating_add(1))
    }

    /// Who takes part; we come first.
    pub(super) fn contenders(&self) -> Vec<Contender> {
        let ours = |jail| Contender::Midge { program: self.vmm.clone(), jail };
        let bare = (self.jail == Jail::Off).then(|| ours(Jail::Off));
        std::iter::once(ours(Jail::On)).chain(bare).chain(self.against.iter().cloned()).collect()
    }

    pub(super) fn payload(&self) -> Payload {
        let Self { kernel, initramfs, mem_mib, limit, .. } = self.clone();
        Payload { kernel, initramfs, mem_mib, disk: None, limit }
    }
}

/// Boots once.
fn once(contender: &Contender, options: &BootOptions) -> Result<Run, BenchError> {
    let name = contender.name();
    let dir = tempfile::Builder::new().prefix("midge-bench-").tempdir().map_err(prepare(name))?;
    if matches!(contender, Contender::QemuMicrovm { .. }) {
        return first_byte(contender, dir.path(), options);
    }
    let greeter = Greeter::bind(&dir.path().join("v.sock")).map_err(prepare(name))?;
    let mut started = Started::contender(contender, dir.path(), &options.payload())?;
    let greeted = greeter.greet(started.start, || started.is_late()).map_err(started.guest())?;
    let Some(greeted) = greeted else { return Err(started.late()) };
    let mut run = Run::of(greeted, started.child.id(), options);
    started.let_go();
    if matches!(contender, Contender::Midge { .. }) {
        run.stages = started.child.stdout.take().map(stages_told).unwrap_or_default();
        run.stages.push(("agent_hello".to_owned(), run.first_output_us));
        run.stages.extend(run.first_reply_us.map(|us| ("first_reply".to_owned(), us)));
    }
    Ok(run)
}

impl Run {
    /// What is known once an agent has answered, with its monitor still there. Ends the conversation.
    fn of(greeted: Greeted, pid: u32, options: &BootOptions) -> Self {
        Self {
            first_output_us: greeted.hello_us,
            first_reply_us: Some(greeted.reply_us),
            exits: exits::of(pid),
            own_memory_kib: ps::processes(pid).into_iter().map(|pid| memory::own_kib(pid, options.mem_mib)).sum(),
            guest_stages: greeted.stages,
            stages: Vec::new(),
        }
    }
}

/// The stages among the monitor's events, up to the end of its output.
fn stages_told(stdout: ChildStdout) -> Vec<(String, u64)> {
    let lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let events = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let stage = |event: Value| Some((event["name"].as_str()?.to_owned(), event["t_us"].as_u64()?));
    events.filter(|event| event["event"] == "stage").filter_map(stage).collect()
}

/// Boots one that has no vsock: its first byte on the serial port counts.
fn first_byte(contender: &Contender, dir: &Path, options: &BootOptions) -> Result<Run, BenchError> {
    let mut started = Started::contender(contender, dir, &options.payload())?;
    let (sender, receiver) = std::sync::mpsc::channel();
    if let Some(mut stdout) = started.child.stdout.take() {
        let start = started.start;
        std::thread::spawn(move || {
            let mut first = [0];
            let seen = stdout.read_exact(&mut first).map(|()| since_us(start));
            // The run may be given up by now.
            let _ = sender.send(seen);
        });
    }
    match receiver.recv_timeout(options.limit) {
        Ok(Ok(first_output_us)) => Ok(Run { first_output_us, exits: exits::of(started.child.id()), ..Run::default() }),
        _ => Err(started.late()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn options() -> BootOptions {
        BootOptions {
            runs: 1,
            vmm: "/nonexistent/midge-vmm".into(),
            against: vec![Contender::QemuMicrovm { program: "/q".into() }],
            kernel: "/k".into(),
            initramfs: "/i".into(),
            mem_mib: 128,
            jail: Jail::On,
            limit: Duration::from_millis(200),
        }
    }

    /// The report of three boots of each.
    pub(in super::super) fn report() -> Report {
        let run = |output, reply: Option<u64>| Run {
            first_output_us: output,
            first_reply_us: reply,
            stages: reply.map(|us| vec![("late".to_owned(), us), ("early".to_owned(), 10)]).unwrap_or_default(),
            own_memory_kib: reply.map(|_| 900),
            guest_stages: reply.map(|us| vec![("agent".to_owned(), us - 5000)]).unwrap_or_default(),
            exits: [("exits".to_owned(), output / 10)].into(),
        };
        let ours = vec![run(20_000, Some(21_000)), run(22_000, Some(23_000)), run(21_000, Some(22_000))];
        let theirs = vec![run(44_000, None), run(40_000, None), run(48_000, None)];
        filled(begin(&options()), &options(), vec![ours, theirs])
    }

    #[test]
    fn runs_become_series_and_the_ratio_is_reply_over_the_others_output() {
        let report = report();
        assert_eq!(report.find("midge", "first_reply").unwrap().figures().p50, 22_000);
        assert_eq!(report.find("midge", "own_clock").unwrap().stages(), [("agent".to_owned(), 17_000)]);
        assert_eq!(report.find("qemu-microvm", "exits").unwrap().figures().p50, 4_400);
        assert!(report.find("qemu-microvm", "first_reply").is_none() && report.options["mem_mib"] == "128");
        assert!((report.findings[0].value - 0.5).abs() < 1e-9);
    }

    #[test]
    fn program_that_is_missing_is_named() {
        for contender in [
            Contender::Midge { program: "/nonexistent/a".into(), jail: Jail::On },
            Contender::Firecracker { program: "/nonexistent/a".into() },
            Contender::QemuMicrovm { program: "/nonexistent/a".into() },
        ] {
            let error = once(&contender, &options()).unwrap_err();
            assert!(matches!(error, BenchError::Start { .. }), "{error}");
            assert!(error.to_string().contains("/nonexistent/a"), "{error}");
        }
    }

    #[test]
    fn program_that_says_no_word_is_late_and_its_complaint_told() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("fake");
        std::fs::write(&program, "#!/bin/sh\necho 'no such kernel' >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = once(&Contender::Firecracker { program }, &options()).unwrap_err().to_string();
        assert!(error.contains("no such kernel") && error.contains("firecracker"), "{error}");
    }
}
