// SPDX-License-Identifier: Apache-2.0
//! From parts that are ready to a machine that answers: configuration, monitor, hello.
//!
//! Everything here happens between "spawn" and "hello" of the timeline. Prepares nothing by itself.

use std::path::{Path, PathBuf};

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use midge_protocol::READY_PORT;

use super::listing::{Lineage, describe};
use super::settings::Settings;
use super::standstill::Standstill;
use super::twin::Made;
use super::{Defaults, STOP, Sandbox};
use crate::error::Error;
use crate::link::{Identity, Limits, Link};
use crate::monitor::config::Console;
use crate::monitor::{ConsoleSender, Disk, DiskMode, Jail, Monitor, Place, VmmConfig, Vsock};
use crate::run_dir::RunDir;
use crate::timeline::Recorder;
use crate::workspace::Manifest;

/// The context id of every guest; monitors do not share a bus, so it need not differ.
const GUEST_CID: u32 = 3;

/// A file system image and its kind, as the agent is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) path: PathBuf,
    pub(super) fs: &'static str,
}

/// The files of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) root: Image,
    pub(super) scratch: PathBuf,
    pub(super) workspace: Option<PathBuf>,
}

/// Everything that a start needs.
pub(super) struct Launch {
    pub(super) place: Place,
    pub(super) parts: Parts,
    pub(super) settings: Settings,
    pub(super) overlay: DiskMode,
    pub(super) limits: Limits,
    pub(super) console: Option<ConsoleSender>,
    pub(super) defaults: Defaults,
    pub(super) recorder: Recorder,
    pub(super) run_dir: RunDir,
    pub(super) workspace: Option<Arc<Manifest>>,
    pub(super) forking: Forking,
    /// How far the guest's wall clock is behind the world's.
    pub(super) behind: Duration,
    pub(super) jail: Jail,
}

/// What a sandbox needs to be forked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Forking {
    /// Whether it can be.
    pub(super) is_possible: bool,
    /// Registers that its state has beyond KVM's list.
    pub(super) extra_msrs: Vec<u32>,
}

impl Launch {
    /// Starts the machine and waits for its agent.
    pub(super) async fn start(self) -> Result<Sandbox, Error> {
        let Self { place, parts, settings, overlay, limits, console, defaults, recorder, run_dir, .. } = self;
        let socket = run_dir.socket();
        let with_console = if console.is_some() { Console::On } else { Console::Off };
        let mut config = compose(&parts, &settings, overlay, &socket, with_console);
        config.forkable = self.forking.is_possible;
        config.extra_msrs = self.forking.extra_msrs;
        config.jail = self.jail;
        let listener = place.listen(run_dir.id(), &socket, READY_PORT).await?;
        let monitor = place.spawn(run_dir.id(), &socket, &config, &recorder, console).await?;
        describe(&run_dir, monitor.place_name(), (monitor.pid(), monitor.group()), &config, Lineage::BOOTED);
        let identity = Identity { behind: self.behind, ..Identity::random(run_dir.id()) };
        let greeted =
            Link::establish(monitor.dialer(), listener, monitor.watch_end(), identity, limits, recorder.clone()).await;
        match greeted {
            Ok((link, hello)) => {
                let made = Made { config, limits, hello, defaults, workspace: self.workspace, template: None };
                let (made, collections, standstill) = (Arc::new(made), AtomicU32::new(0), Standstill::default());
                Ok(Sandbox { monitor, link, made, recorder, collections, standstill, run_dir })
            }
            Err(Error::BootTimeout { limit_ms, .. }) => {
                Err(Error::BootTimeout { limit_ms, console_tail: last_words(monitor).await })
            }
            Err(error) => Err(error),
        }
    }
}

/// Stops a silent machine, for the sake of what its console showed last.
async fn last_words(mut monitor: Monitor) -> Vec<String> {
    monitor.close_lifeline();
    match tokio::time::timeout(STOP, monitor.ended()).await {
        Ok(end) => end.console_tail.clone(),
        Err(_) => Vec::new(),
    }
}

