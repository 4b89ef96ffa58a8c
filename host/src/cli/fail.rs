// SPDX-License-Identifier: Apache-2.0
//! Errors as a person sees them: what failed, the guest's last words, the next step.

use std::io::{self, Write};

use midge::error::{Error, chain};
use midge::monitor::events::printable;

use super::MIDGE_FAILED;

/// Last lines of the console that are shown.
const CONSOLE_LINES: usize = 20;

/// Tells an error on standard error.
pub(crate) fn tell(error: &Error) {
    // Nobody is left to tell when standard error is closed.
    let _ = write(&mut io::stderr().lock(), error);
}

/// A line from Midge to the user.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "midge: {line}");
}

fn write(out: &mut impl Write, error: &Error) -> io::Result<()> {
    writeln!(out, "midge: {}", chain(error))?;
    let tail = error.console_tail();
    if !tail.is_empty() {
        writeln!(out, "midge: the guest's console said last:")?;
        for line in &tail[tail.len().saturating_sub(CONSOLE_LINES)..] {
            writeln!(out, "  | {}", printable(line))?;
        }
    }
    if let Some(step) = error.next_step() {
        writeln!(out, "midge: next: {step}")?;
    }
    Ok(())
}

/// The exit code for an error: a shell's own for a command that cannot be started, else 125.
pub(crate) fn exit_code(error: &Error) -> u8 {
    match error {
        Error::NotStarted { exit_code: code @ (126 | 127), .. } => *code,
        _ => MIDGE_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_tail_is_shown_shortened_and_harmless() {
        let mut console_tail: Vec<String> = (0..CONSOLE_LINES + 5).map(|n| format!("line {n}")).collect();
        console_tail.push("evil \u{1b}[2J".into());
        let mut text = Vec::new();
        write(&mut text, &Error::BootTimeout { limit_ms: 4000, console_tail }).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("midge: starting the guest: its agent has not reported within 4000 ms\n"), "{text}");
        assert!(!text.contains("line 5\n") && text.contains("line 6\n") && !text.contains('\u{1b}'), "{text}");
        assert!(text.ends_with("--boot-timeout\n"), "{text}");
    }

    #[test]
    fn codes_of_a_shell_pass_others_are_midges() {
        let refused = |exit_code| Error::NotStarted { exit_code, errno: 0, text: String::new() };
        assert_eq!(exit_code(&refused(127)), 127);
        assert_eq!(exit_code(&refused(126)), 126);
        assert_eq!(exit_code(&refused(0)), 125, "a guest cannot make a failure look like success");
    }
}
