// SPDX-License-Identifier: Apache-2.0
//! jail (empty until its first commit).
