// SPDX-License-Identifier: Apache-2.0
//! `midge template`: the flags, and what is printed. The making is the library's.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use midge::cache::mebibytes;
use midge::error::Error;
use midge::progress::Bar;
use midge::sandbox::{Sandbox, Where};
use midge::template::{Plan, Record, Template};
use midge::workspace::review::notes;
use midge::workspace::{Notes, PackLimits, printable};

use super::fail::{exit_code, say, tell};
use super::run;

const NOTES: &str = "A template is a sandbox that was started once and set up, with everything in its memory and on its disk. \
A run of it begins where the template stands, in a few milliseconds, and changes nothing in it. Each run has random numbers, \
a clock, a host name and a machine id of its own before any of its commands runs.\n\n\
Examples:\n  \
midge template create py --mem 256 --setup 'pip install --no-index /opt/wheels/*'\n  \
midge template create server --warm 'python3 server.py'     prints a line when it is ready\n  \
midge run --template py -- python3 -c 'print(1)'\n  \
midge template create project --workspace . --setup make\n  \
midge run --template project --workspace :apply -- make test  review without a mode, as without a template\n  \
midge template list";

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub(crate) struct TemplateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start a sandbox, set it up, and keep it
    #[command(after_long_help = NOTES)]
    Create(CreateArgs),
    /// List the templates
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Print all that is known of a template, as JSON
    Inspect {
        /// The template
        name: String,
    },
    /// Remove a template; what runs of it goes on
    Remove {
        /// The templates
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// What it is called: letters, digits, `-`, `_` and `.`, at most 64
    name: String,

    /// Root file system: a built image's name, a directory, or an erofs, ext4 or squashfs file [default: base]
    #[arg(long, value_name = "NAME|DIR|FILE")]
    image: Option<String>,

    /// Kernel: a vmlinux or bzImage for x86-64 [default: built once from the distribution's source]
    #[arg(long, value_name = "FILE", env = "MIDGE_KERNEL", hide_env_values = true)]
    kernel: Option<PathBuf>,

    /// Memory of the guest, from 32 MiB to this machine's
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    mem: u64,

    /// Number of vCPUs, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,

    /// Size of the disk that takes what the guest writes, 32 to 1048576 MiB; what is written is held in memory
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    disk: u64,

    /// A directory to work on: its content as it is now is at /workspace in the template and in all that is made of it.
    /// What the template's commands and a run change comes back as with `midge run --workspace`
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,

    /// Leave out of the workspace what you cannot read, in place of refusing it as a whole
    #[arg(long, requires = "workspace")]
    skip_unreadable: bool,

    /// Make it although this machine does not give a part of the monitor's jail, such as pid-namespace: `midge doctor` names
    /// what is missing. Can be given more than once
    #[arg(long, value_name = "PART", env = "MIDGE_ALLOW_MISSING", value_delimiter = ',')]
    allow_missing: Vec<String>,

    /// A shell command that is run in it once, as root, in /workspace if it has one; it must succeed
    #[arg(long, value_name = "CMD")]
    setup: Option<String>,

    /// A shell command that is started in it and runs in everything that is made of it. It is ready when it has printed
    /// a line
    #[arg(long, value_name = "CMD")]
    warm: Option<String>,
}

/// Does it and gives the exit code.
pub(crate) fn main(args: TemplateArgs) -> u8 {
    let done = match args.action {
        Action::Create(args) => return create(args),
        Action::List { json } => Template::list().and_then(|records| print_list(&records, json)),
        Action::Inspect { name } => Template::open(&name).and_then(|template| print_json(template.record())),
        Action::Remove { names } => names.iter().try_for_each(|name| Template::remove(name)),
    };
    code_of(done)
}

fn code_of(done: Result<(), Error>) -> u8 {
    match done {
        Ok(()) => 0,
        Err(error) => {
            tell(&error);
            exit_code(&error)
        }
    }
}

fn create(args: CreateArgs) -> u8 {
    let work = async {
        let on_output = Box::new(|bytes: &[u8]| {
            // Progress for whoever looks; the answer does not depend on it.
            let _ = io::stderr().write_all(bytes);
        });
        let mut builder = Sandbox::builder().mem_mib(args.mem).cpus(args.cpus).disk_mib(args.disk);
        builder = builder.watch(Arc::new(Bar::new())).place(Where::Auto.allowing(args.allow_missing));
        if let Some(image) = &args.image {
            builder = builder.image(image);
        }
        if let Some(kernel) = &args.kernel {
            builder = builder.kernel(kernel);
        }
        if let Some(dir) = &args.workspace {
            let limits = PackLimits { skip_unreadable: args.skip_unreadable, ..PackLimits::default() };
            builder = builder.workspace(dir).pack_limits(limits);
        }
        let on_packed = Box::new(|packed: &Notes| notes(packed).lines().for_each(say));
        let plan = Plan { setup: args.setup, warm: args.warm, on_packed: Some(on_packed), on_output: Some(on_output) };
        let template = Template::create(&args.name, builder, plan).await?;
        print_list(std::slice::from_ref(template.record()), false)
    };
    // Dropping the work ends the machine; nothing of the template appears.
    run::until_interrupted(work).map_or_else(|code| code, code_of)
}

fn print_list(records: &[Record], json: bool) -> Result<(), Error> {
    if json {
        return print_json(records);
    }
    if records.is_empty() {
        say("there is no template yet; `midge template create NAME` makes one");
    }
    let mut out = io::stdout().lock();
    for record in records {
        let workspace = record.workspace.as_deref();
        let workspace = workspace.map_or(String::new(), |dir| format!("  workspace: {}", printable(dir.as_bytes())));
        let warm = record.warm.as_deref().map_or(String::new(), |command| format!("  warm: {command}"));
        let line = format!(
            "{:<16} {:>6} MiB {:>2} vCPU  {:>10} in use  {:<8}{workspace}{warm}",
            record.name,
            record.config.mem_mib,
            record.config.cpus,
            mebibytes(record.memory_bytes),
            record.place,
        );
        // A reader that closed the pipe has seen what it wanted.
        let _ = writeln!(out, "{}", line.trim_end());
    }
    Ok(())
}

fn print_json<T: serde::Serialize + ?Sized>(value: &T) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::prepare("answer", midge::error::Fault::Midge, error))?;
    let _ = writeln!(io::stdout().lock(), "{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        template: TemplateArgs,
    }

    fn parse(words: &[&str]) -> Result<Action, clap::Error> {
        Line::try_parse_from(["x"].iter().chain(words)).map(|line| line.template.action)
    }

    #[test]
    fn a_name_is_required_and_commands_are_taken_as_they_are() {
        assert!(parse(&["create"]).is_err() && parse(&["inspect"]).is_err() && parse(&["remove"]).is_err());
        let Ok(Action::Create(args)) = parse(&["create", "a", "--setup", "x && y", "--warm", "z"]) else { panic!() };
        assert_eq!((args.name.as_str(), args.mem, args.cpus, args.disk), ("a", 1024, 1, 4096));
        assert_eq!((args.setup.as_deref(), args.warm.as_deref()), (Some("x && y"), Some("z")));
        assert!(parse(&["create", "a", "--skip-unreadable"]).is_err(), "of what?");
        let Ok(Action::Create(args)) = parse(&["create", "a", "--workspace", "/d:x"]) else { panic!() };
        assert_eq!(args.workspace, Some("/d:x".into()), "a template has no mode");
        assert!(matches!(parse(&["remove", "a", "b"]), Ok(Action::Remove { names }) if names == ["a", "b"]));
    }
}
