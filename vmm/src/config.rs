// SPDX-License-Identifier: Apache-2.0
//! The configuration of one VM: one JSON document, checked whole.
//!
//! First stage of every run. Owning a [`VmmConfig`] proves that every number is in its range,
//! that the host has the memory, and that the files existed when they were looked at. It opens
//! nothing and keeps no file descriptor; whether a kernel *is* a kernel is for `boot::kernel`.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::sys;

mod jail;
mod restore;

pub use jail::{Jail, JailPart};
pub use restore::{RestoreConfig, WORKING_SET_MAX_BYTES, WORKING_SET_PARTS_MAX};

/// Least memory that is accepted: below it no Linux with virtio and vsock reaches its init.
pub const MEM_MIN_MIB: u64 = 32;
/// Most vCPUs: the MP table of so many fits the one KiB below 640 KiB where Linux looks for it.
pub const CPUS_MAX: u64 = 32;
/// Most disks: with vsock they share the free legacy interrupt lines, one each.
pub const DISKS_MAX: usize = 8;
/// Largest kernel or initramfs file; a bound against absurd input, far above any real one.
pub const IMAGE_FILE_MAX_MIB: u64 = 1024;
/// Largest overlay of a disk.
pub const OVERLAY_CAP_MAX_MIB: u64 = 16 * 1024 * 1024;
/// Longest command line handed over by the user; the monitor's own words come on top.
pub const CMDLINE_MAX_BYTES: usize = 1536;
/// Longest Unix socket path; `_` and a ten-digit port must still fit `sun_path` (108 bytes).
pub const UDS_PATH_MAX_BYTES: usize = 96;
/// Most MSRs that a snapshot may be told to carry in addition to KVM's own list.
pub const EXTRA_MSRS_MAX: usize = 64;

/// Why a configuration was refused. Always the user's (or the embedding program's) to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The document is not JSON of the expected shape.
    #[error("configuration: {0}; the fields are listed by `midge-vmm --help`")]
    Json(serde_json::Error),
    /// A value lies outside its range.
    #[error("configuration: {field} is {value}; accepted: {accepted}")]
    Value {
        /// Field name, with its index in a list.
        field: String,
        /// The refused value.
        value: String,
        /// What would have been accepted.
        accepted: String,
    },
    /// A named file cannot be used.
    #[error("configuration: {field} names {path:?}, which {problem}; accepted: {accepted}")]
    File {
        /// Field name, with its index in a list.
        field: String,
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What would have been accepted.
        accepted: &'static str,
    },
}

/// How a disk may be written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DiskMode {
    /// The guest sees a read-only device.
    ReadOnly,
    /// Writes go to the monitor's memory and end with it.
    OverlayMemory {
        /// Most data held, in MiB; a write beyond it fails in the guest.
        cap_mib: u64,
    },
    /// Writes go to a sparse file beside the base.
    OverlayFile {
        /// The overlay's file; made when absent.
        path: PathBuf,
        /// Most data held, in MiB; a write beyond it fails in the guest.
        cap_mib: u64,
    },
}

/// One disk: a base image and how it may be written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    path: PathBuf,
    mode: DiskMode,
}

impl DiskConfig {
    /// The base image.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// How it may be written.
    pub fn mode(&self) -> &DiskMode {
        &self.mode
    }
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    guest_cid: u64,
    uds: PathBuf,
}

impl VsockConfig {
    /// The guest's context id, 3 or more.
    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }
    /// The Unix socket the host connects to; guest connections go to `<uds>_<port>`.
    pub fn uds(&self) -> &Path {
        &self.uds
    }
}

/// Whether the guest has a serial console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleMode {
    /// No console device; panics still reach a ring of the last bytes.
    #[default]
    Off,
    /// A serial port with input interrupts off; each line becomes an event.
    On,
}

/// How a VM begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    /// With this kernel: an x86-64 ELF `vmlinux` or a `bzImage`.
    Kernel(&'a Path),
    /// Where a snapshot was taken.
    Restore(&'a RestoreConfig),
}

/// The document as it is written; becomes a [`VmmConfig`] only by [`VmmConfig::from_json`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    kernel: Option<PathBuf>,
    #[serde(default)]
    restore: Option<RestoreConfig>,
    #[serde(default)]
    initramfs: Option<PathBuf>,
    #[serde(default)]
    cmdline: String,
    mem_mib: u64,
    cpus: u64,
    #[serde(default = "on")]
    huge_pages: bool,
    #[serde(default)]
    disks: Vec<DiskConfig>,
    #[serde(default)]
    vsock: Option<VsockConfig>,
    #[serde(default)]
    console: ConsoleMode,
    #[serde(default)]
    extra_msrs: Vec<u32>,
    #[serde(default)]
    forkable: bool,
    #[serde(default)]
    track_writes: bool,
    #[serde(default)]
    jail: Jail,
    #[serde(default)]
    allow_missing: Vec<JailPart>,
}

