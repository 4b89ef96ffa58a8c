// SPDX-License-Identifier: Apache-2.0
//! One boot of one contender: made ready, started, timed, ended and reaped. The clock starts right before
//! the process is made and stops at the guest's first words; clean-up is not timed.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use super::greeting::{Greeted, Greeter, since_us};
use super::{BenchError, BootOptions, Contender, Run, exits};
use crate::monitor::config::Console;
use crate::monitor::{VmmConfig, Vsock};

/// What others' kernels are told beside where their console is: Firecracker's own recommendation, and what
/// our monitor tells its kernel too, so that nobody waits for hardware that is not there.
const PEER_WORDS: &str = "quiet loglevel=0 reboot=k panic=-1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.nopnp \
    i8042.dumbkbd swiotlb=noforce random.trust_cpu=on cryptomgr.notests rdinit=/init";

/// A child that is killed and reaped when it goes out of scope.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots once.
pub(super) fn once(contender: &Contender, options: &BootOptions) -> Result<Run, BenchError> {
    let name = contender.name();
    let prepare = |source| BenchError::Prepare { contender: name, source };
    let dir = tempfile::Builder::new().prefix("midge-bench-").tempdir().map_err(prepare)?;
    match contender {
        Contender::Midge { program } => midge(program, dir.path(), options),
        Contender::Firecracker { program } => firecracker(program, dir.path(), options),
        Contender::QemuMicrovm { program } => qemu(program, options),
    }
}

fn start(contender: &'static str, command: &mut Command) -> Result<(Instant, Process), BenchError> {
    let start = Instant::now();
    let child = command.spawn().map_err(|source| {
        let program = command.get_program().into();
        BenchError::Start { contender, program, source }
    })?;
    Ok((start, Process(child)))
}

