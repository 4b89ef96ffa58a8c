// SPDX-License-Identifier: Apache-2.0
//! `midge bench vsock` and `block`: their flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use midge::bench::{BenchError, BootOptions, Contender, Jail, Report, device_initramfs, vsock};
use midge::cache::Cache;
use midge::kernel::{self, Flavour};
use midge::progress::{Bar, Watch};
use midge::sandbox::binaries;

use super::{Failure, Output};

#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// Rounds, in each of which everybody is asked in turn
    #[arg(short = 'n', long = "runs", value_name = "N", default_value_t = 10)]
    runs: u32,

    /// Who to compare with: firecracker=PATH, and for block qemu-microvm or qemu-microvm=PATH. Can be given more than once
    #[arg(long, value_name = "WHO")]
    vs: Vec<Contender>,

    /// Kernel for all of them [default: built once from the distribution's source]
    #[arg(long, value_name = "FILE", env = "MIDGE_KERNEL", hide_env_values = true)]
    kernel: Option<PathBuf>,

    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    mem: u64,

    #[command(flatten)]
    output: Output,

    /// Longest a single step may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    limit: u64,
}

/// A bench of a device.
type Measure = fn(&BootOptions, &mut dyn FnMut(u32, u32)) -> Result<Report, BenchError>;

/// Times vsock, and tells the result.
pub(super) fn vsock_main(args: &DeviceArgs) -> Result<(), Failure> {
    if let Some(other) = args.vs.iter().find(|other| !other.has_vsock()) {
        let name = other.name();
        return Err(format!(
            "--vs {name}: its vsock is the host kernel's (vhost_vsock), not its own, so it is not compared; \
             take firecracker=PATH, or `midge bench block` for {name}"
        )
        .into());
    }
    main(vsock, args)
}

/// Runs it and tells the result.
pub(super) fn main(measure: Measure, args: &DeviceArgs) -> Result<(), Failure> {
    let cache = Cache::open()?;
    let bar = Bar::new();
    let kernel = match &args.kernel {
        Some(path) => path.canonicalize().map_err(|error| format!("--kernel {}: {error}", path.display()))?,
        None => kernel::ensure(&cache, Flavour::Guest, &bar)?,
    };
    let dir = cache.stage()?;
    let options = BootOptions {
        runs: args.runs,
        vmm: binaries::vmm()?,
        against: args.vs.clone(),
        kernel,
        initramfs: device_initramfs(&binaries::midge()?, dir.path())?,
        mem_mib: args.mem,
        jail: Jail::On,
        limit: Duration::from_secs(args.limit.max(1)),
    };
    bar.begin("asking everybody in turn", u64::from(args.runs) + 1);
    let report = measure(&options, &mut |done, _| bar.at(u64::from(done)));
    bar.end("");
    args.output.deliver(&report?)
}
