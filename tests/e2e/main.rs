// SPDX-License-Identifier: Apache-2.0
//! End-to-end tests: the `midge` binary and library against real guests. One emulated host for the whole
//! binary, and this machine's own KVM where a guest boots on it; both places in parallel, each one test at a time.
//!
//! `cargo test -p midge-tests --test e2e -- [FILTER]`. Variables: `MIDGE_BIN_DIR` (binaries under test),
//! `MIDGE_REQUIRE_EMULATED=1` (a skip in the emulated host fails), `MIDGE_TEST_NATIVE_KERNEL` (a kernel for
//! this machine's KVM where ours cannot run), `MIDGE_TEST_RUNS` (length of the long rows), `MIDGE_TEST_SIGNALS` (how many more
//! moments a signal comes at), `MIDGE_TEST_NEIGHBOURS` (how many the noise test has) and `MIDGE_TEST_HOST_MIB` (memory of the
//! emulated host; fifty neighbours need more than its 4,096).

#![expect(clippy::panic, reason = "a test fails by panicking; clippy does not see that this whole binary is tests")]

mod agent;
mod bench;
mod calls;
mod children;
mod containers;
mod context;
mod contract;
mod cycles;
mod damage;
mod directed;
mod elf;
mod faults;
mod forks;
mod groups;
mod harness;
mod https;
mod input;
mod library;
mod lifecycle;
mod load;
mod network;
mod noise;
mod peers;
mod place;
mod ps;
mod rootless;
mod shortage;
mod stolen;
mod templates;
mod tracer;
mod workspace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use context::Context;
use harness::{Needs, Report, Test, run_lane};
use place::Place;
use tokio::signal::unix::SignalKind;

/// Undoes for what is started here that this process may ignore stop signals: a shell has what it runs in the background
/// ignore them, an exec keeps that, and an interrupt of `midge` before it has a handler of its own would be lost. A signal with
/// a handler, which does nothing here, has its default effect again after an exec.
fn take_signals_back() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_default();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap_or(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup(), SignalKind::terminate()] {
        if ignored >> (kind.as_raw_value() - 1) & 1 == 1 {
            drop(tokio::signal::unix::signal(kind).expect("a handler"));
        }
    }
}

fn main() -> ExitCode {
    if rootless::is_called() {
        return rootless::main();
    }
    if tracer::is_called() {
        return tracer::main();
    }
    let start = Instant::now();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = words.as_slice()
        && flag == "--inside"
    {
        library::body(name);
        return ExitCode::SUCCESS;
    }
    take_signals_back();
    // The report has the text; what it lacks is the line.
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, ToString::to_string);
        eprintln!("{} panicked at {place}", std::thread::current().name().unwrap_or("a thread"));
    }));
    let filters: Vec<String> = words.into_iter().filter(|word| !word.starts_with('-')).collect();
    let groups = [
        input::TESTS,
        contract::TESTS,
        cycles::TESTS,
        agent::TESTS,
        network::TESTS,
        peers::TESTS,
        stolen::TESTS,
        children::TESTS,
        library::TESTS,
        forks::TESTS,
        templates::TESTS,
        damage::TESTS,
        shortage::TESTS,
        load::TESTS,
        groups::TESTS,
        noise::TESTS,
        ps::TESTS,
        workspace::TESTS,
        faults::TESTS,
        calls::TESTS,
        rootless::TESTS,
        lifecycle::TESTS,
        containers::TESTS,
        bench::TESTS,
    ];
    let all: Vec<Test> = groups.concat();
    let runs_in = |place: &str, needs: &[Needs]| -> Vec<Test> {
        let wanted = |test: &&Test| {
            let name = format!("{place}::{}::{}", test.group, test.name);
            needs.contains(&test.needs)
                && (filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())))
        };
        all.iter().filter(wanted).copied().collect()
    };
    let binary = runs_in("binary", &[Needs::Binary]);
    let emulated = runs_in("emulated", &[Needs::Guest, Needs::OurKernel]);
    let native = runs_in("native", &[Needs::Guest, Needs::NativeGuest]);
    let filtered = (all.len() * 2).saturating_sub(binary.len() + emulated.len() + native.len());
    println!("\nrunning {} tests", binary.len() + emulated.len() + native.len());

    let report = Report::default();
    let bin = Binaries::copy();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            run_lane("binary", &binary, context_in(Ok(Place::Unset), &bin), &report);
            if !native.is_empty() {
                run_lane("native", &native, context_in(Place::native(), &bin), &report);
            }
        });
        if !emulated.is_empty() {
            let place = bin.as_ref().map_err(String::clone).and_then(|bin| Place::emulated(bin.path()));
            run_lane("emulated", &emulated, context_in(place, &bin), &report);
        }
    });
    let (passed, skipped) = report.close(filtered, start.elapsed());
    let required = std::env::var_os("MIDGE_REQUIRE_EMULATED").is_some_and(|value| value == "1");
    let missing: Vec<&String> = skipped.iter().filter(|name| name.starts_with("emulated::")).collect();
    if required && !missing.is_empty() {
        println!("e2e: skipped though MIDGE_REQUIRE_EMULATED=1: {missing:?}");
        return ExitCode::FAILURE;
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The context of a lane: its place, the binaries, a run directory of its own.
fn context_in(place: Result<Place, String>, bin: &Result<Binaries, String>) -> Result<Arc<Context>, String> {
    let bin = bin.as_ref().map_err(String::clone)?.path().to_owned();
    let dir = || tempfile::Builder::new().prefix("e2e-").tempdir().map_err(|error| format!("no directory: {error}"));
    Ok(Arc::new(Context { place: place?, bin, runtime: dir()?, temporary: dir()? }))
}

/// Copies of the programs under test and of this one, so that a build going on meanwhile changes nothing.
struct Binaries(tempfile::TempDir);

impl Binaries {
    fn copy() -> Result<Self, String> {
        let from = Self::built()?;
        let dir = tempfile::Builder::new().prefix("e2e-bin-").tempdir().map_err(|error| error.to_string())?;
        // Others than the owner may run them: some tests do so as another user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).map_err(|error| error.to_string())?;
        let programs = ["midge", "midge-vmm", "midge-agent", "midge-turn"].map(|name| (from.join(name), name));
        for (path, name) in programs.into_iter().chain([("/proc/self/exe".into(), "e2e")]) {
            std::fs::copy(&path, dir.path().join(name))
                .map_err(|error| format!("copying {}: {error}", path.display()))?;
        }
        Ok(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where `midge` is: `MIDGE_BIN_DIR`, or beside this test's own directory.
    fn built() -> Result<PathBuf, String> {
        let beside = || std::env::current_exe().ok()?.parent()?.parent().map(PathBuf::from);
        let dir = std::env::var_os("MIDGE_BIN_DIR").map(PathBuf::from).or_else(beside).unwrap_or_default();
        if dir.join("midge").is_file() {
            return Ok(dir);
        }
        Err(format!("no midge in {}: cargo build --bins, or set MIDGE_BIN_DIR", dir.display()))
    }
}
