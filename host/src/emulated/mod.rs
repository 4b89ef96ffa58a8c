// SPDX-License-Identifier: Apache-2.0
//! The emulated KVM host for machines whose own KVM is unusable.
