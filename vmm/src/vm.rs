// SPDX-License-Identifier: Apache-2.0
//! vm (empty until its first commit).
