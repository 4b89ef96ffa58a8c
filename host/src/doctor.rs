// SPDX-License-Identifier: Apache-2.0
//! What this host can do, what is missing, and the command that mends it.
