// SPDX-License-Identifier: Apache-2.0
//! What this host can do, what is missing, and the command that mends it.
//!
//! [`Report::collect`] asks the machine; what an answer means is decided by pure functions of it. Changes nothing.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::cache::Cache;
use crate::emulated::EmulatedHost;
use crate::groups::{self, Controller};
use crate::kernel::{self, Flavour};
use crate::machine::Machine;
use crate::probe::{KvmState, probe};
use crate::{image, scratch};

/// Memory below which an emulated host and a guest in it do not fit beside each other, in MiB.
const EMULATED_MEMORY_MIB: u64 = 2048;
/// Ticks a second below which KVM's waits for an SRCU grace period are felt.
const HZ_FAST: u32 = 250;

/// Which kind of host this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostKind {
    /// KVM on virtualization hardware: unmodified kernels at full speed.
    Hardware,
    /// KVM in software: runs kernels made for it; unmodified ones run in the emulated host.
    SoftwareKvm,
    /// No usable KVM; guests run in the emulated host.
    EmulatedOnly,
    /// Nothing runs here yet.
    Unable,
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware KVM: sandboxes run at full speed",
            Self::SoftwareKvm => {
                "software KVM: runs kernels made for it (--kernel); all others run in the emulated host, slowly"
            }
            Self::EmulatedOnly => "no usable KVM: sandboxes run in the emulated host, slowly",
            Self::Unable => "no sandbox can run here yet: see what is missing below",
        })
    }
}

/// How a finding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// As it should be.
    Ok,
    /// Not there yet; Midge makes it when it is needed.
    Later,
    /// Missing, and something does not work without it.
    Missing,
    /// Works, and costs latency.
    Slow,
}

impl Standing {
    const fn mark(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Later => "later",
            Self::Missing => "missing",
            Self::Slow => "slow",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: Cow<'static, str>,
    /// How it stands.
    pub standing: Standing,
    /// What was found.
    pub found: String,
    /// The command or setting that mends it.
    pub remedy: Option<String>,
}

impl Finding {
    fn new(name: impl Into<Cow<'static, str>>, standing: Standing, found: impl Into<String>) -> Self {
        Self { name: name.into(), standing, found: found.into(), remedy: None }
    }

