// SPDX-License-Identifier: Apache-2.0
//! How a Linux starts: where everything lies, what the kernel is told, where the CPU begins.
//!
//! Everything here is computed as data (a [`plan::BootPlan`]) from files and numbers; nothing
//! touches KVM, and guest memory is written only by [`plan::BootPlan::load`].

pub mod cmdline;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod params;
pub mod plan;
pub mod registers;
