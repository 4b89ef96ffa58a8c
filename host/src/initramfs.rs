// SPDX-License-Identifier: Apache-2.0
//! The initramfs that brings the agent into the guest.
