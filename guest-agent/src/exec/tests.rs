// SPDX-License-Identifier: Apache-2.0
//! Commands with real processes, from the host's side of the conversation.

use std::fs;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use midge_protocol::{Attach, EnvVar, ErrorCode, Exec, Outcome, Refused, ToAgent, ToHost, WindowSize};

use crate::testing::{Peer, exec, is_root, run, script};

fn refused(exec: Exec) -> Refused {
    let mut peer = Peer::with(&ToAgent::Exec(exec));
    match &peer.rest()[..] {
        [ToHost::Refused(refused)] => refused.clone(),
        other => panic!("unexpected {other:?}"),
    }
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(10), "{what} never happened");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn output_and_exit_code_come_back_apart() {
    let ran = run(script("echo out; echo err >&2; exit 7"));
    assert_eq!((&ran.stdout[..], &ran.stderr[..], ran.code()), (&b"out\n"[..], &b"err\n"[..], 7));
    let exited = ran.exited.unwrap();
    assert_eq!((exited.outcome, exited.timed_out), (Outcome::Code, false));
    assert!(exited.usage.wall_us > 0 && exited.usage.max_rss_kib > 0, "{exited:?}");
}

#[test]
fn arguments_are_passed_as_they_are() {
    let ran = run(exec(&["/usr/bin/printf", "[%s]", "a b", "$HOME", "*", ""]));
    assert_eq!(ran.text(), "[a b][$HOME][*][]");
}

#[test]
fn bytes_pass_unchanged() {
    let mut peer = Peer::with(&ToAgent::Exec(Exec { stdin: true, ..exec(&["cat"]) }));
    let bytes: Vec<u8> = (0..=255).cycle().take(50_000).collect();
    peer.send(&ToAgent::Stdin(bytes.clone()));
    peer.send(&ToAgent::StdinEof);
    assert_eq!(peer.finish().stdout, bytes);
}

#[test]
fn without_stdin_a_command_reads_nothing() {
    assert_eq!(run(exec(&["cat"])).stdout, b"");
}

#[test]
fn closing_the_hosts_half_ends_stdin_but_not_the_command() {
    let mut peer = Peer::with(&ToAgent::Exec(Exec { stdin: true, ..script("cat; echo after") }));
    peer.send(&ToAgent::Stdin(b"in\n".to_vec()));
    peer.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.finish().text(), "in\nafter\n");
}

#[test]
fn messages_that_came_with_the_request_are_not_lost() {
    let mut bytes = Vec::new();
    for message in
        [ToAgent::Exec(Exec { stdin: true, ..exec(&["cat"]) }), ToAgent::Stdin(b"early".to_vec()), ToAgent::StdinEof]
    {
        midge_protocol::encode(&message, &mut bytes).unwrap();
    }
    let mut peer = Peer::new();
    std::io::Write::write_all(&mut peer.stream, &bytes).unwrap();
    assert_eq!(peer.finish().text(), "early");
}

#[test]
fn a_lot_of_output_comes_whole() {
    let ran = run(script("head -c 20000000 /dev/zero"));
    assert_eq!(ran.stdout.len(), 20_000_000);
}

#[test]
fn a_command_that_does_not_exist_is_127() {
    let missing = refused(exec(&["no-such-command-here"]));
    assert_eq!((missing.exit_code, missing.errno), (127, libc::ENOENT));
    assert_eq!(missing.text, "no-such-command-here: command not found");
    assert_eq!(refused(exec(&["/no/such"])).exit_code, 127);
    assert_eq!(refused(exec(&[""])).exit_code, 127);
}

#[test]
fn a_file_that_is_no_program_is_126() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "text").unwrap();
    let name = path.to_str().unwrap();
    assert_eq!(refused(exec(&[name])).exit_code, 126);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let no_format = refused(exec(&[name]));
    assert_eq!((no_format.exit_code, no_format.errno), (126, libc::ENOEXEC));
    assert_eq!(refused(exec(&[dir.path().to_str().unwrap()])).exit_code, 126);
    fs::write(&path, "#!/no/such/interpreter\n").unwrap();
    let no_interpreter = refused(exec(&[name]));
    assert!(no_interpreter.exit_code == 127 && no_interpreter.text.contains("interpreter"), "{no_interpreter:?}");
}

