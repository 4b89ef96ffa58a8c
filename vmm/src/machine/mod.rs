// SPDX-License-Identifier: Apache-2.0
//! The machine: KVM, buses, vCPUs and the console port.

pub mod bus;