    fn mend(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// What `midge doctor` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The kind of host.
    pub kind: HostKind,
    /// Processor, kernel, modules and settings, as benches print them.
    pub machine: Machine,
    /// What was looked at, in the order in which a run needs it.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Looks at this machine; `vmm` is the monitor's binary, which finds out what of its jail can be had here.
    #[must_use]
    pub fn collect(vmm: Option<&Path>) -> Self {
        let mut report = Self::of(&probe(), Path::new("/"), Cache::open().ok().as_ref());
        report.findings.extend(vmm.map(|vmm| of_jail(&check_jail(vmm))));
        report
    }

    fn of(kvm: &KvmState, root: &Path, cache: Option<&Cache>) -> Self {
        let machine = Machine::read_below(root);
        let memory_mib = memory_mib(&std::fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default());
        let has_qemu = EmulatedHost::program().is_some();
        let mut findings = vec![of_kvm(kvm), of_emulation(has_qemu, memory_mib, kvm)];
        findings.extend(of_parts(cache));
        findings.push(of_user_namespaces(root));
        findings.extend(of_settings(&machine, kvm, root));
        Self { kind: kind(kvm, has_qemu), machine, findings }
    }

    /// Whether a sandbox can run here, if slowly.
    #[must_use]
    pub fn is_able(&self) -> bool {
        self.kind != HostKind::Unable
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(f, "{}\n", self.kind)?;
        let modules = if machine.kvm_modules.is_empty() { "none".to_owned() } else { machine.kvm_modules.join(", ") };
        writeln!(f, "processor  {} ({} usable)", machine.processor, machine.cpus)?;
        writeln!(f, "kernel     {}, KVM modules: {modules}\n", machine.host_kernel)?;
        for finding in &self.findings {
            writeln!(f, "{:<8} {:<24} {}", finding.standing.mark(), finding.name, finding.found)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(f, "{:<8} {:<24} -> {remedy}", "", "")?;
            }
        }
        Ok(())
    }
}

fn kind(kvm: &KvmState, has_qemu: bool) -> HostKind {
    match kvm {
        KvmState::Usable => HostKind::Hardware,
        KvmState::SoftwareOnly { .. } => HostKind::SoftwareKvm,
        _ if has_qemu => HostKind::EmulatedOnly,
        _ => HostKind::Unable,
    }
}

fn of_kvm(kvm: &KvmState) -> Finding {
    let standing = if kvm.runs_unmodified() { Standing::Ok } else { Standing::Missing };
    let finding = Finding::new("KVM", standing, kvm.to_string());
    match kvm.remedy() {
        Some(remedy) => finding.mend(remedy),
        None => finding,
    }
}

fn of_emulation(has_qemu: bool, memory_mib: u64, kvm: &KvmState) -> Finding {
    let name = "emulated host";
    if !has_qemu {
        let standing = if kvm.runs_unmodified() { Standing::Later } else { Standing::Missing };
        let found = "qemu-system-x86_64 is not installed; used only where KVM does not work";
        return Finding::new(name, standing, found).mend("sudo apt-get install qemu-system-x86");
    }
    if memory_mib < EMULATED_MEMORY_MIB {
        let found =
            format!("this machine has {memory_mib} MiB of memory; the emulated host needs {EMULATED_MEMORY_MIB}");
        return Finding::new(name, Standing::Missing, found);
    }
    Finding::new(name, Standing::Ok, "qemu-system-x86_64 is installed")
}

/// The parts that a run needs and Midge makes: whether they are there, and whether they could be made.
fn of_parts(cache: Option<&Cache>) -> Vec<Finding> {
    let Some(cache) = cache else {
        let found = "the cache directory cannot be written";
        return vec![Finding::new("cache", Standing::Missing, found).mend("set MIDGE_CACHE to a directory of yours")];
    };
    let kernels = Flavour::ALL.map(|flavour| {
        let name = match flavour {
            Flavour::Guest => "kernel, one vCPU",
            Flavour::GuestSmp => "kernel, several vCPUs",
            Flavour::Host => "kernel, emulated host",
        };
        let built = kernel::find(cache, flavour).map(|kernel| kernel.map(|kernel| kernel.vmlinux));
        let command = format!("midge kernel build --flavour {}", flavour.name());
        of_part(name, built, kernel::check_tools(), &command)
    });
    let images = image::names().iter().map(|&image| {
        let built = image::find(cache, image).map(|image| image.map(|image| image.path));
        of_part(format!("image {image}"), built, image::check_host(), &format!("midge image build {image}"))
    });
    let mkfs = match scratch::check_tool() {
        Ok(()) => Finding::new("mkfs.ext4", Standing::Ok, "installed"),
        Err(error) => Finding::new("mkfs.ext4", Standing::Missing, error.to_string()),
    };
    kernels.into_iter().chain(images).chain([mkfs]).collect()
}

fn of_part<E: fmt::Display, T: fmt::Display>(
    name: impl Into<Cow<'static, str>>,
    built: Result<Option<PathBuf>, E>,
    tools: Result<(), T>,
    command: &str,
) -> Finding {
    match (built, tools) {
        (Ok(Some(path)), _) => Finding::new(name, Standing::Ok, path.display().to_string()),
        (Err(error), _) => Finding::new(name, Standing::Missing, error.to_string()),
        (Ok(None), Ok(())) => Finding::new(name, Standing::Later, "built when first needed").mend(command),
        (Ok(None), Err(error)) => Finding::new(name, Standing::Missing, error.to_string()),
    }
}

/// What the monitor prints about its jail: a line for each part that is missing, or why it could not look.
fn check_jail(vmm: &Path) -> Result<String, String> {
    let output = Command::new(vmm).arg("--check-jail").env_clear().output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The monitor's jail. Landlock is one layer more where it is; without any other part no monitor starts.
fn of_jail(checked: &Result<String, String>) -> Finding {
    let name = "jail";
    let text = match checked {
        Err(why) => return Finding::new(name, Standing::Missing, why.clone()),
        Ok(text) if text.is_empty() => return Finding::new(name, Standing::Ok, "complete"),
        Ok(text) => text,
    };
    let missing: Vec<&str> = text.lines().filter(|line| !line.starts_with("landlock ")).collect();
    if missing.is_empty() {
        return Finding::new(
            name,
            Standing::Ok,
            "complete, but for Landlock, which this kernel has not or not switched on",
        );
    }
    Finding::new(name, Standing::Missing, format!("without {}", missing.join("; "))).mend(
        "let users have namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, \
         kernel.apparmor_restrict_unprivileged_userns=0), or run as root with CAP_SYS_ADMIN",
    )
}

/// A jail for a user that is not root begins with a user namespace.
fn of_user_namespaces(root: &Path) -> Finding {
    let name = "user namespaces";
    let read =
        |path: &str| std::fs::read_to_string(root.join(path)).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let remedy = |setting: &str| format!("sudo sysctl -w {setting}");
    match (read("proc/sys/user/max_user_namespaces"), read("proc/sys/kernel/unprivileged_userns_clone")) {
        (Some(0), _) => Finding::new(name, Standing::Missing, "switched off (max_user_namespaces is 0)")
            .mend(remedy("user.max_user_namespaces=10000")),
        (None, _) => Finding::new(name, Standing::Missing, "not in this kernel"),
        (_, Some(0)) => Finding::new(name, Standing::Missing, "switched off for ordinary users")
            .mend(remedy("kernel.unprivileged_userns_clone=1")),
        _ => Finding::new(name, Standing::Ok, "available"),
    }
}

/// Host settings that cost latency (measured or reported: a VM's creation and end wait for the first three).
fn of_settings(machine: &Machine, kvm: &KvmState, root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    if kvm.can_be_tried() {
        findings.push(of_nx(machine.nx_huge_pages.as_deref()));
    }
    findings.push(of_cgroups(machine, &groups::Base::look(root)));
    findings.push(match machine.hz {
        Some(hz) if hz < HZ_FAST => {
            let found = format!("{hz}: KVM's waits for a grace period take steps of {} ms", 1000 / hz.max(1));
            Finding::new("CONFIG_HZ", Standing::Slow, found).mend("a host kernel with CONFIG_HZ=1000")
        }
        Some(hz) => Finding::new("CONFIG_HZ", Standing::Ok, hz.to_string()),
        None => Finding::new("CONFIG_HZ", Standing::Ok, "cannot be read on this host"),
    });
    findings.push(match machine.transparent_huge_pages.as_deref() {
        Some("never") => Finding::new("transparent huge pages", Standing::Slow, "never: a boot takes a quarter longer")
            .mend("echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"),
        Some(setting) => Finding::new("transparent huge pages", Standing::Ok, setting),
        None => Finding::new("transparent huge pages", Standing::Slow, "not in this kernel: a boot takes longer"),
    });
    findings
}

fn of_nx(setting: Option<&str>) -> Finding {
    let name = "kvm.nx_huge_pages";
    match setting {
        Some("N" | "off" | "never") => Finding::new(name, Standing::Ok, "off"),
        None => Finding::new(name, Standing::Ok, "not in this kernel"),
        Some(setting) => {
            Finding::new(name, Standing::Slow, format!("{setting}: each VM waits for a recovery thread to start"))
                .mend("on a CPU that is immune to iTLB multihit: kvm.nx_huge_pages=never on the kernel's command line")
        }
    }
}

/// What bounds a monitor that was taken over. Without it sandboxes run all the same, unless a limit is asked for.
fn of_cgroups(machine: &Machine, base: &Result<groups::Base, groups::Missing>) -> Finding {
    let name = "control groups";
    let base = match base {
        Ok(base) => base,
        Err(missing) => {
            let found = format!("{missing}: a sandbox has no limits but its own");
            return Finding::new(name, Standing::Missing, found).mend(missing.remedy());
        }
    };
    let list = |there: bool| {
        let all = Controller::ALL.into_iter().filter(|one| base.controllers().contains(one) == there);
        all.map(Controller::name).collect::<Vec<_>>().join(", ")
    };
    let found = format!("{} in {}", list(true), base.dir().display());
    match list(false) {
        absent if !absent.is_empty() => {
            Finding::new(name, Standing::Missing, format!("{found}, without {absent}: that is not limited"))
                .mend(groups::DELEGATE)
        }
        _ if !machine.favordynmods => {
            Finding::new(name, Standing::Slow, format!("{found}, without favordynmods: moving a process waits"))
                .mend("sudo mount -o remount,favordynmods /sys/fs/cgroup")
        }
        _ => Finding::new(name, Standing::Ok, found),
    }
}

/// MemTotal of /proc/meminfo, in MiB; 0 when it does not say.
fn memory_mib(meminfo: &str) -> u64 {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map_or(0, |kib: u64| kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn software() -> KvmState {
        KvmState::SoftwareOnly { detail: "x".into() }
    }

    fn machine(put: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in put {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_kind_follows_from_kvm_and_qemu() {
        assert_eq!(kind(&KvmState::Usable, false), HostKind::Hardware);
        assert_eq!(kind(&software(), true), HostKind::SoftwareKvm);
        assert_eq!(kind(&KvmState::Absent, true), HostKind::EmulatedOnly);
        assert_eq!(kind(&KvmState::NoPermission, true), HostKind::EmulatedOnly);
        assert_eq!(kind(&KvmState::Absent, false), HostKind::Unable);
    }

    #[test]
    fn what_is_missing_has_a_command_that_mends_it() {
        assert!(of_kvm(&KvmState::NoPermission).remedy.unwrap().contains("usermod"));
        assert!(of_kvm(&KvmState::Usable).remedy.is_none());
        let qemu = of_emulation(false, 9000, &KvmState::Absent);
        assert_eq!((qemu.standing, qemu.remedy.is_some()), (Standing::Missing, true));
        assert_eq!(of_emulation(false, 9000, &KvmState::Usable).standing, Standing::Later);
        let small = of_emulation(true, 512, &KvmState::Absent);
        assert!(small.standing == Standing::Missing && small.found.contains("512"), "{small:?}");
    }

    #[test]
    fn user_namespaces_that_are_off_are_told_apart() {
        let of = |put: &[(&str, &str)]| of_user_namespaces(machine(put).path());
        assert_eq!(of(&[("proc/sys/user/max_user_namespaces", "100\n")]).standing, Standing::Ok);
        assert!(of(&[("proc/sys/user/max_user_namespaces", "0\n")]).remedy.unwrap().contains("max_user_namespaces"));
        let off = [("proc/sys/user/max_user_namespaces", "9"), ("proc/sys/kernel/unprivileged_userns_clone", "0")];
        assert!(of(&off).remedy.unwrap().contains("userns_clone"));
        assert_eq!(of(&[]).standing, Standing::Missing);
    }

    #[test]
    fn settings_that_cost_latency_are_slow_and_others_are_not() {
        let slow = machine(&[
            ("proc/sys/kernel/osrelease", "6.1"),
            ("boot/config-6.1", "CONFIG_HZ=100\n"),
            ("sys/module/kvm/parameters/nx_huge_pages", "Y"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]"),
        ]);
        let findings = of_settings(&Machine::read_below(slow.path()), &KvmState::Usable, slow.path());
        assert_eq!(findings.len(), 4);
        let is_noted = |f: &Finding| matches!(f.standing, Standing::Slow | Standing::Missing) && f.remedy.is_some();
        assert!(findings.iter().all(is_noted), "{findings:?}");
        let fast = machine(&[
            ("proc/sys/kernel/osrelease", "6.1"),
            ("boot/config-6.1", "CONFIG_HZ=1000\n"),
            ("sys/module/kvm/parameters/nx_huge_pages", "N"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids io"),
            ("sys/fs/cgroup/cgroup.procs", ""),
            ("sys/fs/cgroup/cgroup.subtree_control", ""),
            ("proc/self/mountinfo", "22 1 0:20 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,favordynmods 0 0\n"),
        ]);
        let findings = of_settings(&Machine::read_below(fast.path()), &KvmState::Usable, fast.path());
        assert!(findings.iter().all(|f| f.standing == Standing::Ok), "{findings:?}");
    }

    #[test]
    fn control_groups_are_told_with_what_they_limit() {
        let of = |controllers: &str, mounts: &str| {
            let root = machine(&[
                ("sys/fs/cgroup/cgroup.controllers", controllers),
                ("sys/fs/cgroup/cgroup.procs", ""),
                ("sys/fs/cgroup/cgroup.subtree_control", ""),
                ("proc/self/mountinfo", "22 1 0:20 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mounts", mounts),
            ]);
            of_cgroups(&Machine::read_below(root.path()), &groups::Base::look(root.path()))
        };
        let less = of("cpu pids", "");
        assert!(less.standing == Standing::Missing && less.found.contains("without memory, io"), "{less:?}");
        assert_eq!(of("cpu memory pids io", "").standing, Standing::Slow);
        let full = of("cpu memory pids io", "cgroup2 /sys/fs/cgroup cgroup2 rw,favordynmods 0 0\n");
        assert!(full.standing == Standing::Ok && full.found.starts_with("cpu, memory, pids, io in "), "{full:?}");
        let none = of_cgroups(&Machine::read_below(Path::new("/nowhere")), &groups::Base::look(Path::new("/nowhere")));
        assert!(none.standing == Standing::Missing && none.remedy.is_some(), "{none:?}");
    }

    #[test]
    fn parts_that_are_not_built_name_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let findings = of_parts(Some(&Cache::at(dir.path()).unwrap()));
        let names: Vec<&str> = findings.iter().map(|finding| &*finding.name).collect();
        assert!(names.contains(&"kernel, one vCPU"), "{names:?}");
        for image in image::names() {
            let called = format!("image {image}");
            let found: Vec<_> = findings.iter().filter(|finding| finding.name == called).collect();
            let [finding] = found[..] else { panic!("{called} stands {} times in {names:?}", found.len()) };
            // Where a tool is missing, that is to be mended first.
            assert!(
                finding.standing == Standing::Missing || finding.remedy == Some(format!("midge image build {image}"))
            );
        }
        for finding in findings.iter().filter(|finding| finding.standing == Standing::Later) {
            assert!(finding.remedy.as_ref().unwrap().starts_with("midge "), "{finding:?}");
        }
        assert_eq!(of_parts(None)[0].standing, Standing::Missing);
    }

    #[test]
    fn a_jail_is_complete_or_named_part_by_part() {
        let of = |text: &str| of_jail(&Ok(text.to_owned()));
        assert_eq!(of("").standing, Standing::Ok);
        assert_eq!(of("landlock Function not implemented (os error 38)").standing, Standing::Ok);
        let less = of("landlock x\nuser-namespace Operation not permitted\nempty-root y");
        assert_eq!(less.standing, Standing::Missing);
        assert!(less.found.contains("user-namespace") && less.found.contains("empty-root y"), "{less:?}");
        assert!(less.remedy.unwrap().contains("user.max_user_namespaces"));
        assert_eq!(of_jail(&check_jail(Path::new("/no/vmm"))).standing, Standing::Missing);
    }

    #[test]
    fn a_report_reads_line_by_line_and_is_json_too() {
        let root = machine(&[("proc/sys/kernel/osrelease", "6.12.1\n"), ("proc/meminfo", "MemTotal:  4194304 kB\n")]);
        let report = Report::of(&software(), root.path(), None);
        let text = report.to_string();
        assert!(text.starts_with("software KVM") && text.contains("6.12.1") && text.contains("-> "), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["kind"], "software_kvm");
        assert_eq!(json["findings"][0]["name"], "KVM");
        assert_eq!(memory_mib("MemTotal:  4194304 kB\n"), 4096);
    }
}
