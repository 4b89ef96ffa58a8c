// SPDX-License-Identifier: Apache-2.0
//! `midge run --policy`: a command whose sandbox has the doors of a policy, and a transcript of what went through them.

use std::sync::Arc;
use std::time::Duration;

use midge::agent::{self, Attended, Household, Life, Member, unrecorded};
use midge::error::Error;
use midge::sandbox::{Sandbox, Where};
use midge_broker::ledger::Ledger;
use midge_broker::{Secrets, budgets};
use midge_policy::Policy;
use midge_record::{Entry, Recorder, Started};
use serde_json::json;
use tokio::sync::watch::Sender;

use super::args::RunArgs;
use super::report::Report;
use super::terminal;
use crate::cli::agent::approve::approver;
use crate::cli::agent::args::Approve;
use crate::cli::agent::authority::{check_name, load, read_secrets};
use crate::cli::agent::change::{self, Watched};
use crate::cli::fail::say;

/// What was asked for, checked whole before anything starts.
pub(super) struct Asked {
    pub(super) policy: Policy,
    secrets: Secrets,
}

impl Asked {
    /// The policy of the flags, if they name one.
    pub(super) async fn of(args: &RunArgs) -> Result<Option<Self>, Error> {
        let Some(name) = &args.policy else { return Ok(None) };
        if args.approve == Approve::Ask && !terminal::can_ask() {
            let accepted = "deny, auto, or a terminal to ask at".to_owned();
            return Err(Error::Setting { what: "--approve", value: "ask".to_owned(), accepted });
        }
        let policy = load(name)?;
        check_name(args.name.as_ref(), &policy)?;
        agent::check_name_is_free(args.name.as_ref(), &policy)?;
        let secrets = read_secrets(&policy, true).await?;
        Ok(Some(Self { policy, secrets }))
    }
}

/// A sandbox with a broker behind its doors.
pub(super) struct Guarded {
    attended: Attended,
    ledger: Ledger,
    recorder: Recorder,
    _watched: Option<Watched>,
}

impl Guarded {
    pub(super) async fn new(
        asked: Asked,
        args: &RunArgs,
        place: Where,
        sandbox: &Arc<Sandbox>,
        life: Life,
    ) -> Result<Self, Error> {
        let Asked { policy, secrets } = asked;
        let household = Arc::new(Household {
            approver: approver(args.approve, args.json),
            secrets,
            turn: None,
            place,
            replay: None,
            watch: Arc::new(|_, _| ()),
            life,
            change: Sender::default(),
        });
        let name = args.policy.clone().unwrap_or_default();
        let watched = change::watch(args.policy.as_deref(), move || load(&name), &household, args.json);
        let recorder = household.transcript(sandbox.id())?;
        let ledger = Ledger::new(&budgets(&policy));
        let words: Vec<_> = args.command.iter().map(|word| word.to_string_lossy()).collect();
        let started = Started {
            task: words.join(" "),
            policy: policy.to_toml(),
            template: args.template.clone(),
            budget: ledger.left(),
            versions: agent::versions(),
            ..Started::default()
        };
        recorder.note(&Entry::Started(Box::new(started))).map_err(unrecorded)?;
        let member = Member {
            name: sandbox.id().to_owned(),
            seat: args.name.clone(),
            policy,
            ledger: ledger.clone(),
            recorder: recorder.clone(),
            family: None,
            replay: None,
        };
        let attended = household.admit(sandbox, member).await?;
        Ok(Self { attended, ledger, recorder, _watched: watched })
    }

    /// What is left of the wall time that the policy gives.
    pub(super) fn wall(&self) -> Option<Duration> {
        self.ledger.left().wall_ms.map(Duration::from_millis)
    }

    /// Does `work`, unless something of it cannot be recorded.
    pub(super) async fn during<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            done = work => done,
            error = self.recorder.failed() => Err(unrecorded(error)),
        }
    }

    /// Closes the doors and the transcript.
    pub(super) async fn end(self, code: u8, report: &mut Report, quiet: bool) -> Result<(), Error> {
        let Self { attended, ledger, recorder, .. } = self;
        attended.end().await;
        let (how, spent) = (if code == 0 { "done" } else { "failed" }.to_owned(), ledger.spent());
        let entry = Entry::Ended { how, exit_code: code, text: String::new(), spent };
        recorder.note(&entry).map_err(unrecorded)?;
        let root = recorder.finish().map_err(unrecorded)?;
        let path = recorder.path().display().to_string();
        if !quiet {
            let name = recorder.path().file_stem().unwrap_or_default().to_string_lossy();
            say(&format!("recorded in {path}; `midge log show {name}`"));
        }
        report.put("transcript", path.into());
        report.put("root", root.to_string().into());
        report.put("spent", json!(spent));
        Ok(())
    }
}
