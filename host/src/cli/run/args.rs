// SPDX-License-Identifier: Apache-2.0
//! The flags of `midge run`, and what of them can be checked without looking at the machine.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args};
use midge::error::Error;
use midge::groups::{CPU_PERCENT_RANGE, Share};
use midge::sandbox::settings::check_env_name;
use midge_policy::Name;

use crate::cli::agent::args::Approve;

/// Longest `--timeout`: a year.
const TIMEOUT_MAX_S: f64 = 366.0 * 86_400.0;

const NOTES: &str = "Exit code: the command's own; 128 and the signal's number when a signal killed it; 124 when its time was \
over; 126 or 127 when it could not be started; 125 when Midge itself failed.\n\n\
Standard input, output and error pass byte for byte. Ctrl-C goes to the command, a second one ends the sandbox.\n\n\
With --json nothing passes through: standard output gets one line, a JSON object with `exit_code`, `signal`, `timed_out`, \
`stdout`, `stderr` (each at most 1 MiB, with `stdout_bytes` and `stderr_bytes` for the whole), `usage`, `place`, `timeline`, \
`workspace` (with `changes`, `diff` and `pack_notes`) and `error` (null, or `fault`, `message`, `next_step`).\n\n\
Examples:\n  \
midge run -- python3 -c 'print(6 * 7)'\n  \
midge run --workspace . -- make test\n  \
midge run --workspace .:apply --timeout 600 -- ./format-everything.sh\n  \
midge run --policy package-install -- pip install --target /tmp/p six\n  \
midge run --image ./rootfs --mem 2048 --cpus 2 --tty -- /bin/sh\n  \
tar c src | midge run -- tar x -C /tmp";

#[derive(Debug, Args)]
#[command(after_long_help = NOTES, group = ArgGroup::new("worked_on").multiple(true))]
pub(crate) struct RunArgs {
    /// A template to start from (`midge template create`), in place of booting; it fixes image, memory, vCPUs, disk and
    /// the workspace's directory
    #[arg(long, value_name = "NAME", group = "worked_on")]
    #[arg(conflicts_with_all = ["image", "mem", "cpus", "disk", "skip_unreadable", "console", "boot_timeout"])]
    pub(super) template: Option<String>,

    /// Root file system: a built image's name, a directory, or an erofs, ext4 or squashfs file [default: base]
    #[arg(long, value_name = "NAME|DIR|FILE")]
    pub(super) image: Option<String>,

    /// Kernel: a vmlinux or bzImage for x86-64 [default: built once from the distribution's source]
    #[arg(long, value_name = "FILE", env = "MIDGE_KERNEL", hide_env_values = true)]
    pub(super) kernel: Option<PathBuf>,

