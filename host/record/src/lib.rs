// SPDX-License-Identifier: Apache-2.0
//! The transcript of a run.
