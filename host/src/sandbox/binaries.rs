// SPDX-License-Identifier: Apache-2.0
//! Where Midge's other programs are: named by a variable, or beside the running one.

use std::path::{Path, PathBuf};

use crate::error::{Error, Fault};

/// The monitor's binary: `MIDGE_VMM`, or `midge-vmm` beside this program.
///
/// # Errors
/// [`Error::Prepare`] when it is in neither place.
pub fn vmm() -> Result<PathBuf, Error> {
    find("MIDGE_VMM", "midge-vmm")
}

/// The guest agent's binary: `MIDGE_AGENT`, or `midge-agent` beside this program.
///
/// # Errors
/// [`Error::Prepare`] when it is in neither place.
pub fn agent() -> Result<PathBuf, Error> {
    find("MIDGE_AGENT", "midge-agent")
}

/// The tool loop's binary, which is put into guests: `MIDGE_TURN`, or `midge-turn` beside this program.
///
/// # Errors
/// [`Error::Prepare`] when it is in neither place.
pub fn turn() -> Result<PathBuf, Error> {
    find("MIDGE_TURN", "midge-turn")
}

/// The command's own binary, which is the first process of an emulated host: `MIDGE_BIN`, or `midge` beside this program.
///
/// # Errors
/// [`Error::Prepare`] when it is in neither place.
pub fn midge() -> Result<PathBuf, Error> {
    find("MIDGE_BIN", "midge")
}

fn find(variable: &'static str, name: &'static str) -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        return match path.canonicalize() {
            Ok(path) if path.is_file() => Ok(path),
            _ => Err(missing(format!("{variable} names {}, which is no file", path.display()))),
        };
    }
    let exe = std::env::current_exe().and_then(|exe| exe.canonicalize()).map_err(|error| missing(error.to_string()))?;
    let candidates = beside(&exe, name);
    candidates.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        missing(format!("{name} is not beside {}; install it there, or name it with {variable}", exe.display()))
    })
}

fn missing(text: String) -> Error {
    Error::prepare("programs of Midge", Fault::Host, text)
}

/// Beside the program itself; tests and examples lie one directory deeper than their crate's programs.
fn beside(exe: &Path, name: &str) -> Vec<PathBuf> {
    let Some(dir) = exe.parent() else { return Vec::new() };
    let mut candidates = vec![dir.join(name)];
    let is_nested = dir.file_name().is_some_and(|dir| dir == "deps" || dir == "examples");
    if let Some(above) = dir.parent().filter(|_| is_nested) {
        candidates.push(above.join(name));
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looked_for_beside_and_for_tests_one_above() {
        assert_eq!(beside(Path::new("/opt/bin/midge"), "x"), [Path::new("/opt/bin/x")]);
        let nested = beside(Path::new("/t/debug/deps/midge-123"), "x");
        assert_eq!(nested, [Path::new("/t/debug/deps/x"), Path::new("/t/debug/x")]);
    }
}
