// SPDX-License-Identifier: Apache-2.0
//! Secrets: a policy names where they are; they are read on the host, and put in on the host. Nothing here prints one.

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Longest secret in bytes.
pub const SECRET_MAX_BYTES: usize = 16 * 1024;
/// How long a command may take to print a secret.
pub const SECRET_COMMAND_MAX: Duration = Duration::from_secs(60);

/// Where a secret is. Read on the host when the run starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretSource {
    /// In this variable of the environment of `midge`.
    Env(#[schemars(length(min = 1, max = 256))] String),
    /// In this file, without the line feed at its end.
    File(PathBuf),
    /// Printed by this program, without the line feed at its end: program and arguments, no shell.
    Command(#[schemars(length(min = 1, max = 64))] Vec<String>),
}

/// The value of a secret. It has no `Debug` and no `Display` that tell it, and is wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// Why a secret could not be read. Never with the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The variable is not set.
    #[error("the environment variable {0} is not set; set it for `midge`")]
    NotSet(String),
    /// The file cannot be read.
    #[error("reading the secret in {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The command cannot be started.
    #[error("starting the command {program:?} that prints a secret")]
    Start {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The command failed, or took longer than [`SECRET_COMMAND_MAX`].
    #[error("the command {program:?} that prints a secret {how}")]
    Command {
        /// Which.
        program: String,
        /// How it ended.
        how: String,
    },
    /// What was read is no secret that a header can hold.
    #[error("the secret {from} is {what}; accepted: 1 to {SECRET_MAX_BYTES} visible ASCII characters in one line")]
    Unfit {
        /// Where it was.
        from: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Secret {
    /// Reads a secret from where the policy says. Waits for a command at most [`SECRET_COMMAND_MAX`].
    ///
    /// # Errors
    /// It is not there, or it is nothing that a header can hold.
    pub fn read(source: &SecretSource) -> Result<Self, SecretError> {
        let bytes = match source {
            SecretSource::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| SecretError::NotSet(name.clone()))?;
                value.into_encoded_bytes()
            }
            SecretSource::File(path) => {
                let read = std::fs::File::open(path).and_then(read_some);
                read.map_err(|source| SecretError::File { path: path.clone(), source })?
            }
            SecretSource::Command(argv) => run(argv)?,
        };
        Self::fit(Zeroizing::new(bytes), source)
    }

    /// A secret that somebody has already.
    ///
    /// # Errors
    /// [`SecretError::Unfit`].
    pub fn new(value: &str) -> Result<Self, SecretError> {
        Self::fit(Zeroizing::new(value.as_bytes().to_vec()), &SecretSource::Env("(given)".to_owned()))
    }

    fn fit(bytes: Zeroizing<Vec<u8>>, source: &SecretSource) -> Result<Self, SecretError> {
        let unfit = |what| SecretError::Unfit { from: source.to_string(), what };
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.len() {
            0 => return Err(unfit("empty")),
            1..=SECRET_MAX_BYTES => {}
            _ => return Err(unfit("too long")),
        }
        if !line.iter().all(|byte| (0x20..0x7f).contains(byte)) || line.starts_with(b" ") || line.ends_with(b" ") {
            return Err(unfit("not one line of visible ASCII"));
        }
        let text = std::str::from_utf8(line).map_err(|_| unfit("not one line of visible ASCII"))?;
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The value: to put into a request, and to mask it in a transcript. For nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `before`, the secret, `after`.
    pub(crate) fn within(&self, before: &str, after: &str) -> Self {
        Self(Zeroizing::new([before, self.expose(), after].concat()))
    }

    /// The secret as the password of `user` in HTTP's Basic scheme (RFC 7617).
    pub(crate) fn basic(&self, user: &str) -> Self {
        use base64::Engine as _;
        let pair = self.within(&format!("{user}:"), "");
        Self(Zeroizing::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair.expose()))))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "in the variable {name}"),
            Self::File(path) => write!(f, "in the file {}", path.display()),
            Self::Command(argv) => write!(f, "printed by {:?}", argv.first().map_or("", String::as_str)),
        }
    }
}

/// One byte more than is accepted is enough to know.
fn read_some(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(SECRET_MAX_BYTES + 4);
    from.take(SECRET_MAX_BYTES as u64 + 3).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn run(argv: &[String]) -> Result<Vec<u8>, SecretError> {
    let program = argv.first().cloned().unwrap_or_default();
    let failed = |how: String| SecretError::Command { program: program.clone(), how };
    let started = Command::new(&program)
        .args(argv.iter().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let mut child = started.map_err(|source| SecretError::Start { program: program.clone(), source })?;
    let Some(out) = child.stdout.take() else { return Err(failed("has no output".to_owned())) };
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more when the time is over.
        let _ = done.send(read_some(out));
    });
    let output = wait.recv_timeout(SECRET_COMMAND_MAX);
    if output.is_err() {
        // It may have ended by itself in the meantime.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| failed(format!("cannot be waited for: {error}")))?;
    let output = output.map_err(|_| failed(format!("was still running after {} s", SECRET_COMMAND_MAX.as_secs())))?;
    if !status.success() {
        return Err(failed(format!("ended with {status}")));
    }
    output.map_err(|error| failed(format!("cannot be read from: {error}")))
}

#[cfg(test)]
mod tests;
