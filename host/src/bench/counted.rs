// SPDX-License-Identifier: Apache-2.0
//! The near end of a counted bench: packs all that it needs into the initramfs of an emulated host whose clock counts
//! instructions, runs it, and reads the report from its console. [`inside`](super::inside) does the work.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::inside::{ORDER, Order, Word};
use super::programs::{find, needs, with_libraries};
use super::{BenchError, BootOptions, Contender, LabOptions, Report, check_runs, lab};
use crate::cache::{Cache, Staging};
use crate::emulated::EmulatedError;
use crate::emulated::counted::CountedHost;
use crate::erofs::{self, ErofsError};
use crate::initramfs::{self, InitramfsError};
use crate::kernel::{self, Flavour, KernelError};
use crate::progress::Watch;
use crate::scratch::{self, ScratchError};

/// Memory of the emulated host beside what it is brought and the guests: kernel, page tables, monitors.
const MEM_MIB: u64 = 768;
/// How many guests of a bench can be alive at once, a template's file and its resident among them.
const GUESTS: u64 = 4;
/// Longest that the far end may say nothing by this machine's clock: thirty times what a boot takes.
const SILENCE_MAX: Duration = Duration::from_secs(180);
/// Size of the writable disk of a fork's guest: the least there is, since all of it is brought along.
const DISK_MIB: u64 = 32;
/// Where things are at the far end; see [`WORDS`].
const DIR: &str = "/bench";
const CACHE: &str = "/bench/cache";
const VMM: &str = "/bench/midge-vmm";
const AGENT: &str = "/bench/midge-agent";
/// What its kernel makes the environment of the first process, so that the library finds what it looks for.
const WORDS: &str = " MIDGE_CACHE=/bench/cache MIDGE_VMM=/bench/midge-vmm MIDGE_AGENT=/bench/midge-agent";

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
    /// The guests' disk cannot be made.
    #[error("preparing the guests' disk: {0}")]
    Scratch(#[from] ScratchError),
    /// The guests' root cannot be packed.
    #[error("preparing the guests' root: {0}")]
    Root(#[from] ErofsError),
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

/// How a bench is counted.
#[derive(Clone, Copy)]
pub struct Counting<'a> {
    /// The emulated host's processor, in QEMU's words.
    pub cpu: &'a str,
    /// Where kernels and the like are kept.
    pub cache: &'a Cache,
    /// The program that is the emulated host's first process.
    pub midge: &'a Path,
    /// Told of what takes long.
    pub watch: &'a dyn Watch,
}

impl std::fmt::Debug for Counting<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counting").field("cpu", &self.cpu).field("midge", &self.midge).finish_non_exhaustive()
    }
}

/// Runs the bench of boots in an emulated host of which `midge` is the first process.
///
/// # Errors
/// [`CountedError`]: what cannot be prepared, and the first run that fails.
pub fn boot_counted(options: &BootOptions, counting: &Counting<'_>) -> Result<Report, CountedError> {
    check_runs(options.runs)?;
    let mut luggage = Luggage::new(counting)?;
    let order = luggage.for_boots(options)?;
    luggage.travel(&Order::Boot(order), options.mem_mib, counting)
}

/// Runs the bench of forks in such a host: forks of a template that is made there, of a root with nothing in it but the
/// command that answers.
///
/// # Errors
/// As for [`boot_counted`].
pub fn fork_counted(
    options: &LabOptions,
    vmm: &Path,
    agent: &Path,
    counting: &Counting<'_>,
) -> Result<Report, CountedError> {
    options.check()?;
    let mut luggage = Luggage::new(counting)?;
    let order = luggage.for_forks(options, vmm, agent, counting)?;
    luggage.travel(&Order::Fork(order), options.mem_mib * GUESTS, counting)
}

/// What is brought to the far end.
struct Luggage {
    dir: Staging,
    /// Where there, and from where.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Luggage {
    fn new(counting: &Counting<'_>) -> Result<Self, CountedError> {
        let dir = counting.cache.stage().map_err(InitramfsError::from)?;
        Ok(Self { dir, files: vec![("/init".into(), counting.midge.to_owned())] })
    }

    fn put(&mut self, there: impl AsRef<Path>, from: &Path) -> PathBuf {
        let there = Path::new(DIR).join(there);
        self.files.push((there.clone(), from.to_owned()));
        there
    }

    /// A contender that finds all it needs where it is here.
    fn contender(&mut self, contender: &Contender) -> Result<Contender, CountedError> {
        let program = find(contender.program())?;
        self.files.extend(needs(contender, &program)?.into_iter().map(|path| (path.clone(), path)));
        Ok(contender.at(program))
    }

