// SPDX-License-Identifier: Apache-2.0
//! The kernel build itself: `make`, watched line by line, with its result checked and put into the cache.
//!
//! The objects stay in `builds/` until a build succeeds, so that an interrupted one goes on where it stopped.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime};

use super::{BuildRecord, Flavour, KernelError, config, source, unix_s};
use crate::cache::{Cache, mebibytes};
use crate::progress::Watch;

/// Part of every key: changed when the steps below change what they make.
pub(super) const RECIPE: &str = "allnoconfig+fragments, make vmlinux, strip --strip-all; 1";

/// Programs that the build runs, and the package of each.
const TOOLS: [(&str, &str); 10] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("strip", "binutils"),
    ("size", "binutils"),
    ("bc", "bc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("xz", "xz-utils"),
    ("tar", "tar"),
];

/// A header that the build compiles against, and its package.
const HEADERS: [(&str, &str); 1] = [("/usr/include/gelf.h", "libelf-dev")];

/// How much of a log is repeated in an error.
const TAIL_LINES: usize = 20;

/// One build.
pub(super) struct Job {
    pub(super) flavour: Flavour,
    pub(super) tree: PathBuf,
    pub(super) compiler: String,
    pub(super) key: String,
    pub(super) into: PathBuf,
}

/// Lines that `make vmlinux` prints for a flavour, for the bar.
fn expected_lines(flavour: Flavour) -> u64 {
    match flavour {
        Flavour::Guest => 1787,
        Flavour::GuestSmp => 1830,
        Flavour::Host => 1700,
    }
}

/// Everything that a build runs is installed.
///
/// # Errors
/// [`KernelError::MissingTools`] names what is not, and the packages.
pub fn check_tools() -> Result<(), KernelError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    missing_tools(|tool| dirs.iter().any(|dir| dir.join(tool).is_file()), |header| Path::new(header).is_file())
}

/// The same, asked of any machine.
fn missing_tools(has_tool: impl Fn(&str) -> bool, has_header: impl Fn(&str) -> bool) -> Result<(), KernelError> {
    let tools = TOOLS.iter().filter(|(tool, _)| !has_tool(tool));
    let headers = HEADERS.iter().filter(|(header, _)| !has_header(header));
    let (missing, mut packages): (Vec<String>, Vec<String>) =
        tools.chain(headers).map(|(thing, package)| ((*thing).to_owned(), (*package).to_owned())).unzip();
    packages.sort();
    packages.dedup();
    if missing.is_empty() { Ok(()) } else { Err(KernelError::MissingTools { missing, packages }) }
}

/// The compiler's name and version.
pub(super) fn compiler() -> Result<String, KernelError> {
    let out = Command::new("gcc").arg("--version").output().map_err(KernelError::io("running", Path::new("gcc")))?;
    Ok(String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or("unknown").to_owned())
}

/// Configures, checks, builds, strips, publishes.
pub(super) fn run(cache: &Cache, job: &Job, watch: &dyn Watch) -> Result<(), KernelError> {
    let started = Instant::now();
    let name = job.flavour.name();
    let out = cache.dir("builds")?.join(format!("{name}-{}", job.key));
    fs::create_dir_all(&out).map_err(KernelError::io("making", &out))?;
    let make = Make { job, out: &out, log: &out.join("make.log") };
    configure(&make)?;
    watch.begin(&format!("building the {name} kernel (once)"), expected_lines(job.flavour));
    make.run(&["vmlinux"], watch)?;

    let stage = cache.stage()?;
    let vmlinux = stage.path().join("vmlinux");
    strip(&out.join("vmlinux"), &vmlinux)?;
    for (from, to) in [(".config", "config"), ("System.map", "System.map")] {
        fs::copy(out.join(from), stage.path().join(to)).map_err(KernelError::io("copying", &out.join(from)))?;
    }
    let record = BuildRecord {
        flavour: job.flavour,
        version: source::version(&job.tree).unwrap_or_default(),
        compiler: job.compiler.clone(),
        config_key: super::config_key(job.flavour),
        build_s: started.elapsed().as_secs(),
        vmlinux_bytes: fs::metadata(&vmlinux).map_err(KernelError::io("reading", &vmlinux))?.len(),
        text_data_bss_bytes: sizes(&out.join("vmlinux"))?,
        built_at_unix_s: unix_s(SystemTime::now()),
    };
    write(&stage.path().join("build.json"), &serde_json::to_vec_pretty(&record).unwrap_or_default())?;
    stage.publish_dir(&job.into)?;
    // Only objects are left in it; a directory that cannot be removed costs disk space, nothing else.
    let _ = fs::remove_dir_all(&out);
    watch.end(&summary(&record, &job.into));
    Ok(())
}

