// SPDX-License-Identifier: Apache-2.0
//! The user's terminal while the guest's command has one: raw, and as it was again on every way out.

use std::io::IsTerminal;
use std::sync::{Mutex, Once, PoisonError};

use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Size that a command gets when no stream of ours is a terminal.
const FALLBACK: (u16, u16) = (24, 80);

/// What the terminal was like; here rather than in [`Raw`], so that a panic's hook finds it too.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// While this lives, the terminal on standard input is raw.
#[derive(Debug)]
pub(in crate::cli) struct Raw(());

impl Raw {
    /// Makes it raw; `None` when standard input is no terminal.
    pub(in crate::cli) fn enter() -> Option<Self> {
        let before = tcgetattr(stdio::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        restore_on_panic();
        if let Err(error) = tcsetattr(stdio::stdin(), OptionalActions::Now, &raw) {
            tracing::warn!(%error, "the terminal cannot be made raw");
        }
        Some(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was, if it is raw. Waits for nothing: what was printed was processed when it was written.
pub(in crate::cli) fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, &before);
    }
}

/// Whether lines can be printed as usual.
pub(in crate::cli) fn is_as_it_was() -> bool {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner).is_none()
}

fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            next(panic);
        }));
    });
}

/// Rows and columns of the first of our streams that is a terminal.
pub(in crate::cli) fn size() -> (u16, u16) {
    let sizes = [tcgetwinsize(stdio::stdin()), tcgetwinsize(stdio::stdout()), tcgetwinsize(stdio::stderr())];
    let known = sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0);
    known.map_or(FALLBACK, |size| (size.ws_row, size.ws_col))
}

/// Whether a person can be asked: they see standard error and can type.
pub(in crate::cli) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}
