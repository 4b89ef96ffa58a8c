// SPDX-License-Identifier: Apache-2.0
//! The `midge` command: a thin layer over the library of the same name.
//!
//! The same program is the first process of an emulated host, where it is called as `/init`: to start sandboxes, or to run a
//! bench; and that of the guests of benches of devices.

mod cli;

fn main() -> std::process::ExitCode {
    if midge::bench::inside::is_called() {
        midge::bench::inside::main()
    }
    if midge::bench::guest::is_called() {
        midge::bench::guest::main()
    }
    if midge::emulated::outpost::is_called() {
        midge::emulated::outpost::main()
    }
    cli::main()
}