fn midge(program: &Path, dir: &Path, options: &BootOptions) -> Result<Run, BenchError> {
    const NAME: &str = "midge";
    let prepare = |source| BenchError::Prepare { contender: NAME, source };
    let uds = dir.join("v.sock");
    let greeter = Greeter::bind(&uds).map_err(prepare)?;
    let config = VmmConfig {
        kernel: Some(options.kernel.clone()),
        restore: None,
        extra_msrs: Vec::new(),
        forkable: false,
        initramfs: Some(options.initramfs.clone()),
        cmdline: "rdinit=/init".to_owned(),
        mem_mib: options.mem_mib,
        cpus: 1,
        huge_pages: true,
        disks: Vec::new(),
        vsock: Some(Vsock { guest_cid: 3, uds }),
        console: Console::Off,
    };
    let line = config.to_line().map_err(|error| prepare(error.into()))?;
    let mut command = Command::new(program);
    command.args(["--config", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (start, mut process) = start(NAME, &mut command)?;
    let mut lifeline: Option<ChildStdin> = process.0.stdin.take();
    if let Some(lifeline) = &mut lifeline {
        lifeline.write_all(line.as_bytes()).map_err(prepare)?;
    }
    let greeted = greeter.greet(start, || start.elapsed() > options.limit || ended(&mut process));
    let greeted = greeted.map_err(|text| BenchError::Guest { contender: NAME, text })?;
    let Some(greeted) = greeted else { return Err(late(NAME, options, &mut process)) };
    let mut run = Run::of(greeted, process.0.id(), options);
    drop(lifeline);
    run.stages = process.0.stdout.take().map(stages_told).unwrap_or_default();
    run.stages.push(("agent_hello".to_owned(), run.first_output_us));
    run.stages.extend(run.first_reply_us.map(|us| ("first_reply".to_owned(), us)));
    Ok(run)
}

impl Run {
    /// What is known once an agent has answered, with its monitor still there. Ends the conversation.
    fn of(greeted: Greeted, pid: u32, options: &BootOptions) -> Self {
        Self {
            first_output_us: greeted.hello_us,
            first_reply_us: Some(greeted.reply_us),
            exits: exits::of(pid),
            own_memory_kib: own_memory_kib(pid, options),
            guest_stages: greeted.stages,
            stages: Vec::new(),
        }
    }
}

/// The stages among the monitor's events, up to the end of its output.
fn stages_told(stdout: ChildStdout) -> Vec<(String, u64)> {
    let lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let events = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let stage = |event: Value| Some((event["name"].as_str()?.to_owned(), event["t_us"].as_u64()?));
    events.filter(|event| event["event"] == "stage").filter_map(stage).collect()
}

fn firecracker(program: &Path, dir: &Path, options: &BootOptions) -> Result<Run, BenchError> {
    const NAME: &str = "firecracker";
    let prepare = |source| BenchError::Prepare { contender: NAME, source };
    let uds = dir.join("v.sock");
    let greeter = Greeter::bind(&uds).map_err(prepare)?;
    let config = json!({
        "boot-source": {"kernel_image_path": options.kernel, "initrd_path": options.initramfs, "boot_args": PEER_WORDS},
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": options.mem_mib},
        "vsock": {"guest_cid": 3, "uds_path": uds},
    });
    let file = dir.join("config.json");
    std::fs::write(&file, config.to_string()).map_err(prepare)?;
    let mut command = Command::new(program);
    command.args(["--no-api", "--config-file"]).arg(&file);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (start, mut process) = start(NAME, &mut command)?;
    let greeted = greeter.greet(start, || start.elapsed() > options.limit || ended(&mut process));
    let greeted = greeted.map_err(|text| BenchError::Guest { contender: NAME, text })?;
    let Some(greeted) = greeted else { return Err(late(NAME, options, &mut process)) };
    Ok(Run::of(greeted, process.0.id(), options))
}

/// QEMU has no vsock without the host's help, so what counts is the first byte on its serial port. The kernel
/// is quiet but for what is critical, and a word that the agent refuses makes it say so right at its start.
fn qemu(program: &Path, options: &BootOptions) -> Result<Run, BenchError> {
    const NAME: &str = "qemu-microvm";
    let words = PEER_WORDS.replace("8250.nr_uarts=0", "console=ttyS0").replace("loglevel=0", "loglevel=3");
    let words = format!("{words} midge.root=none-speak-up");
    let mut command = Command::new(program);
    command.args(["-accel", "kvm", "-M", "microvm,acpi=off,pit=off,rtc=off", "-cpu"]).arg(qemu_cpu());
    command.args([
        "-smp",
        "1",
        "-m",
        &options.mem_mib.to_string(),
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
    ]);
    command.args(["-serial", "stdio", "-append", &words]);
    command.arg("-kernel").arg(&options.kernel).arg("-initrd").arg(&options.initramfs);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (start, mut process) = start(NAME, &mut command)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    if let Some(mut stdout) = process.0.stdout.take() {
        std::thread::spawn(move || {
            let mut first = [0];
            let seen = stdout.read_exact(&mut first).map(|()| since_us(start));
            // The run may be given up by now.
            let _ = sender.send(seen);
        });
    }
    match receiver.recv_timeout(options.limit) {
        Ok(Ok(first_output_us)) => Ok(Run { first_output_us, exits: exits::of(process.0.id()), ..Run::default() }),
        _ => Err(late(NAME, options, &mut process)),
    }
}

/// The host's processor, but on a KVM in software, which can show guests only a plain one.
fn qemu_cpu() -> &'static str {
    let software = Path::new("/sys/module/kvm_pvm").exists();
    if software { "qemu64,-pni,+tsc-deadline,+x2apic" } else { "host" }
}

fn ended(process: &mut Process) -> bool {
    !matches!(process.0.try_wait(), Ok(None))
}

/// Why nothing came, with what the program said.
fn late(contender: &'static str, options: &BootOptions, process: &mut Process) -> BenchError {
    // It may have ended by itself; then its words are all there.
    let _ = process.0.kill();
    let mut said = String::new();
    if let Some(stderr) = process.0.stderr.take() {
        // What cannot be read is not reported.
        let _ = stderr.take(2000).read_to_string(&mut said);
    }
    let said = if said.trim().is_empty() { String::new() } else { format!(" (it said: {})", said.trim()) };
    BenchError::Late { contender, limit: options.limit, said }
}

/// Private memory of a process in KiB, the guest's RAM left out, and its program too: pages of files are shared with
/// whoever runs the same program, even those that smaps calls private because nobody else does at the moment.
fn own_memory_kib(pid: u32, options: &BootOptions) -> Option<u64> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    Some(private_kib(&smaps, options))
}

