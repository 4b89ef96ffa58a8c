// SPDX-License-Identifier: Apache-2.0
//! QEMU as a child process: its command line, its console's last lines, its end.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::wire::{MAX_LINE_BYTES, PORT, READY, TOKEN_WORD};
use super::{EmulatedError, EmulatedOptions};

/// The program.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// How many lines of the console are kept for an error message.
const TAIL_LINES: usize = 30;

/// Where the program is, if it is installed.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(|path| path.is_file())
}

/// Everything that TCG can emulate, SVM with nested paging among it; 5-level paging only makes walks longer.
const CPU: &str = "max,-la57";

/// What makes an emulated machine.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) mem_mib: u64,
    pub(super) cpus: u32,
    /// Its processor, as QEMU names it.
    pub(super) cpu: &'a str,
    /// Frequency of its time-stamp counter.
    pub(super) tsc_khz: u64,
    /// More for its kernel's command line.
    pub(super) words: OsString,
}

/// The command line of such a machine, with a console on standard output and no other device.
///
/// - `microvm` without ACPI: no firmware tables, no PCI, nothing to enumerate; virtio windows are on the command line.
/// - `tb-size=32`: translated code is thrown away page by page when a guest ends; the larger the buffer, the longer that takes:
///   the second and later guests of one emulated host take 8 to 14 s to boot with the default, about 1 s with 32 MiB.
/// - `tsc=reliable`: no watchdog that would call the clock unstable whenever the emulator was not scheduled.
/// - `tsc_early_khz`: its frequency is told, not measured (see `clock`).
/// - `no_timer_check`: an emulator that was not scheduled for 10 ms is no broken timer.
/// - `nolapic_timer`: calibrating that timer takes 0.2 s and mostly fails, and then the PIT ticks all the same. (Several
///   processors need it: one timer would have to wake all of them.)
/// - `reboot=t` with `-no-reboot`: a restart ends QEMU.
pub(super) fn machine(machine: Machine<'_>) -> Vec<OsString> {
    let threads = if machine.cpus > 1 { "multi" } else { "single" };
    let mut words: Vec<OsString> = Vec::new();
    let mut add = |flag: &str, value: OsString| words.extend([flag.into(), value]);
    add("-machine", "microvm,acpi=off,x-option-roms=off,rtc=on,pit=on,pic=on,isa-serial=on".into());
    add("-accel", format!("tcg,thread={threads},tb-size=32").into());
    add("-cpu", machine.cpu.into());
    add("-smp", machine.cpus.to_string().into());
    add("-m", machine.mem_mib.to_string().into());
    add("-kernel", machine.kernel.into());
    add("-initrd", machine.initramfs.into());
    let timer = if machine.cpus > 1 { "no_timer_check" } else { "no_timer_check nolapic_timer" };
    let clock = format!("tsc=reliable tsc_early_khz={} {timer}", machine.tsc_khz);
    let mut append = OsString::from(format!("console=ttyS0 loglevel=5 panic=-1 reboot=t {clock}"));
    append.push(machine.words);
    add("-append", append);
    add("-serial", "stdio".into());
    words.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(OsString::from));
    words
}

/// The command line of an emulated host that forwards `port` of this machine's loopback to the outpost.
pub(super) fn arguments(opts: &EmulatedOptions, token_file: &Path, port: u16, tsc_khz: u64) -> Vec<OsString> {
    let mut token = OsString::from(format!(" {TOKEN_WORD}"));
    token.push(token_file);
    let EmulatedOptions { kernel, initramfs, mem_mib, cpus, .. } = opts;
    let (mem_mib, cpus) = (*mem_mib, *cpus);
    let mut words = machine(Machine { kernel, initramfs, mem_mib, cpus, cpu: CPU, tsc_khz, words: token });
    let mut add = |flag: &str, value: OsString| words.extend([flag.into(), value]);
    add("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap".into());
    add("-device", "virtio-9p-device,fsdev=root,mount_tag=host".into());
    add("-netdev", format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:{PORT}").into());
    add("-device", "virtio-net-device,netdev=net".into());
    words
}

/// A running QEMU; dropping it kills it.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    console: Arc<Console>,
}

/// What came out of QEMU so far.
#[derive(Debug)]
pub(super) struct Console {
    tail: Mutex<VecDeque<String>>,
    state: watch::Sender<State>,
}

/// How far it has got, as its output tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    Ended,
}

impl Qemu {
    /// Starts `program` with these arguments.
    pub(super) fn start(program: &Path, arguments: &[OsString]) -> Result<Self, EmulatedError> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Away from the terminal's process group: Ctrl-C is for us to understand, not for QEMU.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| EmulatedError::Qemu { path: program.to_owned(), source })?;
        let console = Arc::new(Console { tail: Mutex::default(), state: watch::Sender::new(State::Starting) });
        if let Some(stderr) = child.stderr.take() {
            let console = Arc::clone(&console);
            tokio::spawn(async move { console.read(stderr).await });
        }
        if let Some(stdout) = child.stdout.take() {
            let console = Arc::clone(&console);
            tokio::spawn(async move {
                console.read(stdout).await;
                console.state.send_replace(State::Ended);
            });
        }
        Ok(Self { child, console })
    }

    /// Waits until the outpost says that it listens.
    pub(super) async fn ready(&mut self, timeout: Duration) -> Result<(), EmulatedError> {
        let mut state = self.console.state.subscribe();
        let reached = tokio::time::timeout(timeout, state.wait_for(|state| *state != State::Starting)).await;
        match reached.map(|state| state.is_ok_and(|state| *state == State::Ready)) {
            Err(_) => Err(EmulatedError::Timeout { timeout_s: timeout.as_secs(), tail: self.console.tail() }),
            Ok(true) => Ok(()),
            Ok(false) => {
                let status = self.child.wait().await.map_or_else(|err| err.to_string(), |status| status.to_string());
                // Its last words come by another pipe than its end.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(EmulatedError::Ended { status, tail: self.console.tail() })
            }
        }
    }

    pub(super) fn console(&self) -> &Console {
        &self.console
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it and waits for its end.
    pub(super) async fn stop(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::debug!(%error, "killing QEMU");
        }
    }
}

