// SPDX-License-Identifier: Apache-2.0
//! What a sandbox writes down for [`crate::ps`].

use std::path::PathBuf;

use crate::monitor::VmmConfig;
use crate::run_dir::{About, Kind, Record, RunDir, since_boot};

/// Where a sandbox comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lineage<'a> {
    pub(crate) kind: Kind,
    pub(crate) template: Option<&'a str>,
    pub(crate) parent: Option<&'a str>,
}

impl Lineage<'_> {
    /// Of a sandbox that was booted.
    pub(crate) const BOOTED: Self = Self { kind: Kind::Run, template: None, parent: None };
}

/// Writes it down, once the monitor is there. Costs one write to a file that is open.
pub(crate) fn describe(
    run_dir: &RunDir,
    place: &str,
    (monitor_pid, group): (Option<u32>, Option<PathBuf>),
    config: &VmmConfig,
    lineage: Lineage<'_>,
) {
    let about = About {
        kind: lineage.kind,
        template: lineage.template.map(str::to_owned),
        parent: lineage.parent.map(str::to_owned),
        place: place.to_owned(),
        owner_pid: std::process::id(),
        monitor_pid,
        group,
        cpus: config.cpus,
        mem_mib: config.mem_mib,
    };
    let at_ms = u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX);
    run_dir.describe(&Record { about, at_ms });
}
