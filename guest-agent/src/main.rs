// SPDX-License-Identifier: Apache-2.0
//! The agent of a Midge guest: PID 1, and the host's hands in it.
//!
//! As PID 1 it mounts what commands need, tells the host that it is ready, and serves conversations until the machine
//! stops. It knows nothing of the monitor, holds no credential, and never starts anything the host has not asked for.
//!
//! `midge-agent --serve-unix DIR` serves the same conversations to processes of one machine, for tests: it takes them
//! at `DIR/agent.sock` and calls `DIR/ready.sock`; nothing is mounted. `--overlay UPPER MERGED` names a workspace.
#![cfg_attr(not(test), no_main)]

mod cgroup;
mod cmdline;
mod control;
mod dial;
mod doors;
mod exec;
mod files;
mod gather;
mod identity;
mod init;
mod link;
mod relay;
mod serve;
mod stats;
mod sys;
#[cfg(test)]
mod testing;
mod users;
mod waiting;

use std::ffi::OsString;
use std::path::PathBuf;

use rustix::fs::Mode;

use crate::control::{Agent, Power, Report};
use crate::files::changes::{Overlay, Overlays, set_overlays};
use crate::init::Stages;
use crate::link::Host;
use crate::serve::Gate;
use crate::sys::process::{ignore_broken_pipes, set_umask, share_one_heap};

static GATE: Gate = Gate::new();

const USAGE: &str = "midge-agent is PID 1 of a Midge guest and is not started by hand.\n\
    For tests: midge-agent --serve-unix DIR [--overlay UPPER MERGED]";

/// The program, from `sys/entry.rs`. Answers the exit code; PID 1 never does.
#[cfg_attr(test, expect(dead_code, reason = "tests have an entry point of their own"))]
pub(crate) fn start() -> u8 {
    ignore_broken_pipes();
    share_one_heap();
    set_umask(Mode::WGRP | Mode::WOTH);
    if std::process::id() == 1 {
        run_guest();
    }
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.iter().map(|arg| arg.to_str().unwrap_or("")).collect::<Vec<_>>()[..] {
        ["--serve-unix", dir] => serve_unix(dir.into(), Overlays::default()),
        ["--serve-unix", dir, "--overlay", upper, merged] => {
            let workspace = Some(Overlay { upper: upper.into(), merged: merged.into() });
            serve_unix(dir.into(), Overlays { workspace, root: None })
        }
        _ => {
            eprintln!("{USAGE}");
            2
        }
    }
}

/// A machine of our own.
fn run_guest() -> ! {
    let mut stages = Stages::default();
    stages.mark("agent");
    let host = Host::Vsock;
    let listener = init::before_hello(&mut stages).and_then(|()| {
        host.listen().map_err(|source| init::InitError::System { step: "listening on vsock".into(), source })
    });
    match listener {
        Ok(listener) => {
            stages.mark("ready");
            Agent::new(host, listener, Power::Machine, &GATE, stages.report()).serve(Some(init::after_hello))
        }
        Err(error) => init::give_up(&host, &error),
    }
}

/// A process among others.
fn serve_unix(dir: PathBuf, overlays: Overlays) -> u8 {
    set_overlays(overlays);
    let host = Host::Unix(dir);
    match host.listen() {
        Ok(listener) => {
            let agent = Agent::new(host, listener, Power::Process, &GATE, Report::default());
            agent.serve(None::<fn() -> Vec<String>>)
        }
        Err(error) => {
            eprintln!("midge-agent: listening for conversations: {error}");
            1
        }
    }
}
