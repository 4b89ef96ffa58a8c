// SPDX-License-Identifier: Apache-2.0
//! One shell that lives on between commands. It reads what to do from its standard input, says how a command ended on its standard
//! output, and gives commands neither: they run with an empty input and with the output of [`super::capture`], put back after each.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::super::Cancel;
use super::super::tree::{self, Tree};

/// Most bytes that a line of the shell's own answer has; longer ones are not its own.
const ANSWER_MAX_BYTES: usize = 64;
/// The last line of a state that was written whole.
const STATE_END: &str = "# whole\n";
/// What programs are told of where they run: nobody is at a terminal.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("TERM", "dumb"),
    ("PAGER", "cat"),
    ("GIT_PAGER", "cat"),
    ("MANPAGER", "cat"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("DEBIAN_FRONTEND", "noninteractive"),
];

/// Which shell there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    /// bash: functions and aliases outlive it too.
    Bash,
    /// A POSIX shell: of what it knew, only exported variables and the directory outlive it.
    Posix,
}

/// A shell that runs.
#[derive(Debug)]
pub(super) struct Session {
    child: Child,
    gone: OwnedFd,
    stdin: ChildStdin,
    answers: ChildStdout,
    unread: Vec<u8>,
    state: PathBuf,
    script: PathBuf,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With this exit code; the session goes on.
    Code(i32),
    /// With the session.
    Session(Option<ExitStatus>),
    /// Not yet: this long have we looked.
    NotYet,
    /// The flag is set.
    Cancelled,
}

impl Flavour {
    /// What there is in this guest.
    pub(super) fn found() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let found = std::env::split_paths(&path).any(|dir| dir.join("bash").is_file());
        if found { Self::Bash } else { Self::Posix }
    }

    /// Its name for the model.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Posix => "sh",
        }
    }

    fn command(self) -> Command {
        let mut command = Command::new(self.name());
        if self == Self::Bash {
            command.args(["--noprofile", "--norc"]);
        }
        command
    }

    /// What a new shell is told first: how to keep its state, when to, and that of the shell before it.
    fn prelude(self, state: &Path) -> String {
        let file = quoted(state);
        let all = match self {
            Self::Bash => "export -p; declare -f; alias -p; umask -p",
            Self::Posix => "export -p; printf 'umask '; umask",
        };
        format!(
            "__midge_save() {{ {{ {all}; echo '# whole'; }} >{file} 2>/dev/null; }}\n\
             __midge_done() {{ set +euvx; __midge_save; echo \"$1 $2\"; }}\n\
             if [ -f {file} ]; then . {file} >/dev/null 2>&1; cd -- \"$PWD\" 2>/dev/null; fi\n\
             export PWD\n\
             trap __midge_save 0\n"
        )
    }
}

impl Session {
    /// Starts a shell in `cwd` (or in the directory that the state in `dir` names).
    pub(super) fn start(flavour: Flavour, tree: &Tree, cwd: &Path, dir: &Path, output: OwnedFd) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let state = dir.join("shell-state");
        forget_half_a_state(&state);
        let mut command = flavour.command();
        command.current_dir(cwd).envs(ENVIRONMENT).env_remove("BASH_ENV").env_remove("ENV");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(output);
        let mut child = tree.spawn(&mut command)?;
        let parts = (child.stdin.take(), child.stdout.take(), Pid::from_raw(child.id().cast_signed()));
        let (Some(mut stdin), Some(answers), Some(pid)) = parts else {
            return Err(io::Error::other("the shell has no standard streams"));
        };
        let gone = pidfd_open(pid, PidfdFlags::empty())?;
        rustix::fs::fcntl_setfl(&answers, rustix::fs::OFlags::NONBLOCK)?;
        stdin.write_all(flavour.prelude(&state).as_bytes())?;
        let script = dir.join("command");
        Ok(Self { child, gone, stdin, answers, unread: Vec::new(), state, script })
    }

    /// The process.
    pub(super) fn child(&self) -> &Child {
        &self.child
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Where it is, as far as can be told.
    pub(super) fn cwd(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/cwd", self.child.id())).ok()
    }

    /// Forgets what the next shell would take over.
    pub(super) fn forget_state(&self) {
        // What is not there need not go.
        let _ = fs::remove_file(&self.state);
    }

    /// Begins a command, which [`Session::look`] follows as `number`.
    pub(super) fn begin(&mut self, number: u64, command: &str) -> io::Result<()> {
        if let Some(dir) = self.script.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&self.script, format!("{command}\n"))?;
        let file = quoted(&self.script);
        let line = format!(". {file} </dev/null >&2 2>&1; {{ __midge_done {number} \"$?\"; }} 2>/dev/null\n");
        self.stdin.write_all(line.as_bytes())
    }

    /// Looks for at most `patience` whether command `number` has ended.
    pub(super) fn look(&mut self, number: u64, patience: Duration, cancel: &Cancel) -> io::Result<Ended> {
        let deadline = Instant::now() + patience;
        loop {
            if cancel.is_cancelled() {
                return Ok(Ended::Cancelled);
            }
            if let Some(code) = self.answer(number)? {
                return Ok(Ended::Code(code));
            }
            if let Some(status) = self.child.try_wait()? {
                tree::forget(&self.child);
                // It may have answered just before.
                return Ok(self.answer(number)?.map_or(Ended::Session(Some(status)), Ended::Code));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Ended::NotYet);
            }
            let mut fds = [
                PollFd::from_borrowed_fd(self.answers.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.gone.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(cancel.fd(), PollFlags::IN),
            ];
            match poll(&mut fds, Some(&Timespec::try_from(left).unwrap_or_default())) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The exit code of command `number`, when the shell has told it.
    fn answer(&mut self, number: u64) -> io::Result<Option<i32>> {
        let mut chunk = [0; 4096];
        loop {
            match rustix::io::read(&self.answers, &mut chunk) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Ok(count) => self.unread.extend_from_slice(&chunk[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                if let Some(code) = answered(&line, number) {
                    return Ok(Some(code));
                }
            }
            if self.unread.len() > ANSWER_MAX_BYTES {
                self.unread.clear();
            }
        }
    }

    /// Waits for the shell's end, which the caller has seen to.
    pub(super) fn wait(mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait();
        tree::forget(&self.child);
        status
    }
}

/// The code in the line `<number> <code>`.
fn answered(line: &[u8], number: u64) -> Option<i32> {
    let line = std::str::from_utf8(line).ok()?;
    let (told, code) = line.trim_end().split_once(' ')?;
    (told.parse() == Ok(number)).then(|| code.parse().ok()).flatten()
}

/// A state that was being written when its shell was killed would break the next one.
fn forget_half_a_state(state: &Path) {
    let text = fs::read(state).unwrap_or_default();
    if !text.ends_with(STATE_END.as_bytes()) {
        // What is not there need not go.
        let _ = fs::remove_file(state);
    }
}

/// `path` as one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_of_this_command_is_its_answer() {
        assert_eq!(answered(b"7 0\n", 7), Some(0));
        assert_eq!(answered(b"7 -1\n", 7), Some(-1));
        for line in [&b"6 0\n"[..], b"7\n", b"7 x\n", b"\xff 0\n", b"\n", b"7  0\n"] {
            assert_eq!(answered(line, 7), None, "{line:?}");
        }
    }

    #[test]
    fn a_path_is_one_word() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
