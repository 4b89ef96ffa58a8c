// SPDX-License-Identifier: Apache-2.0
//! Where transcripts lie: one file a run, kept until its owner removes it, private to the user. Never removes one.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a transcript's name ends with.
const SUFFIX: &str = ".jsonl";
/// Longest name of a run, in bytes.
const NAME_MAX_BYTES: usize = 128;

/// Why transcripts cannot be found or kept.
#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    /// There is no home directory to keep them in.
    #[error(
        "looking for the directory of transcripts: none of MIDGE_STATE, XDG_STATE_HOME and HOME is set; set MIDGE_STATE"
    )]
    NoPlace,
    /// The name cannot be a file's.
    #[error(
        "naming a run {name:?}: accepted are letters, digits, `-`, `_` and `.`, at most {NAME_MAX_BYTES}, no `.` first"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// There is no such transcript.
    #[error(
        "looking for a transcript: there is no file {name:?} and no run of that name in {dir}; `midge log list` lists them"
    )]
    NotFound {
        /// What was asked for.
        name: String,
        /// Where runs are kept.
        dir: PathBuf,
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

/// A run whose transcript is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Bytes of the transcript.
    pub len_bytes: u64,
    /// When it was written to last.
    pub written: SystemTime,
}

/// The directory of transcripts: `$MIDGE_STATE/runs`, else `$XDG_STATE_HOME/midge/runs`, else `~/.local/state/midge/runs`. It need not
/// be there.
///
/// # Errors
/// [`RunsError::NoPlace`] without any of the three variables.
pub fn dir() -> Result<PathBuf, RunsError> {
    place(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)).ok_or(RunsError::NoPlace)
}

fn place(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let state = variable("MIDGE_STATE")
        .or_else(|| variable("XDG_STATE_HOME").map(|dir| dir.join("midge")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".local/state/midge")));
    state.map(|dir| dir.join("runs"))
}

/// The path for the transcript of a new run, in a directory that is there and private to the user.
///
/// # Errors
/// [`RunsError`] for a name that is none, and when the directory cannot be made.
pub fn new_path(name: &str) -> Result<PathBuf, RunsError> {
    let dir = dir()?;
    let path = path_in(&dir, name)?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|source| RunsError::Io { doing: "making the directory of transcripts", path: dir, source })?;
    Ok(path)
}

fn path_in(dir: &Path, name: &str) -> Result<PathBuf, RunsError> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_name = !name.is_empty() && name.len() <= NAME_MAX_BYTES && !name.starts_with('.') && name.chars().all(known);
    if is_name { Ok(dir.join(format!("{name}{SUFFIX}"))) } else { Err(RunsError::Name { name: name.to_owned() }) }
}

/// The transcript that a user means: a file, else a run by name.
///
/// # Errors
/// [`RunsError::NotFound`] when there is neither.
pub fn find(file_or_run: &Path) -> Result<PathBuf, RunsError> {
    find_in(&dir()?, file_or_run)
}

fn find_in(dir: &Path, file_or_run: &Path) -> Result<PathBuf, RunsError> {
    if file_or_run.is_file() {
        return Ok(file_or_run.to_owned());
    }
    let name = file_or_run.to_string_lossy();
    match path_in(dir, &name) {
        Ok(path) if path.is_file() => Ok(path),
        _ => Err(RunsError::NotFound { name: name.into_owned(), dir: dir.to_owned() }),
    }
}

/// The runs whose transcripts are kept, the newest last.
///
/// # Errors
/// [`RunsError::Io`] when the directory is there and cannot be read.
pub fn list() -> Result<Vec<Kept>, RunsError> {
    list_in(&dir()?)
}

fn list_in(dir: &Path) -> Result<Vec<Kept>, RunsError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(RunsError::Io { doing: "listing", path: dir.to_owned(), source }),
    };
    let mut kept = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let (Some(name), Ok(about)) = (name.strip_suffix(SUFFIX), entry.metadata()) else { continue };
        if about.is_file() {
            let written = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            kept.push(Kept { name: name.to_owned(), len_bytes: about.len(), written });
        }
    }
    kept.sort_by(|a, b| (a.written, &a.name).cmp(&(b.written, &b.name)));
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_follows_the_variables_in_their_order() {
        let of = |set: &[(&str, &str)]| {
            let found = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value));
            place(found).map(|path| path.display().to_string())
        };
        assert_eq!(of(&[("MIDGE_STATE", "/s"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")]).as_deref(), Some("/s/runs"));
        assert_eq!(of(&[("XDG_STATE_HOME", "/x"), ("HOME", "/h")]).as_deref(), Some("/x/midge/runs"));
        assert_eq!(of(&[("HOME", "/h")]).as_deref(), Some("/h/.local/state/midge/runs"));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn names_stay_in_the_directory() {
        let dir = Path::new("/runs");
        assert_eq!(path_in(dir, "fix-1.2_a").unwrap(), Path::new("/runs/fix-1.2_a.jsonl"));
        let long = "a".repeat(NAME_MAX_BYTES + 1);
        for bad in ["", ".", "..", ".hidden", "a/b", "../x", "a b", "ä", "a\0b", &long] {
            assert!(matches!(path_in(dir, bad), Err(RunsError::Name { .. })), "{bad}");
        }
    }

    #[test]
    fn files_are_found_before_runs_and_what_is_not_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("one.jsonl"), "x").unwrap();
        fs::write(dir.path().join("notes.txt"), "x").unwrap();
        assert_eq!(find_in(dir.path(), Path::new("one")).unwrap(), dir.path().join("one.jsonl"));
        let file = dir.path().join("notes.txt");
        assert_eq!(find_in(dir.path(), &file).unwrap(), file);
        let error = find_in(dir.path(), Path::new("two")).unwrap_err().to_string();
        assert!(error.contains("midge log list"), "{error}");
        let names: Vec<String> = list_in(dir.path()).unwrap().into_iter().map(|kept| kept.name).collect();
        assert_eq!(names, ["one"]);
        assert_eq!(list_in(&dir.path().join("none")).unwrap(), []);
    }
}
