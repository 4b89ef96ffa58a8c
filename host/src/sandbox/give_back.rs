// SPDX-License-Identifier: Apache-2.0
//! Memory that the guest does not use goes back to the host: no balloon, but a word of the agent and an order to the
//! monitor.
//!
//! The guest's commands stand still meanwhile, as for a fork. The agent takes free memory from its kernel in steps and
//! holds it; the monitor drops what is held; then the agent lets go, and commands run on.

use super::Sandbox;
use crate::error::Error;
use crate::link::Link;
use crate::monitor::Reach;

/// Size of a page of guest memory.
const PAGE_BYTES: u64 = 4096;
const DURING: &str = "giving free memory back";

impl Sandbox {
    /// Gives memory that the guest does not use, its clean caches included, back to this machine, or to the emulated host that it
    /// runs in; returns how many bytes
    /// the agent found. The guest gets pages again as it needs them. Its commands stand still meanwhile: about as long as
    /// it takes to write that much memory. Once begun it goes to its end, even if nobody waits for it any more.
    ///
    /// What was given back is what `midge ps` no longer counts as private. Of a huge page that is given back in part, the
    /// host's kernel keeps that part until it is short of memory.
    ///
    /// # Errors
    /// [`Error::Monitor`] when the monitor refuses; [`Error::Failed`] when the guest cannot be brought to a
    /// stand, or its kernel does not tell where memory is. It goes on in any case.
    pub async fn give_back(&self) -> Result<u64, Error> {
        let (link, reach) = (self.link.clone(), self.monitor.reach()?);
        let most_bytes = self.made.config().mem_mib.saturating_mul(1 << 20);
        self.standstill.during(&self.link, async move { all(&link, &reach, most_bytes).await }).await
    }
}

/// Step by step; a guest that finds more than it has is not believed for ever.
async fn all(link: &Link, reach: &Reach, most_bytes: u64) -> Result<u64, Error> {
    let mut bytes: u64 = 0;
    while bytes < most_bytes {
        let gathered = link.gather().await?;
        if gathered.ranges.is_empty() {
            break;
        }
        let in_bytes = |pages: u64| {
            let too_far = || Error::Unexpected {
                during: DURING,
                got: format!("a page {pages:#x}"),
                expected: "one of the guest's memory",
            };
            pages.checked_mul(PAGE_BYTES).ok_or_else(too_far)
        };
        let ranges = gathered.ranges.iter().map(|range| Ok((in_bytes(range.first)?, in_bytes(range.count.into())?)));
        let ranges = ranges.collect::<Result<Vec<_>, Error>>()?;
        let discarded = reach.discard(ranges).await?;
        // A step of nothing is no step.
        bytes = bytes.saturating_add(discarded.max(PAGE_BYTES));
    }
    Ok(bytes)
}