    /// Memory of the guest, from 32 MiB to this machine's
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) mem: u64,

    /// Number of vCPUs, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) cpus: u32,

    /// Size of the disk that takes what the guest writes, 32 to 1048576 MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub(super) disk: u64,

    /// A directory to work on: the guest changes a copy at /workspace, and afterwards the changes are
    /// thrown away (discard), shown and asked about (review, the default) or written back (apply). Beside --template,
    /// which brings its directory, only the mode is given, as in `:apply`
    #[arg(long, value_name = "DIR[:discard|review|apply]", group = "worked_on")]
    pub(super) workspace: Option<Workspace>,

    /// Leave out of the workspace what you cannot read, in place of refusing it as a whole
    #[arg(long, requires = "workspace")]
    pub(super) skip_unreadable: bool,

    /// Apply changes to git's own files too, such as .git/config and hooks: they can make git run commands here
    #[arg(long, requires = "worked_on")]
    pub(super) allow_git_internals: bool,

    /// Apply new symbolic links too that lead out of the workspace
    #[arg(long, requires = "worked_on")]
    pub(super) allow_outside_links: bool,

    /// Opens the doors of a policy, a file or one of `midge policy list`: the network, a model, questions and children as far as it
    /// says, by the variables that programs know (HTTPS_PROXY, SSL_CERT_FILE, ANTHROPIC_BASE_URL and more); recorded, see `midge log`.
    /// Its limits and its wall time hold for the machine too [default: no door is open]
    #[arg(long, value_name = "FILE|PROFILE")]
    pub(super) policy: Option<String>,

    /// What the policies of other sandboxes call this one; needed where its own policy names peers
    #[arg(long, value_name = "NAME", requires = "policy")]
    pub(super) name: Option<Name>,

    /// Who answers what a rule of the policy asks about; with `ask` the terminal is for that, and the command gets no input
    #[arg(long, value_enum, default_value_t = Approve::Deny, requires = "policy")]
    pub(super) approve: Approve,

    /// A variable for the command; NAME alone takes its value from here. Can be given more than once
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = parse_env)]
    pub(super) env: Vec<(OsString, OsString)>,

    /// User to run the command as: a name, uid or uid:gid [default: agent where the image has it, else root]
    #[arg(long, value_name = "USER")]
    pub(super) user: Option<String>,

    /// Kill the command and all it started after so many seconds, such as 90 or 0.5
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout, allow_hyphen_values = true)]
    pub(super) timeout: Option<Duration>,

    /// Run although this machine does not give a part of the monitor's jail, such as pid-namespace: `midge doctor` names what
    /// is missing. Can be given more than once
    #[arg(long, value_name = "PART", env = "MIDGE_ALLOW_MISSING", value_delimiter = ',')]
    pub(super) allow_missing: Vec<String>,

    /// Processor time of this machine at most, in processors, such as 0.5 or 2; needs control groups (`midge doctor`)
    /// [default: as much as there is, shared evenly with whoever else wants it]
    #[arg(long, value_name = "PROCESSORS", value_parser = parse_cpu_limit, allow_hyphen_values = true)]
    pub(super) cpu_limit: Option<u32>,

    /// MiB a second read from this machine's disk at most, and as many written; needs control groups
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(super) io_limit: Option<u64>,

    /// Give the command a terminal
    #[arg(long, short = 't')]
    pub(super) tty: bool,

    /// Give the guest a serial console and print what the kernel says to standard error (a slower boot)
    #[arg(long)]
    pub(super) console: bool,

    /// Print one JSON object about the run instead of passing the streams through
    #[arg(long, conflicts_with = "tty")]
    pub(super) json: bool,

    /// Print when each stage of the run was reached, to standard error
    #[arg(long)]
    pub(super) timeline: bool,

    /// How long the guest may take to start, 1 to 3600 seconds [default: 30, in the emulated host 120]
    #[arg(long, value_name = "SECONDS")]
    pub(super) boot_timeout: Option<u64>,

    /// The command and its arguments; never passed through a shell
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(super) command: Vec<OsString>,
}

/// What becomes of the changes to a workspace, from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum Mode {
    /// Shown nowhere, kept nowhere.
    Discard,
    /// Shown, and asked about on a terminal.
    Review,
    /// Shown and written back.
    Apply,
}

impl Mode {
    /// The lesser of this and what a policy lets become of changes.
    pub(in crate::cli) fn at_most(self, allowed: midge_policy::Mode) -> Self {
        self.min(match allowed {
            midge_policy::Mode::Discard => Self::Discard,
            midge_policy::Mode::Review => Self::Review,
            midge_policy::Mode::Apply => Self::Apply,
        })
    }
}

/// The value of `--workspace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Workspace {
    /// `None`: the template's.
    pub(in crate::cli) dir: Option<PathBuf>,
    pub(in crate::cli) mode: Mode,
}

impl FromStr for Workspace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (dir, mode) = match text.rsplit_once(':') {
            Some((dir, "discard")) => (dir, Mode::Discard),
            Some((dir, "review")) => (dir, Mode::Review),
            Some((dir, "apply")) => (dir, Mode::Apply),
            // A directory may have a colon in its name; a word after a colon is more likely a mistake.
            Some((_, word)) if !word.contains('/') && !std::path::Path::new(text).is_dir() => {
                return Err(format!("{word:?} is no mode; accepted: discard, review, apply"));
            }
            _ => (text, Mode::Review),
        };
        if text.is_empty() {
            return Err("no directory is named; accepted: DIR or DIR:discard, DIR:review, DIR:apply".to_owned());
        }
        Ok(Self { dir: (!dir.is_empty()).then(|| dir.into()), mode })
    }
}

