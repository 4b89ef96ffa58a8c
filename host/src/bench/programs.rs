// SPDX-License-Identifier: Apache-2.0
//! Programs of this machine that are to run elsewhere: where they are, and what else they open when they start.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Contender, CountedError};

/// What QEMU reads when it starts a `microvm`.
const QEMU_FILES: [&str; 5] = ["qboot.rom", "bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"];
/// Where distributions keep them.
const QEMU_DIRS: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/local/share/qemu"];

/// The program's absolute path; a bare name is looked for as a shell would.
pub(super) fn find(program: &Path) -> Result<PathBuf, CountedError> {
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

/// The contender's program and what it opens when it starts.
pub(super) fn needs(contender: &Contender, program: &Path) -> Result<Vec<PathBuf>, CountedError> {
    let mut paths = with_libraries(program)?;
    if matches!(contender, Contender::QemuMicrovm { .. }) {
        let in_dirs = |name: &&str| QEMU_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
        paths.extend(QEMU_FILES.iter().filter_map(in_dirs));
    }
    Ok(paths)
}

/// The program, and unless it is static the dynamic linker, the libraries it would load, and its index of them.
pub(super) fn with_libraries(program: &Path) -> Result<Vec<PathBuf>, CountedError> {
    let bad = |problem: String| CountedError::Program { program: program.to_owned(), problem };
    let output = Command::new("ldd").arg(program).output().map_err(|error| bad(format!("running ldd: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        return Err(bad(format!("its library is missing: {}", line.trim())));
    }
    let mut paths = vec![program.to_owned()];
    paths.extend(text.lines().filter_map(library).map(PathBuf::from));
    let index = PathBuf::from("/etc/ld.so.cache");
    paths.extend(Some(index).filter(|index| paths.len() > 1 && index.exists()));
    Ok(paths)
}

/// A line of `ldd`: `name => /path (address)`, or `/path (address)` for the linker.
fn library(line: &str) -> Option<&str> {
    let line = line.split_once(" => ").map_or(line, |(_, path)| path).trim();
    line.split_once(" (").map(|(path, _)| path).filter(|path| path.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_is_missing_is_named() {
        let text = find(Path::new("/nonexistent/fire")).unwrap_err().to_string();
        assert!(text.contains("/nonexistent/fire") && text.contains("No such file"), "{text}");
        assert!(find(Path::new("no-such-program-anywhere")).is_err());
    }

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        assert_eq!(
            library("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)"),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(library("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"), Some("/lib64/ld-linux-x86-64.so.2"));
        for line in ["\tlinux-vdso.so.1 (0x00007ffc)", "\tstatically linked", "", "\tnot a dynamic executable"] {
            assert_eq!(library(line), None, "{line}");
        }
    }

    #[test]
    fn shell_is_found_with_its_libraries() {
        let shell = find(Path::new("sh")).unwrap();
        assert!(shell.is_absolute());
        let needs = needs(&Contender::Firecracker { program: shell.clone() }, &shell).unwrap();
        assert!(needs.contains(&shell));
        assert!(needs.iter().all(|path| path.exists()), "{needs:?}");
    }
}
