// SPDX-License-Identifier: Apache-2.0
//! The part of a configuration that says where a snapshot is.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, Document, image, metadata, value};

/// Most parts of a working set.
pub const WORKING_SET_PARTS_MAX: usize = 2048;
/// Most memory in a working set.
pub const WORKING_SET_MAX_BYTES: u64 = 16 << 20;
/// Size of a page.
const PAGE_BYTES: u64 = 4096;

/// A VM that goes on where a snapshot was taken, instead of booting.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    state: PathBuf,
    memory: PathBuf,
    layers: Vec<Option<PathBuf>>,
    #[serde(default)]
    resident: bool,
    #[serde(default)]
    working_set: Vec<(u64, u64)>,
}

impl RestoreConfig {
    /// CPUs and devices.
    pub fn state(&self) -> &Path {
        &self.state
    }
    /// Guest memory; mapped copy-on-write, or copied into the huge pages of a resident.
    pub fn memory(&self) -> &Path {
        &self.memory
    }
    /// What the disks had changed, one file for each disk with an overlay.
    pub fn layers(&self) -> &[Option<PathBuf>] {
        &self.layers
    }
    /// No VM is made: forks of it are, on demand.
    pub fn is_resident(&self) -> bool {
        self.resident
    }
    /// The guest memory that is written to first: guest-physical address and length of each part, whole pages.
    pub fn working_set(&self) -> &[(u64, u64)] {
        &self.working_set
    }
}

/// Each part is whole pages, and all together few enough: each VM gets its own copy of them.
fn check_working_set(parts: &[(u64, u64)]) -> Result<(), ConfigError> {
    const FIELD: &str = "restore.working_set";
    if parts.len() > WORKING_SET_PARTS_MAX {
        return Err(value(FIELD, format!("{} parts", parts.len()), format!("at most {WORKING_SET_PARTS_MAX}")));
    }
    for (index, (start, len)) in parts.iter().enumerate() {
        if !start.is_multiple_of(PAGE_BYTES) || !len.is_multiple_of(PAGE_BYTES) || *len == 0 {
            let got = format!("{len} bytes at {start:#x}");
            return Err(value(&format!("{FIELD}[{index}]"), got, "whole pages of 4096 bytes"));
        }
    }
    let bytes = parts.iter().fold(0_u64, |sum, (_, len)| sum.saturating_add(*len));
    if bytes > WORKING_SET_MAX_BYTES {
        return Err(value(FIELD, format!("{bytes} bytes"), format!("at most {WORKING_SET_MAX_BYTES} bytes in all")));
    }
    Ok(())
}

/// That there is a kernel or a snapshot, and its files.
pub(super) fn check_start(doc: &Document) -> Result<(), ConfigError> {
    match (&doc.kernel, &doc.restore) {
        (Some(kernel), None) => image("kernel", kernel),
        (None, Some(restore)) => {
            metadata("restore.state", &restore.state, "a state file that a snapshot wrote")?;
            metadata("restore.memory", &restore.memory, "a memory file that a snapshot wrote")?;
            for (index, layer) in restore.layers.iter().enumerate() {
                if let Some(layer) = layer {
                    metadata(&format!("restore.layers[{index}]"), layer, "a layer that a snapshot wrote")?;
                }
            }
            check_working_set(&restore.working_set)?;
            let (layers, disks) = (restore.layers.len(), doc.disks.len());
            if layers != disks {
                return Err(value(
                    "restore.layers",
                    format!("{layers} entries"),
                    format!("one for each of {disks} disks"),
                ));
            }
            Ok(())
        }
        (both, _) => {
            let got = if both.is_some() { "both given" } else { "neither given" };
            Err(value("kernel, restore", got, "exactly one of them"))
        }
    }
}