impl RunArgs {
    /// What is to become of the changes to the workspace, where there is one.
    pub(super) fn mode(&self) -> Mode {
        self.workspace.as_ref().map_or(Mode::Review, |workspace| workspace.mode)
    }

    /// What the sandbox may have of this machine.
    pub(super) fn share(&self) -> Share {
        Share { cpu_percent: self.cpu_limit, io_mib_s: self.io_limit }
    }

    /// Checks that either a directory or a template is named. `brings` says whether the template has a workspace.
    pub(super) fn check_workspace(&self, brings: bool) -> Result<(), Error> {
        let asked = self.workspace.as_ref();
        let dir = asked.and_then(|workspace| workspace.dir.as_ref());
        let is_allowing = self.allow_git_internals || self.allow_outside_links;
        let (value, accepted) = match (&self.template, dir) {
            (None, None) if asked.is_some() => ("only a mode", "DIR, or DIR:apply; a mode alone beside --template"),
            (Some(_), _) if !brings && (asked.is_some() || is_allowing) => (
                "asked for",
                "none with this template; `midge template create --workspace DIR` makes one that has a workspace",
            ),
            (Some(_), Some(_)) => {
                ("a directory", "beside --template, which brings one, a mode alone: :discard, :review, :apply")
            }
            _ => return Ok(()),
        };
        let what = "the workspace (--workspace)";
        Err(Error::Setting { what, value: value.to_owned(), accepted: accepted.to_owned() })
    }
}

fn parse_env(text: &str) -> Result<(OsString, OsString), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, OsString::from(value)),
        None => {
            let value = std::env::var_os(text);
            (text, value.ok_or_else(|| format!("{text} is not set here; accepted: NAME=VALUE, or a NAME that is set"))?)
        }
    };
    check_env_name(name).map_err(|error| error.to_string())?;
    Ok((name.into(), value))
}

