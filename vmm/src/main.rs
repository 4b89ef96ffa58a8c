// SPDX-License-Identifier: Apache-2.0
//! `midge-vmm`: runs one VM, described by one JSON document, and tells on stdout how it went.
//!
//! Reads arguments and the configuration, sets up the process, and hands over to
//! [`midge_vmm::vm::Vm`]. It never returns to the shell with a VM left behind.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use midge_vmm::boot::layout;
use midge_vmm::config::{JailPart, VmmConfig};
use midge_vmm::jail::{self, JailError, Limits, Thread, Wanted};
use midge_vmm::machine::kvm::Host;
use midge_vmm::machine::threads;
use midge_vmm::orders::Lifeline;
use midge_vmm::sys;
use midge_vmm::trace::{Ending, ExitCounts, Reason, Stage, Trace, chain};
use midge_vmm::vm::devices::{Backends, Doors};
use midge_vmm::vm::opened::{Opened, StartFiles};
use midge_vmm::vm::resident::Resident;
use midge_vmm::vm::restore::AtRest;
use midge_vmm::vm::{Stopped, Vm, VmError};

const HELP: &str = "\
midge-vmm: a minimal virtual machine monitor; runs one Linux guest on KVM

usage: midge-vmm --config FILE|-     run the VM of a JSON document (-: the first line of stdin)
       midge-vmm --explain-boot      print the guest's memory map
       midge-vmm --check-jail        enter the jail; print what this host does not give, one part and why a line
       midge-vmm --version | --help

The document, with its defaults (kernel or restore, mem_mib and cpus must be given):
  {\"kernel\": \"/path/vmlinux\",       x86-64 ELF vmlinux or bzImage
   \"restore\": null,                 instead of a kernel: {\"state\": PATH, \"memory\": PATH,
                                    \"layers\": [PATH|null, ..], \"resident\": false,
                                    \"working_set\": [[START, LEN], ..]}
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
   \"extra_msrs\": [],                MSRs that a snapshot carries beyond KVM's list
   \"forkable\": false,               may be frozen and forked by orders on the control socket
   \"track_writes\": false,           the exit event tells which memory the guest has written to
   \"jail\": \"on\",                   \"off\": no jail at all, to measure what it costs
   \"allow_missing\": []}             parts of the jail that this host need not give, as
                                    refusals name them: \"pid-namespace\", \"empty-root\" ..

With `--config -` the VM stops as soon as stdin reaches its end (the lifeline); where that is a
SOCK_SEQPACKET socket, it takes orders there as well. SIGTERM, SIGINT and SIGHUP stop it too.
Events are written to stdout, one JSON object a line: stage, console, exit.
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
        (Some("--check-jail"), None, None) => return check_jail(),
        (Some("--config"), Some(source), None) => source,
        _ => {
            eprintln!("midge-vmm: expected --config FILE|-, --explain-boot, --check-jail, --version or --help");
            return ExitCode::from(Reason::Config.exit_code());
        }
    };
    if std::env::vars_os().next().is_some() {
        return start_without_environment();
    }
    let (ending, leftovers) = run(&source, &mut trace);
    if !matches!(ending.reason, Reason::Reset | Reason::Stopped) {
        eprintln!("midge-vmm: {}", ending.detail);
    }
    trace.finish(&ending, &mut io::stdout().lock());
    // Giving the VM back takes KVM up to 20 ms; by now nobody waits for that.
    drop(leftovers);
    ExitCode::from(ending.reason.exit_code())
}

/// Enters the jail without a VM, with every part allowed to be missing, and says which are.
fn check_jail() -> ExitCode {
    // What it prints may go to a file.
    let limits = Limits { descriptors: 64, file_bytes: 1 << 20 };
    let wanted = Wanted { allow_missing: &JailPart::ALL, limits, uds: None };
    let prepared = prepare_process().map_err(|source| JailError::Host { step: "setting up the process", source });
    match prepared.and_then(|()| jail::enter(&wanted, &mut Trace::start())) {
        Ok(entered) => print(&entered.missing.iter().map(|(part, why)| format!("{part} {why}\n")).collect::<String>()),
        Err(error) => {
            eprintln!("midge-vmm: {}", chain(&error));
            ExitCode::from(Reason::HostError.exit_code())
        }
    }
}

/// Starts this program once more, with an empty environment: a monitor has no use for one, and what was in it could be
/// found in its memory.
fn start_without_environment() -> ExitCode {
    let error = Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).env_clear().exec();
    eprintln!("midge-vmm: starting again without an environment failed: {error}; mount /proc, or start it with none");
    ExitCode::from(Reason::HostError.exit_code())
}

