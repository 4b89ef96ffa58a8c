// SPDX-License-Identifier: Apache-2.0
//! Runs the image script (`rootfs/build.sh`) in a staging directory, watches its output, publishes what it leaves.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime};

use super::recipe::{Recipe, SCRIPT};
use super::{ImageError, ImageRecord};
use crate::cache::{Cache, mebibytes};
use crate::progress::Watch;

/// Programs that the script runs, and the package of each.
const TOOLS: [(&str, &str); 4] =
    [("mmdebstrap", "mmdebstrap"), ("mkfs.erofs", "erofs-utils"), ("tar", "tar"), ("apt-get", "apt")];

/// What it runs besides when it is not root.
const UNPRIVILEGED_TOOLS: [(&str, &str); 2] = [("newuidmap", "uidmap"), ("unshare", "util-linux")];

/// How much of a log is repeated in an error.
const TAIL_LINES: usize = 20;

/// Directories with administrators' programs, which a user's PATH may lack.
const SYSTEM_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The programs are there, and this user may run them to good effect.
///
/// # Errors
/// [`ImageError`] names what is missing and the command that installs or allows it.
pub fn check_host() -> Result<(), ImageError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).chain(SYSTEM_DIRS.map(PathBuf::from)).collect();
    let user = (!nix::unistd::geteuid().is_root()).then(|| {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        user.map_or_else(|| nix::unistd::geteuid().to_string(), |user| user.name)
    });
    let subuid = fs::read_to_string("/etc/subuid").unwrap_or_default();
    check(|tool| dirs.iter().any(|dir| dir.join(tool).is_file()), user.as_deref(), &subuid)
}