/// In percent of one processor.
fn parse_cpu_limit(text: &str) -> Result<u32, String> {
    let percent = text.parse::<f64>().map_or(f64::NAN, |processors| (processors * 100.0).round());
    let (least, most) = (f64::from(*CPU_PERCENT_RANGE.start()), f64::from(*CPU_PERCENT_RANGE.end()));
    if !(least..=most).contains(&percent) {
        return Err(format!("accepted: processors, from {} to {}", least / 100.0, most / 100.0));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number within the range")]
    Ok(percent as u32)
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let refused = || format!("accepted: seconds, from 0.001 to {TIMEOUT_MAX_S}");
    let seconds: f64 = text.parse().map_err(|_| refused())?;
    if !(0.001..=TIMEOUT_MAX_S).contains(&seconds) {
        return Err(refused());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(line: &[&str]) -> Result<RunArgs, clap::Error> {
        Line::try_parse_from(["midge"].iter().chain(line)).map(|line| line.run)
    }

    #[test]
    fn command_may_look_like_flags() {
        for line in [&["--mem", "64", "--", "ls", "--mem", "-l"][..], &["--mem", "64", "ls", "--mem", "-l"]] {
            let args = parse(line).unwrap();
            assert_eq!((args.mem, args.command), (64, vec!["ls".into(), "--mem".into(), "-l".into()]));
        }
        assert_eq!(parse(&["--", "--odd"]).unwrap().command, ["--odd"]);
        assert!(parse(&[]).is_err() && parse(&["--"]).is_err() && parse(&["--no-such-flag", "--", "x"]).is_err());
    }

    #[test]
    fn workspace_mode_is_the_last_word() {
        let parsed =
            |text: &str| Workspace::from_str(text).map(|w| (w.dir.unwrap_or_default().display().to_string(), w.mode));
        assert_eq!(parsed("/a"), Ok(("/a".into(), Mode::Review)));
        assert_eq!(parsed("/a:apply"), Ok(("/a".into(), Mode::Apply)));
        assert_eq!(parsed("/a:b:discard"), Ok(("/a:b".into(), Mode::Discard)));
        assert_eq!(parsed("/a:b/c"), Ok(("/a:b/c".into(), Mode::Review)));
        assert!(parsed("/a:destroy").unwrap_err().contains("discard, review, apply"));
        assert_eq!(parsed(":apply"), Ok((String::new(), Mode::Apply)), "of a template");
        assert!(parsed("").is_err() && parsed(":destroy").is_err());
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("x:y");
        std::fs::create_dir(&odd).unwrap();
        assert_eq!(parsed(odd.to_str().unwrap()), Ok((odd.display().to_string(), Mode::Review)));
    }

    #[test]
    fn variables_keep_every_byte_of_their_value() {
        assert_eq!(parse_env("A=b=c\n"), Ok(("A".into(), "b=c\n".into())));
        assert_eq!(parse_env("A="), Ok(("A".into(), "".into())));
        assert!(parse_env("=x").is_err());
        assert!(parse_env("MIDGE_NO_SUCH_VARIABLE").unwrap_err().contains("not set"));
        assert_eq!(parse_env("PATH").unwrap().1, std::env::var_os("PATH").unwrap());
    }

    #[test]
    fn timeouts_have_a_range() {
        assert_eq!(parse_timeout("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_timeout("0.001"), Ok(Duration::from_millis(1)));
        for text in ["0", "0.0009", "-3", "NaN", "inf", "1e99", "ten", ""] {
            assert!(parse_timeout(text).unwrap_err().contains("accepted"), "{text}");
        }
    }

    #[test]
    fn limits_of_the_machine_have_units_and_ranges() {
        let share = |line: &[&str]| parse(line).map(|args| args.share());
        assert_eq!(share(&["x"]).unwrap(), Share::default());
        let limited = share(&["--cpu-limit", "1.5", "--io-limit", "20", "x"]).unwrap();
        assert_eq!(limited, Share { cpu_percent: Some(150), io_mib_s: Some(20) });
        assert_eq!((parse_cpu_limit("0.01"), parse_cpu_limit("1000")), (Ok(1), Ok(100_000)));
        for text in ["0", "0.004", "-1", "1001", "NaN", "inf", "half", ""] {
            assert!(parse_cpu_limit(text).unwrap_err().contains("0.01 to 1000"), "{text}");
        }
        for text in ["0", "1048577", "1.5"] {
            assert!(parse(&["--io-limit", text, "x"]).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_about_a_workspace_need_one() {
        for flag in ["--skip-unreadable", "--allow-git-internals", "--allow-outside-links"] {
            assert!(parse(&[flag, "x"]).unwrap_err().to_string().contains("--workspace"), "{flag}");
            assert!(parse(&[flag, "--workspace", "/a", "x"]).is_ok(), "{flag}");
        }
    }

    #[test]
    fn a_workspace_is_a_directory_or_the_templates() {
        let check = |line: &[&str], brings| parse(line).unwrap().check_workspace(brings).map_err(|e| e.to_string());
        let refused = |line: &[&str], brings, part: &str| {
            let text = check(line, brings).unwrap_err();
            assert!(text.contains(part), "{line:?}: {text}");
        };
        assert!(check(&["--workspace", "/a:apply", "x"], false).is_ok() && check(&["x"], false).is_ok());
        refused(&["--workspace", ":apply", "x"], false, "a mode alone beside --template");
        for line in [&["--template", "t", "x"][..], &["--template", "t", "--workspace", ":apply", "x"]] {
            assert!(check(line, true).is_ok(), "{line:?}");
        }
        refused(&["--template", "t", "--workspace", "/a", "x"], true, "which brings one");
        refused(&["--template", "t", "--workspace", "/a", "x"], false, "none with this template");
        refused(&["--template", "t", "--workspace", ":apply", "x"], false, "none with this template");
        refused(&["--template", "t", "--allow-git-internals", "x"], false, "none with this template");
        assert!(check(&["--template", "t", "x"], false).is_ok());
        assert!(parse(&["--template", "t", "--workspace", ":apply", "--skip-unreadable", "x"]).is_err());
        assert_eq!(parse(&["--template", "t", "x"]).unwrap().mode(), Mode::Review);
    }

    #[test]
    fn json_and_a_terminal_exclude_each_other() {
        assert!(parse(&["--json", "--tty", "x"]).is_err());
    }
}
