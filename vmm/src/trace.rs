// SPDX-License-Identifier: Apache-2.0
//! trace (empty until its first commit).
