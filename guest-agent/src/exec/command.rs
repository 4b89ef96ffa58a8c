// SPDX-License-Identifier: Apache-2.0
//! From a request to a program that can be started: whom it runs as, where, with which environment, and which files it
//! may be. Starts nothing.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};

use midge_protocol::{Exec, MAX_REPLAY_BYTES, Refused, WindowSize};

use crate::cgroup::Tree;
use crate::sys::fd::set_nonblocking;
use crate::sys::process::{open_files_max, own_ids};
use crate::sys::spawn::{Program, Step};
use crate::sys::{c_path, tty};
use crate::users::{Account, resolve};

/// Where programs are looked for when the request says nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Directory of the user's project, where there is one.
pub(crate) const WORKSPACE: &str = "/workspace";
/// Files a program may open, as after a login; it may ask for as many as the agent.
const OPEN_FILES: u64 = 1024;

/// Exit code of a shell for a command that does not exist.
const NOT_FOUND: u8 = 127;
/// Exit code of a shell for a file that is no program.
const NOT_EXECUTABLE: u8 = 126;
/// Exit code for everything that is not the command's fault.
const NOT_STARTED: u8 = 125;

/// A program with its own ends of what connects it to us, which are closed once it runs.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) program: Program,
    pub(crate) ends: Ends,
}

/// Our ends: reads and writes of them do not wait.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: File,
    /// Without one, standard error comes as standard output.
    pub(crate) stderr: Option<File>,
    /// The terminal, where there is one.
    pub(crate) terminal: Option<File>,
}

fn refused(exit_code: u8, errno: i32, text: String) -> Refused {
    Refused { exit_code, errno, text }
}

fn not_started(attempt: &str, error: &io::Error) -> Refused {
    refused(NOT_STARTED, error.raw_os_error().unwrap_or(0), format!("{attempt}: {error}"))
}

/// Makes the program of `exec`.
pub(crate) fn prepare(exec: &Exec, tree: &Tree) -> Result<Command, Refused> {
    let invalid = |text: &str| refused(NOT_STARTED, libc::EINVAL, format!("starting a command: {text}"));
    let Some(name) = exec.argv.first() else { return Err(invalid("its argument list is empty")) };
    if exec.replay_bytes > MAX_REPLAY_BYTES {
        return Err(invalid(&format!("replay_bytes is {}, at most {MAX_REPLAY_BYTES}", exec.replay_bytes)));
    }
    let account = resolve(exec.user.as_deref(), Path::new("/"))
        .map_err(|error| refused(NOT_STARTED, libc::EINVAL, crate::link::failure(&error).text))?;
    let env = environment(exec, &account).ok_or_else(|| invalid("a variable's name is empty or holds `=`"))?;
    let path = env.get(OsStr::new("PATH")).cloned().unwrap_or_default();
    let (theirs, ends) = connect(exec, &account).map_err(|error| not_started("connecting a command", &error))?;
    let no_nul = |_| invalid("an argument or a variable holds a NUL byte");
    let argv = exec.argv.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<_, _>>().map_err(no_nul)?;
    let program = Program {
        candidates: candidates(name, &path).map_err(|_| invalid("the program's name holds a NUL byte"))?,
        argv,
        env: env.into_iter().map(variable).collect::<Result<_, _>>().map_err(no_nul)?,
        cwd: Some(c_path(&directory(exec, &account)).map_err(|_| invalid("the directory's name holds a NUL byte"))?),
        stdio: theirs,
        terminal: exec.tty.is_some(),
        // Without privileges there is no choice.
        ids: (own_ids().0 == 0).then_some(account.ids),
        cgroup: tree
            .entrance()
            .map(File::try_clone)
            .transpose()
            .map_err(|error| not_started("entering a group", &error))?,
        killable: std::process::id() == 1,
        open_files: Some((OPEN_FILES.min(open_files_max()), open_files_max())),
    };
    Ok(Command { program, ends })
}