fn compose(parts: &Parts, settings: &Settings, overlay: DiskMode, socket: &Path, console: Console) -> VmmConfig {
    let read_only = |path: &Path| Disk { path: path.to_owned(), mode: DiskMode::ReadOnly };
    let mut disks = vec![read_only(&parts.root.path), Disk { path: parts.scratch.clone(), mode: overlay }];
    let mut cmdline = format!("midge.root=/dev/vda:{} midge.scratch=/dev/vdb:ext4", parts.root.fs);
    if let Some(workspace) = &parts.workspace {
        disks.push(read_only(workspace));
        cmdline.push_str(" midge.workspace=/dev/vdc:erofs");
    }
    VmmConfig {
        kernel: Some(parts.kernel.clone()),
        restore: None,
        initramfs: Some(parts.initramfs.clone()),
        cmdline,
        mem_mib: settings.mem_mib,
        cpus: settings.cpus,
        huge_pages: true,
        disks,
        vsock: Some(Vsock { guest_cid: GUEST_CID, uds: socket.to_owned() }),
        console,
        extra_msrs: Vec::new(),
        forkable: false,
        track_writes: false,
        jail: Jail::On,
        allow_missing: Vec::new(),
    }
}

/// The limits of a link to a guest at a place of this speed.
pub(super) fn limits(settings: &Settings, is_emulated: bool) -> Limits {
    let (boot_s, silence_s) = if is_emulated { (120, 300) } else { (30, 60) };
    Limits {
        boot: settings.boot_timeout.unwrap_or(Duration::from_secs(boot_s)),
        silence: Duration::from_secs(silence_s),
    }
}

/// Where the guest's writes go. An emulated host has no disk of its own, and a file belongs to one VM only.
pub(super) fn overlay(
    settings: &Settings,
    host_mib: u64,
    in_memory: bool,
    run_dir: &RunDir,
) -> Result<DiskMode, Error> {
    let cap_mib = settings.disk_mib;
    if in_memory || settings.overlay_fits_memory(host_mib) {
        Ok(DiskMode::OverlayMemory { cap_mib })
    } else {
        Ok(DiskMode::OverlayFile { path: run_dir.bulk()?.join("overlay"), cap_mib })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(workspace: Option<&str>) -> Parts {
        Parts {
            kernel: "/k".into(),
            initramfs: "/i".into(),
            root: Image { path: "/r".into(), fs: "squashfs" },
            scratch: "/s".into(),
            workspace: workspace.map(Into::into),
        }
    }

    #[test]
    fn disks_and_command_line_agree() {
        let overlay = DiskMode::OverlayMemory { cap_mib: 64 };
        let settings = Settings { mem_mib: 100, cpus: 2, ..Settings::default() };
        let config = compose(&parts(Some("/w")), &settings, overlay.clone(), Path::new("/v"), Console::Off);
        let paths: Vec<_> = config.disks.iter().map(|disk| disk.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/r", "/s", "/w"]);
        assert_eq!(config.disks[1].mode, overlay);
        assert!(config.disks[0].mode == DiskMode::ReadOnly && config.disks[2].mode == DiskMode::ReadOnly);
        assert_eq!(
            config.cmdline,
            "midge.root=/dev/vda:squashfs midge.scratch=/dev/vdb:ext4 midge.workspace=/dev/vdc:erofs"
        );
        assert_eq!((config.mem_mib, config.cpus), (100, 2));
        let config = compose(&parts(None), &settings, overlay, Path::new("/v"), Console::On);
        assert!(config.disks.len() == 2 && !config.cmdline.contains("workspace"));
        assert_eq!(config.console, Console::On);
    }

    #[test]
    fn large_disks_go_to_a_file_beside_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(&dir.path().join("b"), dir.path()).unwrap();
        let settings = Settings { disk_mib: 1000, ..Settings::default() };
        assert_eq!(overlay(&settings, 4000, false, &run).unwrap(), DiskMode::OverlayMemory { cap_mib: 1000 });
        assert_eq!(overlay(&settings, 1, true, &run).unwrap(), DiskMode::OverlayMemory { cap_mib: 1000 });
        let DiskMode::OverlayFile { path, cap_mib: 1000 } = overlay(&settings, 3999, false, &run).unwrap() else {
            panic!("not a file")
        };
        assert!(path.starts_with(run.bulk().unwrap()));
    }

    #[test]
    fn boot_timeout_can_be_set_and_emulation_gets_more_time() {
        let settings = Settings { boot_timeout: Some(Duration::from_secs(4)), ..Settings::default() };
        assert_eq!(limits(&settings, true).boot, Duration::from_secs(4));
        let default = Settings::default();
        assert!(limits(&default, true).boot > limits(&default, false).boot);
        assert!(limits(&default, true).silence > limits(&default, false).silence);
    }
}
