// SPDX-License-Identifier: Apache-2.0
//! The control conversation: hello, identity, and what the host wants of the guest as a whole. When it is lost the
//! agent serves on and calls again.

use std::fs;
use std::thread;
use std::time::Duration;

use midge_protocol::{
    ErrorCode, Failure, Hello, MIN_ENTROPY_BYTES, Message as _, NEWEST_VERSION, OLDEST_VERSION, Stage, ToAgent, ToHost,
    Welcome,
};

use crate::link::{Conversation, Host, LinkError};
use crate::serve::Gate;
use crate::sys::machine;
use crate::{cgroup, stats};

/// First pause before calling a host that does not answer; doubles up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause between two calls.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest host name the kernel takes, in bytes.
const HOSTNAME_MAX_BYTES: usize = 64;

/// What the agent knows when it is ready.
#[derive(Debug, Default, Clone)]
pub(crate) struct Report {
    pub(crate) stages: Vec<Stage>,
    pub(crate) warnings: Vec<String>,
}

/// What the agent may do to where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    /// It is PID 1 of a guest: clock, identity and the machine's end are its own.
    Machine,
    /// It is a process among others, for tests.
    Process,
}

/// Calls the host again and again; `after_hello` runs once, while the first hello is under way.
pub(crate) fn converse(
    host: &Host,
    power: Power,
    gate: &Gate,
    mut report: Report,
    mut after_hello: Option<impl FnOnce() -> Vec<String>>,
) -> ! {
    let mut pause = PAUSE_MIN;
    loop {
        if let Ok(stream) = host.connect() {
            pause = PAUSE_MIN;
            let mut conversation = Conversation::new(stream);
            let said = conversation.send(&ToHost::Hello(hello(&report)));
            if let Some(work) = after_hello.take() {
                report.warnings.extend(work());
            }
            if said.is_ok() {
                // Whatever ends it, the answer is the same: call again.
                let _ = obey(&mut conversation, power, gate);
            }
        } else if let Some(work) = after_hello.take() {
            report.warnings.extend(work());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn hello(report: &Report) -> Hello {
    Hello {
        oldest_version: OLDEST_VERSION,
        newest_version: NEWEST_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        stages: report.stages.clone(),
        warnings: report.warnings.clone(),
    }
}

fn obey(conversation: &mut Conversation, power: Power, gate: &Gate) -> Result<(), LinkError> {
    while let Some(message) = conversation.receive()? {
        let answer = match message {
            ToAgent::Welcome(welcome) => match accept(&welcome, power) {
                Ok(()) => {
                    gate.open();
                    continue;
                }
                Err(failure) => ToHost::Error(failure),
            },
            ToAgent::Ping(number) => ToHost::Pong(number),
            ToAgent::GetStats => ToHost::Stats(stats::read()),
            ToAgent::Quiesce if power == Power::Machine => {
                cgroup::kill_everything();
                machine::sync();
                ToHost::Done
            }
            ToAgent::Shutdown if power == Power::Machine => {
                machine::sync();
                conversation.send(&ToHost::Done)?;
                ToHost::Error(unsupported(&format!("resetting the machine: {}", machine::reset())))
            }
            ToAgent::Quiesce => ToHost::Done,
            ToAgent::Shutdown => {
                conversation.send(&ToHost::Done)?;
                leave()
            }
            other => {
                let text = format!("received `{}` on the control conversation", other.name());
                conversation.send(&ToHost::Error(Failure { code: ErrorCode::Protocol, errno: 0, text }))?;
                return Ok(());
            }
        };
        conversation.send(&answer)?;
    }
    Ok(())
}

/// What a reset is to a process among others.
#[expect(clippy::exit, reason = "the process stands for a machine that is reset")]
fn leave() -> ! {
    std::process::exit(0)
}

fn unsupported(text: &str) -> Failure {
    Failure { code: ErrorCode::Unsupported, errno: 0, text: text.to_owned() }
}

fn invalid(text: String) -> Failure {
    Failure { code: ErrorCode::InvalidInput, errno: 0, text }
}

/// Makes the content of a `Welcome` true.
fn accept(welcome: &Welcome, power: Power) -> Result<(), Failure> {
    if !(OLDEST_VERSION..=NEWEST_VERSION).contains(&welcome.version) {
        return Err(invalid(format!(
            "the host speaks protocol version {}, this agent {OLDEST_VERSION} to {NEWEST_VERSION}",
            welcome.version
        )));
    }
    if welcome.entropy.len() < MIN_ENTROPY_BYTES {
        let len = welcome.entropy.len();
        return Err(invalid(format!(
            "`Welcome` brings {len} bytes of entropy, at least {MIN_ENTROPY_BYTES} are needed"
        )));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if welcome.hostname.is_empty()
        || welcome.hostname.len() > HOSTNAME_MAX_BYTES
        || !welcome.hostname.bytes().all(is_name)
    {
        return Err(invalid(format!(
            "the host name must be 1 to {HOSTNAME_MAX_BYTES} letters, digits, `-` and `.`; it has {} bytes",
            welcome.hostname.len()
        )));
    }
    match power {
        Power::Machine => take_identity(welcome),
        Power::Process => Ok(()),
    }
}

/// Random numbers first: nothing that is made from them may be older than this guest. Their failure is fatal, a
/// machine without a clock or a name still works.
fn take_identity(welcome: &Welcome) -> Result<(), Failure> {
    machine::add_entropy(&welcome.entropy).map_err(|error| Failure {
        code: ErrorCode::Other,
        errno: error.raw_os_error().unwrap_or(0),
        text: format!("giving entropy to the kernel: {error}"),
    })?;
    let id: String = welcome.machine_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let name = &welcome.hostname;
    let _ = machine::set_clock(welcome.unix_time_ns);
    let _ = fs::write("/proc/sys/kernel/hostname", name);
    if fs::create_dir_all("/etc").is_ok() {
        let _ = fs::write("/etc/machine-id", format!("{id}\n"));
        let _ = fs::write("/etc/hostname", format!("{name}\n"));
        let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n");
        let _ = fs::write("/etc/hosts", hosts);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
