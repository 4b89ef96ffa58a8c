// SPDX-License-Identifier: Apache-2.0
//! The user's directory: packed for the guest, and what changed brought back.
