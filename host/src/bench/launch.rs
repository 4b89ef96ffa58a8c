// SPDX-License-Identifier: Apache-2.0
//! Monitors of a bench, ours and others: each started over the same payload, with its clock from right before its
//! process is made, and killed when it goes out of scope.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::guest::{ORDERS_PORT, ORDERS_VARIABLE};
use super::{BenchError, Contender, Jail};
use crate::monitor::config::Console;
use crate::monitor::{Disk, DiskMode, VmmConfig, Vsock};

/// What others' kernels are told beside where their console is: Firecracker's own recommendation, and what
/// our monitor tells its kernel too, so that nobody waits for hardware that is not there.
pub(super) const PEER_WORDS: &str = "quiet loglevel=0 reboot=k panic=-1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux \
    i8042.nopnp i8042.dumbkbd swiotlb=noforce random.trust_cpu=on cryptomgr.notests rdinit=/init";

/// What is booted.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) mem_mib: u64,
    /// Read-only `/dev/vda`, if there is one.
    pub(super) disk: Option<PathBuf>,
    /// Longest it may take to say something.
    pub(super) limit: Duration,
}

/// A monitor that was started, killed and reaped when it goes out of scope.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) who: &'static str,
    /// Right before its process was made.
    pub(super) start: Instant,
    pub(super) child: Child,
    /// What its guest's ports are reached through.
    pub(super) uds: PathBuf,
    /// Ours ends with it.
    lifeline: Option<ChildStdin>,
    limit: Duration,
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Failures of what is done for `who`.
pub(super) fn prepare(who: &'static str) -> impl Fn(std::io::Error) -> BenchError {
    move |source| BenchError::Prepare { contender: who, source }
}

impl Started {
    /// Starts `command` for `who`, whose vsock socket is `uds`.
    pub(super) fn run(
        who: &'static str,
        command: &mut Command,
        uds: PathBuf,
        limit: Duration,
    ) -> Result<Self, BenchError> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let child = command.spawn().map_err(|source| {
            let program = command.get_program().into();
            BenchError::Start { contender: who, program, source }
        })?;
        Ok(Self { who, start, child, uds, lifeline: None, limit })
    }

    /// Starts a contender in `dir`.
    pub(super) fn contender(contender: &Contender, dir: &Path, payload: &Payload) -> Result<Self, BenchError> {
        match contender {
            Contender::Midge { program, jail } => midge((contender.name(), *jail), program, dir, payload),
            Contender::Firecracker { program } => firecracker(program, dir, payload),
            Contender::QemuMicrovm { program } => qemu(program, dir, payload),
        }
    }

    /// Whether it has ended, or taken too long.
    pub(super) fn is_late(&mut self) -> bool {
        self.start.elapsed() > self.limit || !matches!(self.child.try_wait(), Ok(None))
    }

    /// Lets go of the lifeline, so that ours ends by itself.
    pub(super) fn let_go(&mut self) {
        self.lifeline = None;
    }

    /// The guest said something else than expected.
    pub(super) fn guest(&self) -> impl Fn(String) -> BenchError + use<> {
        let contender = self.who;
        move |text| BenchError::Guest { contender, text }
    }

    /// Why nothing came, with what the program said.
    pub(super) fn late(mut self) -> BenchError {
        // It may have ended by itself; then its words are all there.
        let _ = self.child.kill();
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            // What cannot be read is not reported.
            let _ = stderr.take(2000).read_to_string(&mut said);
        }
        let said = if said.trim().is_empty() { String::new() } else { format!(" (it said: {})", said.trim()) };
        BenchError::Late { contender: self.who, limit: self.limit, said }
    }
}