    fn for_boots(&mut self, options: &BootOptions) -> Result<BootOptions, CountedError> {
        Ok(BootOptions {
            kernel: self.put("vmlinux", &options.kernel),
            initramfs: self.put("agent.cpio", &options.initramfs),
            vmm: self.put(VMM, &options.vmm),
            against: options.against.iter().map(|contender| self.contender(contender)).collect::<Result<_, _>>()?,
            ..options.clone()
        })
    }

    fn for_forks(
        &mut self,
        options: &LabOptions,
        vmm: &Path,
        agent: &Path,
        counting: &Counting<'_>,
    ) -> Result<LabOptions, CountedError> {
        let cache = counting.cache;
        let kernel = match &options.kernel {
            Some(kernel) => kernel.clone(),
            None => kernel::ensure(cache, Flavour::Guest, counting.watch)?,
        };
        self.put(VMM, vmm);
        self.put(AGENT, agent);
        // What the library would make if it did not find it.
        for made in [scratch::ensure(cache, DISK_MIB)?, initramfs::ensure(cache, agent)?] {
            let name = made.strip_prefix(cache.root()).unwrap_or(&made).to_owned();
            self.put(Path::new(CACHE).join(name), &made);
        }
        let root = self.root()?;
        let peer = options.firecracker.clone().map(|program| self.contender(&Contender::Firecracker { program }));
        Ok(LabOptions {
            kernel: Some(self.put("vmlinux", &kernel)),
            image: Some(self.put("root.erofs", &root).to_string_lossy().into_owned()),
            disk_mib: DISK_MIB,
            firecracker: peer.transpose()?.map(|peer| peer.program().to_owned()),
            ..options.clone()
        })
    }

    /// A root with the command that answers and its libraries, and nothing else.
    fn root(&self) -> Result<PathBuf, CountedError> {
        let (tree, into) = (self.dir.path().join("root"), self.dir.path().join("root.erofs"));
        for path in with_libraries(Path::new(lab::TRUE))? {
            let copy = tree.join(path.strip_prefix("/").unwrap_or(&path));
            let copied =
                copy.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::copy(&path, &copy));
            copied.map_err(|source| CountedError::Files { path: copy, source })?;
        }
        erofs::pack_directory(&tree, &into)?;
        Ok(into)
    }

    /// Writes the initramfs; gives its size in MiB.
    fn pack(&mut self, order: &Order, into: &Path) -> Result<u64, CountedError> {
        let io = |source| CountedError::Files { path: into.to_owned(), source };
        let order_file = self.dir.path().join("order.json");
        let text = serde_json::to_vec(order).map_err(|error| io(error.into()))?;
        std::fs::write(&order_file, text).map_err(io)?;
        self.put(ORDER, &order_file);
        self.files.sort();
        self.files.dedup_by(|one, other| one.0 == other.0);
        initramfs::pack(&self.files, into)?;
        Ok(into.metadata().map_err(io)?.len().div_ceil(1 << 20))
    }

    /// Brings it there, and has the order obeyed.
    fn travel(mut self, order: &Order, guests_mib: u64, counting: &Counting<'_>) -> Result<Report, CountedError> {
        let Counting { cpu, cache, watch, .. } = *counting;
        let kernel = kernel::ensure(cache, Flavour::Host, watch)?;
        let archive = self.dir.path().join("bench.cpio");
        let size_mib = self.pack(order, &archive)?;
        let host = CountedHost {
            kernel: &kernel,
            initramfs: &archive,
            mem_mib: MEM_MIB + guests_mib + 3 * size_mib,
            silence_max: SILENCE_MAX,
            cpu,
            words: OsStr::new(WORDS),
        };
        let mut last = None;
        let ran = host.run(&mut |line| match Word::read(line) {
            Some(Word::Begin { what, total }) => watch.begin(&format!("{what} (in the emulated host)"), total),
            Some(Word::At(done)) => watch.at(done),
            Some(Word::End(note)) => watch.end(&note),
            Some(word) => last = Some(word),
            None => {}
        });
        match (last, ran) {
            (Some(Word::Result(report)), _) => Ok(self.as_it_is_called_here(*report)),
            (Some(Word::Failed(text)), _) => Err(CountedError::Inside { text }),
            (_, Err(error)) => Err(error.into()),
            (_, Ok(())) => Err(CountedError::NoResult),
        }
    }

    /// The report with the files' names of this side.
    fn as_it_is_called_here(&self, mut report: Report) -> Report {
        for (there, here) in &self.files {
            let (there, here) = (there.to_string_lossy(), here.to_string_lossy());
            report.title = report.title.replace(&*there, &here);
            report.options.values_mut().for_each(|value| *value = value.replace(&*there, &here));
        }
        report
    }
}

#[cfg(test)]
mod tests;
