// SPDX-License-Identifier: Apache-2.0
//! The private directory of one sandbox.
