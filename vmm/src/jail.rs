// SPDX-License-Identifier: Apache-2.0
//! Locking in: what each thread may still ask of the host once guest code runs.
use std::io;

/// Kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The event loop.
    Main,
    /// A vCPU.
    Vcpu,
    /// A disk's worker.
    Block,
}

/// Locks in the calling thread.
///
/// # Errors
/// None yet.
pub fn lock_in(_kind: Thread) -> io::Result<()> {
    Ok(())
}
