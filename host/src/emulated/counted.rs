// SPDX-License-Identifier: Apache-2.0
//! An emulated host whose clock is its own instructions: each takes one nanosecond, an idle processor skips to its next
//! timer, and nothing else moves the clock. What runs in it takes the same time on every run, however busy the machine is.
//!
//! For that nobody outside may be waited for: no network, no shared files. All that it needs is in its initramfs, whose
//! `/init` works until the machine ends; the lines of its console are the answer. Knows nothing of what it runs.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::{EmulatedError, qemu};

/// As other emulated hosts have, but Linux must not think that it copies quickly byte by byte (`rep movsb`): each byte would
/// count as an instruction, and a quarter of a boot would be the filling and clearing of pages. Without the promise it
/// moves eight bytes an instruction.
pub const CPU: &str = "max,-la57,-erms,-fsrm";
/// A clock of one nanosecond an instruction has this frequency.
const TSC_KHZ: u64 = 1_000_000;
/// Lines of its console that wait for whoever reads them.
const LINES_WAITING: usize = 64;
/// Lines that are kept for an error message.
const TAIL_LINES: usize = 20;

/// What such a host is made of.
#[derive(Debug, Clone, Copy)]
pub struct CountedHost<'a> {
    /// A kernel of the `host` flavour.
    pub kernel: &'a Path,
    /// Its `/init` and all that this needs.
    pub initramfs: &'a Path,
    /// Its memory, of which only what is touched is taken from this machine.
    pub mem_mib: u64,
    /// Longest it may be silent, by this machine's clock.
    pub silence_max: Duration,
    /// Its processor, in QEMU's words: [`CPU`] unless another one is to be compared.
    pub cpu: &'a str,
    /// More for its kernel's command line, each after a space; those with a `=` become the environment of `/init`.
    pub words: &'a OsStr,
}

impl CountedHost<'_> {
    /// Runs it to its end, and gives each line of its console to `on_line`.
    ///
    /// # Errors
    /// [`EmulatedError::NoQemu`], [`EmulatedError::Qemu`]; [`EmulatedError::Silent`] and [`EmulatedError::Ended`] with
    /// the console's last lines.
    pub fn run(&self, on_line: &mut dyn FnMut(&str)) -> Result<(), EmulatedError> {
        let program = qemu::program().ok_or(EmulatedError::NoQemu)?;
        let mut command = Command::new(&program);
        command.args(self.arguments());
        self.run_command(command, on_line)
    }

    /// - `-icount shift=0,sleep=off`: the clock is the number of instructions, and does not wait for real time.
    /// - `clock=vm` and `-seed`: neither the date nor RDRAND differ between runs.
    fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut words = qemu::machine(qemu::Machine {
            kernel: self.kernel,
            initramfs: self.initramfs,
            mem_mib: self.mem_mib,
            cpus: 1,
            cpu: self.cpu,
            tsc_khz: TSC_KHZ,
            words: self.words.to_owned(),
        });
        let clock = ["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm", "-seed", "1"];
        words.extend(clock.map(Into::into));
        words
    }

    fn run_command(&self, mut command: Command, on_line: &mut dyn FnMut(&str)) -> Result<(), EmulatedError> {
        let path = Path::new(command.get_program()).to_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|source| EmulatedError::Qemu { path, source })?;
        let mut child = Ending(child);
        let lines = lines_of(&mut child.0);
        let mut tail = VecDeque::new();
        loop {
            match lines.recv_timeout(self.silence_max) {
                Ok(line) => {
                    tracing::debug!(target: "midge::emulated::console", "{line}");
                    on_line(&line);
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(EmulatedError::Silent { limit_s: self.silence_max.as_secs(), tail: joined(tail) });
                }
            }
        }
        match child.0.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(EmulatedError::Ended { status: status.to_string(), tail: joined(tail) }),
            Err(source) => Err(super::io_error("waiting for QEMU", source)),
        }
    }
}

fn joined(tail: VecDeque<String>) -> String {
    Vec::from(tail).join("\n")
}

/// A child that does not outlive whoever waits for it.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of both its outputs, until both are closed.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = sync_channel(LINES_WAITING);
    let outputs = [
        child.stdout.take().map(|output| Box::new(output) as Box<dyn Read + Send>),
        child.stderr.take().map(|output| Box::new(output) as Box<dyn Read + Send>),
    ];
    for output in outputs.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || pass_on(output, &sender));
    }
    receiver
}

fn pass_on(output: impl Read, to: &SyncSender<String>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if to.send(text).is_err() {
            return;
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(silence_max: Duration) -> CountedHost<'static> {
        CountedHost {
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            mem_mib: 64,
            silence_max,
            cpu: CPU,
            words: OsStr::new(" A=b"),
        }
    }

    fn run(script: &str, silence_max: Duration) -> (Vec<String>, Result<(), EmulatedError>) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let mut lines = Vec::new();
        let result = host(silence_max).run_command(command, &mut |line| lines.push(line.to_owned()));
        (lines, result)
    }

    #[test]
    fn nothing_outside_is_waited_for() {
        let words = host(Duration::ZERO).arguments();
        let text = words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
        assert!(text.contains("-icount shift=0,sleep=off") && text.contains("thread=single"), "{text}");
        assert!(
            text.contains("clock=vm") && text.contains("tsc_early_khz=1000000 no_timer_check nolapic_timer A=b"),
            "{text}"
        );
        assert!(!text.contains("-netdev") && !text.contains("-fsdev"), "{text}");
    }

    #[test]
    fn every_line_is_delivered_before_the_end() {
        let (lines, result) = run("printf 'one\\r\\ntwo\\nthree'", Duration::from_secs(20));
        result.unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn failure_is_told_with_last_words() {
        let text = run("echo no such machine >&2; exit 3", Duration::from_secs(20)).1.unwrap_err().to_string();
        assert!(text.contains("exit status: 3") && text.contains("no such machine"), "{text}");
    }

    #[test]
    fn silence_has_an_end() {
        let text = run("echo stuck; exec sleep 60", Duration::from_millis(300)).1.unwrap_err().to_string();
        assert!(text.contains("stuck"), "{text}");
    }
}
