// SPDX-License-Identifier: Apache-2.0
//! What every bench gives: one type, kept as JSON with every single sample, from which tables, pictures and pages are
//! made, here or by whoever reads the file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::stats::float;
use super::{Clock, Exits, Jail, Machine, Percentiles, Spread};

/// Version of the JSON document; another one is refused.
pub(super) const VERSION: u32 = 1;

/// What a value counts. Values are whole numbers of the small unit and are shown in the large one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Microseconds of the bench's clock, shown as milliseconds (or millions of instructions).
    Us,
    /// KiB, shown as MiB.
    Kib,
    /// KiB per second, shown as MiB per second.
    KibPerS,
    /// How often per second.
    PerS,
    /// How often.
    Count,
}

impl Unit {
    /// What a shown value counts.
    #[must_use]
    pub fn name(self, clock: Clock) -> &'static str {
        match self {
            Self::Us => clock.unit(),
            Self::Kib => "MiB",
            Self::KibPerS => "MiB/s",
            Self::PerS => "/s",
            Self::Count => "",
        }
    }

    /// A value as it is shown.
    #[must_use]
    pub fn shown(self, value: u64) -> f64 {
        match self {
            Self::Us => float(value) / 1000.0,
            Self::Kib | Self::KibPerS => float(value) / 1024.0,
            Self::PerS | Self::Count => float(value),
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// In the unit of its series.
    pub value: u64,
    /// What was reached on the way, in microseconds from the start, in the order of time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<(String, u64)>,
}

impl From<u64> for Sample {
    fn from(value: u64) -> Self {
        Self { value, stages: Vec::new() }
    }
}

/// One quantity of one who takes part, in the order in which it was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Who: `midge fork`, `firecracker`.
    pub who: String,
    /// What: `answered`, `gone`; explained among the report's events.
    pub what: String,
    /// What its values count.
    pub unit: Unit,
    /// All of them.
    pub samples: Vec<Sample>,
}

impl Series {
    /// A series of these samples.
    #[must_use]
    pub fn new<S: Into<Sample>>(who: &str, what: &str, unit: Unit, samples: impl IntoIterator<Item = S>) -> Self {
        let samples = samples.into_iter().map(Into::into).collect();
        Self { who: who.to_owned(), what: what.to_owned(), unit, samples }
    }

    /// The figures of its values.
    #[must_use]
    pub fn figures(&self) -> Percentiles {
        self.samples.iter().map(|sample| sample.value).percentiles()
    }

    /// The median of every stage, in the order of time.
    #[must_use]
    pub fn stages(&self) -> Vec<(String, u64)> {
        let names = self.samples.first().into_iter().flat_map(|sample| sample.stages.iter().map(|(name, _)| name));
        let at = |sample: &Sample, name: &str| sample.stages.iter().find(|(other, _)| other == name).map(|(_, us)| *us);
        let median = |name: &String| self.samples.iter().filter_map(|sample| at(sample, name)).percentiles().p50;
        let mut stages: Vec<(String, u64)> = names.map(|name| (name.clone(), median(name))).collect();
        stages.sort_by_key(|(_, us)| *us);
        stages
    }
}

/// What a figure should be at most or at least. Never decides whether a bench passes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// A figure drawn from medians: a ratio of two, or one of them beside what is aimed at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is.
    pub text: String,
    /// The figure.
    pub value: f64,
    /// What it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aim: Option<Aim>,
}

/// The whole bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this form.
    pub version: u32,
    /// Its name: `fork`.
    pub bench: String,
    /// What was measured, in a line.
    pub title: String,
    /// What its times are.
    pub clock: Clock,
    /// Where it was measured.
    pub machine: Machine,
    /// How many processes wanted to run when it began, the mean of a minute.
    pub load_at_start: f64,
    /// How it was asked for.
    pub options: BTreeMap<String, String>,
    /// What the words of its series mean.
    pub events: BTreeMap<String, String>,
    /// What was measured.
    pub series: Vec<Series>,
    /// What follows.
    pub findings: Vec<Finding>,
}