fn on() -> bool {
    true
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct VmmConfig {
    doc: Document,
    cpus: u8,
}

impl VmmConfig {
    /// Parses and checks a document against this host.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is wrong, its value and what is accepted.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        Self::check(serde_json::from_slice(text).map_err(ConfigError::Json)?, sys::host_memory_bytes() >> 20)
    }

    fn check(doc: Document, host_mib: u64) -> Result<Self, ConfigError> {
        range("mem_mib", doc.mem_mib, MEM_MIN_MIB, host_mib, "MiB, the host's memory")?;
        range("cpus", doc.cpus, 1, CPUS_MAX, "vCPUs")?;
        restore::check_start(&doc)?;
        if let Some(path) = &doc.initramfs {
            image("initramfs", path)?;
        }
        check_cmdline(&doc.cmdline)?;
        if doc.disks.len() > DISKS_MAX {
            return Err(value("disks", doc.disks.len(), format!("at most {DISKS_MAX} disks")));
        }
        for (index, disk) in doc.disks.iter().enumerate() {
            check_disk(index, disk)?;
        }
        if let Some(vsock) = &doc.vsock {
            check_vsock(vsock)?;
        }
        if doc.extra_msrs.len() > EXTRA_MSRS_MAX {
            let accepted = format!("at most {EXTRA_MSRS_MAX} register numbers");
            return Err(value("extra_msrs", doc.extra_msrs.len(), accepted));
        }
        let cpus = u8::try_from(doc.cpus).map_err(|_| value("cpus", doc.cpus, "1 to 32"))?;
        Ok(Self { doc, cpus })
    }

    /// The same for a fork, whose vsock has its Unix socket at `uds`.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when the path is too long.
    pub fn for_fork(&self, uds: &Path) -> Result<Self, ConfigError> {
        let mut doc = self.doc.clone();
        if let Some(vsock) = &mut doc.vsock {
            uds.clone_into(&mut vsock.uds);
            check_vsock(vsock)?;
        }
        Ok(Self { doc, cpus: self.cpus })
    }

    /// How the VM begins.
    ///
    /// # Panics
    /// Never: a checked document has one or the other.
    pub fn start(&self) -> Start<'_> {
        match (&self.doc.kernel, &self.doc.restore) {
            (Some(kernel), _) => Start::Kernel(kernel),
            (None, Some(restore)) => Start::Restore(restore),
            (None, None) => unreachable!("`check_start` has refused this"),
        }
    }
    /// Whether the VM can be forked while it runs.
    pub fn is_forkable(&self) -> bool {
        self.doc.forkable
    }
    /// Whether the exit event tells which memory the guest has written to.
    pub fn tracks_writes(&self) -> bool {
        self.doc.track_writes
    }
    /// The guest memory that is known to be written to first, of a VM that does not boot.
    pub fn working_set(&self) -> &[(u64, u64)] {
        self.doc.restore.as_ref().map_or(&[], RestoreConfig::working_set)
    }
    /// The initramfs' file.
    pub fn initramfs(&self) -> Option<&Path> {
        self.doc.initramfs.as_deref()
    }
    /// Words to add to the kernel's command line.
    pub fn cmdline(&self) -> &str {
        &self.doc.cmdline
    }
    /// Guest memory in bytes.
    pub fn mem_bytes(&self) -> u64 {
        self.doc.mem_mib << 20
    }
    /// Number of vCPUs, 1 to [`CPUS_MAX`].
    pub fn cpus(&self) -> u8 {
        self.cpus
    }
    /// Whether guest memory asks for 2 MiB pages.
    pub fn huge_pages(&self) -> bool {
        self.doc.huge_pages
    }
    /// The disks, in the order in which the guest sees them.
    pub fn disks(&self) -> &[DiskConfig] {
        &self.doc.disks
    }
    /// The vsock device, if any.
    pub fn vsock(&self) -> Option<&VsockConfig> {
        self.doc.vsock.as_ref()
    }
    /// Whether there is a serial console.
    pub fn console(&self) -> ConsoleMode {
        self.doc.console
    }
    /// Whether threads are locked in.
    pub fn jail(&self) -> Jail {
        self.doc.jail
    }
    /// Parts of the jail that may be missing.
    pub fn allow_missing(&self) -> &[JailPart] {
        &self.doc.allow_missing
    }
    /// MSRs that a snapshot carries in addition to KVM's own list.
    pub fn extra_msrs(&self) -> &[u32] {
        &self.doc.extra_msrs
    }
}