#[test]
fn a_directory_that_does_not_exist_is_named() {
    let refused = refused(Exec { cwd: Some("/no/such/dir".into()), ..exec(&["true"]) });
    assert!(refused.exit_code == 125 && refused.text.contains("/no/such/dir"), "{refused:?}");
}

#[test]
fn the_environment_is_exactly_what_was_promised() {
    let env = vec![EnvVar { name: "A".into(), value: "b=c".into() }];
    let ran = run(Exec { env, user: Some("0".into()), ..exec(&["/usr/bin/env"]) });
    let names: Vec<&str> = ran.text().lines().map(|line| line.split('=').next().unwrap()).collect();
    assert_eq!(names, ["A", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"]);
    assert!(ran.text().contains("A=b=c\n"));
}

#[test]
fn a_program_gets_its_three_files_and_no_more() {
    let ran = run(exec(&["/bin/ls", "/proc/self/fd"]));
    // The fourth is what `ls` lists the directory with.
    assert_eq!(ran.text(), "0\n1\n2\n3\n");
}

#[test]
fn a_program_starts_with_every_signal_at_its_default() {
    let ran = run(exec(&["/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]));
    let mask = |line: &str| u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap();
    let masks: Vec<u64> = ran.text().lines().map(mask).collect();
    // Bits 31 and 32 are the C library's own, and what the test itself was started with.
    assert_eq!(masks.iter().map(|mask| mask & 0x7fff_ffff).collect::<Vec<_>>(), [0, 0]);
}

#[test]
fn the_user_is_whom_the_request_names() {
    if !is_root("running as another user") {
        return;
    }
    let ran = run(Exec { user: Some("4242:17".into()), ..script("id -u; id -g; id -G; echo hi >/proc/self/fd/1") });
    assert_eq!(ran.text(), "4242\n17\n17 4242\nhi\n");
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let mut peer = Peer::with(&ToAgent::Exec(script("sleep 1000 | sleep 1000")));
    assert!(matches!(peer.next(), Some(ToHost::Started(_))));
    peer.send(&ToAgent::Signal(15));
    let exited = peer.finish().exited.unwrap();
    assert_eq!((exited.outcome, exited.number), (Outcome::Signal, 15));
}

#[test]
fn a_number_that_is_no_signal_ends_the_conversation_and_the_command() {
    let mut peer = Peer::with(&ToAgent::Exec(script("echo $$; exec sleep 1000")));
    assert!(matches!(peer.next(), Some(ToHost::Started(_))));
    let Some(ToHost::Stdout(output)) = peer.next() else { panic!("no output") };
    peer.send(&ToAgent::Signal(65));
    let rest = peer.rest();
    assert!(matches!(&rest[..], [ToHost::Error(failure)] if failure.code == ErrorCode::Protocol), "{rest:?}");
    let pid = String::from_utf8(output.data).unwrap();
    eventually("the command's end", || !is_alive(&pid));
}

#[test]
fn a_time_out_kills_the_whole_tree_and_says_so() {
    let text = "sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' & sh -c 'echo $$; exec sleep 1000' & wait";
    let since = Instant::now();
    let ran = run(Exec { timeout_ms: 300, ..script(text) });
    let exited = ran.exited.as_ref().unwrap();
    assert_eq!((exited.timed_out, exited.outcome, exited.number), (true, Outcome::Signal, 9));
    assert!(since.elapsed() >= Duration::from_millis(300) && since.elapsed() < Duration::from_secs(5));
    let pids: Vec<&str> = ran.text().lines().collect();
    assert_eq!(pids.len(), 2);
    eventually("the end of all", || !pids.iter().any(|pid| is_alive(pid)));
}

#[test]
fn a_command_within_its_time_is_not_timed_out() {
    let ran = run(Exec { timeout_ms: 10_000, ..script("exit 3") });
    assert_eq!((ran.code(), ran.exited.unwrap().timed_out), (3, false));
}

#[test]
fn a_background_process_does_not_hold_the_end_up_and_lives_on() {
    let since = Instant::now();
    let ran = run(script("(sleep 0.3; echo late; sleep 30) & echo $!; exit 4"));
    assert_eq!(ran.code(), 4);
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    std::thread::sleep(Duration::from_millis(600));
    let pid = ran.text().trim();
    assert!(is_alive(pid), "it was killed by writing to its output");
    crate::sys::process::kill(pid.parse().unwrap(), libc::SIGKILL).unwrap();
}

#[test]
fn a_background_process_that_never_stops_writing_does_not_hold_the_end_up() {
    let since = Instant::now();
    let ran = run(script("yes & echo $! >&2"));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    crate::sys::process::kill(String::from_utf8(ran.stderr).unwrap().trim().parse().unwrap(), libc::SIGKILL).unwrap();
}

#[test]
fn last_words_of_a_background_process_are_heard() {
    assert_eq!(run(script("(sleep 0.03; echo last) & exit 0")).text(), "last\n");
}

#[test]
fn a_client_that_is_gone_takes_its_command_along() {
    let mut peer = Peer::with(&ToAgent::Exec(script("sleep 1000 & echo $$ $!; wait")));
    assert!(matches!(peer.next(), Some(ToHost::Started(_))));
    let Some(ToHost::Stdout(output)) = peer.next() else { panic!("no output") };
    peer.leave();
    for pid in String::from_utf8(output.data).unwrap().split_whitespace() {
        eventually("the end of the command", || !is_alive(pid));
    }
}

#[test]
fn a_client_that_does_not_read_does_not_make_the_agent_grow() {
    let mut peer = Peer::with(&ToAgent::Exec(script("echo $$ >&2; exec head -c 50000000 /dev/zero")));
    std::thread::sleep(Duration::from_millis(300));
    // The command waits in its write: everything up to there is full.
    let mut ran = peer.finish();
    assert_eq!((ran.stdout.len(), ran.exited.take().unwrap().number), (50_000_000, 0));
}

#[test]
fn input_that_is_not_read_does_not_stop_signals() {
    let mut peer = Peer::with(&ToAgent::Exec(Exec { stdin: true, ..exec(&["sleep", "1000"]) }));
    assert!(matches!(peer.next(), Some(ToHost::Started(_))));
    for _ in 0..4 {
        peer.send(&ToAgent::Stdin(vec![0; midge_protocol::MAX_DATA_BYTES]));
    }
    peer.send(&ToAgent::Signal(9));
    assert_eq!(peer.finish().exited.unwrap().number, 9);
}

#[test]
fn input_beyond_the_window_flows_as_it_is_taken() {
    let mut peer = Peer::with(&ToAgent::Exec(Exec { stdin: true, ..script("wc -c") }));
    let mut stream = peer.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        for _ in 0..40 {
            midge_protocol::encode(&ToAgent::Stdin(vec![0; midge_protocol::MAX_DATA_BYTES]), &mut bytes).unwrap();
        }
        midge_protocol::encode(&ToAgent::StdinEof, &mut bytes).unwrap();
        std::io::Write::write_all(&mut stream, &bytes).unwrap();
    });
    let ran = peer.finish();
    writer.join().unwrap();
    assert_eq!(ran.text().trim(), (40 * midge_protocol::MAX_DATA_BYTES).to_string());
    assert!(ran.stdin_taken > 0);
}

#[test]
fn a_lost_client_comes_back_and_misses_nothing() {
    let text = "echo one; sleep 0.2; echo two; sleep 0.2; echo three; exit 5";
    let mut peer = Peer::with(&ToAgent::Exec(Exec { replay_bytes: 4096, ..script(text) }));
    let Some(ToHost::Started(started)) = peer.next() else { panic!("not started") };
    assert!(matches!(peer.next(), Some(ToHost::Stdout(output)) if output.data == b"one\n"));
    drop(peer.stream);
    std::thread::sleep(Duration::from_millis(250));
    for from in [4, 0, 8] {
        let attach = Attach { exec_id: started.exec_id, stdout_offset: from, stderr_offset: 0 };
        let mut peer = Peer::with(&ToAgent::Attach(attach));
        let mut ran = crate::testing::Ran { stdout_from: from, ..Default::default() };
        for message in peer.rest() {
            match message {
                ToHost::Stdout(output) => ran.stdout.extend(output.data),
                ToHost::Exited(exited) => ran.exited = Some(exited),
                ToHost::Started(again) => assert_eq!(again.exec_id, started.exec_id),
                other => panic!("unexpected {other:?}"),
            }
        }
        // The second and third come after the end: a finished command can be asked again.
        assert_eq!(ran.text(), &"one\ntwo\nthree\n"[usize::try_from(from).unwrap()..]);
        assert_eq!(ran.code(), 5);
    }
}

#[test]
fn without_a_client_a_command_goes_on_until_its_replay_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("count");
    let text =
        format!("i=0; while [ $i -lt 300 ]; do head -c 1000 /dev/zero; i=$((i+1)); echo $i > {}; done", path.display());
    let mut peer = Peer::with(&ToAgent::Exec(Exec { replay_bytes: 100_000, ..script(&text) }));
    let Some(ToHost::Started(started)) = peer.next() else { panic!("not started") };
    drop(peer.stream);
    let count = || fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<usize>().ok()).unwrap_or(0);
    eventually("the full replay", || {
        let before = count();
        std::thread::sleep(Duration::from_millis(200));
        before > 50 && before == count()
    });
    assert!(count() < 300, "nothing held the command back");
    let attach = Attach { exec_id: started.exec_id, stdout_offset: 0, stderr_offset: 0 };
    let ran = Peer::with(&ToAgent::Attach(attach)).finish();
    assert_eq!((ran.stdout.len(), ran.code()), (300_000, 0));
}

#[test]
fn going_on_where_nothing_is_kept_is_refused_with_what_is_kept() {
    let exec = Exec { replay_bytes: 10, ..script("printf 0123456789abcdef; sleep 1000") };
    let mut peer = Peer::with(&ToAgent::Exec(exec));
    let Some(ToHost::Started(started)) = peer.next() else { panic!("not started") };
    assert!(matches!(peer.next(), Some(ToHost::Stdout(_))));
    for offset in [5, 17] {
        let attach = Attach { exec_id: started.exec_id, stdout_offset: offset, stderr_offset: 0 };
        let rest = Peer::with(&ToAgent::Attach(attach)).rest();
        let [ToHost::Error(failure)] = &rest[..] else { panic!("unexpected {rest:?}") };
        assert!(failure.text.contains("bytes 6 to 16 are kept"), "{}", failure.text);
    }
    // The first client is still there.
    peer.send(&ToAgent::Signal(9));
    assert_eq!(peer.rest().len(), 1);
}

#[test]
fn attaching_to_nothing_is_refused() {
    let rest = Peer::with(&ToAgent::Attach(Attach { exec_id: u64::MAX, stdout_offset: 0, stderr_offset: 0 })).rest();
    assert!(matches!(&rest[..], [ToHost::Error(failure)] if failure.code == ErrorCode::NotFound), "{rest:?}");
}

#[test]
fn a_terminal_is_one_and_has_a_size() {
    let tty = Some(WindowSize { rows: 33, columns: 101 });
    let ran = run(Exec { tty, ..script("test -t 0 && test -t 1 && test -t 2 && stty size && tty && echo $TERM") });
    assert!(ran.text().starts_with("33 101\r\n/dev/pts/"), "{}", ran.text());
    assert!(ran.text().ends_with("xterm-256color\r\n"));
}

#[test]
fn a_terminal_takes_sizes_keys_and_signals() {
    let tty = Some(WindowSize { rows: 5, columns: 10 });
    let text = "trap 'stty size; exit 9' WINCH; echo ready; while :; do sleep 0.02; done";
    let mut peer = Peer::with(&ToAgent::Exec(Exec { tty: tty.clone(), stdin: true, ..script(text) }));
    assert!(matches!(peer.next(), Some(ToHost::Started(_))));
    assert!(matches!(peer.next(), Some(ToHost::Stdout(_))));
    peer.send(&ToAgent::Resize(WindowSize { rows: 50, columns: 100 }));
    let rest = peer.rest();
    assert!(matches!(&rest[0], ToHost::Stdout(output) if output.data == b"50 100\r\n"), "{rest:?}");
    let mut peer = Peer::with(&ToAgent::Exec(Exec { tty, stdin: true, ..exec(&["cat"]) }));
    peer.send(&ToAgent::Stdin(b"abc\n\x03".to_vec()));
    let exited = peer.finish().exited.unwrap();
    assert_eq!((exited.outcome, exited.number), (Outcome::Signal, libc::SIGINT));
}

#[test]
fn the_end_of_input_is_typed_on_a_terminal() {
    let tty = Some(WindowSize { rows: 5, columns: 10 });
    let mut peer = Peer::with(&ToAgent::Exec(Exec { tty, stdin: true, ..script("cat >/dev/null; echo end") }));
    peer.send(&ToAgent::Stdin(b"line\n".to_vec()));
    peer.send(&ToAgent::StdinEof);
    assert!(peer.finish().text().ends_with("end\r\n"));
}

#[test]
fn no_process_and_no_descriptor_is_left_behind() {
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    run(exec(&["true"]));
    let before = fds();
    for _ in 0..200 {
        assert_eq!(run(exec(&["true"])).code(), 0);
    }
    // Other tests of this process open some too.
    eventually("the return of the descriptors", || fds() < before + 100);
    let own = i32::try_from(std::process::id()).unwrap();
    let zombies =
        || crate::cgroup::processes().iter().filter(|process| process.parent == own && process.is_zombie).count();
    eventually("the end of zombies", || zombies() < 10);
}

#[test]
fn a_message_that_is_no_request_is_refused_by_name() {
    for (message, name) in
        [(ToAgent::StdinEof, "`StdinEof`"), (ToAgent::GetStats, "`GetStats`"), (ToAgent::End, "`End`")]
    {
        let rest = Peer::with(&message).rest();
        let [ToHost::Error(failure)] = &rest[..] else { panic!("unexpected {rest:?}") };
        assert!(failure.code == ErrorCode::Protocol && failure.text.contains(name), "{}", failure.text);
    }
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    let mut peer = Peer::new();
    std::io::Write::write_all(&mut peer.stream, &[0xff; 64]).unwrap();
    let rest = peer.rest();
    assert!(matches!(&rest[..], [ToHost::Error(failure)] if failure.code == ErrorCode::Protocol), "{rest:?}");
}

#[test]
fn an_orphan_is_taken_from_the_process_table() {
    // Orphans come to this process as they come to PID 1.
    rustix::process::set_child_subreaper(Some(rustix::process::Pid::INIT)).unwrap();
    let ran = run(script("(sh -c 'echo $$; sleep 0.2; exit 5' &) ; exit 0"));
    let pid = ran.text().trim().to_owned();
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat().contains(&format!(") S {} ", std::process::id())), "{}", stat());
    eventually("the end of the orphan", || stat().is_empty());
}