/// One line for the user.
fn summary(record: &BuildRecord, dir: &Path) -> String {
    let [text, data, bss] = record.text_data_bss_bytes.map(mebibytes);
    format!(
        "built the {} kernel, Linux {}, in {} s: vmlinux {} (code {text}, data {data}, zeroed {bss}), {}",
        record.flavour.name(),
        record.version,
        record.build_s,
        mebibytes(record.vmlinux_bytes),
        dir.join("vmlinux").display(),
    )
}

/// Writes `.config`, and insists on every requested option.
fn configure(make: &Make<'_>) -> Result<(), KernelError> {
    let requested = config::merged(make.job.flavour);
    let fragment = make.out.join("midge.config");
    write(&fragment, requested.as_bytes())?;
    let all_config = format!("KCONFIG_ALLCONFIG={}", fragment.display());
    make.run(&[&all_config, "allnoconfig"], &crate::progress::Silent)?;
    make.run(&["olddefconfig"], &crate::progress::Silent)?;
    let dot_config = make.out.join(".config");
    let found = fs::read_to_string(&dot_config).map_err(KernelError::io("reading", &dot_config))?;
    let unset = config::unset(&requested, &found);
    if unset.is_empty() { Ok(()) } else { Err(KernelError::Unset { flavour: make.job.flavour.name(), unset }) }
}

/// `make` in one build directory.
struct Make<'a> {
    job: &'a Job,
    out: &'a Path,
    log: &'a Path,
}

impl Make<'_> {
    /// Runs `make` with these words, telling `watch` each line; everything printed goes to the log.
    fn run(&self, words: &[&str], watch: &dyn Watch) -> Result<(), KernelError> {
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (reader, writer) = std::io::pipe().map_err(KernelError::io("making a pipe for", self.out))?;
        let errors = writer.try_clone().map_err(KernelError::io("making a pipe for", self.out))?;
        let mut command = Command::new("make");
        command.arg("-C").arg(&self.job.tree).arg(format!("O={}", self.out.display())).arg(format!("-j{jobs}"));
        command.args(["LOCALVERSION=-midge", "KBUILD_BUILD_USER=midge", "KBUILD_BUILD_HOST=midge"]).args(words);
        // The user's own settings of make and Kconfig must not leak into what the key says.
        for name in ["MAKEFLAGS", "MFLAGS", "ARCH", "CROSS_COMPILE", "KCONFIG_CONFIG", "CC", "CFLAGS", "LLVM"] {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(writer).stderr(errors);
        let mut child = command.spawn().map_err(KernelError::io("running make in", self.out))?;
        // The command holds our ends of the pipe open; without dropping it the reader never sees the end.
        drop(command);
        let copied = self.watch_lines(reader, watch);
        let status = child.wait().map_err(KernelError::io("waiting for make in", self.out))?;
        copied?;
        if status.success() {
            return Ok(());
        }
        let log = fs::read_to_string(self.log).unwrap_or_default();
        Err(KernelError::Step {
            flavour: self.job.flavour.name(),
            step: format!("make {}", words.join(" ")),
            status: status.to_string(),
            log: self.log.to_owned(),
            tail: tail(&log, TAIL_LINES),
        })
    }

    fn watch_lines(&self, reader: std::io::PipeReader, watch: &dyn Watch) -> Result<(), KernelError> {
        let failed = || KernelError::io("writing", self.log);
        let mut log = File::options().create(true).append(true).open(self.log).map_err(failed())?;
        for (done, line) in (1..).zip(BufReader::new(reader).split(b'\n')) {
            let mut line = line.map_err(KernelError::io("reading make's output for", self.log))?;
            line.push(b'\n');
            log.write_all(&line).map_err(failed())?;
            watch.at(done);
        }
        Ok(())
    }
}

/// The last `count` lines of a text.
fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

/// Symbols are for debuggers; the monitor loads segments, and its page cache is better used.
fn strip(from: &Path, to: &Path) -> Result<(), KernelError> {
    let out = Command::new("strip").arg("--strip-all").arg("-o").arg(to).arg(from).output();
    let out = out.map_err(KernelError::io("running strip on", from))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    Err(KernelError::io("stripping", from)(std::io::Error::other(said)))
}

/// Sizes of code, data and zeroed memory.
fn sizes(vmlinux: &Path) -> Result<[u64; 3], KernelError> {
    let out = Command::new("size").arg(vmlinux).output().map_err(KernelError::io("running size on", vmlinux))?;
    Ok(parse_sizes(&String::from_utf8_lossy(&out.stdout)))
}

