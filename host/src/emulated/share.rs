// SPDX-License-Identifier: Apache-2.0
//! One emulated host for several processes of a user: whoever started it writes its address to a file, others
//! attach to it and leave it running when they end.
//!
//! A test suite shares one this way; so can a user who has many short runs ahead. The file holds a secret and
//! is readable by its owner only.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{EmulatedError, EmulatedHost, Entrance, io_error};

/// Names the file of a running emulated host.
pub const VARIABLE: &str = "MIDGE_EMULATED_HOST";
/// Longest such file; it holds a port and a token.
const FILE_MAX_BYTES: u64 = 4096;

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shared {
    port: u16,
    token: String,
    boot_ms: u64,
}

/// The file that [`VARIABLE`] names, if it is set.
#[must_use]
pub fn named() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
}

impl EmulatedHost {
    /// Writes a file with which other processes [`attach`](Self::attach).
    ///
    /// # Errors
    /// [`EmulatedError::Io`]: the file is there already, or cannot be written.
    pub fn share(&self, file: &Path) -> Result<(), EmulatedError> {
        let failed = |source| io_error(&format!("writing {}", file.display()), source);
        let shared = Shared { port: self.entrance.port(), token: self.token.clone(), boot_ms: self.boot_ms };
        let text = serde_json::to_vec(&shared).map_err(|error| failed(error.into()))?;
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
        out.write_all(&text).map_err(failed)
    }

    /// The emulated host that another process [`share`](Self::share)s. Dropping it leaves that one running.
    ///
    /// # Errors
    /// [`EmulatedError::Io`]: the file is missing or is none of ours. That nothing answers shows with the first request.
    pub fn attach(file: &Path) -> Result<Self, EmulatedError> {
        let failed = |source| io_error(&format!("reading {} (named by {VARIABLE})", file.display()), source);
        if fs::metadata(file).map_err(failed)?.len() > FILE_MAX_BYTES {
            return Err(failed(io::Error::other(format!("longer than {FILE_MAX_BYTES} bytes"))));
        }
        let text = fs::read(file).map_err(failed)?;
        let shared: Shared = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        Ok(Self { own: None, entrance: Entrance::new(shared.port), token: shared.token, boot_ms: shared.boot_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn host(port: u16) -> EmulatedHost {
        EmulatedHost { own: None, entrance: Entrance::new(port), token: "t0".into(), boot_ms: 7 }
    }

    #[test]
    fn what_is_shared_is_what_is_attached_to() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("host");
        host(4321).share(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let attached = EmulatedHost::attach(&file).unwrap();
        assert_eq!((attached.entrance.port(), attached.token.as_str(), attached.boot_ms()), (4321, "t0", 7));
        assert_eq!(attached.pid(), None);
        assert!(host(1).share(&file).is_err(), "a file that is there is not overwritten");
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("host");
        assert!(EmulatedHost::attach(&file).is_err());
        for text in ["", "{}", "{\"port\":70000,\"token\":\"\",\"boot_ms\":1}", &" ".repeat(5000)] {
            fs::write(&file, text).unwrap();
            let error = EmulatedHost::attach(&file).unwrap_err();
            assert!(error.to_string().contains("MIDGE_EMULATED_HOST"), "{error}");
        }
    }
}