/// The same, asked of any machine; `user` is `None` for root.
fn check(has_tool: impl Fn(&str) -> bool, user: Option<&str>, subuid: &str) -> Result<(), ImageError> {
    let more = if user.is_some() { &UNPRIVILEGED_TOOLS[..] } else { &[] };
    let absent = TOOLS.iter().chain(more).filter(|(tool, _)| !has_tool(tool));
    let (missing, packages): (Vec<String>, Vec<String>) =
        absent.map(|(tool, package)| ((*tool).to_owned(), (*package).to_owned())).unzip();
    if !missing.is_empty() {
        return Err(ImageError::MissingTools { missing, packages });
    }
    match user {
        Some(user) if !subuid.lines().any(|line| line.split(':').next() == Some(user)) => {
            Err(ImageError::NoSubordinateIds { user: user.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Builds one image and publishes it as the directory `into`.
pub(super) fn run(cache: &Cache, recipe: &Recipe, into: &Path, watch: &dyn Watch) -> Result<(), ImageError> {
    let started = Instant::now();
    let stage = cache.stage()?;
    let write = |name: &str, text: String| {
        let path = stage.path().join(name);
        fs::write(&path, text).map_err(ImageError::io("writing", &path))
    };
    write("build.sh", SCRIPT.to_owned())?;
    write("packages", recipe.packages.join("\n") + "\n")?;
    write("sources.list", recipe.sources.join("\n") + "\n")?;

    watch.begin(&format!("building image {} from {} (once)", recipe.name, recipe.distribution), recipe.expected_lines);
    let log = cache.dir("logs")?.join(format!("image-{}.log", recipe.name));
    run_script(&stage.path().join("build.sh"), recipe, &log, watch)?;

    let image = stage.path().join("image.erofs");
    let record = ImageRecord {
        name: recipe.name.clone(),
        release: recipe.distribution.clone(),
        packages: recipe.packages.clone(),
        key: recipe.key(),
        bytes: fs::metadata(&image).map_err(ImageError::io("reading", &image))?.len(),
        build_s: started.elapsed().as_secs(),
        built_at_unix_s: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    };
    write("image.json", serde_json::to_string_pretty(&record).unwrap_or_default())?;
    stage.publish_dir(into)?;
    watch.end(&format!(
        "built image {} from {} in {} s: {}, {}",
        record.name,
        record.release,
        record.build_s,
        mebibytes(record.bytes),
        into.join("image.erofs").display()
    ));
    Ok(())
}

fn run_script(script: &Path, recipe: &Recipe, log: &Path, watch: &dyn Watch) -> Result<(), ImageError> {
    let dir = script.parent().unwrap_or(script);
    let (reader, writer) = std::io::pipe().map_err(ImageError::io("making a pipe for", script))?;
    let errors = writer.try_clone().map_err(ImageError::io("making a pipe for", script))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command.arg(script).arg(&recipe.suite).current_dir(dir).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
    command.env("PATH", format!("{path}:{}", SYSTEM_DIRS.join(":")));
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let mut child = command.spawn().map_err(ImageError::io("running", script))?;
    // The command holds our ends of the pipe open; without dropping it the reader never sees the end.
    drop(command);
    let copied = watch_lines(reader, log, watch);
    let status = child.wait().map_err(ImageError::io("waiting for", script))?;
    copied?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n");
    Err(ImageError::Step { name: recipe.name.clone(), status: status.to_string(), log: log.to_owned(), tail })
}

fn watch_lines(reader: std::io::PipeReader, log: &Path, watch: &dyn Watch) -> Result<(), ImageError> {
    let mut file = File::create(log).map_err(ImageError::io("writing", log))?;
    for (done, line) in (1..).zip(BufReader::new(reader).split(b'\n')) {
        let mut line = line.map_err(ImageError::io("reading the output for", log))?;
        line.push(b'\n');
        file.write_all(&line).map_err(ImageError::io("writing", log))?;
        watch.at(done);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn recipe() -> Recipe {
        Recipe {
            name: "base".into(),
            packages: vec!["bash".into()],
            distribution: "debian x".into(),
            suite: "x".into(),
            sources: vec!["deb http://localhost x main".into()],
            expected_lines: 2,
        }
    }

    #[test]
    fn missing_tools_are_named_with_the_command_that_mends_it() {
        let text = check(|tool| tool == "tar" || tool == "apt-get", None, "").unwrap_err().to_string();
        assert!(text.contains("mmdebstrap, mkfs.erofs"), "{text}");
        assert!(text.contains("apt-get install mmdebstrap erofs-utils"), "{text}");
        assert!(check(|tool| tool != "newuidmap", None, "").is_ok());
        let text = check(|tool| tool != "newuidmap", Some("ann"), "").unwrap_err().to_string();
        assert!(text.contains("uidmap"), "{text}");
    }

    #[test]
    fn users_need_subordinate_ids_of_their_own() {
        let text = check(|_| true, Some("ann"), "anna:100000:65536\n").unwrap_err().to_string();
        assert!(text.contains("user ann") && text.contains("usermod --add-subuids"), "{text}");
        assert!(check(|_| true, Some("ann"), "ann:100000:65536\n").is_ok());
    }

    #[test]
    fn failing_script_shows_the_end_of_its_log_and_where_the_rest_is() {
        let dir = tempfile::tempdir().unwrap();
        let (script, log) = (dir.path().join("s.sh"), dir.path().join("log"));
        fs::write(&script, "for i in $(seq 30); do echo line $i; done; echo no such suite $1 >&2; exit 4\n").unwrap();
        let text = run_script(&script, &recipe(), &log, &Silent).unwrap_err().to_string();
        assert!(text.contains("no such suite x") && !text.contains("line 5\n"), "{text}");
        assert!(text.contains("log") && text.contains('4'), "{text}");
        assert!(fs::read_to_string(&log).unwrap().starts_with("line 1\n"));
    }

    #[test]
    fn script_runs_in_its_own_directory_without_input() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("s.sh");
        fs::write(&script, "cat; echo done > here\n").unwrap();
        run_script(&script, &recipe(), &dir.path().join("log"), &Silent).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("here")).unwrap(), "done\n");
    }
}