impl Console {
    /// The last lines, with line feeds between them.
    pub(super) fn tail(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        Vec::from_iter(tail.iter().map(String::as_str)).join("\n")
    }

    /// Whether there will be no more.
    pub(super) fn ended(&self) -> bool {
        *self.state.borrow() == State::Ended
    }

    async fn read(&self, from: impl AsyncRead + Unpin) {
        let mut from = BufReader::new(from);
        while let Ok(Some(line)) = line(&mut from, MAX_LINE_BYTES).await {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            tracing::debug!(target: "midge::emulated::console", "{text}");
            if text.ends_with(READY) {
                self.state.send_replace(State::Ready);
            }
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(text);
        }
    }
}

/// The next line without its line feed, at most `max_bytes` of it (the rest is the next line); `None` at the end.
pub(super) async fn line(
    from: &mut (impl tokio::io::AsyncBufRead + Unpin),
    max_bytes: usize,
) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let available = from.fill_buf().await?;
        if available.is_empty() {
            return Ok((!line.is_empty()).then_some(line));
        }
        let room = max_bytes.saturating_sub(line.len());
        let window = available.get(..room).unwrap_or(available);
        if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
            line.extend(window.iter().take(end));
            from.consume(end + 1);
            return Ok(Some(line));
        }
        let len = window.len();
        line.extend_from_slice(window);
        from.consume(len);
        if line.len() == max_bytes {
            return Ok(Some(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(cpus: u32) -> EmulatedOptions {
        EmulatedOptions {
            kernel: "/cache/vmlinux".into(),
            initramfs: "/cache/outpost.cpio".into(),
            mem_mib: 2048,
            cpus,
            ready_timeout: Duration::from_secs(9),
        }
    }

    fn text(cpus: u32) -> String {
        let words = arguments(&options(cpus), Path::new("/run/t/token"), 41234, 2_600_000);
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn command_line_forwards_loopback_only_and_shares_read_only() {
        let text = text(1);
        assert!(text.contains("hostfwd=tcp:127.0.0.1:41234-:7000"), "{text}");
        assert!(text.contains("restrict=on") && text.contains("readonly=on"), "{text}");
        assert!(text.contains("tsc_early_khz=2600000 no_timer_check nolapic_timer midge.token=/run/t/token"), "{text}");
        assert!(text.contains("-no-reboot") && text.contains("-m 2048 "), "{text}");
    }

    #[test]
    fn several_processors_get_a_thread_each() {
        assert!(text(1).contains("thread=single") && text(1).contains("-smp 1 "));
        assert!(text(2).contains("thread=multi") && text(2).contains("-smp 2 "));
        assert!(text(1).contains("nolapic_timer") && !text(2).contains("nolapic_timer"));
    }

    fn script(body: &str) -> Result<Qemu, EmulatedError> {
        Qemu::start(Path::new("/bin/sh"), &["-c".into(), body.into()])
    }

    #[tokio::test]
    async fn ready_line_on_the_console_is_what_is_waited_for() {
        let mut qemu = script("echo booting; printf '[ 1.2] midge-outpost: ready\\r\\n'; sleep 60").unwrap();
        qemu.ready(Duration::from_secs(20)).await.unwrap();
        assert!(qemu.console().tail().starts_with("booting\n"));
        qemu.stop().await;
        assert_eq!(qemu.pid(), None);
    }

    #[tokio::test]
    async fn early_end_is_told_with_status_and_last_words() {
        let mut qemu = script("for i in $(seq 50); do echo line $i; done; echo no such machine >&2; exit 3").unwrap();
        let text = qemu.ready(Duration::from_secs(20)).await.unwrap_err().to_string();
        assert!(text.contains("exit status: 3") && text.contains("no such machine"), "{text}");
        assert!(text.contains("line 50") && !text.contains("line 9\n"), "{text}");
    }

    #[tokio::test]
    async fn silence_ends_in_a_time_out_with_what_was_said_before() {
        let mut qemu = script("echo Kernel panic - not syncing; exec sleep 60").unwrap();
        let text = qemu.ready(Duration::from_millis(500)).await.unwrap_err().to_string();
        assert!(text.contains("Kernel panic"), "{text}");
    }

    #[tokio::test]
    async fn lines_are_cut_at_the_limit() {
        let mut from = BufReader::with_capacity(3, &b"abcdefg\n\nxy"[..]);
        let mut lines = Vec::new();
        while let Some(line) = line(&mut from, 4).await.unwrap() {
            lines.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(lines, ["abcd", "efg", "", "xy"]);
    }
}
