// SPDX-License-Identifier: Apache-2.0
//! Who takes part in a bench, and how `--vs` names them.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Jail;

/// A monitor that can boot the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contender {
    /// Ours.
    Midge {
        /// `midge-vmm`.
        program: PathBuf,
        /// Whether it is locked in.
        jail: Jail,
    },
    /// QEMU's `microvm` machine.
    QemuMicrovm {
        /// `qemu-system-x86_64`.
        program: PathBuf,
    },
    /// Firecracker, without its jailer, with its own seccomp filters.
    Firecracker {
        /// The `firecracker` binary.
        program: PathBuf,
    },
}

/// A `--vs` that names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--vs {given}: must be qemu-microvm, qemu-microvm=PATH or firecracker=PATH")]
pub struct ParseError {
    given: String,
}

impl Contender {
    /// Its name in tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Midge { jail: Jail::On, .. } => "midge",
            Self::Midge { jail: Jail::Off, .. } => "midge, no jail",
            Self::QemuMicrovm { .. } => "qemu-microvm",
            Self::Firecracker { .. } => "firecracker",
        }
    }

    /// Its program.
    #[must_use]
    pub fn program(&self) -> &Path {
        match self {
            Self::Midge { program, .. } | Self::QemuMicrovm { program } | Self::Firecracker { program } => program,
        }
    }

    /// Whether its guests have vsock; QEMU's would need the host's vhost.
    #[must_use]
    pub fn has_vsock(&self) -> bool {
        !matches!(self, Self::QemuMicrovm { .. })
    }

    /// The same monitor at another path.
    #[must_use]
    pub fn at(&self, program: PathBuf) -> Self {
        match self {
            Self::Midge { jail, .. } => Self::Midge { program, jail: *jail },
            Self::QemuMicrovm { .. } => Self::QemuMicrovm { program },
            Self::Firecracker { .. } => Self::Firecracker { program },
        }
    }
}

impl FromStr for Contender {
    type Err = ParseError;

    fn from_str(given: &str) -> Result<Self, ParseError> {
        match given.split_once('=') {
            None if given == "qemu-microvm" => Ok(Self::QemuMicrovm { program: "qemu-system-x86_64".into() }),
            Some(("qemu-microvm", path)) if !path.is_empty() => Ok(Self::QemuMicrovm { program: path.into() }),
            Some(("firecracker", path)) if !path.is_empty() => Ok(Self::Firecracker { program: path.into() }),
            _ => Err(ParseError { given: given.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood() {
        assert_eq!("qemu-microvm".parse(), Ok(Contender::QemuMicrovm { program: "qemu-system-x86_64".into() }));
        assert_eq!("qemu-microvm=/q".parse(), Ok(Contender::QemuMicrovm { program: "/q".into() }));
        assert_eq!("firecracker=/f=g".parse(), Ok(Contender::Firecracker { program: "/f=g".into() }));
    }

    #[test]
    fn other_names_are_refused_with_the_choice() {
        for given in ["", "firecracker", "firecracker=", "xen", "qemu-microvm="] {
            let error = given.parse::<Contender>().unwrap_err().to_string();
            assert!(error.contains("firecracker=PATH"), "{error}");
        }
    }
}
