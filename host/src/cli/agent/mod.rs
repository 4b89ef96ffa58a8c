// SPDX-License-Identifier: Apache-2.0
//! `midge agent`: a task, a sandbox, exactly the authority of a policy; what came of it, and what was asked for on the way.
//!
//! `authority` makes one policy of file and flags, `session` is the run from its first check to its last word, `progress` shows it
//! and `approve` puts its questions to whoever sits at the terminal.

pub(super) mod approve;
pub(super) mod args;
pub(super) mod authority;
pub(super) mod change;
mod progress;
mod session;

use std::sync::Arc;

pub(crate) use args::{AgentArgs, ReplayArgs};
use midge::agent::Life;
use session::Session;

use super::run::report::Report;
use super::run::signals::{Signals, Target};
use super::run::{conclude, in_runtime, listen};

/// Gives the task to an agent and gives the exit code.
pub(crate) fn main(args: AgentArgs) -> u8 {
    let target = Arc::new(Target::default());
    match listen(&target) {
        Ok(signals) => in_runtime(attended(args, &target, signals)),
        Err(code) => code,
    }
}

/// Gives a recorded run's task to an agent once more, with the answers that it had.
pub(crate) fn replay(args: ReplayArgs) -> u8 {
    main(args.into())
}

/// The run, unless a second signal ends it first.
async fn attended(args: AgentArgs, target: &Target, signals: Signals) -> u8 {
    let mut report = Report::default();
    let (life, over) = Life::new();
    let run = async { (Session { args: &args, target, life }).run(&mut report).await };
    let concluded = conclude(run, signals).await;
    // Children have tasks of their own; none of them outlives its run.
    over.wait().await;
    concluded.map_or_else(
        |code| code,
        |(code, error)| {
            if args.json {
                report.print(code, error.as_ref());
            }
            code
        },
    )
}
