// SPDX-License-Identifier: Apache-2.0
//! The bodies of the messages, as plain data. What they mean is told here, how they lie in memory by [`crate::field`].

use std::ffi::OsString;
use std::path::PathBuf;

use crate::field::{Field, FieldError, Item, Payload};

/// Declares structs whose fields follow each other in the payload in the order written.
macro_rules! records {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Field for $name {
            const LAYOUT: &'static str = stringify!($($field: $type),*);
            fn put(&self, out: &mut Vec<u8>) { $(self.$field.put(out);)* }
            fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
                Ok(Self { $($field: Field::take(from)?,)* })
            }
        }

        #[cfg(test)]
        impl crate::sample::Sample for $name {
            fn sample(source: &mut crate::sample::Source) -> Self {
                Self { $($field: crate::sample::Sample::sample(source),)* }
            }
        }
    )*

        /// Every body with its fields, for the byte table.
        #[cfg(test)]
        pub(crate) const RECORDS: &[(&str, &str)] = &[$((stringify!($name), <$name as Field>::LAYOUT),)*];
    };
}

/// Declares enums that travel as one byte.
macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident ($what:literal) {
        $($(#[$choice_doc:meta])* $choice:ident = $value:literal,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$choice_doc])* $choice = $value,)* }

        impl $name {
            const ALL: &[Self] = &[$(Self::$choice,)*];
        }

        impl Field for $name {
            const LAYOUT: &'static str = concat!($($value, " ", stringify!($choice), "; ",)*);
            fn put(&self, out: &mut Vec<u8>) { out.push(*self as u8); }
            fn take(from: &mut Payload<'_>) -> Result<Self, FieldError> {
                let value = u8::take(from)?;
                let largest = Self::ALL.last().map_or(0, |last| *last as u8);
                Self::ALL.iter().copied().find(|choice| *choice as u8 == value)
                    .ok_or(FieldError::Tag { what: $what, value, largest })
            }
        }

        #[cfg(test)]
        impl crate::sample::Sample for $name {
            fn sample(source: &mut crate::sample::Source) -> Self {
                Self::ALL[source.below(Self::ALL.len())]
            }
        }
    )*

        /// Every choice with its values, for the byte table.
        #[cfg(test)]
        pub(crate) const CHOICES: &[(&str, &str)] = &[$((stringify!($name), <$name as Field>::LAYOUT),)*];
    };
}

