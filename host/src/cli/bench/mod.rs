// SPDX-License-Identifier: Apache-2.0
//! `midge bench`: the flags, and where the results go. The measuring is the library's.

mod boot;
mod counted;
mod devices;
mod lab;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use midge::bench::{Report, block, html, svg};
use midge::error::chain;

use super::{MIDGE_FAILED, fail};
use lab::Which;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Time cold boots, beside other monitors if they are named
    Boot(boot::BootArgs),
    /// Time forks of a template to their first answered command, beside restores and cold boots
    Fork(lab::ForkArgs),
    /// Time how long a running sandbox stands still to be forked, and until both answer
    LiveFork(lab::LabArgs),
    /// Time commands and pings in a sandbox that runs already
    Exec(lab::LabArgs),
    /// Count forks per second, many at once
    Rate(lab::LabArgs),
    /// Time bytes over vsock, both ways
    Vsock(devices::DeviceArgs),
    /// Time reads of a disk
    Block(devices::DeviceArgs),
    /// Keep many idle forks alive at once: what each takes, that all answer, that nothing is left
    Density(lab::LabArgs),
    /// Make one page of what benches wrote with --json
    Report(ReportArgs),
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// Files that were written by --json
    #[arg(required = true, value_name = "FILE.json")]
    files: Vec<PathBuf>,

    /// The page: HTML that needs no other file
    #[arg(short, long, value_name = "FILE.html")]
    output: PathBuf,
}

/// Where figures go beside standard output.
#[derive(Debug, Args)]
struct Output {
    /// Write all samples as JSON to this file, for `midge bench report` or your own plots
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write all samples as CSV to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Draw percentile curves, stages and quantities as SVG into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs a bench, prints its table, and gives the exit code.
pub(crate) fn main(args: BenchArgs) -> u8 {
    let done = match args.bench {
        Bench::Boot(args) => boot::main(&args),
        Bench::Fork(args) => lab::fork_main(&args),
        Bench::LiveFork(args) => lab::main(Which::LiveFork, &args),
        Bench::Exec(args) => lab::main(Which::Exec, &args),
        Bench::Density(args) => lab::main(Which::Density, &args),
        Bench::Vsock(args) => devices::vsock_main(&args),
        Bench::Block(args) => devices::main(block, &args),
        Bench::Report(args) => report(&args),
        Bench::Rate(args) => lab::main(Which::Rate, &args),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            fail::say(&chain(error.as_ref()));
            MIDGE_FAILED
        }
    }
}

fn save(path: &Path, text: &str) -> Result<(), Failure> {
    Ok(std::fs::write(path, text).map_err(|error| format!("writing {}: {error}", path.display()))?)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    Ok(out.write_all(text.as_bytes()).map_err(|error| format!("printing the table: {error}"))?)
}

/// Makes the page of reports that were kept as JSON.
fn report(args: &ReportArgs) -> Result<(), Failure> {
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
        text.and_then(|text| Report::from_json(&text)).map_err(|error| format!("reading {}: {error}", path.display()))
    };
    let reports: Vec<Report> = args.files.iter().map(read).collect::<Result<_, _>>()?;
    save(&args.output, &html(&reports))
}

impl Output {
    /// Prints the table and writes the files that were asked for.
    fn deliver(&self, report: &Report) -> Result<(), Failure> {
        if let Some(path) = &self.json {
            save(path, &format!("{:#}\n", report.to_json()))?;
        }
        if let Some(path) = &self.csv {
            save(path, &report.to_csv())?;
        }
        if let Some(path) = &self.svg {
            save(path, &svg(report))?;
        }
        print(&report.to_string())
    }
}
