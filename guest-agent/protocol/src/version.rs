// SPDX-License-Identifier: Apache-2.0
//! Which version of the protocol two peers speak. The agent offers a range in `Hello`, the host picks in `Welcome`.

use crate::{Hello, NEWEST_VERSION, OLDEST_VERSION};

/// The peers have no version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "agreeing on a protocol version: the agent speaks {oldest} to {newest}, this host {OLDEST_VERSION} to {NEWEST_VERSION}; \
     use an agent of the same Midge release"
)]
pub struct VersionMismatch {
    /// Oldest version of the agent.
    pub oldest: u16,
    /// Newest version of the agent.
    pub newest: u16,
}

/// The newest version that the agent of `hello` and this crate both speak: what the host puts into `Welcome`.
///
/// # Errors
/// [`VersionMismatch`] when there is none.
pub fn negotiate(hello: &Hello) -> Result<u16, VersionMismatch> {
    let (oldest, newest) = (hello.oldest_version, hello.newest_version);
    let version = newest.min(NEWEST_VERSION);
    if version < oldest.max(OLDEST_VERSION) { Err(VersionMismatch { oldest, newest }) } else { Ok(version) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(oldest_version: u16, newest_version: u16) -> Hello {
        Hello { oldest_version, newest_version, agent_version: String::new(), stages: Vec::new(), warnings: Vec::new() }
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        assert_eq!(negotiate(&hello(OLDEST_VERSION, NEWEST_VERSION)), Ok(NEWEST_VERSION));
        assert_eq!(negotiate(&hello(0, NEWEST_VERSION + 5)), Ok(NEWEST_VERSION));
        assert_eq!(negotiate(&hello(OLDEST_VERSION, OLDEST_VERSION)), Ok(OLDEST_VERSION));
    }

    #[test]
    fn ranges_that_do_not_meet_are_refused() {
        let future = hello(NEWEST_VERSION + 1, NEWEST_VERSION + 2);
        assert_eq!(negotiate(&future), Err(VersionMismatch { oldest: NEWEST_VERSION + 1, newest: NEWEST_VERSION + 2 }));
        assert!(negotiate(&hello(0, OLDEST_VERSION - 1)).is_err());
    }

    #[test]
    fn an_empty_range_is_refused() {
        assert!(negotiate(&hello(NEWEST_VERSION + 1, OLDEST_VERSION)).is_err());
    }
}
