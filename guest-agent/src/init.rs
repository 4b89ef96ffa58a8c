// SPDX-License-Identifier: Apache-2.0
//! The start of PID 1, in two halves. [`before_hello`]: only what a command cannot do without, so that the host hears
//! early. [`after_hello`]: the rest, done while the hello is under way; commands wait for the host's answer anyway.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use midge_protocol::{COMMANDS_GROUP, InitFailed, Stage, ToHost};
use rustix::mount::MountFlags;

use crate::cmdline::{self, Disk, Request, WordError};
use crate::control::Report;
use crate::files::changes::{Overlay, Overlays, set_overlays};
use crate::link::{Conversation, Host};
use crate::stats::meminfo_kib;
use crate::sys::machine::{
    self, Mount, NO_ACCESS_TIMES, NO_SUID_DEV, NO_SUID_DEV_EXEC, NO_SUID_EXEC, READ_ONLY, mount,
};
use crate::sys::process::{raise_open_files, since_boot};
use crate::{cgroup, exec, users};

/// Where the new root is put together.
const BASE: &str = "/.midge/base";
const SCRATCH: &str = "/.midge/scratch";
const WORKSPACE_BASE: &str = "/.midge/workspace";
const NEW_ROOT: &str = "/.midge/root";

/// How long a disk may take to appear.
const DISK_MAX: Duration = Duration::from_secs(2);
/// Files that may be open in the guest's agent.
const OPEN_FILES_MAX: u64 = 512 * 1024;
/// Memory that commands never get, in KiB: the agent and its buffers live in it.
const RESERVE_KIB: u64 = 12 * 1024;
/// Fewest processes that commands may have, whatever the memory.
const PIDS_MIN: u64 = 512;
/// Memory for which one more process is allowed, in KiB.
const KIB_PER_PID: u64 = 96;

/// Where container engines keep images and containers. Their layers are overlays of their own, which cannot be written on
/// top of ours: where an image has one of these directories, and nothing in it, it lies on the scratch disk itself.
const ENGINE_DIRS: [&str; 4] =
    ["/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/home/agent/.local/share/containers"];
/// Devices that every user may open, as on any distribution: files and networks of containers without privileges.
const OPEN_DEVICES: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// Options of our overlays: renamed directories need not be copied, and an upper file is always whole.
pub(crate) const OVERLAY_OPTIONS: &str = "redirect_dir=on,index=off,metacopy=off";

/// A step of the start that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("{step}")]
    System { step: String, source: io::Error },
    #[error(transparent)]
    Words(#[from] WordError),
}

fn step<T>(step: impl Into<String>, result: io::Result<T>) -> Result<T, InitError> {
    result.map_err(|source| InitError::System { step: step.into(), source })
}

/// Stages of the start, as they pass.
#[derive(Debug, Default)]
pub(crate) struct Stages(Vec<Stage>);

impl Stages {
    pub(crate) fn mark(&mut self, name: &str) {
        let at_us = u64::try_from(since_boot().as_micros()).unwrap_or(u64::MAX);
        self.0.push(Stage { name: name.to_owned(), at_us });
    }

    pub(crate) fn report(&self) -> Report {
        Report { stages: self.0.clone(), warnings: Vec::new() }
    }
}

fn mount_at(source: &str, target: &str, fs_type: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    mount(Mount { source, target: Path::new(target), fs_type, flags, data })
}

/// Mounts `fs_type`, making its directory where it is missing.
fn mount_kernel(fs_type: &str, target: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    match mount_at(fs_type, target, fs_type, flags, data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !Path::new(target).exists() => {
            fs::create_dir_all(target)?;
            mount_at(fs_type, target, fs_type, flags, data)
        }
        result => result,
    }
}

/// Everything that commands need: `/proc`, `/dev`, the root file system, the workspace.
pub(crate) fn before_hello(stages: &mut Stages) -> Result<(), InitError> {
    step("mounting /dev", mount_kernel("devtmpfs", "/dev", NO_SUID_EXEC, "mode=0755"))?;
    step("opening /dev/null", fill_standard_files())?;
    step("mounting /proc", mount_kernel("proc", "/proc", NO_SUID_DEV_EXEC, ""))?;
    let words = step("reading /proc/cmdline", fs::read_to_string("/proc/cmdline"))?;
    let request = cmdline::parse(&words)?;
    stages.mark("devices");
    if let Some(root) = &request.root {
        let overlays = build_root(root, &request, stages)?;
        switch_root()?;
        set_overlays(overlays);
        stages.mark("root");
    }
    Ok(())
}