/// What the client gets when `program` could not be started.
pub(crate) fn refusal(exec: &Exec, step: Step, error: &io::Error) -> Refused {
    let name = exec.argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let errno = error.raw_os_error().unwrap_or(0);
    match (step, errno) {
        (Step::Execute, libc::ENOENT) if !name.contains('/') => {
            refused(NOT_FOUND, errno, format!("{name}: command not found"))
        }
        (Step::Execute, libc::ENOENT) if Path::new(&name).exists() => {
            refused(NOT_FOUND, errno, format!("{name}: its interpreter or loader does not exist in this image"))
        }
        (Step::Execute, libc::ENOENT | libc::ENOTDIR) => refused(NOT_FOUND, errno, format!("{name}: no such file")),
        (Step::Execute, libc::ENOEXEC) => {
            refused(NOT_EXECUTABLE, errno, format!("{name}: neither a program nor a script with a `#!` line"))
        }
        (Step::Execute, _) => refused(NOT_EXECUTABLE, errno, format!("{name}: cannot be executed: {error}")),
        (Step::Dir, _) => {
            let dir = exec.cwd.as_deref().unwrap_or(Path::new(WORKSPACE)).display();
            not_started(&format!("starting {name}: entering the directory {dir}"), error)
        }
        (step, _) => not_started(&format!("starting {name}: step {step:?}"), error),
    }
}

fn environment(exec: &Exec, account: &Account) -> Option<BTreeMap<OsString, OsString>> {
    let mut env = BTreeMap::<OsString, OsString>::new();
    env.insert("PATH".into(), DEFAULT_PATH.into());
    env.insert("HOME".into(), account.home.clone().into());
    env.insert("USER".into(), account.name.clone().into());
    env.insert("LOGNAME".into(), account.name.clone().into());
    env.insert("SHELL".into(), account.shell.clone().into());
    env.insert("LANG".into(), "C.UTF-8".into());
    if exec.tty.is_some() {
        env.insert("TERM".into(), "xterm-256color".into());
    }
    for variable in &exec.env {
        if variable.name.is_empty() || variable.name.as_bytes().contains(&b'=') {
            return None;
        }
        env.insert(variable.name.clone(), variable.value.clone());
    }
    Some(env)
}

fn variable((name, value): (OsString, OsString)) -> Result<CString, std::ffi::NulError> {
    let mut line = name.into_vec();
    line.push(b'=');
    line.extend_from_slice(value.as_bytes());
    CString::new(line)
}

/// Paths that `name` may mean: itself when it has a slash, else one in each directory of `path`.
fn candidates(name: &OsStr, path: &OsStr) -> Result<Vec<CString>, std::ffi::NulError> {
    if name.is_empty() || name.as_bytes().contains(&b'/') {
        return Ok(vec![CString::new(name.as_bytes())?]);
    }
    let dirs = path.as_bytes().split(|byte| *byte == b':');
    let join = |dir: &[u8]| {
        let dir = if dir.is_empty() { b"." } else { dir };
        CString::new([dir, b"/", name.as_bytes()].concat())
    };
    dirs.map(join).collect()
}

fn directory(exec: &Exec, account: &Account) -> PathBuf {
    let is_dir = |path: &&Path| path.is_dir();
    let fallbacks = [Path::new(WORKSPACE), &account.home];
    exec.cwd.clone().unwrap_or_else(|| fallbacks.into_iter().find(is_dir).unwrap_or(Path::new("/")).to_owned())
}

/// Their ends for standard input, output and error, and ours.
fn connect(exec: &Exec, account: &Account) -> io::Result<([OwnedFd; 3], Ends)> {
    let (theirs, ends) = match &exec.tty {
        Some(size) => terminal(size)?,
        None => pipes(exec.stdin)?,
    };
    if own_ids().0 == 0 && account.ids.uid != 0 {
        for fd in &theirs {
            // So that the user can open /dev/stdout and its kind again. An empty standard input is nobody's to give.
            let _ = (exec.stdin || fd.as_raw_fd() != theirs[0].as_raw_fd())
                .then(|| fchown(fd, Some(account.ids.uid), Some(account.ids.gid)));
        }
    }
    Ok((theirs, ends))
}

