// SPDX-License-Identifier: Apache-2.0
//! What the tests of the whole tree share: `source` reads a Rust file the way the tidy rules
//! need it, `rules` holds those rules as pure functions from text to findings, `figures` counts.
//!
//! Nothing here runs a guest (that is `e2e/`) and nothing here is linked into a product binary.

pub mod figures;
pub mod order;
pub mod rules;
pub mod source;
pub mod tree;
