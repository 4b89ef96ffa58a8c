// SPDX-License-Identifier: Apache-2.0
//! `midge-vmm`: runs one VM, described by one JSON document, and tells on stdout how it went.
//!
//! Reads arguments and the configuration, sets up the process, and hands over to
//! [`midge_vmm::vm::Vm`]. It never returns to the shell with a VM left behind.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use midge_vmm::boot::layout;
use midge_vmm::config::VmmConfig;
use midge_vmm::control::STOP_SIGNALS;
use midge_vmm::sys;
use midge_vmm::trace::{Ending, ExitCounts, Reason, Stage, Trace};
use midge_vmm::vm::{Stopped, Vm, VmError};

const HELP: &str = "\
midge-vmm: a minimal virtual machine monitor; runs one Linux guest on KVM

usage: midge-vmm --config FILE|-     run the VM of a JSON document (-: the first line of stdin)
       midge-vmm --explain-boot      print the guest's memory map
       midge-vmm --version | --help

The document, with its defaults (kernel, mem_mib and cpus must be given):
  {\"kernel\": \"/path/vmlinux\",       x86-64 ELF vmlinux or bzImage
   \"initramfs\": null,               path of a cpio archive
   \"cmdline\": \"\",                   words added to the kernel's command line
   \"mem_mib\": N,                    32 to the host's memory
   \"cpus\": N,                       1 to 32
   \"huge_pages\": true,              2 MiB pages for guest memory where the host has them
   \"disks\": [],                     {\"path\": .., \"mode\": M}, seen as /dev/vda, /dev/vdb ..; M is
                                    \"read_only\" | {\"overlay_memory\": {\"cap_mib\": N}} |
                                    {\"overlay_file\": {\"path\": .., \"cap_mib\": N}}
   \"vsock\": null,                   {\"guest_cid\": 3, \"uds\": \"/path/v.sock\"}
   \"console\": \"off\",                \"on\": a serial console, each line becomes an event
   \"extra_msrs\": []}                MSRs that a snapshot carries beyond KVM's list

With `--config -` the VM stops as soon as stdin reaches its end (the lifeline). SIGTERM, SIGINT
and SIGHUP stop it too. Events are written to stdout, one JSON object a line: stage, console, exit.
Exit codes: 0 reset or stopped, 2 configuration, 3 host error, 4 guest panic, 5 triple fault.
";

/// Longest configuration document.
const CONFIG_MAX_BYTES: u64 = 1 << 20;

fn main() -> ExitCode {
    let mut trace = Trace::start();
    let mut args = std::env::args_os().skip(1);
    let (first, second, rest) = (args.next(), args.next(), args.next());
    let source = match (first.as_ref().and_then(|arg| arg.to_str()), second, rest) {
        (Some("--help" | "-h"), None, None) => return print(HELP),
        (Some("--version" | "-V"), None, None) => {
            return print(concat!("midge-vmm ", env!("CARGO_PKG_VERSION"), "\n"));
        }
        (Some("--explain-boot"), None, None) => return print(&layout::explain()),
        (Some("--config"), Some(source), None) => source,
        _ => {
            eprintln!("midge-vmm: expected --config FILE|-, --explain-boot, --version or --help");
            return ExitCode::from(Reason::Config.exit_code());
        }
    };
    let (ending, leftovers) = run(&source, &mut trace);
    if !matches!(ending.reason, Reason::Reset | Reason::Stopped) {
        eprintln!("midge-vmm: {}", ending.detail);
    }
    trace.finish(&ending, &mut io::stdout().lock());
    // Giving the VM back takes KVM up to 20 ms; by now nobody waits for that.
    drop(leftovers);
    ExitCode::from(ending.reason.exit_code())
}

fn print(text: &str) -> ExitCode {
    // A reader that closed the pipe has seen what it wanted.
    let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
    ExitCode::SUCCESS
}

/// Everything from the configuration to the VM's end.
fn run(source: &std::ffi::OsStr, trace: &mut Trace) -> (Ending, Option<Stopped>) {
    match try_run(source, trace) {
        Ok((ending, stopped)) => (ending, Some(stopped)),
        Err(ending) => (ending, None),
    }
}

fn try_run(source: &std::ffi::OsStr, trace: &mut Trace) -> Result<(Ending, Stopped), Ending> {
    prepare_process().map_err(|e| failed(Reason::HostError, "setting up the process failed", &e))?;
    let from_stdin = source == "-";
    let text = if from_stdin { read_line(&mut io::stdin().lock()) } else { read_file(source) };
    let text = text.map_err(|e| failed(Reason::Config, "reading the configuration failed", &e))?;
    let config = VmmConfig::from_json(&text).map_err(|e| failed(Reason::Config, "", &e))?;
    trace.mark(Stage::ConfigRead);
    let lifeline = from_stdin.then(lifeline).transpose();
    let lifeline = lifeline.map_err(|e| failed(Reason::HostError, "holding the lifeline failed", &e))?;
    let not_run = |error: VmError| failed(error.reason(), "", &error);
    let vm = Vm::assemble(&config, lifeline, trace).map_err(not_run)?;
    vm.run(trace, |trace| trace.flush(&mut io::stdout().lock())).map_err(not_run)
}

/// What must hold before anything is opened or any thread exists.
fn prepare_process() -> io::Result<()> {
    sys::close_descriptors_from(3)?;
    sys::set_no_new_privs()?;
    sys::set_undumpable()?;
    for signal in STOP_SIGNALS {
        vmm_sys_util::signal::block_signal(signal).map_err(|e| io::Error::other(format!("{e:?}")))?;
    }
    Ok(())
}

fn lifeline() -> io::Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned()
}

/// One line. What std has buffered behind it is lost: bytes on the lifeline mean nothing.
fn read_line(input: &mut dyn BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    input.take(CONFIG_MAX_BYTES).read_until(b'\n', &mut line)?;
    Ok(line)
}

fn read_file(path: &std::ffi::OsStr) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(CONFIG_MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// An ending without a VM: the error and its causes in one line.
fn failed(reason: Reason, what: &str, error: &dyn std::error::Error) -> Ending {
    let mut detail = what.to_owned();
    let mut cause = Some(error);
    while let Some(error) = cause {
        if !detail.is_empty() {
            detail.push_str(": ");
        }
        detail.push_str(&error.to_string());
        cause = error.source();
    }
    Ending { reason, detail, console_tail: Vec::new(), exits: ExitCounts::default() }
}