impl Report {
    /// A report that is to be filled, of this machine as it is now.
    #[must_use]
    pub fn begin(bench: &str, title: &str) -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            version: VERSION,
            bench: bench.to_owned(),
            title: title.to_owned(),
            clock: Clock::here(),
            machine: Machine::read(),
            load_at_start: load.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
            options: BTreeMap::new(),
            events: BTreeMap::new(),
            series: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Notes an option.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl ToString) -> Self {
        self.options.insert(name.to_owned(), value.to_string());
        self
    }

    /// Says what a word means.
    #[must_use]
    pub fn event(mut self, name: &str, meaning: &str) -> Self {
        self.events.insert(name.to_owned(), meaning.to_owned());
        self
    }

    /// Says what the jail of our monitors was: where one was left off, so that nobody can miss it.
    #[must_use]
    pub(super) fn jail(mut self, jail: Jail) -> Self {
        if jail == Jail::On {
            return self.option("jail", "whole, as in every run");
        }
        self.title.push_str(", THE JAIL IS OFF for those called `no jail`");
        self.option("jail", "OFF for those called `no jail`, on for the others")
            .event("no jail", "left off, as for no sandbox but a bench's: to see what it costs")
    }

    /// Adds a series for each of KVM's counters, of all runs of `who`.
    pub(super) fn count<'a>(&mut self, who: &str, runs: impl IntoIterator<Item = &'a Exits>) {
        let mut counters: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (name, count) in runs.into_iter().flatten() {
            counters.entry(name).or_default().push(*count);
        }
        counters.into_iter().for_each(|(name, counts)| self.add(Series::new(who, name, Unit::Count, counts)));
    }

    /// Adds a series, unless nothing was measured.
    pub fn add(&mut self, series: Series) {
        if !series.samples.is_empty() {
            self.series.push(series);
        }
    }

    /// The series of that name.
    #[must_use]
    pub fn find(&self, who: &str, what: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.who == who && series.what == what)
    }

    /// Finds one median over another, where both were measured.
    pub fn ratio(&mut self, ours: (&str, &str), theirs: (&str, &str), aim: Option<Aim>) {
        let p50 = |(who, what): (&str, &str)| self.find(who, what).map(|series| series.figures().p50);
        if let (Some(one), Some(other @ 1..)) = (p50(ours), p50(theirs)) {
            let what = if ours.1 == theirs.1 { String::new() } else { format!(" ({})", theirs.1.replace('_', " ")) };
            let text = format!("{} {} over {}'s{what}, p50", ours.0, ours.1.replace('_', " "), theirs.0);
            self.findings.push(Finding { text, value: float(one) / float(other), aim });
        }
    }

    /// Holds a median against what is aimed at, where it was measured. Aims are times: instructions are held to budgets.
    pub fn aim(&mut self, who: &str, what: &str, aim: Aim) {
        if let Some(series) = self.find(who, what).filter(|_| self.clock == Clock::Real) {
            let text = format!("{who} {}, {} p50", what.replace('_', " "), series.unit.name(self.clock));
            let value = series.unit.shown(series.figures().p50);
            self.findings.push(Finding { text, value, aim: Some(aim) });
        }
    }

    /// The report as one JSON document, with the percentiles of every series beside its samples.
    #[must_use]
    pub fn to_json(&self) -> Value {
        // Strings, numbers and lists: there is no way to fail.
        let mut document = serde_json::to_value(self).unwrap_or_default();
        for (index, series) in self.series.iter().enumerate() {
            document["series"][index]["figures"] = json!(series.figures());
        }
        document
    }

    /// Reads such a document.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let document: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
        if document["version"] != VERSION {
            let found = &document["version"];
            return Err(format!(
                "no report of this version of midge (version {found}, known is {VERSION}); measure again"
            ));
        }
        serde_json::from_value(document).map_err(|error| format!("no report of a bench: {error}"))
    }

    /// All samples as CSV, a line for each value and each stage.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut out = "bench,who,what,unit,sample,stage,value\n".to_owned();
        for series in &self.series {
            let unit = json!(series.unit);
            let unit = unit.as_str().unwrap_or_default();
            let name = format!("{},{},{}", self.bench, quoted(&series.who), quoted(&series.what));
            for (number, sample) in series.samples.iter().enumerate() {
                // Writing to a string cannot fail.
                let _ = writeln!(out, "{name},{unit},{number},,{}", sample.value);
                for (stage, us) in &sample.stages {
                    let _ = writeln!(out, "{name},us,{number},{},{us}", quoted(stage));
                }
            }
        }
        out
    }
}

