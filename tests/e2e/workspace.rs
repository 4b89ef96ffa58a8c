// SPDX-License-Identifier: Apache-2.0
//! The user's directory in the guest: what comes back, what stays as it was, what is refused.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use crate::context::Context;

crate::tests!("workspace":
    Guest discard_leaves_the_host_as_it_was,
    Guest review_without_a_terminal_lists_and_leaves,
    Guest apply_brings_every_kind_of_change,
    Guest file_changed_on_both_sides_is_a_conflict,
    Guest shipped_project_runs_its_tests_and_comes_back_as_a_diff,
    Guest links_special_files_and_git_survive,
    Guest guarded_changes_are_applied_when_allowed_by_name,
    Guest unreadable_files_are_refused_or_left_out,
);

/// Everything observable of a tree: type, mode, size, content, link target, modification time.
fn picture(dir: &Path) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).expect("ours").flatten() {
            let (path, data) = (entry.path(), entry.metadata().expect("it is there"));
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            let content = match (data.is_file(), data.is_symlink()) {
                (true, _) => String::from_utf8_lossy(&std::fs::read(&path).expect("ours")).into_owned(),
                (_, true) => std::fs::read_link(&path).expect("ours").display().to_string(),
                _ => String::new(),
            };
            if data.is_dir() {
                open.push(path);
            }
            seen.insert(name, format!("{:o} {} {content}", data.mode(), data.mtime_nsec()));
        }
    }
    seen
}

/// A small project: text, a program, a directory, a link.
fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("src/deep")).expect("ours");
    std::fs::write(at("README"), "one\ntwo\nthree\n").expect("ours");
    std::fs::write(at("src/main.sh"), "#!/bin/sh\necho run\n").expect("ours");
    std::fs::set_permissions(at("src/main.sh"), PermissionsExt::from_mode(0o755)).expect("ours");
    std::fs::write(at("src/deep/data"), [0, 255, 1, 254]).expect("ours");
    std::fs::write(at("gone"), "to be deleted\n").expect("ours");
    symlink("README", at("link")).expect("ours");
    dir
}

const CHANGE: &str = "set -e; cd /workspace; sed -i s/two/2/ README; echo new > src/new; rm gone; chmod 600 src/main.sh; \
    ln -s src/new link2; mkdir -p a/b; echo deep > a/b/c; rm -r src/deep; printf '\\000\\001' > binary";

fn flag(dir: &Path, mode: &str) -> String {
    format!("{}:{mode}", dir.display())
}

fn discard_leaves_the_host_as_it_was(context: &Context) {
    let dir = project();
    let before = picture(dir.path());
    let outcome = context.sh(&["--workspace", &flag(dir.path(), "discard")], CHANGE).run().code(0);
    assert_eq!(before, picture(dir.path()), "{outcome}");
    context.assert_nothing_left();
}

fn review_without_a_terminal_lists_and_leaves(context: &Context) {
    let dir = project();
    let before = picture(dir.path());
    let text = dir.path().to_str().expect("text");
    let outcome = context.sh(&["--workspace", text], CHANGE).run().code(0);
    assert_eq!(before, picture(dir.path()), "{outcome}");
    assert_eq!(outcome.text(), "", "stdout is the command's: {outcome}");
    outcome.says(&["README", "-two", "+2", "src/new", "gone", "src/main.sh", "link2", "a/b/c", "src/deep", "binary"]);
}

fn apply_brings_every_kind_of_change(context: &Context) {
    let dir = project();
    let at = |name: &str| dir.path().join(name);
    let read = |name: &str| std::fs::read_to_string(at(name)).expect("it came back");
    let outcome =
        context.sh(&["--workspace", &flag(dir.path(), "apply")], &format!("{CHANGE}; src/main.sh || sh src/main.sh"));
    let outcome = outcome.run().code(0).out("run\n");
    assert_eq!(read("README"), "one\n2\nthree\n", "{outcome}");
    assert_eq!((read("src/new"), read("a/b/c"), read("binary")), ("new\n".into(), "deep\n".into(), "\0\u{1}".into()));
    assert!(!at("gone").exists() && !at("src/deep").exists(), "{outcome}");
    assert_eq!(std::fs::metadata(at("src/main.sh")).expect("kept").mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_link(at("link2")).expect("a link"), Path::new("src/new"));
    assert_eq!(std::fs::read_link(at("link")).expect("a link"), Path::new("README"));
    let owner = std::fs::metadata(dir.path()).expect("ours").uid();
    assert_eq!(std::fs::metadata(at("src/new")).expect("new").uid(), owner, "files belong to who owns the project");
    let strays: Vec<String> =
        picture(dir.path()).into_keys().filter(|name| name.contains("midge") || name.contains("tmp")).collect();
    assert!(strays.is_empty(), "{strays:?}");
}