fn terminal(size: &WindowSize) -> io::Result<([OwnedFd; 3], Ends)> {
    let (ours, theirs) = tty::open(size)?;
    set_nonblocking(&ours)?;
    let ends = Ends { stdin: Some(ours.try_clone()?), terminal: Some(ours.try_clone()?), stdout: ours, stderr: None };
    Ok(([theirs.try_clone()?, theirs.try_clone()?, theirs], ends))
}

fn pipes(with_stdin: bool) -> io::Result<([OwnedFd; 3], Ends)> {
    let (stdin_theirs, stdin) = if with_stdin {
        let (theirs, ours) = io::pipe()?;
        (OwnedFd::from(theirs), Some(File::from(OwnedFd::from(ours))))
    } else {
        (OwnedFd::from(File::open("/dev/null")?), None)
    };
    let (stdout, stdout_theirs) = io::pipe()?;
    let (stderr, stderr_theirs) = io::pipe()?;
    let file = |pipe| File::from(OwnedFd::from(pipe));
    let ends = Ends { stdin, stdout: file(stdout), stderr: Some(file(stderr)), terminal: None };
    for end in ends.stdin.iter().chain([&ends.stdout]).chain(&ends.stderr) {
        set_nonblocking(end)?;
    }
    Ok(([stdin_theirs, stdout_theirs.into(), stderr_theirs.into()], ends))
}

#[cfg(test)]
mod tests {
    use super::*;
    use midge_protocol::EnvVar;

    fn exec(argv: &[&str]) -> Exec {
        Exec {
            argv: argv.iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            user: Some("0".into()),
            tty: None,
            stdin: false,
            timeout_ms: 0,
            replay_bytes: 0,
        }
    }

    fn prepared(exec: &Exec) -> Result<Command, Refused> {
        prepare(exec, &Tree::new(u64::MAX))
    }

    #[test]
    fn a_name_is_looked_for_in_every_directory_of_the_path() {
        let paths = candidates(OsStr::new("ls"), OsStr::new("/a::/b")).unwrap();
        assert_eq!(paths, [c"/a/ls".to_owned(), c"./ls".to_owned(), c"/b/ls".to_owned()]);
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        assert_eq!(candidates(OsStr::new("./x"), OsStr::new("/a")).unwrap(), [c"./x".to_owned()]);
    }

    #[test]
    fn given_variables_win_over_defaults() {
        let mut exec = exec(&["x"]);
        exec.env = vec![EnvVar { name: "HOME".into(), value: "/elsewhere".into() }];
        let env = prepared(&exec).unwrap().program.env;
        assert!(env.contains(&c"HOME=/elsewhere".to_owned()) && env.contains(&c"LANG=C.UTF-8".to_owned()), "{env:?}");
        assert!(!env.iter().any(|line| line.as_bytes().starts_with(b"TERM=")));
    }

    #[test]
    fn contradictions_are_refused_before_anything_starts() {
        let variable = |name: &str| vec![EnvVar { name: name.into(), value: OsString::new() }];
        let cases = [
            exec(&[]),
            exec(&["a\0b"]),
            exec(&["a", "b\0"]),
            Exec { env: variable(""), ..exec(&["a"]) },
            Exec { env: variable("A=B"), ..exec(&["a"]) },
            Exec { env: variable("A\0"), ..exec(&["a"]) },
            Exec { cwd: Some("/\0".into()), ..exec(&["a"]) },
            Exec { user: Some("no such user".into()), ..exec(&["a"]) },
            Exec { replay_bytes: MAX_REPLAY_BYTES + 1, ..exec(&["a"]) },
        ];
        for case in cases {
            let refused = prepared(&case).unwrap_err();
            assert_eq!((refused.exit_code, refused.errno), (NOT_STARTED, libc::EINVAL), "{refused:?}");
        }
        prepared(&Exec { replay_bytes: MAX_REPLAY_BYTES, ..exec(&["a"]) }).unwrap();
    }
}
