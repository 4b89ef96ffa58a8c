// SPDX-License-Identifier: Apache-2.0
//! The monitor's binary from outside: arguments, refused configurations, the events and exit
//! codes of starts that fail. No guest runs here.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking")]

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const MONITOR: &str = env!("CARGO_BIN_EXE_midge-vmm");

fn monitor(args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(MONITOR)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A monitor that refuses its arguments does not read what it is given.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

/// The last event, which must be `exit`, after checking that every line is one.
fn exit_event(output: &Output) -> Value {
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let events: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = events.last().unwrap_or_else(|| panic!("no event: {output:?}")).clone();
    assert_eq!(last["event"], "exit", "{stdout}");
    last
}

fn refused(config: &Value, field: &str) {
    let output = monitor(&["--config", "-"], format!("{config}\n").as_bytes());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let exit = exit_event(&output);
    assert_eq!(exit["reason"], "config");
    let detail = exit["detail"].as_str().unwrap();
    assert!(detail.contains(field), "{detail:?} does not name {field}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, format!("midge-vmm: {detail}\n"), "one line, the same text");
}

/// The kernel is an executable of this machine: x86-64 ELF, but no kernel.
fn config() -> Value {
    json!({ "kernel": MONITOR, "mem_mib": 64, "cpus": 1 })
}

fn with(field: &str, value: Value) -> Value {
    let mut config = config();
    config[field] = value;
    config
}

#[test]
fn help_version_and_the_memory_map_go_to_stdout() {
    for (arg, word) in [("--help", "--config FILE|-"), ("--version", "midge-vmm 0."), ("--explain-boot", "boot_params")]
    {
        let output = monitor(&[arg], b"");
        assert_eq!(output.status.code(), Some(0), "{arg}");
        assert!(String::from_utf8(output.stdout).unwrap().contains(word), "{arg}");
        assert!(output.stderr.is_empty(), "{arg}");
    }
}

#[test]
fn what_is_missing_of_the_jail_is_told_a_line_each_by_the_names_of_the_configuration() {
    let output = monitor(&["--check-jail"], b"");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (part, why) = line.split_once(' ').unwrap();
        let refused = with("allow_missing", json!([part, "no-such-part"]));
        let text = String::from_utf8(monitor(&["--config", "-"], refused.to_string().as_bytes()).stderr).unwrap();
        assert!(text.contains("no-such-part") && !why.is_empty(), "{part} is a name that is known: {text}");
    }
}

/// A host that gives no network namespace: one of users, whose root has switched them off.
#[test]
fn a_part_that_the_host_does_not_give_is_refused_by_name_unless_it_may_be_missing() {
    let in_poor_host = |args: &[&str], stdin: &str, stdout: Stdio| {
        let words = "echo 0 > /proc/sys/user/max_net_namespaces && exec env -i \"$0\" \"$@\"";
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "sh", "-c", words, MONITOR]).args(args);
        let mut child = unshare.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    if !Command::new("unshare")
        .args(["--user", "--map-root-user", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        println!("skipped: no namespace of users can be made here");
        return;
    }
    let told = tempfile::NamedTempFile::new().unwrap();
    let output = in_poor_host(&["--check-jail"], "", told.reopen().unwrap().into());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = std::fs::read_to_string(told.path()).unwrap();
    assert!(told.lines().any(|line| line.starts_with("net-namespace ")), "{told}");
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        println!("skipped: /dev/kvm cannot be used here");
        return;
    }
    let run = |config: Value| in_poor_host(&["--config", "-"], &format!("{config}\n"), Stdio::piped());
    let refused = run(config());
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("no net-namespace") && text.contains("--allow-missing net-namespace"), "{text}");
    assert_eq!(text.matches("os error").count(), 1, "the cause once: {text}");
    let parts: Vec<_> = told.lines().filter_map(|line| line.split_once(' ')).map(|(part, _)| part).collect();
    // What is no kernel is looked at only inside: it got there.
    let let_in = run(with("allow_missing", json!(parts)));
    assert_eq!(let_in.status.code(), Some(2), "{let_in:?}");
}

#[test]
fn wrong_arguments_are_refused_in_one_line() {
    for args in [&[][..], &["--config"], &["--konfig", "-"], &["--config", "-", "x"], &["--help", "x"]] {
        let output = monitor(args, b"");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{args:?}");
    }
}