records! {
    /// The agent's first message on the control conversation: a command can be run from now on.
    Hello {
        /// Oldest protocol version the agent speaks.
        oldest_version: u16,
        /// Newest protocol version the agent speaks.
        newest_version: u16,
        /// Version of the agent's build.
        agent_version: String,
        /// What the agent did since it was started, in order.
        stages: Vec<Stage>,
        /// What went wrong without being fatal.
        warnings: Vec<String>,
    }

    /// A moment of the guest's start.
    Stage {
        /// What was finished then.
        name: String,
        /// When, in microseconds of the guest's monotonic clock, which starts with its kernel.
        at_us: u64,
    }

    /// The host's answer to [`Hello`]. No command starts before its content is in force.
    Welcome {
        /// The version spoken from now on, by [`crate::negotiate`].
        version: u16,
        /// The host's wall clock, in nanoseconds since 1970.
        unix_time_ns: u64,
        /// Fresh random bytes for the guest's kernel; at least [`crate::MIN_ENTROPY_BYTES`].
        entropy: Vec<u8>,
        /// The guest's host name.
        hostname: String,
        /// The guest's machine id.
        machine_id: [u8; 16],
    }

    /// Sent in place of [`Hello`] when the guest could not be set up. The guest resets itself after it.
    InitFailed {
        /// The step that failed, as a verb and its object.
        step: String,
        /// The kernel's error number, or 0.
        errno: i32,
        /// The whole story, one line.
        text: String,
    }

    /// The state of the guest as a whole.
    Stats {
        /// Time since the kernel's start, in milliseconds.
        uptime_ms: u64,
        /// Memory the kernel manages, in KiB.
        memory_total_kib: u64,
        /// Memory that a new program could get, in KiB.
        memory_available_kib: u64,
        /// Time all CPUs spent in programs, in milliseconds.
        cpu_user_ms: u64,
        /// Time all CPUs spent in the kernel, in milliseconds.
        cpu_system_ms: u64,
        /// Time all CPUs spent idle, in milliseconds.
        cpu_idle_ms: u64,
        /// Processes, the agent and kernel threads not counted.
        processes: u32,
        /// Commands that run now.
        execs: u32,
        /// Size of the writable file system, in bytes.
        disk_total_bytes: u64,
        /// Bytes of it that are free.
        disk_free_bytes: u64,
    }

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

    /// Read a file: answered by `Data`* and `End`, or `Error`.
    FileRead {
        /// Absolute path in the guest.
        path: PathBuf,
        /// First byte wanted.
        offset: u64,
        /// Bytes wanted at most; `u64::MAX` for all.
        len: u64,
    }

    /// Write a file: followed by `Data`* and `End`, answered by `Done` or `Error`.
    FileWrite {
        /// Absolute path in the guest.
        path: PathBuf,
        /// Permission bits of a new file; a replaced file keeps its own where this is `None`.
        mode: Option<u32>,
        /// Owner; without one the owner of the file that is replaced, else of the directory.
        owner: Option<Owner>,
        /// What happens to a file that is there.
        how: WriteHow,
        /// Make missing parent directories.
        parents: bool,
    }

    /// Numeric owner of a file.
    Owner {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    }

    /// Make a directory: answered by `Done` or `Error`.
    Mkdir {
        /// Absolute path in the guest.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
        /// Owner; without one the owner of the parent directory.
        owner: Option<Owner>,
        /// Make missing parents too, and do not mind if it exists.
        parents: bool,
    }

    /// Ask what a path is: answered by `Metadata` or `Error`.
    Stat {
        /// Absolute path in the guest.
        path: PathBuf,
        /// Follow a symlink at the end of the path.
        follow: bool,
    }

    /// List a directory: answered by `Entry`* and `End`, or `Error`.
    List {
        /// Absolute path in the guest.
        path: PathBuf,
    }

    /// Remove a file or directory: answered by `Done` or `Error`.
    Remove {
        /// Absolute path in the guest.
        path: PathBuf,
        /// A directory's content too.
        recursive: bool,
    }

    /// Rename within the guest: answered by `Done` or `Error`.
    Move {
        /// Absolute path of what is there.
        from: PathBuf,
        /// Absolute path it shall have.
        to: PathBuf,
        /// Replace what is at `to`.
        replace: bool,
    }

    /// Unpack a tar archive: followed by `Data`* and `End`, answered by `Done` or `Error`.
    TarIn {
        /// Absolute path of the directory to unpack into; made where it is missing.
        dir: PathBuf,
        /// Owner of everything unpacked; without one the archive's numbers count.
        owner: Option<Owner>,
    }

    /// Pack a tar archive: answered by `Data`* and `End`, or `Error`.
    TarOut {
        /// Absolute path of the directory (its content is packed) or file.
        path: PathBuf,
    }

    /// List what a run changed: answered by (`Change`, `Data`*)* and `End`, or `Error`.
    Changes {
        /// Which overlay.
        layer: Layer,
    }

    /// What a path is.
    Metadata {
        /// Its type.
        kind: FileKind,
        /// Permission bits, with set-uid, set-gid and sticky.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Size in bytes.
        size: u64,
        /// Last change of content, in nanoseconds since 1970.
        mtime_ns: i64,
        /// Where a symlink leads.
        target: Option<PathBuf>,
    }

    /// One entry of a directory.
    Entry {
        /// Its name, without a slash.
        name: OsString,
        /// What it is, symlinks not followed.
        metadata: Metadata,
    }

    /// One path that a run changed. A file is followed by exactly `size` bytes in `Data`.
    Change {
        /// Path below the overlay's root, without a leading slash. Parents come before children.
        path: PathBuf,
        /// What happened.
        kind: ChangeKind,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Last change of content, in nanoseconds since 1970.
        mtime_ns: i64,
        /// Bytes that follow.
        size: u64,
        /// Where a symlink leads.
        target: Option<PathBuf>,
    }

    /// A request failed, or was not understood.
    Failure {
        /// For programs.
        code: ErrorCode,
        /// The kernel's error number, or 0.
        errno: i32,
        /// For people: what was attempted, on what, why it failed.
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

    /// What a write does with a file that is there.
    WriteHow("what a write does") {
        /// Replaces it at once and whole, when `End` has come: readers see the old or the new content.
        Replace = 0,
        /// Adds to its end.
        Append = 1,
        /// Fails.
        CreateNew = 2,
    }

    /// Type of a file.
    FileKind("the type of a file") {
        /// Regular file.
        File = 0,
        /// Directory.
        Dir = 1,
        /// Symbolic link.
        Symlink = 2,
        /// Device, pipe or socket.
        Special = 3,
    }

    /// One of the guest's overlays.
    Layer("an overlay") {
        /// The workspace.
        Workspace = 0,
        /// The root file system.
        Root = 1,
    }

    /// What happened to a path.
    ChangeKind("a kind of change") {
        /// It is gone.
        Whiteout = 0,
        /// A directory that hides everything the base has at this path.
        OpaqueDir = 1,
        /// A directory: new, changed, or the parent of a change.
        Dir = 2,
        /// A regular file, new or changed.
        File = 3,
        /// A symlink, new or changed.
        Symlink = 4,
        /// A device, pipe or socket, new or changed.
        Special = 5,
    }

    /// What kind of failure, for programs.
    ErrorCode("a kind of failure") {
        /// None of the others.
        Other = 0,
        /// No such path, command or exec.
        NotFound = 1,
        /// Not allowed.
        PermissionDenied = 2,
        /// It is there already.
        AlreadyExists = 3,
        /// A directory was needed.
        NotADirectory = 4,
        /// Anything but a directory was needed.
        IsADirectory = 5,
        /// The directory has content.
        NotEmpty = 6,
        /// The disk or the quota is full.
        NoSpace = 7,
        /// The request contradicts itself or a limit.
        InvalidInput = 8,
        /// The message is unknown, or not allowed at this point.
        Protocol = 9,
        /// The agent has as many conversations or commands as it can serve.
        Busy = 10,
        /// The guest has no such thing (no overlay, no terminal).
        Unsupported = 11,
    }
}

/// Longest lists. The test `no_list_outgrows_its_direction` keeps their memory under the payload limits.
mod items {
    use super::{EnvVar, Item, OsString, Stage};

    impl Item for OsString {
        const MAX_ITEMS: usize = 16_384;
    }
    impl Item for EnvVar {
        const MAX_ITEMS: usize = 8_192;
    }
    impl Item for Stage {
        const MAX_ITEMS: usize = 64;
    }
    impl Item for String {
        const MAX_ITEMS: usize = 64;
    }
}
