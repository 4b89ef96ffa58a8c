// SPDX-License-Identifier: Apache-2.0
//! The initramfs: an uncompressed `newc` archive that brings programs of ours into a guest.
//!
//! A sandbox's holds `/init`, which is the agent, and the directories it mounts on; an emulated host's holds
//! `midge` and `midge-vmm`. Archives are cached by the hash of what is in them. Uncompressed, because unpacking costs more
//! than copying; stripped, because nobody debugs there. [`pack`] makes others, of any files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::{Cache, CacheError, Key, sha256};

/// Directories that the kernel and the first process want.
const DIRECTORIES: [&str; 5] = ["dev", "proc", "sys", "run", "tmp"];

/// Larger programs are refused: a guest's memory has to hold them.
const MAX_PROGRAM_BYTES: u64 = 256 << 20;

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A program is not there, or not a program.
    #[error("putting {path} into an initramfs: {problem}; expected a static x86-64 ELF program of at most 256 MiB")]
    Program {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The operating system refused something.
    #[error("{doing} {path}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

impl InitramfsError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// The initramfs of a sandbox, with `agent` as its `/init`.
///
/// # Errors
/// [`InitramfsError::Program`] when `agent` is no static program, and what the file system refuses.
pub fn ensure(cache: &Cache, agent: &Path) -> Result<PathBuf, InitramfsError> {
    ensure_programs(cache, &[("init", agent)])
}

/// An initramfs with each of these programs under its name, at the top.
///
/// # Errors
/// Those of [`ensure`].
pub fn ensure_programs(cache: &Cache, programs: &[(&str, &Path)]) -> Result<PathBuf, InitramfsError> {
    let mut key = Key::new().part("layout", DIRECTORIES.join(" ").as_bytes());
    for (name, path) in programs {
        check_program(path)?;
        let hash = File::open(path).and_then(sha256).map_err(InitramfsError::io("reading", path))?;
        key = key.part(name, hash.as_bytes());
    }
    let into = cache.dir("initramfs")?.join(format!("{}.cpio", key.finish()));
    if into.exists() {
        return Ok(into);
    }
    let stage = cache.stage()?;
    let mut archive = Archive::default();
    DIRECTORIES.iter().for_each(|name| archive.directory(name));
    archive.console();
    for (name, path) in programs {
        let stripped = strip(path, &stage.path().join(name));
        archive.program(name, &fs::read(&stripped).map_err(InitramfsError::io("reading", &stripped))?);
    }
    let unfinished = stage.path().join("archive");
    fs::write(&unfinished, archive.finish()).map_err(InitramfsError::io("writing", &unfinished))?;
    stage.publish_file("archive", &into)?;
    Ok(into)
}

/// Writes an archive of any files to `into`, each under its name (an absolute path in the guest) and executable.
///
/// # Errors
/// [`InitramfsError::Io`] for a file that cannot be read, or an archive that cannot be written.
pub fn pack(files: &[(PathBuf, PathBuf)], into: &Path) -> Result<(), InitramfsError> {
    let mut archive = Archive::default();
    let mut made: BTreeSet<&Path> = DIRECTORIES.iter().map(Path::new).collect();
    DIRECTORIES.iter().for_each(|name| archive.directory(name));
    archive.console();
    for (name, path) in files {
        let name = name.strip_prefix("/").unwrap_or(name);
        let above: Vec<&Path> = name.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
        for dir in above.into_iter().rev().filter(|dir| made.insert(dir)) {
            archive.directory(&dir.to_string_lossy());
        }
        let content = fs::read(path).map_err(InitramfsError::io("reading", path))?;
        archive.program(&name.to_string_lossy(), &content);
    }
    fs::write(into, archive.finish()).map_err(InitramfsError::io("writing", into))
}

/// A program that would not start in a bare initramfs is better refused here than found out there.
fn check_program(path: &Path) -> Result<(), InitramfsError> {
    let bad = |problem: &str| InitramfsError::Program { path: path.to_owned(), problem: problem.to_owned() };
    let meta = fs::metadata(path).map_err(|err| bad(&err.to_string()))?;
    if !meta.is_file() {
        return Err(bad("not a regular file"));
    }
    if meta.len() > MAX_PROGRAM_BYTES {
        return Err(bad(&format!("it has {} bytes", meta.len())));
    }
    let bytes = fs::read(path).map_err(InitramfsError::io("reading", path))?;
    match elf_problem(&bytes) {
        Some(problem) => Err(bad(problem)),
        None => Ok(()),
    }
}

/// What keeps these bytes from being a static x86-64 program.
fn elf_problem(bytes: &[u8]) -> Option<&'static str> {
    const PT_INTERP: [u8; 4] = [3, 0, 0, 0];
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Some("not a 64-bit little-endian ELF file");
    }
    if bytes.get(18..20) != Some(&[62, 0]) {
        return Some("not for x86-64");
    }
    let number = |at: usize, len: usize| {
        let field = bytes.get(at..at + len)?;
        Some(field.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let (Some(start), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return Some("its ELF header is cut short");
    };
    for index in 0..count {
        let at = index.checked_mul(size).and_then(|offset| start.checked_add(offset));
        let Some(kind) = at.and_then(|at| usize::try_from(at).ok()).and_then(|at| bytes.get(at..)?.get(..4)) else {
            return Some("its program headers are cut short");
        };
        if kind == PT_INTERP {
            return Some("it is linked dynamically");
        }
    }
    None
}

/// The program without its symbols; as it is where there is no `strip`.
fn strip(from: &Path, to: &Path) -> PathBuf {
    let mut command = Command::new("strip");
    command
        .arg("--strip-all")
        .arg("-o")
        .arg(to)
        .arg(from)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) { to.to_owned() } else { from.to_owned() }
}

