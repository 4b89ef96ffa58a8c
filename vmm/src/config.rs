// SPDX-License-Identifier: Apache-2.0
//! config (empty until its first commit).
