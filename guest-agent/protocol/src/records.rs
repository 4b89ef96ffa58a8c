// SPDX-License-Identifier: Apache-2.0
//! The bodies of the messages, as plain data. What they mean is told here, how they lie in memory by `crate::field`.

pub(crate) mod command;
pub(crate) mod control;
pub(crate) mod files;

pub use command::{Attach, EnvVar, Exec, Exited, Outcome, Output, Refused, Started, Usage, WindowSize};
pub use control::{ErrorCode, Failure, Freeze, Gathered, Hello, InitFailed, PageRange, Stage, Stats, Welcome};
pub use files::{
    Change, ChangeKind, Changes, Entry, FileKind, FileRead, FileWrite, Layer, List, Metadata, Mkdir, Move, Owner,
    Remove, Stat, TarIn, TarOut, WriteHow,
};

/// Every body with its fields, for the byte table.
#[cfg(test)]
pub(crate) const RECORDS: &[&[(&str, &str)]] = &[control::RECORDS, command::RECORDS, files::RECORDS];

/// Every choice with its values, for the byte table.
#[cfg(test)]
pub(crate) const CHOICES: &[&[(&str, &str)]] = &[control::CHOICES, command::CHOICES, files::CHOICES];
