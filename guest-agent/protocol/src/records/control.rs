// SPDX-License-Identifier: Apache-2.0
//! The control conversation, and how any request fails.

use crate::field::{Field, FieldError, Item, Payload};
use crate::shape::{choices, records};

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

    /// The host's answer to [`Hello`], and what makes a copy of a machine unique. No command starts before its content is in
    /// force.
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

    /// A request to hold still: conversations that are opened from now on wait, what commands started stands still, and
    /// file systems are written out.
    Freeze {
        /// The agent hangs up after its answer and does not call again: it waits for `Resume`.
        leave: bool,
    }

    /// Memory that nothing in the guest uses and the agent holds until the guest runs on: the host may drop its content.
    Gathered {
        /// What was gathered since the last answer, ascending; empty when there is no more.
        ranges: Vec<PageRange>,
    }

    /// Pages of guest-physical memory, of 4,096 bytes each.
    PageRange {
        /// The number of the first.
        first: u64,
        /// How many.
        count: u32,
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

impl Item for Stage {
    const MAX_ITEMS: usize = 64;
}

impl Item for PageRange {
    const MAX_ITEMS: usize = crate::MAX_GATHERED_PAGES;
}

impl Item for String {
    const MAX_ITEMS: usize = 64;
}
