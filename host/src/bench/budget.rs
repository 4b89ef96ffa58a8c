// SPDX-License-Identifier: Apache-2.0
//! What boots and forks may cost, as files in the tree that a bench is held against. Only counts are: instructions of an emulated
//! host and exits, which do not depend on how fast or how busy a machine is. Times never are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Clock, Exits, Report, Unit};

/// How much more than its budget a figure may be, in percent, where a new file does not say otherwise: compilers and
/// kernels of one distribution differ by less. The file of forks has a larger one: what waits for a tick of the emulated host's
/// clock waits a million instructions, the ninth part of a fork, and any change can move something across a tick.
const TOLERANCE_PERCENT: u64 = 8;
/// Stages that say nothing: two threads or processes share the emulated host's one processor when they are reached, and which of
/// them gets it first can change with anything.
const UNSTEADY: [&str; 4] = ["memory_ready", "forked", "resume_sent", "exec_started"];
/// How much later than its budget a stage on the way may be, in thousands of instructions, however early it is: a tick of the
/// emulated host's clock. Two builds of one source differ by less where its one processor is handed from the bench to the monitor,
/// and every early stage moves with that. The end of the way has no such grace.
const TICK_KILO_INSTRUCTIONS: u64 = 1_000;
/// What is held to it: the ways to a sandbox that are ours, each to the event at its end.
const WAYS: [(&str, &str); 4] = [
    ("midge", "first_reply"),
    ("midge fork", "answered"),
    ("midge restore", "answered"),
    ("midge cold boot", "answered"),
];
/// Figures below this are not told apart by a share: rounding alone moves them.
const SMALL_COUNT: u64 = 50;

/// The budget of a bench.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The bench that it is for.
    pub bench: String,
    /// How much more is accepted, in percent.
    pub tolerance_percent: u64,
    /// Guest memory, in MiB, that it holds for.
    pub mem_mib: u64,
    /// What each of our ways to a sandbox may cost.
    pub ways: BTreeMap<String, Spent>,
}

/// What a way to a sandbox costs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// From the start to each stage, in thousands of instructions.
    pub kilo_instructions: BTreeMap<String, u64>,
    /// Exits up to the last of them, by KVM's counters.
    pub exits: Exits,
}

/// Why a bench does not hold its budget, or cannot be compared with it.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// The file cannot be read or written.
    #[error("{doing} the budget {path}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// The bench measured something else.
    #[error("comparing with the budget: {0}")]
    Other(String),
    /// Figures are over it.
    #[error(
        "over the budget {path}:\n{over}\nSee what it is spent on with `midge bench {bench} --emulated` before and after. If it \
         is worth it, write the new figures with --write-budget {path} and say why in the commit"
    )]
    Over {
        /// The bench.
        bench: String,
        /// The file.
        path: PathBuf,
        /// One line for each figure.
        over: Lines,
    },
}