/// A kernel without a console starts PID 1 with no open file; the numbers 0 to 2 must not go to anything else.
fn fill_standard_files() -> io::Result<()> {
    loop {
        let file = fs::File::options().read(true).write(true).open("/dev/null")?;
        if std::os::fd::AsRawFd::as_raw_fd(&file) > 2 {
            return Ok(());
        }
        std::mem::forget(file);
    }
}

fn mount_disk(disk: &Disk, target: &str, flags: MountFlags) -> Result<(), InitError> {
    step(format!("making {target}"), fs::create_dir_all(target))?;
    let device = disk.device.to_string_lossy();
    let since = Instant::now();
    while !disk.device.exists() && since.elapsed() < DISK_MAX {
        thread::sleep(Duration::from_millis(1));
    }
    // The scratch disk is thrown away: filling its inode tables in the background would be work for nobody.
    let options = if disk.fs_type == "ext4" && !flags.contains(READ_ONLY) { "noinit_itable" } else { "" };
    let result = mount_at(&device, target, &disk.fs_type, flags, options);
    step(format!("mounting {device} as {} at {target}", disk.fs_type), result)
}

/// Mounts the disks and the overlays over them below [`NEW_ROOT`].
fn build_root(root: &Disk, request: &Request, stages: &mut Stages) -> Result<Overlays, InitError> {
    mount_disk(root, BASE, READ_ONLY)?;
    match &request.scratch {
        Some(scratch) => mount_disk(scratch, SCRATCH, NO_ACCESS_TIMES)?,
        None => {
            step(format!("making {SCRATCH}"), fs::create_dir_all(SCRATCH))?;
            step(
                format!("mounting memory at {SCRATCH}"),
                mount_at("tmpfs", SCRATCH, "tmpfs", NO_SUID_DEV, "mode=0755"),
            )?;
        }
    }
    stages.mark("disks");
    step(format!("making {NEW_ROOT}"), fs::create_dir_all(NEW_ROOT))?;
    let root_upper = mount_overlay(BASE, "root", NEW_ROOT, None)?;
    let root = Some(Overlay { upper: root_upper, merged: PathBuf::from("/") });
    for dir in ENGINE_DIRS {
        step(format!("taking {dir} to the scratch disk"), take_to_scratch(dir, SCRATCH, NEW_ROOT))?;
    }
    let workspace = match &request.workspace {
        None => None,
        Some(disk) => {
            mount_disk(disk, WORKSPACE_BASE, READ_ONLY)?;
            let target = format!("{NEW_ROOT}{}", exec::WORKSPACE);
            step(format!("making {target}"), fs::create_dir_all(&target))?;
            let owner = users::resolve(None, Path::new(NEW_ROOT)).map_or(0, |account| account.ids.uid);
            let upper = mount_overlay(WORKSPACE_BASE, "workspace", &target, Some(owner))?;
            Some(Overlay { upper, merged: exec::WORKSPACE.into() })
        }
    };
    stages.mark("overlays");
    Ok(Overlays { workspace, root })
}

/// Puts the scratch directory `name` over `base` at `target`; answers a path to the upper directory that goes on to
/// work when the old root is out of reach.
fn mount_overlay(base: &str, name: &str, target: &str, owner: Option<u32>) -> Result<PathBuf, InitError> {
    let [upper, work] = ["upper", "work"].map(|part| format!("{SCRATCH}/{name}/{part}"));
    for dir in [&upper, &work] {
        step(format!("making {dir}"), fs::create_dir_all(dir))?;
    }
    // The merged root looks like the upper directory itself.
    let like_base = || {
        give_look_of(&fs::metadata(base)?, &upper)?;
        owner.map_or(Ok(()), |owner| chown(&upper, Some(owner), Some(owner)))
    };
    step(format!("giving {upper} its owner"), like_base())?;
    let data = format!("lowerdir={base},upperdir={upper},workdir={work},{OVERLAY_OPTIONS}");
    step(
        format!("mounting the overlay of {base} at {target}"),
        mount_at("overlay", target, "overlay", MountFlags::empty(), &data),
    )?;
    let dir = step(format!("opening {upper}"), fs::File::open(&upper))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir)));
    // Stays open as long as the guest lives.
    std::mem::forget(dir);
    Ok(path)
}