#[test]
fn any_bytes_from_the_host_end_a_command_or_are_refused() {
    let mut number = 1_u64;
    let mut next = move || {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(number >> 56).unwrap()
    };
    for round in 0..60 {
        let mut peer = Peer::with(&ToAgent::Exec(Exec { stdin: true, ..exec(&["cat"]) }));
        let known = [[0x12, 0], [0x13, 0], [0x14, 0], [0x15, 0], [0x20, 0], [0x01, 0x80]][round % 6];
        let len = next() % 12;
        let mut bytes = vec![len, 0, 0, 0, known[0], known[1], 0, 0];
        bytes.extend((0..len).map(|_| next()));
        std::io::Write::write_all(&mut peer.stream, &bytes).unwrap();
        peer.stream.shutdown(Shutdown::Write).unwrap();
        // Whatever came: the conversation ends, and so does the command.
        let rest = peer.rest();
        assert!(matches!(rest.last(), Some(ToHost::Exited(_) | ToHost::Error(_))), "round {round}: {rest:?}");
    }
}

#[test]
fn commands_side_by_side_do_not_mix() {
    let threads: Vec<_> = (0..40)
        .map(|number: usize| {
            std::thread::spawn(move || {
                let ran = run(script(&format!("for i in 1 2 3 4 5; do echo {number}; done; exit {number}")));
                assert_eq!(
                    (ran.text(), ran.code()),
                    (&*format!("{number}\n").repeat(5), i32::try_from(number).unwrap())
                );
                ran.exec_id
            })
        })
        .collect();
    let ids: std::collections::BTreeSet<u64> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(ids.len(), 40);
}