/// A `newc` archive in the making: for each entry a header of 110 bytes (magic, then 13 fields of 8 hexadecimal digits),
/// the name with its zero, padding to 4, the content, padding to 4.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, (0, 0), &[]);
    }

    fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, (0, 0), content);
    }

    /// The kernel opens it for the first process, whose last words would be lost otherwise.
    fn console(&mut self) {
        self.entry("dev/console", 0o020_600, (5, 1), &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let content_len = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_len = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let fields = [self.entries, mode, 0, 0, links, 0, content_len, 0, 0, device.0, device.1, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            // Writing to memory does not fail.
            let _ = write!(self.bytes, "{field:08x}");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// The whole archive, a multiple of 4 KiB so that the monitor can map it.
    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(4096);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A minimal static program: an ELF header and one loadable segment.
    fn elf(segment_kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = segment_kind;
        bytes
    }

    /// Unpacks with the system's own `cpio` where there is one; the format is checked by hand below in any case.
    fn unpack(archive: &Path, into: &Path) -> bool {
        let input = File::open(archive).unwrap();
        let run = Command::new("cpio").args(["-idm", "--quiet"]).current_dir(into).stdin(input).status();
        run.is_ok_and(|status| status.success())
    }

    #[test]
    fn archive_has_the_layout_of_newc() {
        let mut archive = Archive::default();
        archive.program("init", b"12345");
        let bytes = archive.finish();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000081ed");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[94..102], b"00000005");
        assert_eq!(&bytes[110..116], b"init\0\0");
        assert_eq!(&bytes[116..124], b"12345\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes[124..].windows(10).any(|window| window == b"TRAILER!!!"));
        assert_eq!(bytes.len() % 4096, 0);
    }

    #[test]
    fn files_are_packed_below_directories_that_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let (one, into) = (dir.path().join("one"), dir.path().join("archive"));
        fs::write(&one, "content").unwrap();
        let files = ["/init", "/lib/deep/a", "/lib/deep/b", "/tmp/c"].map(|name| (PathBuf::from(name), one.clone()));
        pack(&files, &into).unwrap();
        let bytes = fs::read(&into).unwrap();
        let count = |name: &[u8]| bytes.windows(name.len()).filter(|window| *window == name).count();
        assert_eq!((count(b"lib\0"), count(b"lib/deep\0"), count(b"tmp\0")), (1, 1, 1));
        assert_eq!((count(b"lib/deep/b\0"), count(b"content")), (1, 4));
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        if unpack(&into, &out) {
            assert_eq!(fs::read(out.join("lib/deep/a")).unwrap(), b"content");
        }
        let text = pack(&[("/x".into(), dir.path().join("none"))], &into).unwrap_err().to_string();
        assert!(text.starts_with("reading ") && text.ends_with("none"), "{text}");
    }

    #[test]
    fn agent_becomes_init_and_is_packed_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(&dir.path().join("cache")).unwrap();
        let agent = dir.path().join("midge-agent");
        fs::write(&agent, elf(1)).unwrap();
        let first = ensure(&cache, &agent).unwrap();
        assert_eq!(ensure(&cache, &agent).unwrap(), first);
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        if unpack(&first, &out) {
            assert_eq!(fs::read(out.join("init")).unwrap()[..4], *b"\x7fELF");
            assert!(DIRECTORIES.iter().all(|name| out.join(name).is_dir()));
        }
        let mut changed = elf(1);
        changed[100] = 1;
        fs::write(&agent, changed).unwrap();
        assert_ne!(ensure(&cache, &agent).unwrap(), first);
    }

    #[test]
    fn programs_that_would_not_start_are_refused_by_reason() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(&dir.path().join("cache")).unwrap();
        let path = dir.path().join("program");
        let mut arm = elf(1);
        arm[18] = 183;
        let mut cut = elf(1);
        cut[57] = 1;
        for (bytes, expect) in [
            (b"#!/bin/sh\n".to_vec(), "not a 64-bit"),
            (vec![], "not a 64-bit"),
            (arm, "not for x86-64"),
            (elf(3), "linked dynamically"),
            (cut, "program headers are cut short"),
            (elf(1)[..40].to_vec(), "header is cut short"),
        ] {
            fs::write(&path, bytes).unwrap();
            let text = ensure(&cache, &path).unwrap_err().to_string();
            assert!(text.contains(expect), "{text}");
        }
        let text = ensure(&cache, &dir.path().join("none")).unwrap_err().to_string();
        assert!(text.contains("none") && text.contains("No such file"), "{text}");
        assert!(ensure(&cache, dir.path()).unwrap_err().to_string().contains("not a regular file"));
    }

    proptest! {
        #[test]
        fn any_program_header_is_judged_without_panic(mut tail in prop::collection::vec(any::<u8>(), 20..200)) {
            tail[12] &= 127;
            let mut bytes = elf(1);
            bytes.truncate(20);
            bytes.extend(tail);
            let _ = elf_problem(&bytes);
        }
    }
}
