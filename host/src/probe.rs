// SPDX-License-Identifier: Apache-2.0
//! Whether this machine's KVM can run an unmodified guest, found by trying.
