// SPDX-License-Identifier: Apache-2.0
//! `midge agent`: a task, a sandbox, exactly the authority of a policy; what came of it, and what was asked for on the way.
//!
//! `authority` makes one policy of file and flags, `session` is the run from its first check to its last word, `progress` shows it
//! and `approve` puts its questions to whoever sits at the terminal.

mod approve;
mod args;
mod authority;
mod progress;
mod session;

use std::sync::Arc;

pub(crate) use args::AgentArgs;
use session::{Outcome, Session};

use super::fail::{exit_code, tell};
use super::run::signals::{Signals, Target};
use super::run::{in_runtime, listen};

/// Gives the task to an agent and gives the exit code.
pub(crate) fn main(args: AgentArgs) -> u8 {
    let target = Arc::new(Target::default());
    match listen(&target) {
        Ok(signals) => in_runtime(attended(args, &target, signals)),
        Err(code) => code,
    }
}

/// The run, unless a second signal ends it first.
async fn attended(args: AgentArgs, target: &Target, signals: Signals) -> u8 {
    let json = args.json;
    let mut outcome = Outcome::default();
    let result = tokio::select! {
        result = (Session { args: &args, target }).run(&mut outcome) => result,
        number = signals.end() => return 128 + number,
    };
    let code = match &result {
        Ok(code) => *code,
        Err(error) => {
            tell(error);
            exit_code(error)
        }
    };
    if json {
        outcome.print(code, result.err().as_ref());
    }
    code
}
