// SPDX-License-Identifier: Apache-2.0
//! The machine: KVM, the MMIO bus, the console port and the vCPU loop.
//!
//! Above memory, below boot. It knows no device by name and nothing of Linux.

pub mod bus;
pub mod console;
pub mod cpuid;
pub mod kvm;
pub mod pages;
pub mod ports;
pub mod state;
pub mod threads;
pub mod vcpu;
