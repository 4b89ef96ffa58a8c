// SPDX-License-Identifier: Apache-2.0
//! Base images: built, listed, and resolved from what the user named.
