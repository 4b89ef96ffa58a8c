// SPDX-License-Identifier: Apache-2.0
//! Linux source: found, identified by a hash, unpacked once. Runs `tar`; writes below the cache only.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::KernelError;
use crate::cache::{Cache, Key, sha256};
use crate::progress::Watch;

/// Where `linux-source-*` packages put their tarball.
const PACKAGE_DIR: &str = "/usr/src";

/// The line that we develop against; any other is taken only when it is not there.
const PREFERRED: &str = "linux-source-6.12.tar.";

/// How deep a source tree goes, in levels; more is not one.
const MAX_TREE_DEPTH: u32 = 40;

/// Source that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A compressed archive with one directory in it.
    Tarball(PathBuf),
    /// A tree that stays where it is and is not written to.
    Tree(PathBuf),
}

/// The source that the user named, or the distribution's.
pub(super) fn find(named: Option<&Path>) -> Result<Source, KernelError> {
    named.map_or_else(|| in_packages(Path::new(PACKAGE_DIR)), classify)
}

/// What a path that the user named is.
fn classify(path: &Path) -> Result<Source, KernelError> {
    let bad = |problem: &str| KernelError::BadSource { path: path.to_owned(), problem: problem.to_owned() };
    let meta = fs::metadata(path).map_err(|err| bad(&err.to_string()))?;
    let whole = path.canonicalize().map_err(KernelError::io("finding", path))?;
    if meta.is_dir() {
        if version(&whole).is_none() {
            return Err(bad("a directory without a kernel's Makefile"));
        }
        if whole.join(".config").exists() || whole.join("include/config").exists() {
            return Err(bad("the tree was built in, and then builds nowhere else; run `make mrproper` in it"));
        }
        return Ok(Source::Tree(whole));
    }
    if !meta.is_file() {
        return Err(bad("neither a file nor a directory"));
    }
    if meta.len() == 0 {
        return Err(bad("an empty file"));
    }
    Ok(Source::Tarball(whole))
}

/// The newest tarball of a source package, ours first.
fn in_packages(dir: &Path) -> Result<Source, KernelError> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("linux-source-") && name.contains(".tar."))
        .max_by_key(|name| (name.starts_with(PREFERRED), numbers(name)))
        .map(|name| Source::Tarball(dir.join(name)))
        .ok_or_else(|| KernelError::NoSource { looked_in: dir.to_owned() })
}

/// The numbers in a name, so that 6.12 is more than 6.9.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// A hash of the source. A tarball is hashed whole, once for each size and time of change; a tree by the names, sizes
/// and times of its files.
pub(super) fn key(cache: &Cache, source: &Source) -> Result<String, KernelError> {
    match source {
        Source::Tree(dir) => {
            let mut lines = Vec::new();
            walk(dir, 0, &mut lines)?;
            lines.sort();
            Ok(Key::new().part("tree", lines.join("\n").as_bytes()).finish())
        }
        Source::Tarball(file) => tarball_key(cache, file),
    }
}

fn tarball_key(cache: &Cache, file: &Path) -> Result<String, KernelError> {
    let meta = fs::metadata(file).map_err(KernelError::io("reading", file))?;
    let identity = format!("{} {} {} {}", file.display(), meta.len(), meta.mtime(), meta.mtime_nsec());
    let memo = cache.dir("sources")?.join(format!("{}.key", Key::new().part("file", identity.as_bytes()).finish()));
    if let Ok(known) = fs::read_to_string(&memo) {
        return Ok(known);
    }
    let whole = File::open(file).and_then(sha256).map_err(KernelError::io("reading", file))?;
    let key = Key::new().part("tarball", whole.as_bytes()).finish();
    fs::write(&memo, &key).map_err(KernelError::io("writing", &memo))?;
    Ok(key)
}