/// Puts a directory of the disk at `scratch` over the directory `dir` of the new root, if that is there and empty.
fn take_to_scratch(dir: &str, scratch: &str, new_root: &str) -> io::Result<()> {
    let target = format!("{new_root}{dir}");
    let is_empty = fs::read_dir(&target).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
        return Ok(());
    }
    let source = format!("{scratch}{dir}");
    fs::create_dir_all(&source)?;
    give_look_of(&fs::metadata(&target)?, &source)?;
    machine::bind_mount(&source, &target)
}

/// Gives `path` the permissions and the owner of something else.
fn give_look_of(model: &fs::Metadata, path: &str) -> io::Result<()> {
    fs::set_permissions(path, model.permissions())?;
    chown(path, Some(model.uid()), Some(model.gid()))
}

/// Makes [`NEW_ROOT`] the root of this process, and so of all that it starts.
fn switch_root() -> Result<(), InitError> {
    for moved in ["/proc", "/dev"] {
        let target = format!("{NEW_ROOT}{moved}");
        step(format!("making {target}"), fs::create_dir_all(&target))?;
        step(format!("moving {moved} to the new root"), machine::move_mount(moved, &target))?;
    }
    let switch = || {
        std::env::set_current_dir(NEW_ROOT)?;
        machine::move_mount(".", "/")?;
        std::os::unix::fs::chroot(".")?;
        std::env::set_current_dir("/")
    };
    step("switching to the new root", switch())
}

/// The rest. What fails here is told and lived without.
pub(crate) fn after_hello() -> Vec<String> {
    let mut warnings = Vec::new();
    let mut try_to = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            warnings.push(format!("{what}: {error}"));
        }
    };
    try_to("protecting the agent from memory shortage", fs::write("/proc/self/oom_score_adj", "-1000"));
    try_to("raising the limit of open files", raise_open_files(OPEN_FILES_MAX));
    try_to("mounting /sys", mount_kernel("sysfs", "/sys", NO_SUID_DEV_EXEC, ""));
    try_to("mounting /sys/fs/cgroup", mount_kernel("cgroup2", "/sys/fs/cgroup", NO_SUID_DEV_EXEC, "nsdelegate"));
    try_to("preparing the commands' control group", prepare_cgroup());
    try_to("mounting /dev/pts", mount_kernel("devpts", "/dev/pts", NO_SUID_EXEC, "mode=0620,ptmxmode=0666,gid=5"));
    try_to("mounting /dev/shm", mount_kernel("tmpfs", "/dev/shm", NO_SUID_DEV, "mode=1777"));
    try_to("mounting /run", mount_kernel("tmpfs", "/run", NO_SUID_DEV, "mode=0755"));
    try_to("making /tmp", make_tmp());
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        try_to("making a link in /dev", or_there(std::os::unix::fs::symlink(target, format!("/dev/{link}"))));
    }
    for device in OPEN_DEVICES {
        try_to("opening a device to every user", open_to_all(device));
    }
    try_to("sharing mounts with containers", machine::share_mounts());
    try_to("bringing the loopback interface up", machine::loopback_up());
    warnings
}

fn or_there(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}

