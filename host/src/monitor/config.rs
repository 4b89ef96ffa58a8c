// SPDX-License-Identifier: Apache-2.0
//! The monitor's configuration as this side writes it: one line of JSON on the monitor's stdin.
//!
//! Field names and meanings are the monitor's; it refuses unknown fields, so a mismatch fails at once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::groups::{Allowance, Share};

/// One virtual machine, in the monitor's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmConfig {
    /// An ELF `vmlinux` or a bzImage for x86-64; `None` for a VM that goes on where a snapshot was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The snapshot, in place of a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
    /// What the kernel unpacks as its first root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Words appended to the command line that the monitor composes.
    pub cmdline: String,
    /// Guest memory in MiB.
    pub mem_mib: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Whether to back guest memory with 2 MiB pages.
    pub huge_pages: bool,
    /// `/dev/vda`, `/dev/vdb` and so on, in this order.
    pub disks: Vec<Disk>,
    /// The way to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// Whether the guest has a serial console.
    pub console: Console,
    /// Registers that a snapshot carries beyond those that KVM lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_msrs: Vec<u32>,
    /// Whether the VM may be frozen and forked.
    pub forkable: bool,
    /// Whether its end tells which memory the guest has written to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub track_writes: bool,
    /// Whether the monitor's threads are locked in.
    #[serde(default, skip_serializing_if = "Jail::is_on")]
    pub jail: Jail,
    /// Parts of the jail that the machine need not give; a matter of the machine, and not kept with a template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_missing: Vec<String>,
}

/// The monitor's jail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Jail {
    /// On, as for every sandbox.
    #[default]
    On,
    /// No system-call filters. Only a bench asks for this, of guests of its own, to measure what they cost.
    Off,
}

impl Jail {
    fn is_on(&self) -> bool {
        *self == Self::On
    }
}

/// The files of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// CPUs and devices.
    pub state: PathBuf,
    /// Guest memory.
    pub memory: PathBuf,
    /// What each disk had changed.
    pub layers: Vec<Option<PathBuf>>,
    /// Whether the monitor makes no VM but forks of it, on order.
    pub resident: bool,
    /// The guest memory that is written to first, guest-physical address and length of each part in bytes: copied before the
    /// guest goes on, and not page by page when it gets there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub working_set: Vec<(u64, u64)>,
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The image at the bottom.
    pub path: PathBuf,
    /// What becomes of writes.
    pub mode: DiskMode,
}

impl Disk {
    /// Whether the guest can write to it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.mode != DiskMode::ReadOnly
    }
}

/// What becomes of writes to a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskMode {
    /// They fail.
    ReadOnly,
    /// They live in the monitor's memory and end with it.
    OverlayMemory {
        /// Most that may be written, in MiB; beyond it the guest sees an I/O error.
        cap_mib: u64,
    },
    /// They live in a sparse file.
    OverlayFile {
        /// The file; made if absent.
        path: PathBuf,
        /// Most that may be written, in MiB.
        cap_mib: u64,
    },
}

/// The virtio-vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    /// The guest's context id, 3 or more.
    pub guest_cid: u32,
    /// The Unix socket through which the host connects.
    pub uds: PathBuf,
}

/// Whether the guest has a serial console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Console {
    /// No console; the kernel's last words are kept for a report.
    Off,
    /// Every line becomes an event.
    On,
}

impl VmmConfig {
    /// The same, with what the machine need not give.
    #[must_use]
    pub fn allowing(&self, parts: &[String]) -> Self {
        Self { allow_missing: parts.to_vec(), ..self.clone() }
    }

    /// The memory that its monitor can come to hold, in MiB: the guest's, and what its disks keep in memory.
    #[must_use]
    pub fn memory_max_mib(&self) -> u64 {
        let disk_mib = |disk: &Disk| match disk.mode {
            DiskMode::OverlayMemory { cap_mib } => cap_mib,
            DiskMode::ReadOnly | DiskMode::OverlayFile { .. } => 0,
        };
        self.disks.iter().map(disk_mib).fold(self.mem_mib, u64::saturating_add)
    }

