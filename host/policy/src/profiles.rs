// SPDX-License-Identifier: Apache-2.0
//! Policies that are shipped with Midge.

/// A policy by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// As `--policy` names it.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

macro_rules! profile {
    ($name:literal) => {
        Profile { name: $name, text: include_str!(concat!("../profiles/", $name, ".toml")) }
    };
}

/// All of them.
pub const PROFILES: [Profile; 4] =
    [profile!("offline"), profile!("package-install"), profile!("code-review"), profile!("full-internet-no-private")];

/// Their names, for a message.
pub(crate) fn names() -> String {
    PROFILES.map(|profile| profile.name).join(", ")
}

#[cfg(test)]
mod tests;
