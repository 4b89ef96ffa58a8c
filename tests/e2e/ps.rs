// SPDX-License-Identifier: Apache-2.0
//! `midge ps`: what is alive is listed, by whoever asks, and nothing else is.

use std::io::Read;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::context::Context;

crate::tests!("ps":
    Guest sandbox_is_listed_while_it_lives,
);

/// The sandboxes that the process `owner` has.
fn listed(context: &Context, owner: u32) -> Vec<Value> {
    let text = context.midge(["ps", "--json"]).run().code(0).text();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    all.into_iter().filter(|one| one["owner_pid"] == owner).collect()
}

fn sandbox_is_listed_while_it_lives(context: &Context) {
    let run = ["run", "--mem", "192", "--", "sh", "-c", "echo ready; exec sleep 300"];
    let mut command = context.midge(run).into_command();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("midge runs");
    let mut first = [0; 6];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("the command prints");
    let alive = listed(context, child.id());
    let [one] = alive.as_slice() else { panic!("one sandbox: {alive:?}") };
    assert_eq!((&one["kind"], &one["cpus"], &one["mem_mib"]), (&"run".into(), &1.into(), &192.into()), "{one}");
    assert_eq!(one["place"], context.scaled("native", "emulated"));
    assert!(one["age_ms"].as_u64().is_some_and(|ms| ms < 300_000), "{one}");
    if context.scaled(true, false) {
        let private_kib = one["memory"]["private_kib"].as_u64().expect("told");
        assert!((1024..192 << 10).contains(&private_kib), "{one}");
        assert!(one["memory"]["page_table_kib"].as_u64().is_some_and(|kib| kib > 0), "{one}");
        let name = std::fs::read_to_string(format!("/proc/{}/comm", one["monitor_pid"])).expect("it is there");
        assert!(name.starts_with("midge-vmm"), "{name}");
    } else {
        assert!(one["memory"].is_null() && one["monitor_pid"].is_null(), "{one}");
    }
    let table = context.midge(["ps"]).run().code(0).text();
    assert!(table.contains(one["id"].as_str().expect("text")), "{table}");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("it is ours");
    assert_eq!(child.wait().expect("it is ours").code(), Some(143));
    assert_eq!(listed(context, child.id()), Vec::<Value>::new());
    context.assert_nothing_left();
}

/// The process that runs the VM, or holds it, of a monitor that is known by `pid`.
pub(crate) fn itself(pid: Option<u32>) -> u32 {
    let processes = midge::ps::processes(pid.expect("a process of this machine"));
    *processes.last().expect("at least that one")
}
