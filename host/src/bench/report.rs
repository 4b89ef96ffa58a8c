// SPDX-License-Identifier: Apache-2.0
//! A bench's result: as a table for people, as JSON for machines.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::{BootOptions, Clock, Exits, Machine, Percentiles, Run, Spread, contenders};

/// The bench's events, in the words of its reports.
pub(super) const EVENTS: [(&str, &str); 3] = [
    ("start", "right before the monitor's process is made"),
    ("first_output", "the agent's hello reaches the host over vsock; QEMU: the guest's first byte on the serial port"),
    ("first_reply", "the agent's answer to the host's first request has reached the host"),
];

/// One contender's runs, in the order they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// The contender's name.
    pub name: &'static str,
    /// Without the first, which only warms up.
    pub runs: Vec<Run>,
}

/// The whole bench; the first series is Midge's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootReport {
    /// What its times are.
    pub clock: Clock,
    /// Where it was measured.
    pub machine: Machine,
    /// Runs of each contender.
    pub runs: u32,
    /// Guest memory, in MiB.
    pub mem_mib: u64,
    /// The kernel that all booted.
    pub kernel: PathBuf,
    /// One per contender.
    pub series: Vec<Series>,
}

impl Series {
    /// Start to the guest's first output, microseconds.
    #[must_use]
    pub fn first_output(&self) -> Percentiles {
        self.runs.iter().map(|run| run.first_output_us).percentiles()
    }

    /// Start to the first reply, microseconds; `None` where it cannot be asked.
    #[must_use]
    pub fn first_reply(&self) -> Option<Percentiles> {
        let figures = self.runs.iter().filter_map(|run| run.first_reply_us).percentiles();
        (figures.n > 0).then_some(figures)
    }

    /// The monitor's own private memory, KiB.
    #[must_use]
    pub fn own_memory(&self) -> Option<Percentiles> {
        let figures = self.runs.iter().filter_map(|run| run.own_memory_kib).percentiles();
        (figures.n > 0).then_some(figures)
    }

    /// The median of every stage of the monitor, in the order of time.
    #[must_use]
    pub fn stages(&self) -> Vec<(String, u64)> {
        self.medians(|run| &run.stages)
    }

    /// The median of every stage of the guest, by its own clock.
    #[must_use]
    pub fn guest_stages(&self) -> Vec<(String, u64)> {
        self.medians(|run| &run.guest_stages)
    }

    fn medians(&self, of: impl Fn(&Run) -> &Vec<(String, u64)>) -> Vec<(String, u64)> {
        let names = self.runs.first().into_iter().flat_map(|run| of(run).iter().map(|(name, _)| name));
        let median = |name: &String| {
            let at = |run: &Run| of(run).iter().find(|(other, _)| other == name).map(|(_, us)| *us);
            self.runs.iter().filter_map(at).percentiles().p50
        };
        let mut stages: Vec<(String, u64)> = names.map(|name| (name.clone(), median(name))).collect();
        stages.sort_by_key(|(_, us)| *us);
        stages
    }

    /// The median of every counter of exits; empty where the host's KVM does not show them.
    #[must_use]
    pub fn exits(&self) -> Exits {
        let names = self.runs.first().into_iter().flat_map(|run| run.exits.keys());
        let median = |name: &String| self.runs.iter().filter_map(|run| run.exits.get(name).copied()).percentiles().p50;
        names.map(|name| (name.clone(), median(name))).collect()
    }
}

impl BootReport {
    /// A report of these runs, which are in the order of the contenders.
    pub(super) fn new(options: &BootOptions, clock: Clock, machine: Machine, runs: Vec<Vec<Run>>) -> Self {
        let series = contenders(options).into_iter().zip(runs).map(|(who, runs)| Series { name: who.name(), runs });
        Self {
            clock,
            machine,
            runs: options.runs,
            mem_mib: options.mem_mib,
            kernel: options.kernel.clone(),
            series: series.collect(),
        }
    }

    /// Midge's median to the first reply over another's median to its guest's first output.
    #[must_use]
    pub fn ratio(&self, other: &Series) -> Option<f64> {
        let ours = self.series.first()?.first_reply()?.p50;
        let theirs = other.first_output().p50;
        (theirs > 0).then(|| milli(ours) / milli(theirs))
    }

