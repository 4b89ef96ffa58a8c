// SPDX-License-Identifier: Apache-2.0
//! The numbers of a sandbox and their ranges. Checked before anything is opened or started.

use std::path::Path;
use std::time::Duration;

use crate::error::Error;

/// Least memory with which our guest kernels reach the agent, in MiB.
pub const MEM_MIN_MIB: u64 = 32;
/// Most vCPUs that the monitor offers.
pub const CPUS_MAX: u32 = 32;
/// Range of the writable disk's size, in MiB.
pub const DISK_RANGE_MIB: std::ops::RangeInclusive<u64> = 32..=1 << 20;
/// Range of the boot time-out, in seconds.
pub const BOOT_TIMEOUT_RANGE_S: std::ops::RangeInclusive<u64> = 1..=3600;

/// The numbers of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Guest memory in MiB.
    pub mem_mib: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Size of the writable disk in MiB.
    pub disk_mib: u64,
    /// How long the guest may take to its agent's hello; `None` lets the place decide.
    pub boot_timeout: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { mem_mib: 1024, cpus: 1, disk_mib: 4096, boot_timeout: None }
    }
}

impl Settings {
    /// Checks every number against its range; `host_mib` is the memory of this machine.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first that is outside.
    pub fn check(&self, host_mib: u64) -> Result<(), Error> {
        in_range("the memory (--mem, mem_mib)", self.mem_mib, &(MEM_MIN_MIB..=host_mib), "MiB, this machine's memory")?;
        in_range("the number of vCPUs (--cpus)", u64::from(self.cpus), &(1..=u64::from(CPUS_MAX)), "vCPUs")?;
        in_range("the disk's size (--disk, disk_mib)", self.disk_mib, &DISK_RANGE_MIB, "MiB")?;
        if let Some(timeout) = self.boot_timeout {
            in_range("the boot time-out (--boot-timeout)", timeout.as_secs(), &BOOT_TIMEOUT_RANGE_S, "seconds")?;
        }
        Ok(())
    }

    /// Whether what the guest writes is held in memory: only where it cannot take more than a quarter of it.
    #[must_use]
    pub(super) fn overlay_fits_memory(&self, host_mib: u64) -> bool {
        self.disk_mib <= host_mib / 4
    }
}

fn in_range(
    what: &'static str,
    value: u64,
    range: &std::ops::RangeInclusive<u64>,
    unit: &'static str,
) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    let accepted = format!("{} to {} {unit}", range.start(), range.end());
    Err(Error::Setting { what, value: value.to_string(), accepted })
}

/// Memory of this machine in MiB.
#[must_use]
pub fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) >> 20
}

/// Checks that a name can stand in an environment: not empty, no `=`, no zero byte.
///
/// # Errors
/// [`Error::Setting`].
pub fn check_env_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.contains(['=', '\0']) {
        let accepted = "NAME=VALUE, with a name that is not empty".to_owned();
        return Err(Error::Setting {
            what: "the environment variable's name (--env)",
            value: format!("{name:?}"),
            accepted,
        });
    }
    Ok(())
}

/// Checks that the workspace is a directory that can be listed.
///
/// # Errors
/// [`Error::Setting`] when it does not exist, is no directory, or cannot be listed.
pub fn check_workspace(dir: &Path) -> Result<(), Error> {
    let refused = |problem: String| Error::Setting {
        what: "the workspace (--workspace)",
        value: format!("{}, {problem}", dir.display()),
        accepted: "a directory that this user can read".to_owned(),
    };
    let meta = std::fs::metadata(dir).map_err(|error| refused(format!("which cannot be used: {error}")))?;
    if !meta.is_dir() {
        return Err(refused("which is not a directory".to_owned()));
    }
    std::fs::read_dir(dir).map_err(|error| refused(format!("which cannot be listed: {error}")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut Settings)) -> Result<(), Error> {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.check(8192)
    }

    #[test]
    fn both_sides_of_every_boundary() {
        assert!(check(|_| ()).is_ok());
        for (mem_mib, good) in [(0, false), (31, false), (32, true), (8192, true), (8193, false), (u64::MAX, false)] {
            assert_eq!(check(|s| s.mem_mib = mem_mib).is_ok(), good, "{mem_mib} MiB");
        }
        for (cpus, good) in [(0, false), (1, true), (32, true), (33, false), (1000, false)] {
            assert_eq!(check(|s| s.cpus = cpus).is_ok(), good, "{cpus} vCPUs");
        }
        for (disk_mib, good) in [(0, false), (31, false), (32, true), (1 << 20, true), ((1 << 20) + 1, false)] {
            assert_eq!(check(|s| s.disk_mib = disk_mib).is_ok(), good, "{disk_mib} MiB of disk");
        }
        for (seconds, good) in [(0, false), (1, true), (3600, true), (3601, false)] {
            assert_eq!(check(|s| s.boot_timeout = Some(Duration::from_secs(seconds))).is_ok(), good, "{seconds} s");
        }
    }

    #[test]
    fn refusal_names_flag_value_and_range() {
        let text = check(|s| s.mem_mib = 1).unwrap_err().to_string();
        assert_eq!(text, "the memory (--mem, mem_mib) is 1; accepted: 32 to 8192 MiB, this machine's memory");
    }

    #[test]
    fn overlay_in_memory_only_up_to_a_quarter() {
        let with = |disk_mib| Settings { disk_mib, ..Settings::default() }.overlay_fits_memory(8192);
        assert!(with(2048) && !with(2049));
    }

    #[test]
    fn workspace_has_to_be_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        assert!(check_workspace(dir.path()).is_ok());
        assert!(check_workspace(&file).unwrap_err().to_string().contains("not a directory"));
        assert!(check_workspace(&dir.path().join("absent")).unwrap_err().to_string().contains("absent"));
    }

    #[test]
    fn variable_names_that_no_program_could_read_are_refused() {
        assert!(check_env_name("A").is_ok() && check_env_name("a.b-c").is_ok());
        for name in ["", "A=B", "A\0"] {
            assert!(check_env_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(host_memory_mib() > 64);
    }
}
