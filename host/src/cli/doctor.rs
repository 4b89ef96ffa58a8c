// SPDX-License-Identifier: Apache-2.0
//! `midge doctor`: prints the library's report. Exits with 1 where no sandbox can run.

use std::io::{self, Write as _};

use clap::Args;
use midge::doctor::Report;
use midge::sandbox::binaries;

use super::fail;

const NOTES: &str = "Marks: ok; later (Midge makes it when it is first needed); missing (something does not work \
without it); slow (works, and costs latency). A line that begins with -> says what mends it.\n\n\
Exit code: 0 where a sandbox can run, if slowly; 1 where none can.";

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub(crate) struct DoctorArgs {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Prints the report and gives the exit code.
pub(crate) fn main(args: DoctorArgs) -> u8 {
    let report = Report::collect(binaries::vmm().ok().as_deref());
    let text = if args.json { serde_json::to_string(&report).map(|line| line + "\n") } else { Ok(report.to_string()) };
    let written = text.map_err(io::Error::from).and_then(|text| io::stdout().write_all(text.as_bytes()));
    if let Err(error) = written {
        fail::say(&format!("printing the report: {error}"));
        return super::MIDGE_FAILED;
    }
    u8::from(!report.is_able())
}