fn print(text: &str) -> ExitCode {
    // A reader that closed the pipe has seen what it wanted.
    let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
    ExitCode::SUCCESS
}

/// Everything from the configuration to the VM's end.
fn run(source: &std::ffi::OsStr, trace: &mut Trace) -> (Ending, Option<Stopped>) {
    match try_run(source, trace) {
        Ok(outcome) => outcome,
        Err(ending) => (ending, None),
    }
}

fn try_run(source: &std::ffi::OsStr, trace: &mut Trace) -> Result<(Ending, Option<Stopped>), Ending> {
    prepare_process().map_err(|e| failed(Reason::HostError, "setting up the process failed", &e))?;
    let (text, lifeline) = if source == "-" { read_stdin() } else { (read_file(source), None) };
    let text = text.map_err(|e| failed(Reason::Config, "reading the configuration failed", &e))?;
    let config = VmmConfig::from_json(&text).map_err(|e| failed(Reason::Config, "", &e))?;
    trace.mark(Stage::ConfigRead);
    let opened = Opened::open(&config).map_err(not_run)?;
    trace.mark(Stage::KvmReady);
    let doorman = opened.lock_up(&config, trace).map_err(not_run)?;
    let doors = opened.listener.map(|listener| Doors { listener, doorman });
    let kvm = Arc::new(opened.kvm);
    match opened.start {
        StartFiles::Snapshot(restore, files) => {
            let at_rest = AtRest::new(&config, restore, (files, opened.disks), &kvm);
            let at_rest = at_rest.map_err(|error| not_run(error.into()))?;
            trace.mark(Stage::StateRead);
            if restore.is_resident() {
                // They would be in the hands of each of its forks, who bring their own.
                drop(doors);
                return be_resident(&config, kvm, at_rest, lifeline, trace);
            }
            let AtRest { state, ram, disks } = at_rest;
            let backends = Backends { disks, doors };
            let vm = Vm::restore(&config, &kvm, &state, (ram, backends), lifeline, trace).map_err(not_run)?;
            run_vm(vm, trace)
        }
        StartFiles::Images(images) => {
            let vm = Vm::boot(&config, &kvm, images, (opened.disks, doors), lifeline, trace);
            run_vm(vm.map_err(not_run)?, trace)
        }
    }
}

fn not_run(error: VmError) -> Ending {
    failed(error.reason(), "", &error)
}

fn run_vm(vm: Vm, trace: &mut Trace) -> Result<(Ending, Option<Stopped>), Ending> {
    vm.run(trace, |trace| trace.flush(&mut io::stdout().lock())).map_err(not_run)
}

/// Holds a VM at rest and makes forks of it.
fn be_resident(
    config: &VmmConfig,
    kvm: Arc<Host>,
    at_rest: AtRest,
    lifeline: Option<Lifeline>,
    trace: &mut Trace,
) -> Result<(Ending, Option<Stopped>), Ending> {
    let Some(Lifeline::Control(control)) = lifeline else {
        let error =
            io::Error::new(io::ErrorKind::InvalidInput, "a resident takes its orders on a SOCK_SEQPACKET stdin");
        return Err(failed(Reason::Config, "waiting for orders failed", &error));
    };
    threads::expect_threads().map_err(|e| failed(Reason::HostError, "setting up the resident failed", &e))?;
    jail::lock_in(Thread::Resident).map_err(|e| failed(Reason::HostError, "locking in the resident failed", &e))?;
    trace.mark(Stage::Resident);
    trace.flush(&mut io::stdout().lock());
    Resident::new(kvm, config.clone(), at_rest, control).serve(trace).map_err(not_run)
}

/// What must hold before anything is opened or any thread exists.
fn prepare_process() -> io::Result<()> {
    sys::close_descriptors_from(3)?;
    // Started again without an environment it would be called `exe`.
    rustix::thread::set_name(c"midge-vmm")?;
    for signal in sys::STOP_SIGNALS {
        vmm_sys_util::signal::block_signal(signal).map_err(|e| io::Error::other(format!("{e:?}")))?;
    }
    Ok(())
}

/// The configuration and what stdin is from then on.
fn read_stdin() -> (io::Result<Vec<u8>>, Option<Lifeline>) {
    let lifeline = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => Lifeline::new(fd),
        Err(error) => return (Err(error), None),
    };
    let text = match &lifeline {
        Lifeline::Control(socket) => socket.receive_text(),
        Lifeline::Plain(_) => read_line(&mut io::stdin().lock()),
    };
    (text, Some(lifeline))
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
    let causes = chain(error);
    let detail = if what.is_empty() { causes } else { format!("{what}: {causes}") };
    Ending { reason, detail, console_tail: Vec::new(), exits: ExitCounts::default(), written: Vec::new() }
}