fn midge(
    (who, jail): (&'static str, Jail),
    program: &Path,
    dir: &Path,
    payload: &Payload,
) -> Result<Started, BenchError> {
    let uds = dir.join("v.sock");
    let disks = payload.disk.iter().map(|path| Disk { path: path.clone(), mode: DiskMode::ReadOnly });
    let config = VmmConfig {
        kernel: Some(payload.kernel.clone()),
        restore: None,
        extra_msrs: Vec::new(),
        forkable: false,
        track_writes: false,
        initramfs: Some(payload.initramfs.clone()),
        cmdline: "rdinit=/init".to_owned(),
        mem_mib: payload.mem_mib,
        cpus: 1,
        huge_pages: true,
        disks: disks.collect(),
        vsock: Some(Vsock { guest_cid: 3, uds: uds.clone() }),
        console: Console::Off,
        jail,
        allow_missing: Vec::new(),
    };
    let line = config.to_line().map_err(|error| prepare(who)(error.into()))?;
    let mut command = Command::new(program);
    command.args(["--config", "-"]).env_clear().stdin(Stdio::piped());
    let mut started = Started::run(who, &mut command, uds, payload.limit)?;
    started.lifeline = started.child.stdin.take();
    if let Some(lifeline) = &mut started.lifeline {
        lifeline.write_all(line.as_bytes()).map_err(prepare(who))?;
    }
    Ok(started)
}

/// Firecracker's way to say which machine it is to run.
pub(super) fn firecracker_config(payload: &Payload, words: &str, drives: &[Value], uds: &Path) -> Value {
    json!({
        "boot-source": {"kernel_image_path": payload.kernel, "initrd_path": payload.initramfs, "boot_args": words},
        "drives": drives,
        "machine-config": {"vcpu_count": 1, "mem_size_mib": payload.mem_mib},
        "vsock": {"guest_cid": 3, "uds_path": uds},
    })
}

/// A drive of Firecracker's.
pub(super) fn firecracker_drive(name: &str, path: &Path, is_read_only: bool) -> Value {
    json!({"drive_id": name, "path_on_host": path, "is_root_device": false, "is_read_only": is_read_only})
}

fn firecracker(program: &Path, dir: &Path, payload: &Payload) -> Result<Started, BenchError> {
    const WHO: &str = "firecracker";
    let uds = dir.join("v.sock");
    let drives: Vec<Value> = payload.disk.iter().map(|path| firecracker_drive("vda", path, true)).collect();
    let file = dir.join("config.json");
    let config = firecracker_config(payload, PEER_WORDS, &drives, &uds);
    std::fs::write(&file, config.to_string()).map_err(prepare(WHO))?;
    let mut command = Command::new(program);
    command.args(["--no-api", "--config-file"]).arg(&file).stdin(Stdio::null());
    Started::run(WHO, &mut command, uds, payload.limit)
}

/// QEMU has no vsock without the host's help, so what counts in a boot is the first byte on its serial port: the kernel
/// is quiet but for what is critical, and a word that the agent refuses makes it say so right at its start. Where there is a
/// disk to be measured, orders come on that port.
fn qemu(program: &Path, dir: &Path, payload: &Payload) -> Result<Started, BenchError> {
    let uds = dir.join("v.sock");
    let words = match payload.disk {
        Some(_) => format!("{} {ORDERS_VARIABLE}=/dev/ttyS0", PEER_WORDS.replace("nr_uarts=0", "nr_uarts=1")),
        None => {
            let words = PEER_WORDS.replace("8250.nr_uarts=0", "console=ttyS0").replace("loglevel=0", "loglevel=3");
            format!("{words} midge.root=none-speak-up")
        }
    };
    let mut command = Command::new(program);
    command.args(["-accel", "kvm", "-M", "microvm,acpi=off,pit=off,rtc=off", "-smp", "1", "-cpu"]).arg(qemu_cpu());
    command.args(["-m", &payload.mem_mib.to_string(), "-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
    command.args(["-append", &words]);
    if let Some(disk) = &payload.disk {
        let drive = format!("file={},if=none,id=vda,format=raw,readonly=on", disk.display());
        command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=vda"]);
        command.args(["-chardev", &format!("socket,id=orders,path={}_{ORDERS_PORT}", uds.display())]);
        command.args(["-serial", "chardev:orders"]);
    } else {
        command.args(["-serial", "stdio"]);
    }
    command.arg("-kernel").arg(&payload.kernel).arg("-initrd").arg(&payload.initramfs).stdin(Stdio::null());
    Started::run("qemu-microvm", &mut command, uds, payload.limit)
}

/// The host's processor, but on a KVM in software, which can show guests only a plain one.
fn qemu_cpu() -> &'static str {
    let software = Path::new("/sys/module/kvm_pvm").exists();
    if software { "qemu64,-pni,+tsc-deadline,+x2apic" } else { "host" }
}