/// Figures beside their budget, one a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines(Vec<String>);

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Budget {
    /// The medians of our runs as a budget.
    ///
    /// # Errors
    /// [`BudgetError::Other`] for a report that is by time.
    pub fn of(report: &Report) -> Result<Self, BudgetError> {
        let other = |text: &str| BudgetError::Other(text.to_owned());
        if report.clock != Clock::Instructions {
            return Err(other("the bench measured time, which differs from machine to machine; add --emulated"));
        }
        let ways: BTreeMap<_, _> =
            WAYS.iter().filter_map(|(who, what)| Some(((*who).to_owned(), spent(report, who, what)?))).collect();
        if ways.is_empty() {
            return Err(other("the bench has no figures"));
        }
        let mem_mib = report.options.get("mem_mib").and_then(|mib| mib.parse().ok());
        Ok(Self {
            bench: report.bench.clone(),
            tolerance_percent: TOLERANCE_PERCENT,
            mem_mib: mem_mib.ok_or_else(|| other("the bench does not say how much memory its guest had"))?,
            ways,
        })
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`BudgetError::Io`], also for a file that is no budget.
    pub fn read(path: &Path) -> Result<Self, BudgetError> {
        let failed = |source| BudgetError::Io { doing: "reading", path: path.to_owned(), source };
        let text = std::fs::read(path).map_err(failed)?;
        serde_json::from_slice(&text).map_err(|error| failed(error.into()))
    }

    /// Writes the file; one that is there keeps its tolerance.
    ///
    /// # Errors
    /// [`BudgetError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), BudgetError> {
        let failed = |source| BudgetError::Io { doing: "writing", path: path.to_owned(), source };
        let tolerance_percent = Self::read(path).map_or(self.tolerance_percent, |before| before.tolerance_percent);
        let text = serde_json::to_string_pretty(&Self { tolerance_percent, ..self.clone() });
        std::fs::write(path, text.map_err(|error| failed(error.into()))? + "\n").map_err(failed)
    }

    /// Holds a report against the budget in the file; gives a note for whoever reads the result.
    ///
    /// # Errors
    /// [`BudgetError::Over`] with every figure that is; [`BudgetError::Io`], [`BudgetError::Other`].
    pub fn hold(path: &Path, report: &Report) -> Result<String, BudgetError> {
        let (budget, spent) = (Self::read(path)?, Self::of(report)?);
        if budget.bench != spent.bench {
            let text = format!("it is for the bench {}, this is {}", budget.bench, spent.bench);
            return Err(BudgetError::Other(text));
        }
        if budget.mem_mib != spent.mem_mib {
            let text = format!("it is for guests of {} MiB, the bench had {}", budget.mem_mib, spent.mem_mib);
            return Err(BudgetError::Other(text));
        }
        let over = budget.exceeded_by(&spent);
        if !over.0.is_empty() {
            return Err(BudgetError::Over { bench: spent.bench, path: path.to_owned(), over });
        }
        let mut notes = vec![format!("within the budget {}:", path.display())];
        for (who, spent) in &spent.ways {
            let (allowed, used) = (budget.ways.get(who).map_or(0, Spent::total), spent.total());
            let thrift = used.saturating_mul(100 + budget.tolerance_percent) < allowed.saturating_mul(100);
            let advice = if thrift {
                "; that is less than it was by more than the tolerance: lower it with --write-budget"
            } else {
                ""
            };
            notes.push(format!("  {who}: {used} of {allowed} thousand instructions{advice}"));
        }
        Ok(notes.join("\n"))
    }

    /// The figures of `spent` that are above ours by more than the tolerance, or that only one of us has.
    fn exceeded_by(&self, spent: &Self) -> Lines {
        let nothing = Spent::default();
        let names: BTreeSet<&String> = self.ways.keys().chain(spent.ways.keys()).collect();
        let of = |who| (self.ways.get(who).unwrap_or(&nothing), spent.ways.get(who).unwrap_or(&nothing));
        let lines = names.into_iter().flat_map(|who| {
            let (allowed, used) = of(who);
            allowed.exceeded_by(used, self.tolerance_percent).into_iter().map(move |line| format!("  {who}: {line}"))
        });
        Lines(lines.collect())
    }
}

/// What `who` spent until `what`.
fn spent(report: &Report, who: &str, what: &str) -> Option<Spent> {
    let exits = report.series.iter().filter(|series| series.who == who && series.unit == Unit::Count);
    Some(Spent {
        kilo_instructions: report
            .find(who, what)?
            .stages()
            .into_iter()
            .filter(|(name, _)| !is_unsteady(name))
            .collect(),
        exits: exits.map(|series| (series.what.clone(), series.figures().p50)).collect(),
    })
}

fn is_unsteady(stage: &str) -> bool {
    stage.split(' ').next_back().is_some_and(|name| UNSTEADY.contains(&name))
}

impl Spent {
    fn total(&self) -> u64 {
        self.kilo_instructions.values().max().copied().unwrap_or(0)
    }

