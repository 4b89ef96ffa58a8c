// SPDX-License-Identifier: Apache-2.0
//! Runs tests place by place and prints what `cargo test` would: one line a test, a closing count.
//! A skip is a value with a reason; whether it is accepted is decided by the caller of [`Report`].

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::context::Context;

/// Longest a single test may take, and how much longer for each round that was asked for by `MIDGE_TEST_RUNS`.
const TEST_MAX_SECONDS: u64 = 400;
const ROUND_MAX_SECONDS: u64 = 2;

/// A limit of so many seconds, and what the rounds that were asked for take.
pub(crate) fn with_rounds(seconds: u64) -> Duration {
    Duration::from_secs(seconds + ROUND_MAX_SECONDS * crate::templates::rounds(0, 0))
}

/// The number that a variable gives, if it gives one.
pub(crate) fn asked(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What a test needs to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// The `midge` binary only; runs once.
    Binary,
    /// A guest; runs in every place.
    Guest,
    /// A guest on this machine's own KVM (it looks at processes or counts a thousand runs).
    NativeGuest,
    /// A guest with our own kernel (two CPUs, cgroups): the emulated host, or hardware KVM.
    OurKernel,
}

/// One test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    /// The module it is in.
    pub(crate) group: &'static str,
    /// States the behaviour.
    pub(crate) name: &'static str,
    /// Where it can run.
    pub(crate) needs: Needs,
    /// Panics when the behaviour is not there.
    pub(crate) run: fn(&Context),
}

/// Builds a group's table of tests from its functions.
#[macro_export]
macro_rules! tests {
    ($group:literal: $($needs:ident $name:ident),+ $(,)?) => {
        pub(crate) const TESTS: &[$crate::harness::Test] = &[$($crate::harness::Test {
            group: $group, name: stringify!($name), needs: $crate::harness::Needs::$needs, run: $name,
        }),+];
    };
}

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It holds.
    Passed,
    /// It does not, or took too long.
    Failed(String),
    /// It could not run, and why.
    Skipped(String),
}

/// Collects verdicts of all places.
#[derive(Debug, Default)]
pub(crate) struct Report {
    verdicts: Mutex<BTreeMap<String, Verdict>>,
}

impl Report {
    /// Notes and prints one verdict.
    pub(crate) fn note(&self, name: &str, verdict: Verdict, took: Duration) {
        let seconds = took.as_secs_f32();
        match &verdict {
            Verdict::Passed => println!("test {name} ... ok ({seconds:.1} s)"),
            Verdict::Failed(why) => println!("test {name} ... FAILED ({seconds:.1} s): {why}"),
            Verdict::Skipped(why) => println!("test {name} ... ignored, {why}"),
        }
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), verdict);
    }

    /// Prints the count and tells whether everything that ran passed, and which tests were skipped.
    pub(crate) fn close(&self, filtered: usize, took: Duration) -> (bool, Vec<String>) {
        let verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        let names = |wanted: fn(&Verdict) -> bool| -> Vec<String> {
            verdicts.iter().filter(|(_, verdict)| wanted(verdict)).map(|(name, _)| name.clone()).collect()
        };
        let failed = names(|verdict| matches!(verdict, Verdict::Failed(_)));
        let skipped = names(|verdict| matches!(verdict, Verdict::Skipped(_)));
        let passed = verdicts.len() - failed.len() - skipped.len();
        if !failed.is_empty() {
            println!("\nfailures:\n    {}", failed.join("\n    "));
        }
        println!(
            "\ntest result: {}. {passed} passed; {} failed; {} ignored; 0 measured; {filtered} filtered out; finished in {:.2}s",
            if failed.is_empty() { "ok" } else { "FAILED" },
            failed.len(),
            skipped.len(),
            took.as_secs_f32()
        );
        (failed.is_empty(), skipped)
    }
}

/// Runs `tests` in one place, one after the other; `context` is a reason when the place cannot be had.
pub(crate) fn run_lane(place: &str, tests: &[Test], context: Result<Arc<Context>, String>, report: &Report) {
    for test in tests {
        let name = format!("{place}::{}::{}", test.group, test.name);
        match &context {
            Err(reason) => report.note(&name, Verdict::Skipped(reason.clone()), Duration::ZERO),
            Ok(context) => {
                let start = Instant::now();
                let verdict = run_one(&name, *test, Arc::clone(context));
                report.note(&name, verdict, start.elapsed());
            }
        }
    }
}

/// Runs a test on a thread of its own, so that one that hangs is only a failure.
fn run_one(name: &str, test: Test, context: Arc<Context>) -> Verdict {
    let (sender, receiver) = mpsc::channel();
    let body = move || {
        let result = catch_unwind(AssertUnwindSafe(|| (test.run)(&context)));
        let verdict = match result {
            Ok(()) => Verdict::Passed,
            Err(payload) => match payload.downcast::<Skip>() {
                Ok(skip) => Verdict::Skipped(skip.0),
                Err(payload) => Verdict::Failed(message(payload.as_ref())),
            },
        };
        // The receiver has given up waiting when this fails.
        let _ = sender.send(verdict);
    };
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(body) {
        return Verdict::Failed(format!("no thread: {error}"));
    }
    let limit = with_rounds(TEST_MAX_SECONDS);
    let late = || Verdict::Failed(format!("still running after {} s", limit.as_secs()));
    receiver.recv_timeout(limit).unwrap_or_else(|_| late())
}

/// The text of a panic.
fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panicked".to_owned())
}

/// Payload of a test that finds out while running that it cannot run here.
struct Skip(String);

/// Ends the running test as skipped, with the reason.
pub(crate) fn skip(reason: impl Into<String>) -> ! {
    std::panic::resume_unwind(Box::new(Skip(reason.into())))
}
