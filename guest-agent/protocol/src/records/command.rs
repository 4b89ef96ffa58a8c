// SPDX-License-Identifier: Apache-2.0
//! Commands: what is run, what it says, how it ends.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::field::{Field, FieldError, Item, Payload};
use crate::shape::{choices, records};

records! {
    /// Run a command. The first message of a conversation.
    Exec {
        /// The program and its arguments. Never passed through a shell.
        argv: Vec<OsString>,
        /// Variables on top of the agent's defaults (PATH, HOME, USER, LOGNAME, SHELL, LANG, TERM with a terminal).
        env: Vec<EnvVar>,
        /// Working directory; without one `/workspace` where it exists, else the user's home.
        cwd: Option<PathBuf>,
        /// `name`, `uid` or `uid:gid`; without one `agent` where it exists, else root.
        user: Option<String>,
        /// A terminal of this size instead of three pipes; standard error then comes as standard output.
        tty: Option<WindowSize>,
        /// Whether [`crate::ToAgent::Stdin`] will be sent. Without it standard input is empty.
        stdin: bool,
        /// After this time the whole process tree is killed; 0 means never.
        timeout_ms: u64,
        /// Output kept for a client that comes back, per stream; at most [`crate::MAX_REPLAY_BYTES`]. With 0 the command
        /// belongs to this conversation and is killed when the conversation is lost.
        replay_bytes: u32,
    }

    /// One environment variable.
    EnvVar {
        /// Its name.
        name: OsString,
        /// Its value.
        value: OsString,
    }

    /// Size of a terminal.
    WindowSize {
        /// Rows of characters.
        rows: u16,
        /// Columns of characters.
        columns: u16,
    }

    /// Take over a command that another conversation started. The first message of a conversation.
    Attach {
        /// From [`Started`].
        exec_id: u64,
        /// First byte of standard output wanted.
        stdout_offset: u64,
        /// First byte of standard error wanted.
        stderr_offset: u64,
    }

    /// The command runs, or the client is attached to it.
    Started {
        /// Its number for [`Attach`], never used twice.
        exec_id: u64,
        /// Its process id in the guest.
        pid: u32,
        /// Bytes of standard input that were taken from earlier conversations.
        stdin_offset: u64,
    }

    /// A piece of the command's output.
    Output {
        /// Offset of its first byte in its stream, from 0.
        offset: u64,
        /// At most [`crate::MAX_DATA_BYTES`] bytes, never empty.
        data: Vec<u8>,
    }

    /// The command has ended and all its output was sent before. The last message of its conversation.
    Exited {
        /// How it ended.
        outcome: Outcome,
        /// The exit code or the signal's number, by `outcome`.
        number: i32,
        /// The agent killed it because its time was over.
        timed_out: bool,
        /// Length of all its standard output, in bytes.
        stdout_bytes: u64,
        /// Length of all its standard error, in bytes.
        stderr_bytes: u64,
        /// What it used, its waited-for children included.
        usage: Usage,
    }

    /// Resources that a command used.
    Usage {
        /// Time from its start to its end, in microseconds.
        wall_us: u64,
        /// Time in programs, in microseconds.
        user_us: u64,
        /// Time in the kernel, in microseconds.
        system_us: u64,
        /// Largest resident set of one of its processes, in KiB.
        max_rss_kib: u64,
    }

    /// The command could not be started. The last message of its conversation.
    Refused {
        /// The exit code that a shell would give: 127 not found, 126 not executable, 125 everything else.
        exit_code: u8,
        /// The kernel's error number, or 0.
        errno: i32,
        /// What was attempted and why it failed.
        text: String,
    }
}

choices! {
    /// How a command ended.
    Outcome("how a command ended") {
        /// It returned an exit code.
        Code = 0,
        /// A signal killed it.
        Signal = 1,
    }
}

impl Item for OsString {
    const MAX_ITEMS: usize = 16_384;
}

impl Item for EnvVar {
    const MAX_ITEMS: usize = 8_192;
}
