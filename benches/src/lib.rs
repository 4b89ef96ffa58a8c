// SPDX-License-Identifier: Apache-2.0
//! Holds the benches in `benches/`: `cargo bench -p midge-benches`. What takes milliseconds and needs a guest
//! is not here but in `midge bench boot`.
