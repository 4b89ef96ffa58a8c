// SPDX-License-Identifier: Apache-2.0
//! What must be said beside a latency for anybody to believe it: the processor, the host kernel, who serves
//! /dev/kvm, and the host settings that are known to cost.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The machine of a bench, or of `midge doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Model name of the first processor.
    pub processor: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Release of the host kernel.
    pub host_kernel: String,
    /// Vendor modules under /sys/module: `kvm_intel`, `kvm_amd`, `kvm_pvm`.
    pub kvm_modules: Vec<String>,
    /// `nx_huge_pages` of the module kvm.
    pub nx_huge_pages: Option<String>,
    /// `transparent_hugepage/enabled`.
    pub transparent_huge_pages: Option<String>,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Whether cgroup2 is mounted with `favordynmods`.
    pub favordynmods: bool,
    /// `CONFIG_HZ` of the host kernel, where its configuration can be read.
    pub hz: Option<u32>,
}

impl Machine {
    /// Reads what this machine tells.
    #[must_use]
    pub fn read() -> Self {
        Self::read_below(Path::new("/"))
    }

    /// [`Machine::read`] of another root directory than `/`.
    #[must_use]
    pub fn read_below(root: &Path) -> Self {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).ok().map(|text| text.trim().to_owned());
        let release = text("proc/sys/kernel/osrelease").unwrap_or_default();
        let cpuinfo = text("proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let modules = ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter();
        let config = text(&format!("boot/config-{release}")).unwrap_or_default();
        let mounts = text("proc/self/mounts").unwrap_or_default();
        Self {
            processor: model.map(|(_, name)| name.trim().to_owned()).unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kvm_modules: modules
                .filter(|name| root.join("sys/module").join(name).exists())
                .map(str::to_owned)
                .collect(),
            nx_huge_pages: text("sys/module/kvm/parameters/nx_huge_pages"),
            transparent_huge_pages: text("sys/kernel/mm/transparent_hugepage/enabled").map(|text| chosen(&text)),
            cgroup_version: if root.join("sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 },
            favordynmods: mounts.lines().any(|line| line.contains(" cgroup2 ") && line.contains("favordynmods")),
            hz: config.lines().find_map(|line| line.strip_prefix("CONFIG_HZ=")?.parse().ok()),
            host_kernel: release,
        }
    }
}

/// `always [madvise] never` → `madvise`.
fn chosen(text: &str) -> String {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text, |(word, _)| word).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_the_usual_files() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("proc/sys/kernel/osrelease", "6.12.1\n");
        put("proc/cpuinfo", "processor\t: 0\nmodel name\t: Example 9000\n");
        put("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,favordynmods 0 0\n");
        put("boot/config-6.12.1", "CONFIG_HZ_1000=y\nCONFIG_HZ=1000\n");
        put("sys/module/kvm_amd/x", "");
        put("sys/module/kvm/parameters/nx_huge_pages", "Y\n");
        put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        put("sys/fs/cgroup/cgroup.controllers", "cpu\n");
        let machine = Machine::read_below(root.path());
        assert_eq!((machine.processor.as_str(), machine.host_kernel.as_str()), ("Example 9000", "6.12.1"));
        assert_eq!((machine.kvm_modules, machine.hz), (vec!["kvm_amd".to_owned()], Some(1000)));
        assert_eq!((machine.cgroup_version, machine.favordynmods), (2, true));
        assert_eq!(machine.transparent_huge_pages.as_deref(), Some("madvise"));
        assert_eq!(machine.nx_huge_pages.as_deref(), Some("Y"));
    }

    #[test]
    fn machine_that_tells_nothing_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::read_below(root.path());
        assert_eq!((machine.hz, machine.kvm_modules.len(), machine.cgroup_version), (None, 0, 1));
    }
}