fn value(field: &str, value: impl ToString, accepted: impl Into<String>) -> ConfigError {
    ConfigError::Value { field: field.to_owned(), value: value.to_string(), accepted: accepted.into() }
}

fn range(field: &str, got: u64, min: u64, max: u64, unit: &str) -> Result<(), ConfigError> {
    if (min..=max).contains(&got) {
        return Ok(());
    }
    Err(value(field, got, format!("{min} to {max} {unit}")))
}

/// A kernel or initramfs: a regular, non-empty file of a sane size.
fn image(field: &str, path: &Path) -> Result<(), ConfigError> {
    let len = file_len(field, path, "a readable regular file")?;
    let max = IMAGE_FILE_MAX_MIB << 20;
    if len == 0 || len > max {
        return Err(ConfigError::File {
            field: field.to_owned(),
            path: path.to_owned(),
            problem: format!("has {len} bytes"),
            accepted: "1 byte to 1 GiB",
        });
    }
    Ok(())
}

fn file_len(field: &str, path: &Path, accepted: &'static str) -> Result<u64, ConfigError> {
    Ok(metadata(field, path, accepted)?.len())
}

fn metadata(field: &str, path: &Path, accepted: &'static str) -> Result<fs::Metadata, ConfigError> {
    let refuse =
        |problem: String| ConfigError::File { field: field.to_owned(), path: path.to_owned(), problem, accepted };
    let meta = fs::metadata(path).map_err(|e| refuse(format!("cannot be read ({e})")))?;
    if meta.is_dir() {
        return Err(refuse("is a directory".to_owned()));
    }
    let usable = meta.is_file() || (field.starts_with("disks") && meta.file_type().is_block_device());
    if !usable {
        return Err(refuse("is not a regular file".to_owned()));
    }
    Ok(meta)
}

fn check_cmdline(cmdline: &str) -> Result<(), ConfigError> {
    if cmdline.len() > CMDLINE_MAX_BYTES {
        let accepted = format!("at most {CMDLINE_MAX_BYTES} bytes");
        return Err(value("cmdline", format!("{} bytes long", cmdline.len()), accepted));
    }
    match cmdline.bytes().find(|b| !(b' '..=b'~').contains(b)) {
        None => Ok(()),
        Some(byte) => {
            let got = format!("text with byte {byte:#04x}");
            Err(value("cmdline", got, "printable ASCII"))
        }
    }
}

fn check_disk(index: usize, disk: &DiskConfig) -> Result<(), ConfigError> {
    let field = format!("disks[{index}].path");
    let meta = metadata(&field, &disk.path, "a disk image or a block device")?;
    if meta.is_file() && meta.len() == 0 {
        return Err(ConfigError::File {
            field,
            path: disk.path.clone(),
            problem: "is empty".to_owned(),
            accepted: "a disk image of 512 bytes or more",
        });
    }
    let cap_mib = match &disk.mode {
        DiskMode::ReadOnly => return Ok(()),
        DiskMode::OverlayMemory { cap_mib } | DiskMode::OverlayFile { cap_mib, .. } => *cap_mib,
    };
    range(&format!("disks[{index}].mode.cap_mib"), cap_mib, 1, OVERLAY_CAP_MAX_MIB, "MiB")
}

fn check_vsock(vsock: &VsockConfig) -> Result<(), ConfigError> {
    range("vsock.guest_cid", vsock.guest_cid, 3, u64::from(u32::MAX) - 1, "(0 to 2 are the host's)")?;
    let len = vsock.uds.as_os_str().len();
    if len == 0 || len > UDS_PATH_MAX_BYTES {
        let accepted = format!("a path of 1 to {UDS_PATH_MAX_BYTES} bytes, `_<port>` is added to it");
        return Err(value("vsock.uds", format!("{len} bytes long"), accepted));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
