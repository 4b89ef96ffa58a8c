// SPDX-License-Identifier: Apache-2.0
//! Where a sandbox runs: on this machine's KVM where that works, else in an emulated host, and never silently there.

use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use super::binaries;
use super::settings::Settings;
use crate::cache::Cache;
use crate::emulated::{EmulatedHost, EmulatedOptions, share};
use crate::error::{Error, Fault};
use crate::groups::Share;
use crate::monitor::{Place, VmmConfig};
use crate::probe::{KvmState, probe};
use crate::progress::{Silent, Watch};

/// Where a sandbox is to run.
#[derive(Debug, Clone, Default)]
pub enum Where {
    /// On this machine's KVM if it runs the kernel, else in an emulated host. `MIDGE_EMULATED_HOST` names a running one.
    #[default]
    Auto,
    /// On this machine's KVM, whatever becomes of it.
    Native,
    /// In this emulated host.
    Emulated(Arc<EmulatedHost>),
    /// There, on these terms: see [`Where::allowing`] and [`Where::sharing`].
    On(Box<Where>, Terms),
}

/// What a machine need not give, and what it gives at most.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    allow_missing: Vec<String>,
    share: Share,
}

/// Least memory of an emulated host that is started for a sandbox, in MiB; what is not touched costs nothing.
const EMULATED_MIN_MIB: u64 = 4096;
/// What an emulated host needs for itself, in MiB.
const EMULATED_OWN_MIB: u64 = 1024;

/// The emulated host of this process: sandboxes side by side share it, and it ends with the last one.
static SHARED: Mutex<Weak<EmulatedHost>> = Mutex::const_new(Weak::new());

impl Where {
    /// Finds the place; `own_kernel` says that the user named a kernel, which may suit a KVM that ours does not.
    pub(super) async fn find(
        self,
        own_kernel: bool,
        settings: &Settings,
        host_mib: u64,
        watch: &Arc<dyn Watch>,
    ) -> Result<Place, Error> {
        let (place, terms) = self.peeled();
        match place {
            Self::Emulated(host) => return Ok(Place::Emulated(host, terms.share)),
            Self::Native => return native(terms),
            Self::Auto | Self::On(..) => {}
        }
        if let Some(file) = share::named() {
            let host =
                EmulatedHost::attach(&file).map_err(|error| Error::prepare("emulated host", Fault::User, error))?;
            return Ok(Place::Emulated(Arc::new(host), terms.share));
        }
        let state = probe();
        if suits(&state, own_kernel) {
            return native(terms);
        }
        watch.end(&format!("{state}; running in an emulated host instead, where timings mean nothing"));
        let mem_mib = emulated_mib(settings, host_mib);
        let mut shared = SHARED.lock().await;
        if let Some(host) = shared.upgrade() {
            return Ok(Place::Emulated(host, terms.share));
        }
        let host = Arc::new(start(mem_mib, Arc::clone(watch)).await?);
        *shared = Arc::downgrade(&host);
        Ok(Place::Emulated(host, terms.share))
    }
}

impl Where {
    /// The same, where a part of the monitor's jail may be missing that the machine does not give: `user-namespace`,
    /// `mount-namespace`, `net-namespace`, `ipc-namespace`, `uts-namespace`, `pid-namespace`, `empty-root`, `own-ids`,
    /// `no-capabilities`. What it does give is used all the same. The monitor refuses other names.
    #[must_use]
    pub fn allowing(self, parts: impl Into<Vec<String>>) -> Self {
        let (place, mut terms) = self.peeled();
        terms.allow_missing.extend(parts.into());
        Self::On(Box::new(place), terms)
    }

    /// The same, where each sandbox may have this much of the machine. A machine that cannot keep to it is no place.
    #[must_use]
    pub fn sharing(self, share: Share) -> Self {
        let (place, terms) = self.peeled();
        Self::On(Box::new(place), Terms { share, ..terms })
    }

    /// The place itself, and the terms; where there are several, the outer ones count.
    fn peeled(self) -> (Self, Terms) {
        match self {
            Self::On(place, terms) => (place.peeled().0, terms),
            place => (place, Terms::default()),
        }
    }

    /// The place for a template, which runs where it was made: a CPU of the same kind.
    pub(crate) async fn find_for_template(self, is_native: bool, config: &VmmConfig) -> Result<Place, Error> {
        let (place, terms) = self.peeled();
        let place = if matches!(place, Self::Auto) && is_native { Self::Native } else { place };
        let place = Self::On(Box::new(place), terms);
        let settings = Settings { mem_mib: config.mem_mib, cpus: config.cpus, ..Settings::default() };
        place.find(false, &settings, super::settings::host_memory_mib(), &(Arc::new(Silent) as Arc<dyn Watch>)).await
    }
}

fn native(Terms { allow_missing, share }: Terms) -> Result<Place, Error> {
    Ok(Place::Native { vmm: binaries::vmm()?, allow_missing, share })
}

/// Whether the machine's own KVM is to be used.
fn suits(state: &KvmState, own_kernel: bool) -> bool {
    state.runs_unmodified() || (own_kernel && state.can_be_tried())
}

fn emulated_mib(settings: &Settings, host_mib: u64) -> u64 {
    let wanted = settings.mem_mib.saturating_add(settings.disk_mib).saturating_add(EMULATED_OWN_MIB);
    wanted.max(EMULATED_MIN_MIB).min(host_mib)
}

async fn start(mem_mib: u64, watch: Arc<dyn Watch>) -> Result<EmulatedHost, Error> {
    let (midge, vmm) = (binaries::midge()?, binaries::vmm()?);
    let prepared = {
        let watch = Arc::clone(&watch);
        tokio::task::spawn_blocking(move || {
            let cache = Cache::open().map_err(unavailable)?;
            EmulatedOptions::prepare(&cache, &midge, &vmm, &*watch).map_err(unavailable)
        })
    };
    let options = prepared.await.map_err(|error| Error::prepare("emulated host", Fault::Midge, error))??;
    EmulatedHost::start(&EmulatedOptions { mem_mib, ..options }, &*watch).await.map_err(unavailable)
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::prepare("emulated host", Fault::Host, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_missing_adds_up_and_changes_no_place() {
        let lenient = Where::Native.allowing(["a".to_owned()]).allowing(["b".to_owned()]);
        let share = Share { cpu_percent: Some(50), io_mib_s: None };
        let (place, terms) = lenient.sharing(share).allowing(["c".to_owned()]).peeled();
        assert!(matches!(place, Where::Native) && terms.allow_missing == ["a", "b", "c"] && terms.share == share);
        assert!(matches!(Where::Auto.allowing([]).peeled().0, Where::Auto));
    }

    #[test]
    fn kvm_is_used_where_it_runs_the_kernel() {
        let software = KvmState::SoftwareOnly { detail: String::new() };
        assert!(suits(&KvmState::Usable, false) && suits(&KvmState::Usable, true));
        assert!(suits(&software, true) && !suits(&software, false));
        for state in [KvmState::Absent, KvmState::NoPermission] {
            assert!(!suits(&state, true) && !suits(&state, false), "{state}");
        }
    }

    #[test]
    fn emulated_host_has_room_for_the_guest_but_not_more_than_there_is() {
        let settings = |mem_mib, disk_mib| Settings { mem_mib, disk_mib, ..Settings::default() };
        assert_eq!(emulated_mib(&settings(256, 256), 16_000), EMULATED_MIN_MIB);
        assert_eq!(emulated_mib(&settings(4000, 3000), 16_000), 8024);
        assert_eq!(emulated_mib(&settings(9000, 9000), 16_000), 16_000);
    }
}
