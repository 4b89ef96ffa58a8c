// SPDX-License-Identifier: Apache-2.0
//! What each sandbox says of itself to other processes of its user: one line of JSON in its `lock` file, written once.
//!
//! Found only below a directory that nobody else can write to, and still no more than a hint: whoever reads it looks
//! whether the processes it names are there, and older than the record.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{RunDir, RunDirError, default_base, examine_private, fallback_base, is_id};

/// Longest record, in bytes.
const RECORD_MAX_BYTES: u64 = 4096;
/// Most directories that are looked at.
const DIRECTORIES_MAX: usize = 100_000;

/// What a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Booted.
    Run,
    /// Made of a template, or of another sandbox.
    Fork,
    /// A template in memory, which runs nothing.
    Resident,
}

/// What is known of a sandbox from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it is.
    pub kind: Kind,
    /// The template that it, or what it was forked from, was made of.
    pub template: Option<String>,
    /// The sandbox that it was forked from.
    pub parent: Option<String>,
    /// Where it runs: `native` or `emulated`.
    pub place: String,
    /// The process that it belongs to and ends with.
    pub owner_pid: u32,
    /// Its monitor, where that is a process of this machine.
    pub monitor_pid: Option<u32>,
    /// The directory of its control group, where it has one on this machine.
    #[serde(default)]
    pub group: Option<PathBuf>,
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub mem_mib: u64,
}

/// What a sandbox has said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it is.
    #[serde(flatten)]
    pub about: About,
    /// When this was written, in milliseconds since the machine was booted.
    pub at_ms: u64,
}

/// Time since this machine was booted.
pub(crate) fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl RunDir {
    /// Writes the record. A sandbox that cannot be listed runs all the same.
    pub fn describe(&self, record: &Record) {
        let written =
            serde_json::to_vec(record).map_err(std::io::Error::other).and_then(|text| self.lock.write_all_at(&text, 0));
        if let Err(error) = written {
            tracing::warn!(id = self.id, %error, "the sandbox will not be listed");
        }
    }
}

/// Every record that can be read, with the name of its sandbox, below the bases of this user.
///
/// # Errors
/// [`RunDirError`] when a base is not this user's own, or cannot be listed.
pub fn records() -> Result<Vec<(String, Record)>, RunDirError> {
    // A process that was started without XDG_RUNTIME_DIR keeps its directories elsewhere.
    let (first, second) = (default_base(), fallback_base());
    let mut found = records_in(&first)?;
    if second != first {
        found.extend(records_in(&second)?);
    }
    Ok(found)
}

/// The same below one base.
///
/// # Errors
/// As for [`records`].
pub(crate) fn records_in(base: &Path) -> Result<Vec<(String, Record)>, RunDirError> {
    if !base.is_dir() {
        return Ok(Vec::new());
    }
    examine_private(base)?;
    let entries = fs::read_dir(base).map_err(RunDirError::io("listing", base))?;
    let named = entries.flatten().take(DIRECTORIES_MAX).filter_map(|entry| entry.file_name().into_string().ok());
    let read = |id: String| {
        let record = read(&base.join(&id).join("lock"))?;
        Some((id, record))
    };
    Ok(named.filter(|name| is_id(name)).filter_map(read).collect())
}

/// `None` for what is gone, half written, or no record.
fn read(path: &PathBuf) -> Option<Record> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).ok()?;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let mut text = Vec::new();
    file.take(RECORD_MAX_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn record() -> Record {
        let about = About {
            kind: Kind::Fork,
            template: Some("py".to_owned()),
            parent: None,
            place: "native".to_owned(),
            owner_pid: 1,
            monitor_pid: Some(2),
            group: Some("/g".into()),
            cpus: 3,
            mem_mib: 4,
        };
        Record { about, at_ms: 5 }
    }

    #[test]
    fn what_a_sandbox_says_is_found_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b");
        assert!(records_in(&base).unwrap().is_empty(), "nobody was ever here");
        let run = RunDir::create(&base, dir.path()).unwrap();
        assert!(records_in(&base).unwrap().is_empty(), "it has said nothing yet");
        run.describe(&record());
        assert_eq!(records_in(&base).unwrap(), [(run.id().to_owned(), record())]);
        drop(run);
        assert!(records_in(&base).unwrap().is_empty());
    }

    #[test]
    fn entries_that_are_no_records_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b");
        let run = RunDir::create(&base, dir.path()).unwrap();
        run.describe(&record());
        let text = serde_json::to_string(&record()).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, &text).unwrap();
        let entry = |id: &str| {
            fs::create_dir(base.join(id)).unwrap();
            base.join(id).join("lock")
        };
        fs::write(entry("000000000001"), &text[..text.len() / 2]).unwrap();
        fs::write(entry("000000000002"), format!("{text}{}", " ".repeat(5000))).unwrap();
        fs::write(entry("000000000003"), [0xff; 100]).unwrap();
        std::os::unix::fs::symlink(&elsewhere, entry("000000000004")).unwrap();
        fs::create_dir(entry("000000000005")).unwrap();
        entry("000000000006");
        let fifo = entry("000000000007");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        fs::write(entry("not-an-id"), &text).unwrap();
        fs::write(base.join("000000000008"), &text).unwrap();
        let ids: Vec<String> = records_in(&base).unwrap().into_iter().map(|(id, _)| id).collect();
        // The second is whole within the limit: what follows it is not looked at.
        let mut expected = [run.id().to_owned(), "000000000002".to_owned()];
        let mut ids = ids;
        ids.sort();
        expected.sort();
        assert_eq!(ids, expected);
    }

    #[test]
    fn a_base_that_others_can_write_to_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("b");
        let run = RunDir::create(&base, dir.path()).unwrap();
        run.describe(&record());
        fs::set_permissions(&base, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(records_in(&base).unwrap_err().to_string().contains("0770"));
    }
}
