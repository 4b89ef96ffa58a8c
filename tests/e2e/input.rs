// SPDX-License-Identifier: Apache-2.0
//! Bad input: refused before anything runs, with 125 and a text that names what, where, the accepted
//! range and the next step.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::context::{Context, Outcome};
use crate::elf;
use crate::harness::skip;

crate::tests!("input":
    Binary kernel_that_is_missing,
    Binary kernel_that_is_no_kernel,
    Binary kernel_cut_short,
    Binary kernel_for_another_machine,
    Binary kernel_of_three_gibibytes,
    Binary image_missing_empty_or_unknown,
    Binary memory_outside_its_range,
    Binary cpus_outside_their_range,
    Binary workspace_that_is_none,
    Binary workspace_that_cannot_be_read,
    Binary environment_and_user_that_are_none,
    Binary unknown_flag_and_no_command,
    Binary help_at_every_level,
    Binary doctor_without_a_kvm_device,
    Binary doctor_without_permission,
    NativeGuest part_of_the_jail_that_is_none,
);

/// `midge run FLAGS -- true` must be refused quickly and say `parts`.
fn refused(context: &Context, flags: &[&str], parts: &[&str]) -> Outcome {
    let words = ["run"].into_iter().chain(flags.iter().copied()).chain(["--", "true"]);
    let outcome = context.midge(words).limit(Duration::from_secs(30)).run().code(125).says(parts);
    assert!(outcome.stdout.is_empty(), "stdout belongs to the command: {outcome}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    context.assert_nothing_left();
    outcome
}

/// A file of these bytes in a directory of its own.
fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("a file");
    (dir, path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our paths are text")
}

fn part_of_the_jail_that_is_none(context: &Context) {
    refused(context, &["--allow-missing", "walls"], &["walls", "pid-namespace", "empty-root"]);
    // What may be missing and is there changes nothing.
    context.midge(["run", "--allow-missing", "pid-namespace,own-ids", "--", "true"]).run().code(0);
    context.assert_nothing_left();
}

fn kernel_that_is_missing(context: &Context) {
    refused(context, &["--kernel", "/nonexistent/vmlinux"], &["/nonexistent/vmlinux", "kernel"]);
    refused(context, &["--kernel", "/"], &["kernel"]);
}

fn kernel_that_is_no_kernel(context: &Context) {
    for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &[0; 4096]] {
        let (_dir, path) = file("vmlinux", bytes);
        refused(context, &["--kernel", text(&path)], &[text(&path), "kernel"]);
    }
}

fn kernel_cut_short(context: &Context) {
    let whole = elf::executable(elf::X86_64, &[0xf4; 64], 64);
    let long = elf::executable(elf::X86_64, &[0xf4; 64], 100_000);
    for bytes in [&whole[..17], &whole[..64], &whole[..100], &long] {
        let (_dir, path) = file("vmlinux", bytes);
        refused(context, &["--kernel", text(&path)], &[text(&path)]);
    }
}

fn kernel_for_another_machine(context: &Context) {
    let (_dir, path) = file("vmlinux", &elf::executable(elf::AARCH64, &[0; 64], 64));
    refused(context, &["--kernel", text(&path)], &[text(&path), "x86"]);
}

fn kernel_of_three_gibibytes(context: &Context) {
    const THREE_GIB: u64 = 3 << 30;
    let (_dir, path) = file("vmlinux", &elf::executable(elf::X86_64, &[0xf4; 64], THREE_GIB));
    let handle = File::options().write(true).open(&path).expect("our file");
    handle.set_len(THREE_GIB + 4096).expect("a sparse file");
    refused(context, &["--kernel", text(&path), "--mem", "256"], &[text(&path)]);
}

fn image_missing_empty_or_unknown(context: &Context) {
    refused(context, &["--image", "/nonexistent/image.erofs"], &["/nonexistent/image.erofs", "image"]);
    refused(context, &["--image", "no-such-name"], &["no-such-name", "image"]);
    for bytes in [&b""[..], &[0x55; 8192]] {
        let (_dir, path) = file("root.img", bytes);
        refused(context, &["--image", text(&path)], &[text(&path), "erofs"]);
    }
}

fn memory_outside_its_range(context: &Context) {
    for mib in ["0", "1", "999999999", "99999999999999999999", "-1", "many"] {
        refused(context, &[&format!("--mem={mib}")], &["--mem"]);
    }
}