/// A field of CSV (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A bench of two, three runs each.
    pub(in super::super) fn report() -> Report {
        let staged = |us: u64| Sample { value: us, stages: vec![("late".into(), us), ("early".into(), 10)] };
        let mut report = Report::begin("boot", "a bench for tests").option("mem_mib", 128).event("start", "the start");
        report.add(Series::new("midge", "first_reply", Unit::Us, [21_000, 23_000, 22_000].map(staged)));
        report.add(Series::new("qemu, old", "first_output", Unit::Us, [44_000, 40_000, 48_000]));
        report.add(Series::new("midge", "own_memory", Unit::Kib, [900, 900, 901]));
        report.add(Series::new("midge", "exits", Unit::Count, [2_100, 2_100, 2_090]));
        report.ratio(("midge", "first_reply"), ("qemu, old", "first_output"), Some(Aim::AtMost(0.4)));
        report
    }

    #[test]
    fn json_holds_everything_and_comes_back() {
        let report = report();
        let json = report.to_json();
        assert_eq!(json["series"][0]["figures"]["p50"], 22_000);
        assert_eq!(json["series"][1]["samples"][2]["value"], 48_000);
        assert_eq!(json["series"][0]["samples"][1]["stages"][0], json!(["late", 23_000]));
        assert!(json["machine"]["host_kernel"].is_string());
        assert_eq!(Report::from_json(&json.to_string()).unwrap(), report);
    }

    #[test]
    fn documents_of_others_are_refused_by_reason() {
        for (text, reason) in [("{", "no JSON"), ("{}", "version null"), ("{\"version\":1}", "no report of a bench")] {
            assert!(Report::from_json(text).unwrap_err().contains(reason), "{text}");
        }
    }

    #[test]
    fn stages_are_medians_in_the_order_of_time() {
        assert_eq!(report().series[0].stages(), [("early".to_owned(), 10), ("late".to_owned(), 22_000)]);
    }

    #[test]
    fn ratio_is_of_medians_and_absent_where_one_is() {
        let mut report = report();
        assert!((report.findings[0].value - 0.5).abs() < 1e-9, "{:?}", report.findings);
        report.ratio(("midge", "first_reply"), ("nobody", "first_reply"), None);
        report.aim("nobody", "answered", Aim::AtMost(1.0));
        assert_eq!(report.findings.len(), 1);
        report.aim("midge", "first_reply", Aim::AtMost(30.0));
        assert!((report.findings[1].value - 22.0).abs() < 1e-9);
    }

    #[test]
    fn csv_has_a_line_for_each_value_and_stage() {
        let csv = report().to_csv();
        assert_eq!(csv.lines().count(), 1 + 3 * 3 + 3 + 3 + 3);
        assert!(csv.contains("boot,midge,first_reply,us,1,,23000\nboot,midge,first_reply,us,1,late,23000\n"), "{csv}");
        assert!(csv.contains("boot,\"qemu, old\",first_output,us,0,,44000\n"), "{csv}");
    }

    #[test]
    fn nothing_measured_is_no_series() {
        let mut report = report();
        report.add(Series::new("midge", "nothing", Unit::Us, [] as [u64; 0]));
        assert!(report.find("midge", "nothing").is_none());
    }
}
