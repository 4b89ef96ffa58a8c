// SPDX-License-Identifier: Apache-2.0
//! How a VM ended: what the monitor said, and what became of its process.
//!
//! Pure: puts together an exit event, an exit status and the last words on stderr.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::events::{Exit, ITEMS_MAX, Reason, bounded, printable};

/// The kind of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The guest shut down in good order.
    Reset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest's CPU met a triple fault.
    TripleFault,
    /// It was asked to stop.
    Stopped,
    /// The host refused the monitor something it needs.
    HostError,
    /// The monitor refused its configuration.
    Config,
    /// The monitor was killed by this signal.
    Signal(i32),
    /// The monitor left with this code and no word.
    Code(i32),
    /// Contact with the monitor was lost.
    Lost,
}

/// How and why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The kind of end.
    pub cause: Cause,
    /// One line more: the panic's message, the host's error.
    pub detail: String,
    /// The console's last lines: the guest's words.
    pub console_tail: Vec<String>,
    /// The last of what the monitor wrote to stderr.
    pub stderr_tail: String,
    /// How often the vCPUs left the guest, by cause.
    pub exits: BTreeMap<String, u64>,
    /// The guest memory that was written to, where its configuration asked for that: guest-physical address and length of each
    /// part. A monitor's claim.
    pub written: Vec<(u64, u64)>,
}

impl End {
    /// The end of a VM whose monitor cannot be asked any more.
    #[must_use]
    pub fn lost(detail: &str) -> Self {
        Self::bare(Cause::Lost, detail.to_owned())
    }

    fn bare(cause: Cause, detail: String) -> Self {
        Self {
            cause,
            detail,
            console_tail: Vec::new(),
            stderr_tail: String::new(),
            exits: BTreeMap::new(),
            written: Vec::new(),
        }
    }

    pub(super) fn from_event(exit: Exit) -> Self {
        let cause = match exit.reason {
            Reason::Reset => Cause::Reset,
            Reason::Panic => Cause::GuestPanic,
            Reason::TripleFault => Cause::TripleFault,
            Reason::Stopped => Cause::Stopped,
            Reason::HostError => Cause::HostError,
            Reason::Config => Cause::Config,
        };
        let Exit { detail, console_tail, exits, written, .. } = exit;
        // A monitor's claims, up to the length of a line; this is kept for as long as the sandbox is.
        let surplus = console_tail.len().saturating_sub(ITEMS_MAX);
        let console_tail = console_tail.into_iter().skip(surplus).map(bounded).collect();
        let exits = exits.into_iter().take(ITEMS_MAX).map(|(cause, count)| (bounded(cause), count)).collect();
        Self { console_tail, exits, written, ..Self::bare(cause, bounded(detail)) }
    }

    /// The end of a monitor that left without an exit event.
    pub(super) fn from_status(status: ExitStatus) -> Self {
        let cause = match (status.signal(), status.code()) {
            (Some(signal), _) => Cause::Signal(signal),
            (None, code) => Cause::Code(code.unwrap_or(-1)),
        };
        Self::bare(cause, String::new())
    }

    /// Whether the guest, not the host or Midge, brought it about.
    #[must_use]
    pub fn is_guests_doing(&self) -> bool {
        matches!(self.cause, Cause::Reset | Cause::GuestPanic | Cause::TripleFault)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Reset => f.write_str("the guest shut down")?,
            Cause::GuestPanic => f.write_str("the guest's kernel panicked")?,
            Cause::TripleFault => f.write_str("the guest's CPU met a triple fault")?,
            Cause::Stopped => f.write_str("the sandbox was stopped")?,
            Cause::HostError => f.write_str("the host failed the monitor")?,
            Cause::Config => f.write_str("the monitor refused its configuration")?,
            Cause::Signal(signal) => write!(f, "the monitor was killed by {}", SignalName(signal))?,
            Cause::Code(code) => write!(f, "the monitor left with code {code} and no word")?,
            Cause::Lost => f.write_str("contact with the monitor was lost")?,
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", printable(&self.detail))?;
        } else if let Some(line) = self.stderr_tail.lines().last() {
            write!(f, ": {}", printable(line))?;
        } else if matches!(self.cause, Cause::Code(_)) {
            f.write_str("; is midge-vmm, or what MIDGE_VMM names, the monitor that came with this midge?")?;
        }
        Ok(())
    }
}

/// A signal for people: its name where it is a common one, and its number.
#[derive(Debug, Clone, Copy)]
pub struct SignalName(pub i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match nix::sys::signal::Signal::try_from(self.0) {
            Ok(signal) => write!(f, "{} ({})", signal.as_str(), self.0),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::events::TEXT_MAX_CHARS;

    #[test]
    fn panic_tells_its_line_without_control_characters() {
        let exit = Exit {
            reason: Reason::Panic,
            detail: "Kernel panic - not syncing: \u{1b}[31mno init".into(),
            console_tail: vec!["last".into()],
            exits: BTreeMap::new(),
            written: Vec::new(),
        };
        let end = End::from_event(exit);
        assert!(end.is_guests_doing());
        assert_eq!(end.console_tail, ["last"]);
        let text = end.to_string();
        assert!(text.starts_with("the guest's kernel panicked: Kernel panic - not syncing"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn what_a_monitor_claims_of_its_end_is_bounded() {
        let long = || "x".repeat(1 << 20);
        let mut console_tail = vec![long(); 3 * ITEMS_MAX];
        console_tail.push("last".to_owned());
        let exits = (0..1000).map(|n| (format!("{n}{}", long()), n)).collect();
        let end =
            End::from_event(Exit { reason: Reason::Reset, detail: long(), console_tail, exits, written: Vec::new() });
        assert_eq!((end.console_tail.len(), end.exits.len()), (ITEMS_MAX, ITEMS_MAX));
        assert_eq!(end.console_tail.last().unwrap(), "last");
        let kept = end.console_tail.iter().chain(end.exits.keys()).chain([&end.detail]).map(String::len).sum::<usize>();
        assert!(kept <= (2 * ITEMS_MAX + 1) * TEXT_MAX_CHARS, "{kept}");
    }

    #[test]
    fn killed_monitor_is_told_from_one_that_left() {
        let killed = End::from_status(ExitStatus::from_raw(9));
        assert_eq!(killed.cause, Cause::Signal(9));
        assert_eq!(killed.to_string(), "the monitor was killed by SIGKILL (9)");
        let mut left = End::from_status(ExitStatus::from_raw(3 << 8));
        assert_eq!(left.cause, Cause::Code(3));
        assert!(left.to_string().contains("no word; is midge-vmm, or what MIDGE_VMM names"), "{left}");
        left.stderr_tail = "first\nopening /dev/kvm: denied\n".into();
        assert!(left.to_string().ends_with("no word: opening /dev/kvm: denied"), "{left}");
        assert!(!left.is_guests_doing());
    }
}