#[test]
fn a_client_that_takes_over_ends_the_one_before() {
    let mut first = Peer::with(&ToAgent::Exec(Exec { stdin: true, replay_bytes: 1000, ..exec(&["cat"]) }));
    let Some(ToHost::Started(started)) = first.next() else { panic!("not started") };
    first.send(&ToAgent::Stdin(b"one ".to_vec()));
    assert!(matches!(first.next(), Some(ToHost::Stdout(_))));
    let attach = Attach { exec_id: started.exec_id, stdout_offset: 0, stderr_offset: 0 };
    let mut second = Peer::with(&ToAgent::Attach(attach));
    let Some(ToHost::Started(again)) = second.next() else { panic!("not attached") };
    assert_eq!((again.pid, again.stdin_offset), (started.pid, 4));
    assert_eq!(first.next(), None);
    second.send(&ToAgent::Stdin(b"two".to_vec()));
    second.send(&ToAgent::StdinEof);
    assert_eq!(second.finish().text(), "one two");
}

#[test]
fn programs_may_open_as_many_files_as_after_a_login() {
    let ran = run(script("ulimit -Sn; ulimit -Hn"));
    let limits: Vec<u64> = ran.text().lines().map(|line| line.parse().unwrap()).collect();
    assert!(limits[0] <= 1024 && limits[1] >= limits[0], "{limits:?}");
}

#[test]
fn a_script_is_run_by_the_interpreter_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    fs::write(&path, "#!/bin/sh -e\necho \"$0\" \"$1\"\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let name = path.to_str().unwrap();
    assert_eq!(run(exec(&[name, "a b"])).text(), format!("{name} a b\n"));
}

#[test]
fn a_program_is_found_by_the_path_that_the_request_gives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("only-here");
    fs::write(&path, "#!/bin/sh\necho found\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let env = vec![EnvVar { name: "PATH".into(), value: dir.path().into() }];
    assert_eq!(run(Exec { env, ..exec(&["only-here"]) }).text(), "found\n");
    assert_eq!(refused(exec(&["only-here"])).exit_code, 127);
}

#[test]
fn long_arguments_pass_up_to_the_kernels_limit() {
    let long = "x".repeat(120_000);
    assert_eq!(run(exec(&["/usr/bin/printf", "%s", &long])).stdout.len(), 120_000);
    let too_long = "x".repeat(140_000);
    let refused = refused(exec(&["/usr/bin/printf", "%s", &too_long]));
    assert_eq!((refused.exit_code, refused.errno), (126, libc::E2BIG));
}
