// SPDX-License-Identifier: Apache-2.0
//! Guest memory.

/// The guest's RAM as every part of the monitor sees it; clones are cheap and share one mapping.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;