/// A kernel without the device has nothing to open.
fn open_to_all(device: &str) -> io::Result<()> {
    let result = fs::set_permissions(device, std::os::unix::fs::PermissionsExt::from_mode(0o666));
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// An image without `/tmp` gets one.
fn make_tmp() -> io::Result<()> {
    if Path::new("/tmp").is_dir() {
        return Ok(());
    }
    fs::create_dir("/tmp")?;
    fs::set_permissions("/tmp", std::os::unix::fs::PermissionsExt::from_mode(0o1777))
}

fn prepare_cgroup() -> io::Result<()> {
    // What is available, not what there is: the kernel's own share would be missing when commands need it all, and a
    // machine without memory stops for minutes before it kills anything.
    let available_kib = meminfo_kib(&fs::read_to_string("/proc/meminfo")?, "MemAvailable");
    let (memory_max_bytes, pids_max) = limits(available_kib);
    cgroup::prepare(Path::new(COMMANDS_GROUP), memory_max_bytes, pids_max)
}

/// What commands may have of `available_kib` of memory: bytes, processes.
fn limits(available_kib: u64) -> (u64, u64) {
    let reserve_kib = RESERVE_KIB.min(available_kib / 4);
    ((available_kib - reserve_kib) * 1024, (available_kib / KIB_PER_PID).max(PIDS_MIN))
}

/// Tells the host, and whoever reads the kernel's log, why there is no guest; then resets the machine.
pub(crate) fn give_up(host: &Host, error: &InitError) -> ! {
    let failure = crate::link::failure(error);
    let step = match error {
        InitError::System { step, .. } => step.clone(),
        InitError::Words(_) => "reading the kernel command line".to_owned(),
    };
    log(&format!("the guest cannot be set up: {}", failure.text));
    if let Ok(stream) = host.connect() {
        let mut conversation = Conversation::new(stream);
        let message = InitFailed { step, errno: failure.errno, text: failure.text };
        if conversation.send(&ToHost::InitFailed(message)).is_ok() {
            // The host has read it when it closes the stream or answers; a host that does neither is not waited for.
            let _ = conversation.set_timeout(Some(Duration::from_secs(1)));
            let _ = conversation.receive();
        }
    }
    loop {
        log(&format!("resetting the machine: {}", machine::reset()));
        thread::sleep(Duration::from_secs(1));
    }
}

/// Writes a line where the kernel's own messages go.
pub(crate) fn log(line: &str) {
    let paths = ["/dev/kmsg", "/dev/console"];
    // Nobody is left to tell when neither can be written.
    let _ = paths.iter().any(|path| fs::write(path, format!("<2>midge-agent: {line}\n")).is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

    #[test]
    fn commands_leave_the_agent_its_memory() {
        assert_eq!(limits(256 * 1024), (244 * 1024 * 1024, 2730));
        assert_eq!(limits(32 * 1024), (24 * 1024 * 1024, PIDS_MIN));
        assert_eq!(limits(0), (0, PIDS_MIN));
    }

    #[test]
    fn empty_directories_of_engines_lie_on_the_scratch_disk_and_look_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (root, scratch) = (path("root"), path("scratch"));
        for name in ["root/empty", "root/full/of", "scratch"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::set_permissions(path("root/empty"), std::os::unix::fs::PermissionsExt::from_mode(0o710)).unwrap();
        for name in ["/full", "/absent"] {
            take_to_scratch(name, &scratch, &root).unwrap();
            assert!(fs::read_dir(&scratch).unwrap().next().is_none(), "{name}");
        }
        const PRIVATE: MountPropagationFlags = MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC);
        let mounting = || {
            machine::own_mounts()?;
            mount_change("/", PRIVATE)?;
            take_to_scratch("/empty", &scratch, &root)?;
            fs::write(path("root/empty/layer"), "x")?;
            assert_eq!(fs::metadata(path("root/empty"))?.mode() & 0o777, 0o710);
            Ok::<(), io::Error>(unmount(path("root/empty"), UnmountFlags::DETACH)?)
        };
        let result = thread::scope(|scope| scope.spawn(mounting).join().unwrap());
        match result {
            Ok(()) => assert!(
                Path::new(&path("scratch/empty/layer")).exists() && !Path::new(&path("root/empty/layer")).exists()
            ),
            Err(error) => eprintln!("skipped: nothing can be mounted here: {error}"),
        }
    }

    #[test]
    fn stages_are_in_order_of_time() {
        let mut stages = Stages::default();
        stages.mark("a");
        stages.mark("b");
        let report = stages.report();
        assert_eq!(report.stages.iter().map(|stage| stage.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(report.stages[0].at_us <= report.stages[1].at_us);
    }

    #[test]
    fn a_failed_step_is_named_with_its_cause() {
        let error = step::<()>("mounting /proc", Err(io::Error::from_raw_os_error(libc::EPERM))).unwrap_err();
        let failure = crate::link::failure(&error);
        assert!(failure.text.starts_with("mounting /proc: ") && failure.errno == libc::EPERM, "{failure:?}");
    }
}
