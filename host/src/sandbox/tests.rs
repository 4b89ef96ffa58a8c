// SPDX-License-Identifier: Apache-2.0
//! Starts that fail: a script plays the monitor, so that no KVM is needed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::launch::{Image, Launch, Parts};
use super::{Defaults, Sandbox, Settings};
use crate::error::{Error, Fault};
use crate::groups::Share;
use crate::link::Limits;
use crate::monitor::{Cause, DiskMode, Place};
use crate::run_dir::RunDir;
use crate::timeline::{Recorder, Source};

const STAGE: &str = r#"{"event":"stage","name":"exec","t_us":0,"mono_ns":1000}"#;
const PANIC: &str = r#"{"event":"exit","reason":"panic","detail":"Kernel panic - x","console_tail":["words"]}"#;
const STOPPED: &str = r#"{"event":"exit","reason":"stopped","detail":"","console_tail":["stuck here"]}"#;

/// A place whose monitor is a shell script.
fn scripted(dir: &Path, body: &str) -> Place {
    let vmm: PathBuf = dir.join("vmm");
    std::fs::write(&vmm, format!("#!/bin/sh\ndd bs=99999 count=1 status=none > /dev/null\n{body}\n")).unwrap();
    std::fs::set_permissions(&vmm, PermissionsExt::from_mode(0o755)).unwrap();
    Place::Native { vmm, allow_missing: Vec::new(), share: Share::default() }
}

struct Attempt {
    result: Result<Sandbox, Error>,
    recorder: Recorder,
    dir: tempfile::TempDir,
}

async fn attempt(body: &str, boot: Duration) -> Attempt {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::new();
    let place = scripted(dir.path(), body);
    let mut result = launch(dir.path(), place.clone(), boot, &recorder).start().await;
    // A script that was just written may still be open in a fork of another test's thread.
    while matches!(&result, Err(error) if crate::error::chain(error).contains("busy")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        result = launch(dir.path(), place.clone(), boot, &recorder).start().await;
    }
    Attempt { result, recorder, dir }
}

fn launch(dir: &Path, place: Place, boot: Duration, recorder: &Recorder) -> Launch {
    let root = Image { path: "/r".into(), fs: "erofs" };
    Launch {
        behind: Duration::ZERO,
        jail: crate::monitor::Jail::On,
        forking: crate::sandbox::launch::Forking::default(),
        place,
        parts: Parts { kernel: "/k".into(), initramfs: "/i".into(), root, scratch: "/s".into(), workspace: None },
        settings: Settings::default(),
        overlay: DiskMode::OverlayMemory { cap_mib: 1 },
        limits: Limits { boot, silence: Duration::from_secs(60) },
        console: None,
        defaults: Defaults::default(),
        recorder: recorder.clone(),
        run_dir: RunDir::create(&dir.join("run"), dir).unwrap(),
        workspace: None,
    }
}

impl Attempt {
    /// The error; nothing may be left of the sandbox's directory.
    fn failed(self) -> Error {
        let left: Vec<_> = std::fs::read_dir(self.dir.path().join("run")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        self.result.unwrap_err()
    }
}

#[tokio::test]
async fn panic_before_the_hello_is_told_at_once() {
    let start = Instant::now();
    let attempt = attempt(&format!("echo '{STAGE}'; echo '{PANIC}'; exit 4"), Duration::from_secs(60)).await;
    assert!(attempt.recorder.timeline().stage(Source::Monitor, "exec").is_some());
    let error = attempt.failed();
    assert!(matches!(&error, Error::VmEnded { end, .. } if end.cause == Cause::GuestPanic), "{error}");
    assert_eq!((error.fault(), error.console_tail()), (Fault::Guest, &["words".to_owned()][..]));
    assert!(start.elapsed() < Duration::from_secs(30), "nobody waits for the boot time-out");
}

#[tokio::test]
async fn silent_guest_is_stopped_and_its_last_words_are_told() {
    let body = format!("cat > /dev/null; echo '{STOPPED}'");
    let error = attempt(&body, Duration::from_millis(300)).await.failed();
    assert!(matches!(error, Error::BootTimeout { limit_ms: 300, .. }), "{error}");
    assert_eq!(error.console_tail(), ["stuck here"]);
}

#[tokio::test]
async fn monitor_that_ignores_its_lifeline_does_not_hold_the_error_up() {
    let start = Instant::now();
    let error = attempt("exec sleep 1000", Duration::from_millis(100)).await.failed();
    assert!(matches!(error, Error::BootTimeout { .. }), "{error}");
    assert!(error.console_tail().is_empty() && start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn monitor_that_dies_tells_by_its_signal_or_its_last_line() {
    let error = attempt("kill -9 $$", Duration::from_secs(60)).await.failed();
    assert!(error.to_string().contains("SIGKILL"), "{error}");
    assert_eq!(error.fault(), Fault::Host);
    let error = attempt("echo 'opening /dev/kvm: denied' >&2; exit 3", Duration::from_secs(60)).await.failed();
    assert!(error.to_string().contains("code 3") && error.to_string().contains("/dev/kvm: denied"), "{error}");
}

#[tokio::test]
async fn absent_monitor_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::Native { vmm: dir.path().join("absent"), allow_missing: Vec::new(), share: Share::default() };
    let error = launch(dir.path(), place, Duration::from_secs(1), &Recorder::new()).start().await.unwrap_err();
    assert!(crate::error::chain(&error).contains("MIDGE_VMM"), "{error}");
}
