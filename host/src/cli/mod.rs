// SPDX-License-Identifier: Apache-2.0
//! The command line: flags in, exit code out.
//!
//! Standard output belongs to the command that a user runs (or to the answer of `doctor` and `list`);
//! everything that Midge itself has to say goes to standard error.

mod agent;
mod bench;
mod doctor;
mod fail;
mod image;
mod kernel;
mod log;
mod policy;
mod ps;
mod run;
mod template;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// What Midge exits with when it failed itself.
pub(crate) const MIDGE_FAILED: u8 = 125;
/// What it exits with for usage errors of anything but `run`.
const USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "midge",
    version,
    max_term_width = 100,
    about = "Sandboxes with a kernel of their own for AI agents",
    long_about = "Sandboxes with a kernel of their own for AI agents.\n\n\
        Every sandbox is a small virtual machine with its own Linux kernel, started in a fraction of a second. A \
        directory of yours appears in it as a copy; what a run changed comes back as a diff, and nothing on this \
        machine changes unless you ask for it.",
    after_long_help = EXAMPLES
)]
struct Cli {
    /// How much to log to standard error: off, error, warn, info, debug, trace, or a filter such as `midge=debug`
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        env = "MIDGE_LOG",
        hide_env_values = true,
        default_value = "warn"
    )]
    log_level: String,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:\n  \
    midge run -- uname -a                     a command in a fresh virtual machine\n  \
    midge run --workspace . -- make test      your project's tests; changes come back as a diff\n  \
    midge run --tty -- bash                   a shell to look around in\n  \
    midge template create py --setup CMD      set a sandbox up once; `midge run --template py` starts there\n  \
    midge doctor                              what this machine can do, and what it lacks\n\n\
    Files: kernels and images are kept in $MIDGE_CACHE, else $XDG_CACHE_HOME/midge, else ~/.cache/midge.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a fresh virtual machine
    Run(run::RunArgs),
    /// Give a task to an agent in a fresh virtual machine, with exactly the authority of a policy
    Agent(agent::AgentArgs),
    /// Do a recorded run of an agent again, with its model's answers, in a fresh virtual machine
    Replay(agent::ReplayArgs),
    /// Say what this machine can do, what it lacks and how to mend that
    Doctor(doctor::DoctorArgs),
    /// Build and list guest kernels
    Kernel(kernel::KernelArgs),
    /// Build and list root file systems
    Image(image::ImageArgs),
    /// Make, list and remove sandboxes that are kept to be forked
    Template(template::TemplateArgs),
    /// Check and explain what sandboxes may do
    Policy(policy::PolicyArgs),
    /// List the sandboxes that are alive, and what memory they hold
    Ps(ps::PsArgs),
    /// Verify, show and export the transcripts of runs
    Log(log::LogArgs),
    /// Measure, beside other monitors
    Bench(bench::BenchArgs),
}

/// Parses the command line, does what it says, and gives the exit code.
pub(crate) fn main() -> ExitCode {
    ExitCode::from(dispatch())
}

fn dispatch() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, is_run(std::env::args_os().skip(1))),
    };
    if let Err(error) = start_log(&cli.log_level) {
        let error = Cli::command().error(ErrorKind::InvalidValue, error);
        return refuse(&error, matches!(cli.command, Command::Run(_)));
    }
    match cli.command {
        Command::Run(args) => run::main(args),
        Command::Agent(args) => agent::main(args),
        Command::Replay(args) => agent::replay(args),
        Command::Doctor(args) => doctor::main(args),
        Command::Kernel(args) => kernel::main(args),
        Command::Image(args) => image::main(args),
        Command::Template(args) => template::main(args),
        Command::Policy(args) => policy::main(args),
        Command::Ps(args) => ps::main(&args),
        Command::Log(args) => log::main(&args),
        Command::Bench(args) => bench::main(args),
    }
}

/// Prints a usage error, or the help that was asked for.
fn refuse(error: &clap::Error, in_run: bool) -> u8 {
    // Nothing is left to do when the terminal is gone.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        _ if in_run => MIDGE_FAILED,
        _ => USAGE,
    }
}

/// Whether a command line that could not be parsed was meant for `run`.
fn is_run(args: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let mut words = args.skip_while(|word| word.to_string_lossy().starts_with('-'));
    let first = words.next();
    // `--log-level LEVEL` puts one word before the command.
    first.is_some_and(|word| word == "run") || words.next().is_some_and(|word| word == "run")
}

/// Levels by name; anything else has to be a filter with a `=` in it.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn start_log(level: &str) -> Result<(), String> {
    let refused = |why: &str| {
        format!(
            "--log-level (MIDGE_LOG) is {level:?}: {why}accepted: {}, or a filter like midge=debug\n",
            LEVELS.join(", ")
        )
    };
    let is_level = LEVELS.iter().any(|name| name.eq_ignore_ascii_case(level));
    if !is_level && !level.contains('=') {
        return Err(refused(""));
    }
    let filter = EnvFilter::builder().parse(level).map_err(|error| refused(&format!("{error}; ")))?;
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(color).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_of_run_are_told_from_others() {
        let is_run = |line: &str| is_run(line.split_whitespace().map(Into::into));
        assert!(is_run("run --bad") && is_run("--log-level debug run") && is_run("--log-level=debug run x"));
        assert!(!is_run("doctor --bad") && !is_run("") && !is_run("--bad"));
    }

    #[test]
    fn log_levels_that_are_none_are_refused_with_a_list() {
        for level in ["", "loud", "debgu", "midge=loud"] {
            let error = start_log(level).unwrap_err();
            assert!(error.contains("off, error, warn"), "{error}");
        }
    }

    #[test]
    fn help_fits_and_names_every_flag_of_the_contract() {
        let help = Cli::command().find_subcommand_mut("run").unwrap().render_long_help().to_string();
        for flag in [
            "--image",
            "--kernel",
            "--mem",
            "--cpus",
            "--disk",
            "--workspace",
            "--skip-unreadable",
            "--allow-git-internals",
            "--allow-outside-links",
            "--env",
            "--user",
            "--timeout",
            "--tty",
            "--console",
            "--json",
            "--timeline",
            "--boot-timeout",
        ] {
            assert!(help.contains(flag), "{flag} is missing");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 110), "{help}");
    }
}
