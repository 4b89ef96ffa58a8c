// SPDX-License-Identifier: Apache-2.0
//! The policy's file is looked at while a run goes on: what a changed one no longer allows is taken away at once. What it allows
//! beyond the one that the run began with is for the next run.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use midge::agent::Household;
use midge::error::{Error, chain};
use midge_policy::Policy;
use tokio::task::JoinHandle;

use crate::cli::fail::say;

/// How often the file is looked at. A change counts when it is the same at two looks: half a file is nobody's wish.
const LOOK: Duration = Duration::from_millis(250);

/// Looks at a file until it is dropped.
#[derive(Debug)]
pub(in crate::cli) struct Watched(JoinHandle<()>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches what `--policy` names, if that is a file. `reread` makes the policy of it again, with all that flags add; it is told to
/// whoever reads standard error unless `quiet`, and is in each transcript.
pub(in crate::cli) fn watch(
    name: Option<&str>,
    reread: impl Fn() -> Result<Policy, Error> + Send + 'static,
    household: &Arc<Household>,
    quiet: bool,
) -> Option<Watched> {
    let name = name.filter(|name| Policy::profile(name).is_none())?.to_owned();
    let household = Arc::clone(household);
    let mut looks = Looks { counted: Stamp::of(&name), last: None };
    Some(Watched(tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            if !looks.have_changed(Stamp::of(&name)) {
                continue;
            }
            let told = match reread() {
                Ok(policy) => {
                    household.narrow(policy);
                    format!(
                        "{name} has changed: what it no longer allows is refused from now on; what it adds is for the next run"
                    )
                }
                Err(error) => {
                    format!("{name} has changed and is not used, the policy stays as it was: {}", chain(&error))
                }
            };
            if quiet {
                tracing::info!("{told}");
            } else {
                say(&told);
            }
        }
    })))
}

/// By what a change is seen: inode, length, and time in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

impl Stamp {
    /// Nothing while the file is not there: whoever replaces it is not done. Nothing of what is no file, either: a pipe is read once.
    fn of(path: &str) -> Option<Self> {
        let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some(Self(meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }
}

/// What was seen so far.
struct Looks {
    /// Of the file that counts.
    counted: Option<Stamp>,
    last: Option<Stamp>,
}

impl Looks {
    /// Whether the file is another one, and was that one already at the look before.
    fn have_changed(&mut self, now: Option<Stamp>) -> bool {
        let settled = now.is_some() && now == self.last && now != self.counted;
        self.last = now;
        if settled {
            self.counted = now;
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_and_when_it_has_settled() {
        let stamp = |n| Some(Stamp(n, 0, 0, 0));
        let mut looks = Looks { counted: stamp(1), last: None };
        let mut seen = |now| looks.have_changed(now);
        assert!(!seen(stamp(1)) && !seen(stamp(1)), "nothing has changed");
        assert!(!seen(None) && !seen(None), "it is being replaced");
        assert!(!seen(stamp(2)) && !seen(stamp(3)), "it is being written");
        assert!(seen(stamp(3)) && !seen(stamp(3)), "once");
        assert!(!seen(stamp(1)) && seen(stamp(1)), "back again is a change as well");
    }

    #[test]
    fn a_file_is_another_one_when_it_was_written_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        let stamp = || Stamp::of(path.to_str().unwrap());
        assert!(stamp().is_none());
        fs::write(&path, "a").unwrap();
        let first = stamp().unwrap();
        fs::write(&path, "ab").unwrap();
        let second = stamp().unwrap();
        fs::write(dir.path().join("next"), "ab").unwrap();
        fs::rename(dir.path().join("next"), &path).unwrap();
        assert!(first != second && second != stamp().unwrap());
        assert!(Stamp::of(dir.path().to_str().unwrap()).is_none(), "no file");
    }
}
