// SPDX-License-Identifier: Apache-2.0
//! The stages of a run, on one clock.