fn private_kib(smaps: &str, options: &BootOptions) -> u64 {
    // The guest's RAM is one row of mappings without a gap: files lie in it, pieces have rights of their own.
    let ram_kib = options.mem_mib << 9;
    let (mut own, mut row) = (0, Row::default());
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((from, to)) = addresses(first) {
            if from != row.end {
                own += row.own(ram_kib);
                row = Row { start: from, ..Row::default() };
            }
            row.end = to;
        } else if first == "Anonymous:" {
            row.anonymous_kib += words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    own + row.own(ram_kib)
}

/// Mappings that touch each other.
#[derive(Default)]
struct Row {
    start: u64,
    end: u64,
    anonymous_kib: u64,
}

impl Row {
    fn own(&self, ram_kib: u64) -> u64 {
        if (self.end - self.start) >> 10 >= ram_kib { 0 } else { self.anonymous_kib }
    }
}

/// The addresses of the mapping that an smaps heading `from-to` starts.
fn addresses(word: &str) -> Option<(u64, u64)> {
    let (from, to) = word.split_once('-')?;
    let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
    (from < to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn options() -> BootOptions {
        BootOptions {
            runs: 1,
            vmm: "/nonexistent/midge-vmm".into(),
            against: Vec::new(),
            kernel: "/k".into(),
            initramfs: "/i".into(),
            mem_mib: 128,
            limit: Duration::from_millis(200),
        }
    }

    #[test]
    fn guest_memory_is_not_the_monitors() {
        let smaps = "7f0000000000-7f0000100000 rw-p 0 00:00 0\nAnonymous: 600 kB\n\
            7f0000100000-7f0000200000 rw-p 0 08:01 5 /k\nAnonymous: 50 kB\n\
            7f0000200000-7f0008000000 rw-p 0 00:00 0\nAnonymous: 9000 kB\n\
            7f1000000000-7f1000010000 rw-p 0 00:00 0 [heap]\nRss: 64 kB\nPrivate_Clean: 4 kB\nAnonymous: 40 kB\n\
            7f2000000000-7f2000200000 r-xp 0 08:01 5 /midge-vmm\nPrivate_Dirty: 1500 kB\nAnonymous: 0 kB\n\
            7ffc00000000-7ffc00021000 rw-p 0 00:00 0 [stack]\nAnonymous: 12 kB\n";
        assert_eq!(private_kib(smaps, &options()), 52);
    }

    #[test]
    fn program_that_is_missing_is_named() {
        for contender in [
            Contender::Midge { program: "/nonexistent/a".into() },
            Contender::Firecracker { program: "/nonexistent/a".into() },
            Contender::QemuMicrovm { program: "/nonexistent/a".into() },
        ] {
            let error = once(&contender, &options()).unwrap_err();
            assert!(matches!(error, BenchError::Start { .. }), "{error}");
            assert!(error.to_string().contains("/nonexistent/a"), "{error}");
        }
    }

    #[test]
    fn program_that_says_no_word_is_late_and_its_complaint_told() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("fake");
        std::fs::write(&program, "#!/bin/sh\necho 'no such kernel' >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = once(&Contender::Firecracker { program }, &options()).unwrap_err().to_string();
        assert!(error.contains("no such kernel") && error.contains("firecracker"), "{error}");
    }
}
