// SPDX-License-Identifier: Apache-2.0
//! `midge kernel`: the flags, and what is printed. The building is the library's.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use midge::cache::{Cache, mebibytes};
use midge::error::chain;
use midge::kernel::{self, Flavour, Kernel};
use midge::progress::Bar;

use super::{MIDGE_FAILED, fail};

const NOTES: &str = "`midge run` builds the kernel it needs by itself, once. Building takes some minutes, and needs a compiler \
and the kernel's source: the package linux-source-6.12, or --source.\n\n\
Flavours: guest (one vCPU), guest-smp (several), host (for the emulated host).\n\n\
Examples:\n  \
midge kernel build\n  \
midge kernel build --flavour guest-smp --source ~/linux-6.12.tar.xz\n  \
midge kernel list";

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub(crate) struct KernelArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build a kernel from source, or find the one built from the same inputs
    #[command(after_long_help = NOTES)]
    Build {
        /// What the kernel is for
        #[arg(long, default_value = "guest", value_parser = flavours())]
        flavour: Flavour,

        /// Linux source: a directory or a tarball [default: the distribution's linux-source package]
        #[arg(long, value_name = "DIR|TARBALL")]
        source: Option<PathBuf>,
    },
    /// List the kernels that were built
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

fn flavours() -> impl TypedValueParser<Value = Flavour> {
    PossibleValuesParser::new(Flavour::ALL.map(Flavour::name))
        .map(|name| Flavour::from_name(&name).unwrap_or(Flavour::Guest))
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Does it and gives the exit code.
pub(crate) fn main(args: KernelArgs) -> u8 {
    match act(args.action) {
        Ok(()) => 0,
        Err(error) => {
            fail::say(&chain(error.as_ref()));
            MIDGE_FAILED
        }
    }
}

fn act(action: Action) -> Result<(), Failure> {
    let cache = Cache::open()?;
    let mut out = io::stdout().lock();
    match action {
        Action::Build { flavour, source } => {
            let kernel = kernel::build(&cache, flavour, source.as_deref(), &Bar::new())?;
            writeln!(out, "{}", line(&kernel))?;
        }
        Action::List { json: true } => writeln!(out, "{}", serde_json::to_string(&kernel::list(&cache)?)?)?,
        Action::List { json: false } => {
            let kernels = kernel::list(&cache)?;
            if kernels.is_empty() {
                fail::say("no kernel was built yet; `midge kernel build` builds one");
            }
            for kernel in kernels {
                writeln!(out, "{}", line(&kernel))?;
            }
        }
    }
    Ok(())
}

fn line(kernel: &Kernel) -> String {
    let record = &kernel.record;
    format!(
        "{:<10} Linux {:<10} {:>10}  built in {:>4} s  {}",
        record.flavour.name(),
        record.version,
        mebibytes(record.vmlinux_bytes),
        record.build_s,
        kernel.vmlinux.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        kernel: KernelArgs,
    }

    #[test]
    fn every_flavour_can_be_named_and_no_other() {
        for flavour in Flavour::ALL {
            let parsed = Line::try_parse_from(["x", "build", "--flavour", flavour.name()]).unwrap();
            assert!(matches!(parsed.kernel.action, Action::Build { flavour: f, source: None } if f == flavour));
        }
        let error = Line::try_parse_from(["x", "build", "--flavour", "fast"]).unwrap_err().to_string();
        assert!(error.contains("guest-smp"), "{error}");
    }
}
