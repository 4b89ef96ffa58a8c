// SPDX-License-Identifier: Apache-2.0
//! The part of a configuration that says where a snapshot is.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, Document, image, metadata, value};

/// A VM that goes on where a snapshot was taken, instead of booting.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    state: PathBuf,
    memory: PathBuf,
    layers: Vec<Option<PathBuf>>,
    #[serde(default)]
    resident: bool,
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