fn walk(dir: &Path, depth: u32, lines: &mut Vec<String>) -> Result<(), KernelError> {
    if depth > MAX_TREE_DEPTH {
        return Err(KernelError::BadSource { path: dir.to_owned(), problem: "directories nested without end".into() });
    }
    for entry in fs::read_dir(dir).map_err(KernelError::io("listing", dir))?.flatten() {
        let path = entry.path();
        let meta = entry.metadata().map_err(KernelError::io("reading", &path))?;
        if meta.is_dir() && entry.file_name() != ".git" {
            walk(&path, depth + 1, lines)?;
        } else if meta.is_file() {
            lines.push(format!("{} {} {} {}", path.display(), meta.len(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    Ok(())
}

/// The directory with the source in it; a tarball is unpacked into the cache, once.
pub(super) fn unpack(cache: &Cache, source: &Source, key: &str, watch: &dyn Watch) -> Result<PathBuf, KernelError> {
    let file = match source {
        Source::Tree(dir) => return Ok(dir.clone()),
        Source::Tarball(file) => file,
    };
    let into = cache.dir("sources")?.join(key);
    if version(&into).is_some() {
        return Ok(into);
    }
    watch.begin(&format!("unpacking {}", file.display()), 0);
    let stage = cache.stage()?;
    let bad = |problem: String| KernelError::BadSource { path: file.clone(), problem };
    let out = Command::new("tar")
        .args(["-x", "--strip-components=1", "--no-same-owner", "-f"])
        .arg(file)
        .arg("-C")
        .arg(stage.path())
        .stdin(Stdio::null())
        .output()
        .map_err(KernelError::io("running tar on", file))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(bad(format!("tar: {}", said.lines().next().unwrap_or("no message"))));
    }
    if version(stage.path()).is_none() {
        return Err(bad("an archive without a kernel's Makefile at its top".into()));
    }
    stage.publish_dir(&into)?;
    Ok(into)
}

/// The version that a kernel tree's Makefile states; `None` when it is no kernel tree.
pub(super) fn version(tree: &Path) -> Option<String> {
    let makefile = fs::read_to_string(tree.join("Makefile")).ok()?;
    let field = |name: &str| {
        makefile.lines().take(10).find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim()))
    };
    Some(format!("{}.{}.{}", field("VERSION")?, field("PATCHLEVEL")?, field("SUBLEVEL")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    const MAKEFILE: &str = "# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 7\nEXTRAVERSION =\nNAME = Baby\n";

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("linux")).unwrap();
        fs::write(dir.path().join("linux/Makefile"), MAKEFILE).unwrap();
        dir
    }

    fn tarball(dir: &Path) -> PathBuf {
        let file = dir.join("linux-source-6.12.tar.gz");
        let status = Command::new("tar").arg("-czf").arg(&file).arg("-C").arg(dir).arg("linux").status().unwrap();
        assert!(status.success());
        file
    }

    #[test]
    fn version_is_the_makefiles() {
        let dir = tree();
        assert_eq!(version(&dir.path().join("linux")).as_deref(), Some("6.12.7"));
        assert_eq!(version(dir.path()), None);
        fs::write(dir.path().join("Makefile"), "all:\n\ttrue\n").unwrap();
        assert_eq!(version(dir.path()), None);
    }

    #[test]
    fn tarball_is_unpacked_once_and_keyed_by_content() {
        let dir = tree();
        let cache = Cache::at(&dir.path().join("cache")).unwrap();
        let source = find(Some(&tarball(dir.path()))).unwrap();
        let key_a = key(&cache, &source).unwrap();
        let unpacked = unpack(&cache, &source, &key_a, &Silent).unwrap();
        assert_eq!(version(&unpacked).as_deref(), Some("6.12.7"));
        fs::write(unpacked.join("mark"), "").unwrap();
        assert!(unpack(&cache, &source, &key_a, &Silent).unwrap().join("mark").exists());
        fs::write(dir.path().join("linux/extra"), "more").unwrap();
        tarball(dir.path());
        assert_ne!(key(&cache, &source).unwrap(), key_a);
    }

    #[test]
    fn tree_is_used_in_place_and_keyed_by_its_files() {
        let dir = tree();
        let cache = Cache::at(&dir.path().join("cache")).unwrap();
        let source = find(Some(&dir.path().join("linux"))).unwrap();
        let before = key(&cache, &source).unwrap();
        assert_eq!(before, key(&cache, &source).unwrap());
        fs::write(dir.path().join("linux/extra"), "more").unwrap();
        assert_ne!(before, key(&cache, &source).unwrap());
        let used = unpack(&cache, &source, &before, &Silent).unwrap();
        assert_eq!(used, dir.path().join("linux").canonicalize().unwrap());
    }

    #[test]
    fn things_that_are_no_source_are_refused_by_name() {
        let dir = tree();
        let built = dir.path().join("linux/.config");
        fs::write(&built, "").unwrap();
        fs::write(dir.path().join("empty"), "").unwrap();
        for (name, expect) in [
            ("none", "No such file"),
            ("empty", "empty file"),
            (".", "without a kernel's Makefile"),
            ("linux", "mrproper"),
            ("/dev/null", "neither a file nor a directory"),
        ] {
            let text = find(Some(&dir.path().join(name))).unwrap_err().to_string();
            assert!(text.contains(expect) && text.contains(name), "{name}: {text}");
        }
    }

    #[test]
    fn archive_of_something_else_is_refused_and_leaves_nothing() {
        let dir = tree();
        let cache = Cache::at(&dir.path().join("cache")).unwrap();
        fs::write(dir.path().join("linux/Makefile"), "all:\n").unwrap();
        let not_kernel = Source::Tarball(tarball(dir.path()));
        let garbage = dir.path().join("garbage.tar.xz");
        fs::write(&garbage, [7; 1000]).unwrap();
        for source in [not_kernel, Source::Tarball(garbage)] {
            let err = unpack(&cache, &source, "key", &Silent).unwrap_err();
            assert!(matches!(err, KernelError::BadSource { .. }), "{err}");
        }
        assert!(!cache.root().join("sources/key").exists());
    }

    #[test]
    fn packages_line_up_by_number_with_ours_first() {
        let dir = tempfile::tempdir().unwrap();
        let pick = |dir: &Path| match in_packages(dir).unwrap() {
            Source::Tarball(file) => file.file_name().unwrap().to_str().unwrap().to_owned(),
            Source::Tree(_) => panic!("a tree"),
        };
        let err = in_packages(dir.path()).unwrap_err().to_string();
        assert!(err.contains("apt-get install linux-source-6.12"), "{err}");
        for (add, expect) in [
            ("linux-source-6.9.tar.xz", "linux-source-6.9.tar.xz"),
            ("linux-source-6.18.tar.xz", "linux-source-6.18.tar.xz"),
            ("linux-source-6.12.tar.xz", "linux-source-6.12.tar.xz"),
        ] {
            fs::write(dir.path().join(add), "").unwrap();
            assert_eq!(pick(dir.path()), expect);
        }
    }
}
