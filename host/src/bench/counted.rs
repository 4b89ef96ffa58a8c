// SPDX-License-Identifier: Apache-2.0
//! The near end of a counted bench: packs the contenders and what they boot into the initramfs of an emulated host
//! whose clock counts instructions, runs it, and reads the result from its console. [`inside`](super::inside) does the work.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::boot::report_of;
use super::inside::{ORDER, Word};
use super::{BenchError, BootOptions, Clock, Contender, Report, check_runs};
use crate::cache::Cache;
use crate::emulated::EmulatedError;
use crate::emulated::counted::CountedHost;
use crate::initramfs::{self, InitramfsError};
use crate::kernel::{self, Flavour, KernelError};
use crate::progress::Watch;

/// Memory of the emulated host beside the initramfs and its copy, and the guest: kernel, page tables, monitors.
const MEM_MIB: u64 = 768;
/// Longest that one boot may take by this machine's clock: thirty times what it does.
const SILENCE_MAX: Duration = Duration::from_secs(180);
/// What QEMU reads when it starts a `microvm`.
const QEMU_FILES: [&str; 5] = ["qboot.rom", "bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"];
/// Where distributions keep them.
const QEMU_DIRS: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/local/share/qemu"];

/// Why a counted bench has no result.
#[derive(Debug, thiserror::Error)]
pub enum CountedError {
    /// The bench's options.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The emulated host's kernel cannot be had.
    #[error("preparing the emulated host's kernel: {0}")]
    Kernel(#[from] KernelError),
    /// Its initramfs cannot be made.
    #[error("preparing the emulated host's initramfs: {0}")]
    Initramfs(#[from] InitramfsError),
    /// A file of the bench's cannot be written.
    #[error("preparing the bench in {path}")]
    Files {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A contender's program cannot be found, or its libraries cannot.
    #[error("taking {program} to the emulated host: {problem}")]
    Program {
        /// The program.
        program: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The emulated host failed.
    #[error(transparent)]
    Emulated(#[from] EmulatedError),
    /// The bench failed in it.
    #[error("in the emulated host: {text}")]
    Inside {
        /// Why, with its causes.
        text: String,
    },
    /// It ended without a result.
    #[error("the emulated host ended without a result; MIDGE_LOG=midge::emulated=debug shows its console")]
    NoResult,
}

/// Runs the bench in an emulated host of which `midge` is the first process, on a processor that QEMU calls `cpu`;
/// `watch` is told of its boots.
///
/// # Errors
/// [`CountedError`]: what cannot be prepared, and the first run that fails.
pub fn boot_counted(
    options: &BootOptions,
    cpu: &str,
    cache: &Cache,
    midge: &Path,
    watch: &dyn Watch,
) -> Result<Report, CountedError> {
    check_runs(options.runs)?;
    let kernel = kernel::ensure(cache, Flavour::Host, watch)?;
    let dir = cache.stage().map_err(InitramfsError::from)?;
    let archive = dir.path().join("bench.cpio");
    let size_mib = pack(options, midge, dir.path(), &archive)?;
    let host = CountedHost {
        kernel: &kernel,
        initramfs: &archive,
        mem_mib: MEM_MIB + options.mem_mib + 3 * size_mib,
        silence_max: SILENCE_MAX,
        cpu,
    };
    watch.begin("booting in the emulated host", u64::from(options.boots()));
    let mut last = None;
    let ran = host.run(&mut |line| match Word::read(line) {
        Some(Word::Done(boots)) => watch.at(u64::from(boots)),
        Some(word) => last = Some(word),
        None => {}
    });
    watch.end("");
    match (last, ran) {
        (Some(Word::Result { machine, runs }), _) => Ok(report_of(options, Clock::Instructions, machine, runs)),
        (Some(Word::Failed(text)), _) => Err(CountedError::Inside { text }),
        (_, Err(error)) => Err(error.into()),
        (_, Ok(())) => Err(CountedError::NoResult),
    }
}

/// Writes the initramfs; gives its size in MiB.
fn pack(options: &BootOptions, midge: &Path, dir: &Path, into: &Path) -> Result<u64, CountedError> {
    let io = |source| CountedError::Files { path: dir.to_owned(), source };
    let mut files = vec![(PathBuf::from("/init"), midge.to_owned())];
    let mut put = |name: &str, from: &Path| {
        let name = PathBuf::from(format!("/bench/{name}"));
        files.push((name.clone(), from.to_owned()));
        name
    };
    let there = BootOptions {
        kernel: put("vmlinux", &options.kernel),
        initramfs: put("agent.cpio", &options.initramfs),
        vmm: put("midge-vmm", &options.vmm),
        against: Vec::new(),
        ..options.clone()
    };
    let mut against = Vec::new();
    for contender in &options.against {
        let program = find(contender.program())?;
        files.extend(needs(contender, &program)?);
        against.push(contender.at(program));
    }
    let order = serde_json::to_vec(&BootOptions { against, ..there }).map_err(|error| io(error.into()))?;
    let order_file = dir.join("order.json");
    std::fs::write(&order_file, order).map_err(io)?;
    files.push((ORDER.into(), order_file));
    files.sort();
    files.dedup_by(|one, other| one.0 == other.0);
    initramfs::pack(&files, into)?;
    Ok(into.metadata().map_err(io)?.len().div_ceil(1 << 20))
}

/// The program's absolute path; a bare name is looked for as a shell would.
fn find(program: &Path) -> Result<PathBuf, CountedError> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found = if program.components().count() == 1 {
        std::env::split_paths(&dirs).map(|dir| dir.join(program)).find(|path| path.is_file())
    } else {
        None
    };
    let path = found.unwrap_or_else(|| program.to_owned());
    let bad = |error: std::io::Error| CountedError::Program { program: program.to_owned(), problem: error.to_string() };
    std::path::absolute(&path).and_then(|path| path.metadata().map(|_| path)).map_err(bad)
}

/// The program and what it opens when it starts, each where it is here.
fn needs(contender: &Contender, program: &Path) -> Result<Vec<(PathBuf, PathBuf)>, CountedError> {
    let mut paths = vec![program.to_owned()];
    paths.extend(libraries(program)?);
    if matches!(contender, Contender::QemuMicrovm { .. }) {
        let in_dirs = |name: &&str| QEMU_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
        paths.extend(QEMU_FILES.iter().filter_map(in_dirs));
    }
    Ok(paths.into_iter().map(|path| (path.clone(), path)).collect())
}

/// The dynamic linker, the libraries it would load, and its index of them; nothing for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, CountedError> {
    let bad = |problem: String| CountedError::Program { program: program.to_owned(), problem };
    let output = Command::new("ldd").arg(program).output().map_err(|error| bad(format!("running ldd: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        return Err(bad(format!("its library is missing: {}", line.trim())));
    }
    let mut paths: Vec<PathBuf> = text.lines().filter_map(library).map(PathBuf::from).collect();
    let index = PathBuf::from("/etc/ld.so.cache");
    paths.extend(Some(index).filter(|index| !paths.is_empty() && index.exists()));
    Ok(paths)
}

/// A line of `ldd`: `name => /path (address)`, or `/path (address)` for the linker.
fn library(line: &str) -> Option<&str> {
    let line = line.split_once(" => ").map_or(line, |(_, path)| path).trim();
    line.split_once(" (").map(|(path, _)| path).filter(|path| path.starts_with('/'))
}

#[cfg(test)]
mod tests;
