// SPDX-License-Identifier: Apache-2.0

use midge_broker::ledger::Ledger;
use midge_protocol::broker::Left;
use midge_record::{Masker, verify};

use super::*;

fn machine(mem_mib: u64, cpus: u32) -> VmmConfig {
    let config = serde_json::json!({
        "cmdline": "", "mem_mib": mem_mib, "cpus": cpus, "huge_pages": false, "disks": [], "console": "off", "forkable": true
    });
    serde_json::from_value(config).unwrap()
}

fn limits(memory_mib: u64, vcpus: u32) -> Limits {
    Limits { memory_mib, vcpus, ..Limits::default() }
}

#[test]
fn copies_of_a_machine_that_is_too_big_are_refused_by_axis() {
    fits(&machine(512, 1), &limits(512, 1)).unwrap();
    fits(&machine(256, 1), &limits(512, 2)).unwrap();
    let memory = fits(&machine(512, 1), &limits(256, 1)).unwrap_err();
    let text = chain(&memory);
    assert_eq!(memory.fault(), Fault::User);
    assert!(text.contains("limits.memory_mib of the policy is 256") && text.contains("512"), "{text}");
    assert!(chain(&fits(&machine(64, 2), &limits(64, 1)).unwrap_err()).contains("limits.vcpus"));
}

#[test]
fn transcripts_are_closed_once_whoever_lets_go() {
    let (recorder, memory) = Recorder::in_memory("run.1", Masker::default()).unwrap();
    let ledger = Ledger::new(&Left::default());
    drop(Transcript { recorder: recorder.clone(), ledger: ledger.clone(), is_open: true });
    let bytes = memory.bytes();
    verify(bytes.as_slice()).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("cancelled") && text.contains("137"), "{text}");

    let (recorder, memory) = Recorder::in_memory("run.2", Masker::default()).unwrap();
    let mut transcript = Transcript { recorder, ledger, is_open: true };
    transcript.close("done", 0, "all well");
    drop(transcript);
    let text = String::from_utf8(memory.bytes()).unwrap();
    assert!(text.contains("all well") && !text.contains("cancelled"), "{text}");
}

#[tokio::test]
async fn child_whose_task_is_gone_has_an_end() {
    let (sender, happens) = mpsc::channel(1);
    sender.send(Next::Output("x".into())).await.unwrap();
    drop(sender);
    let mut child = Begun { happens, kept: None };
    assert_eq!(child.next().await, Happened::Output("x".into()));
    let Happened::Ended { code: HOST_FAILED, changed, .. } = child.next().await else { panic!("it has ended") };
    assert!(changed.is_empty());
    let changes = child.changes().await.unwrap();
    assert_eq!((changes.tar_bytes, changes.removed.len()), (0, 0), "what has no workspace changes none");
}