    /// What its monitor may take of the machine. Its disks' files are on the block device `device`.
    pub(super) fn allowance(&self, share: &Share, device: Option<String>) -> Allowance {
        let io = share.io_mib_s.zip(device).map(|(mib_s, device)| (device, mib_s.saturating_mul(1 << 20)));
        let (memory_mib, cpu_percent) = (self.memory_max_mib(), share.cpu_percent);
        let at_rest = self.restore.as_ref().is_some_and(|restore| restore.resident);
        Allowance { memory_mib, cpus: self.cpus, cpu_percent, io, at_rest }
    }

    /// The file that the guest writes to, or else one that it reads.
    pub(super) fn disk_file(&self) -> Option<&Path> {
        let written = self.disks.iter().find_map(|disk| match &disk.mode {
            DiskMode::OverlayFile { path, .. } => path.parent(),
            DiskMode::ReadOnly | DiskMode::OverlayMemory { .. } => None,
        });
        written.or_else(|| self.disks.first().map(|disk| disk.path.as_path()))
    }

    /// The document as the monitor reads it: one line, closed by a line feed.
    ///
    /// # Errors
    /// When a path is not UTF-8, which JSON cannot carry.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_has_the_monitors_field_names() {
        let config = VmmConfig {
            kernel: Some("/k".into()),
            restore: None,
            initramfs: Some("/i".into()),
            cmdline: "a=b".into(),
            mem_mib: 256,
            cpus: 1,
            huge_pages: true,
            disks: vec![
                Disk { path: "/r".into(), mode: DiskMode::ReadOnly },
                Disk { path: "/s".into(), mode: DiskMode::OverlayMemory { cap_mib: 7 } },
                Disk { path: "/t".into(), mode: DiskMode::OverlayFile { path: "/o".into(), cap_mib: 9 } },
            ],
            vsock: Some(Vsock { guest_cid: 3, uds: "/v".into() }),
            console: Console::Off,
            extra_msrs: Vec::new(),
            forkable: false,
            track_writes: false,
            jail: Jail::On,
            allow_missing: Vec::new(),
        };
        let expected = r#"{"kernel":"/k","initramfs":"/i","cmdline":"a=b","mem_mib":256,"cpus":1,"huge_pages":true,"disks":[{"path":"/r","mode":"read_only"},{"path":"/s","mode":{"overlay_memory":{"cap_mib":7}}},{"path":"/t","mode":{"overlay_file":{"path":"/o","cap_mib":9}}}],"vsock":{"guest_cid":3,"uds":"/v"},"console":"off","forkable":false}"#;
        assert_eq!(config.to_line().unwrap(), format!("{expected}\n"));
        let off = VmmConfig { jail: Jail::Off, ..config.clone() }.to_line().unwrap();
        let lenient = config.allowing(&["own-ids".to_owned()]).to_line().unwrap();
        assert!(lenient.ends_with("\"forkable\":false,\"allow_missing\":[\"own-ids\"]}\n"), "{lenient}");
        assert_eq!(off, expected.replace("\"forkable\":false}", "\"forkable\":false,\"jail\":\"off\"}\n"));
    }

    #[test]
    fn path_with_a_line_feed_stays_on_one_line() {
        let config = VmmConfig {
            kernel: Some("/a\nb".into()),
            restore: None,
            initramfs: None,
            cmdline: String::new(),
            mem_mib: 64,
            cpus: 1,
            huge_pages: false,
            disks: Vec::new(),
            vsock: None,
            console: Console::On,
            extra_msrs: Vec::new(),
            forkable: false,
            track_writes: false,
            jail: Jail::On,
            allow_missing: Vec::new(),
        };
        assert_eq!(config.to_line().unwrap().matches('\n').count(), 1);
    }
}
