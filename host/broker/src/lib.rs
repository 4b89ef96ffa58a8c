// SPDX-License-Identifier: Apache-2.0
//! The one exit of a sandbox.