fn cpus_outside_their_range(context: &Context) {
    for cpus in ["0", "1000", "-1", "two"] {
        refused(context, &[&format!("--cpus={cpus}")], &["--cpus"]);
    }
}

fn workspace_that_is_none(context: &Context) {
    refused(context, &["--workspace", "/nonexistent/project"], &["/nonexistent/project", "workspace"]);
    let (dir, path) = file("file", b"x");
    refused(context, &["--workspace", text(&path)], &[text(&path), "directory"]);
    let mode = format!("{}:destroy", text(dir.path()));
    refused(context, &["--workspace", &mode], &["discard", "review", "apply"]);
}

fn workspace_that_cannot_be_read(context: &Context) {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o000)).expect("ours");
    let runtime = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(runtime.path(), PermissionsExt::from_mode(0o777)).expect("ours");
    let words = ["run", "--workspace", text(dir.path()), "--", "true"];
    let call = context.midge(words).env("XDG_RUNTIME_DIR", runtime.path()).env("MIDGE_CACHE", runtime.path());
    // Root reads everything, so somebody else has to try.
    let call = if nix::unistd::geteuid().is_root() { call.user(65534) } else { call };
    if !readable_by_all(&context.bin) {
        skip("the build directory cannot be entered by another user");
    }
    call.run().code(125).says(&[text(dir.path())]);
}

fn readable_by_all(dir: &Path) -> bool {
    dir.ancestors().all(|dir| std::fs::metadata(dir).is_ok_and(|data| data.permissions().mode() & 0o005 == 0o005))
}

fn environment_and_user_that_are_none(context: &Context) {
    refused(context, &["--env", "=value"], &["--env"]);
    refused(context, &["--timeout", "-3"], &["--timeout"]);
    refused(context, &["--disk", "0"], &["--disk"]);
}

fn unknown_flag_and_no_command(context: &Context) {
    refused(context, &["--no-such-flag"], &["--no-such-flag"]);
    context.midge(["run"]).run().code(125).says(&["usage"]);
    context.midge(["no-such-command"]).run().code(2).says(&["usage"]);
}

fn help_at_every_level(context: &Context) {
    for words in [
        &["--help"][..],
        &["run", "--help"],
        &["doctor", "--help"],
        &["kernel", "--help"],
        &["kernel", "build", "--help"],
        &["image", "--help"],
        &["image", "build", "--help"],
        &["image", "list", "--help"],
        &["bench", "--help"],
        &["bench", "boot", "--help"],
    ] {
        let outcome = context.midge(words).run().code(0);
        let help = outcome.text();
        assert!(help.contains("Usage: midge"), "{outcome}");
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{outcome}");
    }
    let help = context.midge(["run", "--help"]).run().text();
    for flag in [
        "--image",
        "--kernel",
        "--mem",
        "--cpus",
        "--disk",
        "--workspace",
        "--env",
        "--user",
        "--timeout",
        "--tty",
        "--console",
        "--json",
    ] {
        assert!(help.contains(flag), "`midge run --help` does not tell of {flag}:\n{help}");
    }
}

fn doctor_without_a_kvm_device(context: &Context) {
    let midge = context.bin.join("midge");
    let script = format!("mount -t tmpfs none /dev && exec {} doctor --json", midge.display());
    let unshared = std::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).output();
    let output = unshared.unwrap_or_else(|error| skip(format!("no unshare: {error}")));
    let shown = String::from_utf8_lossy(&output.stdout).to_lowercase();
    if output.stdout.is_empty() {
        skip(format!("no mount namespace: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    assert!(shown.contains("absent") || shown.contains("no /dev/kvm") || shown.contains("missing"), "{shown}");
}

fn doctor_without_permission(context: &Context) {
    let device = std::fs::metadata("/dev/kvm").unwrap_or_else(|error| skip(format!("/dev/kvm: {error}")));
    if !nix::unistd::geteuid().is_root() || device.permissions().mode() & 0o006 != 0 {
        skip("needs root, and a /dev/kvm that not everybody may use");
    }
    if !readable_by_all(&context.bin) {
        skip("the build directory cannot be entered by another user");
    }
    let cache = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(cache.path(), PermissionsExt::from_mode(0o777)).expect("ours");
    let outcome = context.midge(["doctor", "--json"]).env("MIDGE_CACHE", cache.path()).user(65534).run();
    let shown = outcome.text().to_lowercase();
    assert!(shown.contains("permission"), "{outcome}");
    assert!(shown.contains("kvm"), "the next step is missing: {outcome}");
}
