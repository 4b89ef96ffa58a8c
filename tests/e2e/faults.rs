// SPDX-License-Identifier: Apache-2.0
//! Guests that break: told apart, reported with 125 and the console's last lines, nothing left behind.

use std::path::PathBuf;
use std::time::Duration;

use crate::context::{Context, Outcome};
use crate::elf;

crate::tests!("faults":
    Guest panic_of_the_guest_is_told,
    Guest triple_fault_is_told,
    Guest silence_of_the_guest_is_a_timeout_with_its_last_words,
    Guest kernel_panic_of_a_real_kernel,
    Guest overlay_that_is_full_is_an_error_in_the_guest_only,
    Guest fork_without_end_is_stopped_by_the_timeout,
    Guest large_output_passes_in_little_memory,
);

fn with_kernel(context: &Context, bytes: &[u8], flags: &[&str]) -> Outcome {
    let dir = tempfile::tempdir().expect("a directory");
    let path: PathBuf = dir.path().join("kernel");
    std::fs::write(&path, bytes).expect("a file");
    let words = ["run", "--kernel", path.to_str().expect("text")];
    let words = words.into_iter().chain(flags.iter().copied()).chain(["--", "true"]);
    let outcome = context.midge(words).run().code(125);
    context.assert_nothing_left();
    outcome
}

fn panic_of_the_guest_is_told(context: &Context) {
    with_kernel(context, &elf::panicking(), &[]).says(&["panic", "not syncing: made by a test"]);
}

fn triple_fault_is_told(context: &Context) {
    with_kernel(context, &elf::triple_fault(), &[]).says(&["triple fault"]);
}

fn silence_of_the_guest_is_a_timeout_with_its_last_words(context: &Context) {
    let outcome = with_kernel(context, &elf::silent(), &["--boot-timeout", "4"]).says(&["agent", "stuck here"]);
    assert!(outcome.took < Duration::from_secs(30), "{outcome}");
}

/// Out of memory with the order to panic then: any Linux does that.
fn kernel_panic_of_a_real_kernel(context: &Context) {
    let script = "echo 2 > /proc/sys/vm/panic_on_oom && echo ordered && tail /dev/zero; sleep 20";
    let outcome = context.sh(&["--user", "root", "--mem", "128"], script).run();
    outcome.code(125).out("ordered\n").says(&["panic"]);
    context.assert_nothing_left();
}

fn overlay_that_is_full_is_an_error_in_the_guest_only(context: &Context) {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("kept"), "kept\n").expect("a file");
    let flag = format!("{}:apply", dir.path().display());
    let script = "dd if=/dev/zero of=/workspace/fill bs=1M count=300 2>/tmp/error; code=$?; rm -f /workspace/fill; \
        echo code $code; cat /workspace/kept";
    let outcome = context.sh(&["--disk", "128", "--workspace", &flag], script).run();
    assert!(outcome.text().contains("code 1"), "{outcome}");
    let kept = std::fs::read_to_string(dir.path().join("kept")).expect("the host loses nothing");
    assert_eq!(kept, "kept\n");
    context.assert_nothing_left();
}

fn fork_without_end_is_stopped_by_the_timeout(context: &Context) {
    let script = "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done";
    let outcome = context.sh(&["--timeout", context.scaled("5", "10")], script).run();
    assert!(matches!(outcome.shell_code(), 124 | 125), "{outcome}");
    assert!(outcome.took < Duration::from_secs(context.scaled(40, 110)), "{outcome}");
    context.assert_nothing_left();
}

fn large_output_passes_in_little_memory(context: &Context) {
    let bytes: u64 = context.scaled(1 << 30, 64 << 20);
    let script = format!("head -c {bytes} /dev/zero");
    let mut command = context.sh(&[], &script).into_command();
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("midge runs");
    let mut output = child.stdout.take().expect("piped");
    let mut peak_kib = 0;
    let (mut seen, mut chunk) = (0_u64, vec![0; 1 << 20]);
    loop {
        let len = std::io::Read::read(&mut output, &mut chunk).expect("a pipe can be read");
        if len == 0 {
            break;
        }
        assert!(chunk[..len].iter().all(|byte| *byte == 0));
        seen += len as u64;
        peak_kib = peak_kib.max(resident_kib(child.id()));
    }
    assert!(child.wait().expect("our child").success());
    assert_eq!(seen, bytes);
    assert!(peak_kib < 128 << 10, "midge held {peak_kib} KiB");
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or("VmRSS: 0");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
