// SPDX-License-Identifier: Apache-2.0
//! `midge run`: one command in a fresh sandbox, from flags to exit code.
//!
//! [`attended`] races the run (`session`) against the wish for its end (`signals`); the other files are the parts of a run.

pub(super) mod args;
mod guarded;
mod input;
mod output;
pub(super) mod report;
pub(super) mod review;
mod session;
pub(super) mod signals;
pub(super) mod terminal;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use args::RunArgs;
use midge::agent::Life;
use midge::error::Error;
use midge::monitor::reap_all;
use report::Report;
use session::Session;
use signals::{Signals, Target};

use super::MIDGE_FAILED;
use super::fail::{exit_code, say, tell};

/// How long monitors that were killed on the way out may take to go.
const REAP: Duration = Duration::from_secs(2);

/// Runs the command and gives the exit code.
pub(crate) fn main(args: RunArgs) -> u8 {
    let target = Arc::new(Target::default());
    let signals = match listen(&target) {
        Ok(signals) => signals,
        Err(code) => return code,
    };
    in_runtime(attended(args, &target, signals))
}

/// Does something that starts sandboxes, until a signal asks to end it: then the exit code that says so.
pub(super) fn until_interrupted<T>(work: impl Future<Output = T>) -> Result<T, u8> {
    // Nobody is there to be passed anything on.
    let signals = listen(&Arc::default())?;
    let mut done = None;
    let code = in_runtime(async {
        tokio::select! {
            result = work => {
                done = Some(result);
                0
            }
            number = signals.end() => 128 + number,
        }
    });
    done.ok_or(code)
}

pub(super) fn listen(target: &Arc<Target>) -> Result<Signals, u8> {
    Signals::listen(Arc::clone(target)).map_err(|error| {
        say(&format!("listening for signals: {error}"));
        MIDGE_FAILED
    })
}

pub(super) fn in_runtime(work: impl Future<Output = u8>) -> u8 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("starting threads: {error}; see `ulimit -u`"));
            return MIDGE_FAILED;
        }
    };
    let code = runtime.block_on(work);
    // A thread may still be waiting for a terminal that nobody reads or types at.
    runtime.shutdown_background();
    reap_all(REAP);
    // What went down with the runtime could not wait until its group was empty.
    midge::groups::remove_all();
    code
}

/// The run, unless a signal ends it first.
async fn attended(args: RunArgs, target: &Target, signals: Signals) -> u8 {
    let json = args.json;
    let mut report = Report::default();
    let (life, over) = Life::new();
    let run = async { (Session { args, target, life }).run(&mut report).await };
    let concluded = conclude(run, signals).await;
    // What a policy let the sandbox make has tasks of its own.
    over.wait().await;
    concluded.map_or_else(
        |code| code,
        |(code, error)| {
            if json {
                report.print(code, error.as_ref());
            }
            code
        },
    )
}

/// Waits for a run and tells what it failed with; its exit code and that error, or the exit code of the signal that ended it
/// first. What it had begun to bring back by then is brought back, and told.
pub(super) async fn conclude(
    run: impl Future<Output = Result<u8, Error>>,
    signals: Signals,
) -> Result<(u8, Option<Error>), u8> {
    let mut run = std::pin::pin!(run);
    let result = tokio::select! {
        result = &mut run => result,
        number = signals.end() => {
            if !review::has_begun_to_apply() {
                // Dropping the run ends the machine, removes its directory and restores the terminal.
                return Err(128 + number);
            }
            run.await.map(|_| 128 + number)
        }
    };
    Ok(match result {
        Ok(code) => (code, None),
        Err(error) => {
            tell(&error);
            (exit_code(&error), Some(error))
        }
    })
}