/// The second line of what `size` prints; zeros when it prints something else.
fn parse_sizes(text: &str) -> [u64; 3] {
    let mut numbers = text.lines().nth(1).unwrap_or_default().split_whitespace().map_while(|word| word.parse().ok());
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), KernelError> {
    fs::write(path, bytes).map_err(KernelError::io("writing", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{Silent, Watch};
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn missing_tools_are_named_with_the_command_that_mends_it() {
        let err = missing_tools(|tool| !matches!(tool, "ld" | "strip" | "flex"), |_| false).unwrap_err();
        let text = err.to_string();
        assert!(text.contains("ld, strip, flex, /usr/include/gelf.h"), "{text}");
        assert!(text.contains("apt-get install binutils flex libelf-dev"), "{text}");
        missing_tools(|_| true, |_| true).unwrap();
    }

    #[test]
    fn tail_is_the_end_of_a_text() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
        assert_eq!(tail("", 2), "");
    }

    #[test]
    fn sizes_are_read_from_the_second_line() {
        let text = "   text\t   data\t    bss\t    dec\n8864368\t3037192\t2330624\t14232184\td92a78\tvmlinux\n";
        assert_eq!(parse_sizes(text), [8_864_368, 3_037_192, 2_330_624]);
        assert_eq!(parse_sizes("size: no such file"), [0; 3]);
    }

    struct Counter(AtomicU64);

    impl Watch for Counter {
        fn begin(&self, _: &str, _: u64) {}
        fn at(&self, done: u64) {
            self.0.store(done, Ordering::Relaxed);
        }
        fn end(&self, _: &str) {}
    }

    fn fake_tree(makefile: &str) -> (tempfile::TempDir, Job) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        fs::write(dir.path().join("Makefile"), makefile).unwrap();
        let job = Job {
            flavour: Flavour::Guest,
            tree: dir.path().to_owned(),
            compiler: "cc".into(),
            key: "k".into(),
            into: dir.path().join("into"),
        };
        (dir, job)
    }

    #[test]
    fn output_is_counted_and_logged() {
        let (dir, job) = fake_tree("all:\n\t@echo one; echo two >&2; echo three\n");
        let make = Make { job: &job, out: &dir.path().join("out"), log: &dir.path().join("log") };
        let counter = Counter(AtomicU64::new(0));
        make.run(&["all"], &counter).unwrap();
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(log.contains("one\n") && log.contains("two\n") && log.contains("three\n"), "{log}");
        assert_eq!(counter.0.load(Ordering::Relaxed), log.lines().count() as u64);
    }

    #[test]
    fn failing_step_shows_the_end_of_its_log_and_where_the_rest_is() {
        let (dir, job) = fake_tree("vmlinux:\n\t@for i in $$(seq 40); do echo line $$i; done; exit 3\n");
        let make = Make { job: &job, out: &dir.path().join("out"), log: &dir.path().join("log") };
        let text = make.run(&["vmlinux"], &Silent).unwrap_err().to_string();
        assert!(text.contains("make vmlinux") && text.contains("line 40"), "{text}");
        assert!(!text.contains("line 10\n"), "{text}");
        assert!(text.contains(&dir.path().join("log").display().to_string()), "{text}");
    }

    #[test]
    fn option_that_does_not_take_stops_the_build_before_it_starts() {
        let (dir, job) = fake_tree("%config:\n\t@echo CONFIG_64BIT=y > $(O)/.config\nvmlinux:\n\t@touch $(O)/built\n");
        let cache = Cache::at(&dir.path().join("cache")).unwrap();
        let err = run(&cache, &job, &Silent).unwrap_err();
        assert!(err.to_string().contains("CONFIG_VIRTIO_BLK (wanted y, is n)"), "{err}");
        assert!(!job.into.exists());
    }

    #[test]
    fn summary_has_time_and_sizes() {
        let record = BuildRecord {
            flavour: Flavour::GuestSmp,
            version: "6.12.7".into(),
            compiler: "cc".into(),
            config_key: "k".into(),
            build_s: 309,
            vmlinux_bytes: 14 << 20,
            text_data_bss_bytes: [8 << 20, 3 << 20, 1 << 19],
            built_at_unix_s: 0,
        };
        let text = summary(&record, Path::new("/c/k"));
        assert_eq!(
            text,
            "built the guest-smp kernel, Linux 6.12.7, in 309 s: vmlinux 14.0 MiB (code 8.0 MiB, data 3.0 MiB, zeroed 0.5 MiB), /c/k/vmlinux"
        );
    }
}