    /// The report as one JSON document; times in microseconds of its clock, memory in KiB.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let stage = |(name, us): (String, u64)| json!({"name": name, "p50_us": us});
        let series = self.series.iter().map(|series| {
            json!({
                "name": series.name,
                "first_output_us": series.first_output(),
                "first_reply_us": series.first_reply(),
                "own_memory_kib": series.own_memory(),
                "stages": series.stages().into_iter().map(stage).collect::<Vec<_>>(),
                "guest_stages": series.guest_stages().into_iter().map(stage).collect::<Vec<_>>(),
                "exits": series.exits(),
                "ratio": self.ratio(series),
                "runs_us": series.runs.iter().map(|run| json!([run.first_output_us, run.first_reply_us])).collect::<Vec<_>>(),
            })
        });
        json!({
            "bench": "boot",
            "clock": self.clock,
            "events": Map::from_iter(EVENTS.map(|(name, what)| (name.to_owned(), what.into()))),
            "n": self.runs,
            "mem_mib": self.mem_mib,
            "kernel": self.kernel,
            "machine": self.machine,
            "contenders": series.collect::<Vec<_>>(),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a duration in microseconds is far below 2^52")]
fn milli(us: u64) -> f64 {
    us as f64 / 1000.0
}

impl fmt::Display for BootReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_where(f)?;
        let unit = self.clock.unit();
        writeln!(
            f,
            "{:<14} {:<14} {:>9} {:>9} {:>9} {:>9}  midge is",
            "",
            format!("{unit} to"),
            "p50",
            "p90",
            "p99",
            "max"
        )?;
        for series in &self.series {
            self.fmt_series(f, series)?;
        }
        for series in self.series.iter().filter(|series| !series.exits().is_empty()) {
            let counts: Vec<String> = series.exits().iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(f, "{:<14} to KVM, p50: {}", series.name, counts.join(", "))?;
        }
        for series in &self.series {
            fmt_stages(f, &format!("stages of {}, {unit} p50", series.name), &series.stages())?;
            let title = format!("stages of {}'s guest, by its own clock, {unit} p50", series.name);
            fmt_stages(f, &title, &series.guest_stages())?;
        }
        writeln!(f)?;
        EVENTS.iter().try_for_each(|(name, what)| writeln!(f, "{}: {what}", name.replace('_', " ")))
    }
}

impl BootReport {
    /// What was measured, and on what.
    fn fmt_where(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        let absent = || "unknown".to_owned();
        if self.clock == Clock::Instructions {
            writeln!(
                f,
                "in an emulated host, whose clock counts instructions (Mi: millions); what an exit costs hardware is not in them"
            )?;
        }
        writeln!(
            f,
            "boot, n = {} of each in turn, {} MiB, one vCPU, kernel {}",
            self.runs,
            self.mem_mib,
            self.kernel.display()
        )?;
        writeln!(
            f,
            "{}, {} CPUs, host Linux {}, {}",
            machine.processor,
            machine.cpus,
            machine.host_kernel,
            machine.kvm_modules.join(" + ")
        )?;
        writeln!(
            f,
            "nx_huge_pages {}, transparent huge pages {}, cgroup v{}{}, HZ {}\n",
            machine.nx_huge_pages.clone().unwrap_or_else(absent),
            machine.transparent_huge_pages.clone().unwrap_or_else(absent),
            machine.cgroup_version,
            if machine.favordynmods { " favordynmods" } else { "" },
            machine.hz.map_or_else(absent, |hz| hz.to_string()),
        )
    }

    fn fmt_series(&self, f: &mut fmt::Formatter<'_>, series: &Series) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, what: &str, figures: Percentiles, ratio: String| {
            let (p50, p90, p99, max) = (milli(figures.p50), milli(figures.p90), milli(figures.p99), milli(figures.max));
            writeln!(f, "{:<14} {what:<14} {p50:>9.2} {p90:>9.2} {p99:>9.2} {max:>9.2}  {ratio}", series.name)
        };
        let ratio = self.ratio(series).filter(|_| series.name != "midge");
        let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.3} of it"));
        row(f, "first output", series.first_output(), ratio)?;
        if let Some(figures) = series.first_reply() {
            row(f, "first reply", figures, String::new())?;
        }
        if let Some(memory) = series.own_memory() {
            writeln!(f, "{:<14} own private memory {} KiB p50, {} KiB max", series.name, memory.p50, memory.max)?;
        }
        Ok(())
    }
}

fn fmt_stages(f: &mut fmt::Formatter<'_>, title: &str, stages: &[(String, u64)]) -> fmt::Result {
    if stages.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{title}")?;
    stages.iter().try_for_each(|(name, us)| writeln!(f, "{:>9.2}  {name}", milli(*us)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn report() -> BootReport {
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
        BootReport {
            clock: Clock::Real,
            machine: Machine::read(),
            runs: 3,
            mem_mib: 128,
            kernel: "/k".into(),
            series: vec![Series { name: "midge", runs: ours }, Series { name: "qemu-microvm", runs: theirs }],
        }
    }

    #[test]
    fn ratio_is_reply_over_the_others_first_output() {
        let report = report();
        assert_eq!(report.ratio(&report.series[1]), Some(0.5));
    }

    #[test]
    fn json_has_figures_and_every_run() {
        let json = report().to_json();
        assert_eq!(json["contenders"][0]["first_reply_us"]["p50"], 22_000);
        assert_eq!(json["contenders"][1]["first_reply_us"], Value::Null);
        assert_eq!(json["contenders"][1]["runs_us"][2][0], 48_000);
        assert_eq!(json["contenders"][0]["stages"][0]["name"], "early");
        assert!(json["machine"]["host_kernel"].is_string());
        assert_eq!(json["clock"], "real");
        assert_eq!(json["contenders"][0]["exits"]["exits"], 2_100);
        assert_eq!(json["contenders"][0]["guest_stages"][0]["p50_us"], 17_000);
        assert!(json["events"]["start"].as_str().unwrap().contains("process"));
    }

    #[test]
    fn instructions_are_not_called_time() {
        let text = BootReport { clock: Clock::Instructions, ..report() }.to_string();
        assert!(text.contains("Mi to") && !text.contains("ms"), "{text}");
    }

    #[test]
    fn table_names_all_that_took_part() {
        let text = report().to_string();
        for part in [
            "0.500 of it",
            "ms to",
            "to KVM, p50: exits 2100",
            "guest, by its own clock",
            "start: right before",
            "first reply",
            "22.00",
            "44.00",
            "900 KiB",
            "stages of midge",
            "early",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }
}