fn file_changed_on_both_sides_is_a_conflict(context: &Context) {
    let dir = project();
    let script = "cd /workspace; echo guest > README; echo guest > src/new; echo ready; read line";
    let mut command = context.sh(&["--workspace", &flag(dir.path(), "apply")], script).into_command();
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("midge runs");
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut ready).expect("the command prints");
    std::fs::write(dir.path().join("README"), "host\n").expect("ours");
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert_eq!(std::fs::read_to_string(dir.path().join("README")).expect("kept"), "host\n", "{said}");
    assert!(said.contains("readme") && (said.contains("conflict") || said.contains("changed")), "{said}");
}

fn shipped_project_runs_its_tests_and_comes_back_as_a_diff(context: &Context) {
    let dir = tempfile::tempdir().expect("a directory");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/logsum");
    let copied = std::process::Command::new("cp").arg("-r").arg(source).arg(dir.path()).status().expect("cp");
    assert!(copied.success());
    let project = dir.path().join("logsum");
    let script =
        "python3 -m unittest discover -s tests -t . && python3 -m logsum samples/access.log --report REPORT.md";
    let call = context.sh(&["--env", "PYTHONDONTWRITEBYTECODE=1", "--workspace", &flag(&project, "review")], script);
    let outcome = call.limit(Duration::from_secs(300)).run().code(0).says(&[
        "Ran 20 tests",
        "OK",
        "+260 requests",
        "-140 requests",
    ]);
    assert!(!outcome.stderr.contains("__pycache__"), "only the report changed: {outcome}");
}

fn links_special_files_and_git_survive(context: &Context) {
    let dir = project();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at(".git")).expect("ours");
    std::fs::write(at(".git/HEAD"), "ref: refs/heads/main\n").expect("ours");
    symlink("/etc/hostname", at("outside")).expect("ours");
    symlink("../../..", at("above")).expect("ours");
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("ours");
    std::fs::write(at("name with  spaces\nand lines"), "odd\n").expect("ours");
    let before = picture(dir.path());
    let script = "cd /workspace; cat .git/HEAD; readlink outside above; cat 'name with  spaces\nand lines'; echo x > outside-new";
    let outcome = context.sh(&["--workspace", &flag(dir.path(), "apply")], script).run().code(0);
    let outcome =
        outcome.says(&["note: pipe is a socket, pipe or device", "links out of the workspace", "and 1 more like it"]);
    assert_eq!(outcome.text(), "ref: refs/heads/main\n/etc/hostname\n../../..\nodd\n", "{outcome}");
    let mut after = picture(dir.path());
    assert!(after.remove("outside-new").is_some(), "{outcome}");
    assert_eq!(before, after, "{outcome}");
}

fn guarded_changes_are_applied_when_allowed_by_name(context: &Context) {
    let dir = project();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at(".git")).expect("ours");
    std::fs::write(at(".git/config"), "[core]\n").expect("ours");
    let config = || std::fs::read_to_string(at(".git/config")).expect("kept");
    let script = "cd /workspace; echo '[user]' >> .git/config; ln -sfn /etc/hostname outside";
    let apply = flag(dir.path(), "apply");
    let outcome = context.sh(&["--workspace", &apply, "--allow-outside-links"], script).run().code(0);
    outcome.says(&["!M  .git/config", "*A  outside", "--allow-git-internals applies"]);
    assert_eq!((config(), at("outside").is_symlink()), ("[core]\n".into(), true));
    let outcome = context.sh(&["--workspace", &apply, "--allow-git-internals"], script).run().code(0);
    assert_eq!(config(), "[core]\n[user]\n", "{outcome}");
}

/// What root owns is readable to root in any case, unless it gives that power away.
fn unreadable_files_are_refused_or_left_out(context: &Context) {
    let dir = project();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "mine\n").expect("ours");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o000)).expect("ours");
    let run = |flags: &[&str]| {
        let midge = context.bin.join("midge").into_os_string();
        let words = ["run", "--workspace"].map(OsString::from).into_iter().chain([dir.path().into()]);
        let words = words.chain(flags.iter().chain(&["--", "ls", "/workspace"]).map(OsString::from));
        let powerless = ["--bounding-set", "-dac_override,-dac_read_search"].map(OsString::from);
        if nix::unistd::geteuid().is_root() {
            context.program(Path::new("setpriv"), powerless.into_iter().chain([midge]).chain(words)).run()
        } else {
            context.midge(words).run()
        }
    };
    run(&[]).code(125).says(&["secret", "--skip-unreadable"]);
    let outcome = run(&["--skip-unreadable"]).code(0);
    assert!(!outcome.text().contains("secret") && outcome.text().contains("README"), "{outcome}");
    outcome.says(&["secret is not readable by you"]);
}