    fn exceeded_by(&self, spent: &Self, tolerance_percent: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let groups = [
            (&self.kilo_instructions, &spent.kilo_instructions, "thousand instructions to", TICK_KILO_INSTRUCTIONS),
            (&self.exits, &spent.exits, "exits:", SMALL_COUNT),
        ];
        for (allowed, used, what, grace) in groups {
            for (name, used) in used {
                let Some(allowed) = allowed.get(name) else {
                    lines.push(format!("{used} {what} {name}, which it does not know"));
                    continue;
                };
                let grace = if *allowed == self.total() { 0 } else { grace };
                let most = (allowed * (100 + tolerance_percent) / 100).max(allowed + grace);
                if *used > most {
                    lines.push(format!("{used} {what} {name}, at most {most} (the budget is {allowed})"));
                }
            }
            for (name, _) in allowed.iter().filter(|(name, _)| !used.contains_key(*name)) {
                lines.push(format!("{what} {name}: not measured"));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::super::boot::tests::report;
    use super::super::{Sample, Series};
    use super::*;

    fn counted() -> Report {
        Report { clock: Clock::Instructions, ..report() }
    }

    /// What holding the report against itself says after a change to the budget.
    fn held_whole(change: impl FnOnce(&mut Budget)) -> Result<String, BudgetError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("budget.json");
        let mut budget = Budget::of(&counted()).unwrap();
        change(&mut budget);
        budget.write(&path).unwrap();
        Budget::hold(&path, &counted())
    }

    fn held(change: impl FnOnce(&mut Spent)) -> Result<String, BudgetError> {
        held_whole(|budget| change(budget.ways.get_mut("midge").unwrap()))
    }

    #[test]
    fn what_was_measured_is_within_itself() {
        assert!(held(|_| ()).unwrap().contains("22000 of 22000"));
    }

    #[test]
    fn figures_are_held_to_the_tolerance_and_no_further() {
        let at = |late| held(|budget| budget.kilo_instructions.extend([("late".into(), late)]));
        assert!(at(20_371).is_ok(), "22,000 is 8 % more");
        let text = at(20_370).unwrap_err().to_string();
        assert!(text.contains("22000 thousand instructions to late, at most 21999"), "{text}");
        assert!(text.contains("--write-budget") && !text.contains("early"), "{text}");
    }

    #[test]
    fn stages_on_the_way_may_be_a_tick_later_and_the_end_may_not() {
        let spent = |early, late| Spent {
            kilo_instructions: [("early".to_owned(), early), ("late".to_owned(), late)].into(),
            exits: Exits::default(),
        };
        let over = |early, late| spent(5_000, 20_000).exceeded_by(&spent(early, late), 8);
        assert_eq!(over(6_000, 21_600), Vec::<String>::new());
        assert_eq!(over(6_001, 21_600).len(), 1);
        assert_eq!(over(6_000, 21_601).len(), 1);
    }

    #[test]
    fn small_figures_may_differ_by_a_few() {
        let exits = |count| held(|budget| budget.exits.extend([("exits".into(), count)]));
        assert!(exits(2_050).is_ok() && exits(1_900).is_err());
        assert!(held(|budget| budget.kilo_instructions.extend([("early".into(), 0)])).is_ok());
    }

    #[test]
    fn figures_that_only_one_side_has_are_told() {
        let text = held(|budget| budget.exits.clear()).unwrap_err().to_string();
        assert!(text.contains("exits, which it does not know"), "{text}");
        let text = held(|budget| budget.kilo_instructions.extend([("gone".into(), 1)])).unwrap_err().to_string();
        assert!(text.contains("gone: not measured"), "{text}");
    }

    #[test]
    fn thrift_is_noted() {
        let note = held(|budget| budget.kilo_instructions.extend([("late".into(), 30_000)])).unwrap();
        assert!(note.contains("lower it"), "{note}");
    }

    #[test]
    fn times_and_other_guests_are_not_compared() {
        assert!(Budget::of(&report()).unwrap_err().to_string().contains("--emulated"));
        assert!(held_whole(|budget| budget.mem_mib = 64).unwrap_err().to_string().contains("64 MiB"));
        let text = held_whole(|budget| budget.bench = "fork".into()).unwrap_err().to_string();
        assert!(text.contains("bench fork, this is boot"), "{text}");
    }

    #[test]
    fn every_way_is_held_to_its_own() {
        let both = |path: &Path| {
            let mut report = counted();
            let answered = Series::new(
                "midge fork",
                "answered",
                Unit::Us,
                [Sample {
                    value: 9,
                    stages: vec![("host answered".into(), 9_000), ("monitor memory_ready".into(), 1)],
                }],
            );
            report.add(answered);
            (Budget::hold(path, &report), Budget::of(&report).unwrap())
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("budget.json");
        Budget::of(&counted()).unwrap().write(&path).unwrap();
        let (held, whole) = both(&path);
        let text = held.unwrap_err().to_string();
        assert!(
            text.contains("midge fork: 9000 thousand instructions to host answered, which it does not know"),
            "{text}"
        );
        assert!(!text.contains("memory_ready") && !text.contains("midge:"), "{text}");
        whole.write(&path).unwrap();
        assert!(both(&path).0.unwrap().contains("midge fork: 9000 of 9000"));
    }

    #[test]
    fn file_that_is_there_keeps_its_tolerance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("budget.json");
        assert!(Budget::read(&path).unwrap_err().to_string().contains("budget.json"));
        let budget = Budget::of(&counted()).unwrap();
        Budget { tolerance_percent: 3, ..budget.clone() }.write(&path).unwrap();
        budget.write(&path).unwrap();
        assert_eq!(Budget::read(&path).unwrap(), Budget { tolerance_percent: 3, ..budget });
    }
}
