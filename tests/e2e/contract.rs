// SPDX-License-Identifier: Apache-2.0
//! The command line's contract: exit codes, streams byte for byte, environment, user, time-out, terminal.

use std::io::{Read, Write};
use std::time::Duration;

use nix::pty::{OpenptyResult, Winsize, openpty};

use crate::context::{Context, wait};

crate::tests!("contract":
    Guest exit_code_is_the_commands,
    Guest exit_code_of_a_signal_is_128_and_more,
    Guest command_that_is_missing_is_127,
    Guest timeout_is_124_and_kills_the_tree,
    Guest streams_pass_byte_for_byte,
    Guest surroundings_of_a_command,
    Guest terminal_has_the_window_size,
    Guest json_tells_the_whole_run,
    Guest timeline_and_console_go_to_stderr,
    Guest disk_is_as_large_as_asked,
    OurKernel two_cpus_are_seen,
);

fn exit_code_is_the_commands(context: &Context) {
    context.midge(["run", "--", "true"]).run().code(0).out("");
    context.sh(&[], "exit 7").run().code(7).out("");
}

fn exit_code_of_a_signal_is_128_and_more(context: &Context) {
    context.sh(&[], "kill -KILL $$").run().code(137);
    context.sh(&[], "kill -TERM $$").run().code(143);
}

fn command_that_is_missing_is_127(context: &Context) {
    context.midge(["run", "--", "no-such-command-here"]).run().code(127).says(&["no-such-command-here"]);
    context.midge(["run", "--", "/etc/passwd"]).run().code(126).says(&["/etc/passwd"]);
}

fn timeout_is_124_and_kills_the_tree(context: &Context) {
    let outcome = context.sh(&["--timeout", "2"], "echo before; (setsid sleep 600 &) ; sleep 600").run();
    let outcome = outcome.code(124).out("before\n").says(&["timed out"]);
    assert!(outcome.took < Duration::from_secs(context.scaled(15, 60)), "{outcome}");
    context.assert_nothing_left();
}

/// Bytes without a pattern, the same every time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn streams_pass_byte_for_byte(context: &Context) {
    let input = noise(context.scaled(3_000_001, 700_001));
    let outcome = context.sh(&[], "cat; printf 'to \\377 stderr' >&2").stdin(input.clone()).run().code(0);
    assert_eq!(outcome.stdout.len(), input.len());
    assert!(outcome.stdout == input, "standard output differs from standard input");
    assert!(outcome.stderr.contains("stderr"), "{outcome}");
    // A command that does not read its input ends all the same.
    context.midge(["run", "--", "true"]).stdin(noise(1 << 20)).run().code(0).out("");
}

fn surroundings_of_a_command(context: &Context) {
    let flags = ["--env", "PLAIN=b", "--env", "SPACED=c  d", "--env", "LINES=e\nf", "--env", "EMPTY=", "--mem", "300"];
    let script = "echo $PLAIN; echo \"$SPACED\"; echo \"$LINES\"; echo ${EMPTY-unset}; id -u; id -un; pwd; echo $HOME; \
        grep -c -w -E 'svm|vmx' /proc/cpuinfo; awk '/MemTotal/ { print ($2 > 200000 && $2 < 310000) }' /proc/meminfo; \
        head -c 1 /dev/urandom | wc -c; ls /sys/class/net; touch /tmp/a ~/b && echo writable; locale charmap; cat /proc/1/comm; \
        echo a b | sed s/a/c/ | tr b d; mount | grep -c ' on / type overlay'";
    let outcome = context.sh(&flags, script).run().code(0);
    let expected = "b\nc  d\ne\nf\n\n1000\nagent\n/workspace\n/home/agent\n0\n1\n1\nlo\nwritable\nUTF-8\n";
    assert!(outcome.text().starts_with(expected), "expected to start with:\n{expected}\n{outcome}");
    assert!(outcome.text().ends_with("c d\n1\n"), "{outcome}");
    let outcome =
        context.sh(&["--user", "root"], "id -u; echo $HOME; touch /usr/bin/new && echo writable").run().code(0);
    assert_eq!(outcome.text(), "0\n/root\nwritable\n", "{outcome}");
}

fn terminal_has_the_window_size(context: &Context) {
    let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(Some(&size), None).expect("a terminal");
    let mut command =
        context.sh(&["--tty"], "test -t 0 && test -t 1 && stty size; read line; echo got:$line").into_command();
    let end = |slave: &std::os::fd::OwnedFd| slave.try_clone().expect("a descriptor");
    command.stdin(end(&slave)).stdout(end(&slave)).stderr(end(&slave));
    let mut child = command.spawn().expect("midge runs");
    drop((slave, command));
    let mut terminal = std::fs::File::from(master);
    terminal.write_all(b"typed\n").expect("a terminal takes input");
    let mut shown = Vec::new();
    let mut chunk = [0; 4096];
    // EIO is how a terminal says that nobody holds its other side.
    while let Ok(len @ 1..) = terminal.read(&mut chunk) {
        shown.extend(&chunk[..len]);
    }
    let status = wait(&mut child, std::time::Instant::now() + Duration::from_secs(60)).expect("ends with its terminal");
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(status.success(), "{status}: {shown}");
    assert!(shown.contains("33 101") && shown.contains("got:typed"), "{shown}");
}

fn json_tells_the_whole_run(context: &Context) {
    let outcome = context.sh(&["--json"], "echo out; echo err >&2; exit 3").run().code(3);
    let value: serde_json::Value = serde_json::from_slice(&outcome.stdout).expect("one JSON object");
    assert_eq!((&value["exit_code"], &value["timed_out"]), (&3.into(), &false.into()), "{value}");
    assert_eq!((&value["stdout"], &value["stderr"]), (&"out\n".into(), &"err\n".into()), "{value}");
    for key in ["place", "timeline", "usage"] {
        assert!(!value[key].is_null(), "no `{key}` in {value}");
    }
    assert!(value["error"].is_null(), "{value}");
}

fn timeline_and_console_go_to_stderr(context: &Context) {
    let outcome =
        context.midge(["run", "--timeline", "--console", "--", "echo", "only this"]).run().code(0).out("only this\n");
    let outcome = outcome.says(&["first_run", "hello", "Linux version"]);
    let monitor = ["exec", "kvm_ready", "memory_ready", "kernel_mapped", "vcpus_ready", "jailed", "first_run"];
    let order: Vec<usize> =
        monitor.iter().filter_map(|stage| outcome.stderr.find(&format!("monitor  {stage}"))).collect();
    assert!(order.len() == monitor.len() && order.is_sorted(), "stages are missing or out of order: {outcome}");
}

fn disk_is_as_large_as_asked(context: &Context) {
    let script = "df -m / | awk 'NR == 2 { print ($2 > 100 && $2 <= 160) }'; dd if=/dev/zero of=/tmp/fill bs=1M count=400 2>&1 | \
        grep -c -i 'no space\\|input/output'; rm -f /tmp/fill; echo fine > /tmp/after && cat /tmp/after";
    let outcome = context.sh(&["--disk", "160"], script).run();
    assert!(outcome.text().starts_with("1\n1\n"), "{outcome}");
}

fn two_cpus_are_seen(context: &Context) {
    let outcome = context.sh(&["--cpus", "2"], "nproc; grep -c ^processor /proc/cpuinfo").run();
    outcome.code(0).out("2\n2\n");
}