#[test]
fn every_named_bad_value_is_refused_by_name() {
    refused(&with("mem_mib", json!(0)), "mem_mib");
    refused(&with("mem_mib", json!(1)), "mem_mib");
    refused(&with("mem_mib", json!(1_u64 << 40)), "mem_mib");
    refused(&with("cpus", json!(0)), "cpus");
    refused(&with("cpus", json!(1000)), "cpus");
    refused(&with("kernel", json!("/no/such/kernel")), "/no/such/kernel");
    refused(&with("unknown_field", json!(1)), "unknown_field");
}

#[test]
fn an_executable_that_is_no_kernel_is_refused_before_kvm_is_touched() {
    refused(&config(), "kernel");
}

#[test]
fn a_three_gib_kernel_is_refused_at_once() {
    let kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.as_file().set_len(3 << 30).unwrap();
    refused(&with("kernel", json!(kernel.path())), "3221225472");
}

#[test]
fn a_truncated_kernel_is_refused_with_both_lengths() {
    let dir = tempfile::TempDir::new().unwrap();
    let kernel = tiny_kernel(dir.path());
    std::fs::OpenOptions::new().write(true).open(&kernel).unwrap().set_len(100).unwrap();
    refused(&with("kernel", json!(kernel)), "ends at byte 120, the file has 100");
}

#[test]
fn no_configuration_at_all_is_a_configuration_error() {
    for stdin in [&b""[..], b"\n", b"{", b"[]\n", b"\xff\xff\n"] {
        let output = monitor(&["--config", "-"], stdin);
        assert_eq!(output.status.code(), Some(2), "{stdin:?}");
        assert_eq!(exit_event(&output)["reason"], "config");
    }
}

#[test]
fn an_endless_configuration_is_cut_and_refused() {
    let endless = vec![b' '; 3 << 20];
    assert_eq!(monitor(&["--config", "-"], &endless).status.code(), Some(2));
}

#[test]
fn a_configuration_can_come_from_a_file_and_a_missing_one_is_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{}", with("cpus", json!(0))).unwrap();
    let output = monitor(&["--config", file.path().to_str().unwrap()], b"");
    assert!(exit_event(&output)["detail"].as_str().unwrap().contains("cpus"));
    let output = monitor(&["--config", "/no/such/file"], b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(exit_event(&output)["detail"].as_str().unwrap().contains("No such file"));
}

#[test]
fn the_stages_so_far_are_told_even_when_the_start_fails() {
    let output = monitor(&["--config", "-"], format!("{}\n", config()).as_bytes());
    let stdout = String::from_utf8(output.stdout).unwrap();
    let first: Value = serde_json::from_str(stdout.lines().next().unwrap()).unwrap();
    assert_eq!((&first["event"], &first["name"]), (&json!("stage"), &json!("exec")));
    assert!(stdout.contains("config_read"));
}

#[test]
fn a_reader_that_went_away_does_not_hang_or_kill_by_signal() {
    let mut child = Command::new(MONITOR)
        .args(["--config", "/no/such/file"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

/// A vmlinux of one instruction, enough to get past the kernel's checks.
fn tiny_kernel(dir: &Path) -> std::path::PathBuf {
    let mut elf = vec![0_u8; 121];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]);
    put(24, &0x100_0000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 1, 0]);
    put(64, &1_u32.to_le_bytes());
    put(72, &120_u64.to_le_bytes());
    put(88, &0x100_0000_u64.to_le_bytes());
    put(96, &1_u64.to_le_bytes());
    put(104, &1_u64.to_le_bytes());
    put(120, &[0xf4]);
    let path = dir.join("vmlinux");
    std::fs::write(&path, elf).unwrap();
    path
}

#[test]
fn without_permission_on_kvm_the_host_is_blamed_and_the_remedy_named() {
    const NOBODY: u32 = 65_534;
    let dir = tempfile::TempDir::new().unwrap();
    let kernel = tiny_kernel(dir.path());
    let program = dir.path().join("midge-vmm");
    std::fs::copy(MONITOR, &program).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let config = dir.path().join("config.json");
    std::fs::write(&config, json!({ "kernel": kernel, "mem_mib": 64, "cpus": 1 }).to_string()).unwrap();
    let output = Command::new(&program).arg("--config").arg(&config).uid(NOBODY).gid(NOBODY).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: becoming another user is not possible here ({error})");
            return;
        }
    };
    let exit = exit_event(&output);
    let detail = exit["detail"].as_str().unwrap();
    if exit["reason"] != "host_error" {
        println!("skipped: anybody may use /dev/kvm here ({detail})");
        return;
    }
    assert_eq!(output.status.code(), Some(3));
    assert!(detail.contains("/dev/kvm") && detail.contains("midge doctor"), "{detail}");
}
