// SPDX-License-Identifier: Apache-2.0
//! The guest as a whole in numbers, from `/proc`. Only reads.

use std::fs;
use std::path::Path;

use midge_protocol::Stats;

use crate::sys::fd::disk_bytes;
use crate::sys::process::since_boot;
use crate::{cgroup, exec};

/// Milliseconds in a tick of the kernel's statistics (USER_HZ is 100 on every x86-64 kernel).
const TICK_MS: u64 = 10;

/// The numbers of now; what cannot be read is 0.
pub(crate) fn read() -> Stats {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let [cpu_user_ms, cpu_system_ms, cpu_idle_ms] = cpu_ms(&fs::read_to_string("/proc/stat").unwrap_or_default());
    let (disk_total_bytes, disk_free_bytes) = disk_bytes(Path::new("/")).unwrap_or_default();
    let own = i32::try_from(std::process::id()).unwrap_or(1);
    let programs =
        cgroup::processes().iter().filter(|process| !process.is_kernel_thread() && process.pid != own).count();
    Stats {
        uptime_ms: u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX),
        memory_total_kib: meminfo_kib(&meminfo, "MemTotal"),
        memory_available_kib: meminfo_kib(&meminfo, "MemAvailable"),
        cpu_user_ms,
        cpu_system_ms,
        cpu_idle_ms,
        processes: u32::try_from(programs).unwrap_or(u32::MAX),
        execs: u32::try_from(exec::running()).unwrap_or(u32::MAX),
        disk_total_bytes,
        disk_free_bytes,
    }
}

/// One line of `/proc/meminfo`, in KiB.
pub(crate) fn meminfo_kib(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Time in programs, in the kernel, idle: the first line of `/proc/stat`.
fn cpu_ms(stat: &str) -> [u64; 3] {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    let sum =
        |fields: &[usize]| fields.iter().filter_map(|field| ticks.get(*field)).sum::<u64>().saturating_mul(TICK_MS);
    [sum(&[0, 1]), sum(&[2, 5, 6]), sum(&[3, 4])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_by_its_whole_name() {
        let text = "MemTotal:  1000 kB\nMemTotalExtra: 5 kB\nMemAvailable:     7 kB\n";
        assert_eq!((meminfo_kib(text, "MemTotal"), meminfo_kib(text, "MemAvailable")), (1000, 7));
        assert_eq!((meminfo_kib(text, "Mem"), meminfo_kib("", "MemTotal")), (0, 0));
    }

    #[test]
    fn processor_time_is_in_milliseconds() {
        assert_eq!(cpu_ms("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 9 9 9 9\n"), [30, 160, 90]);
        assert_eq!(cpu_ms("cpu 1"), [10, 0, 0]);
        assert_eq!(cpu_ms(""), [0, 0, 0]);
    }

    #[test]
    fn this_machine_has_memory_processes_and_a_disk() {
        let stats = read();
        assert!(stats.memory_total_kib > 0 && stats.processes > 0 && stats.disk_total_bytes > 0, "{stats:?}");
        assert!(stats.memory_available_kib <= stats.memory_total_kib);
    }
}
