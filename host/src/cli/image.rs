// SPDX-License-Identifier: Apache-2.0
//! `midge image`: the flags, and what is printed. The building is the library's.

use std::io::{self, Write};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use midge::cache::{Cache, mebibytes};
use midge::error::chain;
use midge::image::{self, BuiltImage, DEFAULT_NAME};
use midge::progress::Bar;

use super::{MIDGE_FAILED, fail};

const NOTES: &str = "`midge run` builds the image it needs by itself, once, from this machine's package sources. Nothing of \
Midge's is in an image: any directory, and any file with an erofs, ext4 or squashfs file system, serves as well \
(`midge run --image`).\n\n\
Examples:\n  \
midge image build\n  \
midge image build build --again\n  \
midge image list --json";

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build an image, or find the one built from the same recipe
    #[command(after_long_help = NOTES)]
    Build {
        /// Which one: base has the usual tools and Python, build also compilers, containers also Docker and Podman
        #[arg(default_value = DEFAULT_NAME, value_parser = PossibleValuesParser::new(image::names()))]
        name: String,

        /// Build it again, with the package versions that the distribution has now
        #[arg(long)]
        again: bool,
    },
    /// List the images that were built
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Does it and gives the exit code.
pub(crate) fn main(args: ImageArgs) -> u8 {
    match act(args.action) {
        Ok(()) => 0,
        Err(error) => {
            fail::say(&chain(error.as_ref()));
            MIDGE_FAILED
        }
    }
}

fn act(action: Action) -> Result<(), Failure> {
    let cache = Cache::open()?;
    let mut out = io::stdout().lock();
    match action {
        Action::Build { name, again } => {
            let built = image::build(&cache, &name, again, &Bar::new())?;
            writeln!(out, "{}", line(&built))?;
        }
        Action::List { json: true } => writeln!(out, "{}", serde_json::to_string(&image::list(&cache)?)?)?,
        Action::List { json: false } => {
            let images = image::list(&cache)?;
            if images.is_empty() {
                fail::say("no image was built yet; `midge image build` builds one");
            }
            for built in images {
                writeln!(out, "{}", line(&built))?;
            }
        }
    }
    Ok(())
}

fn line(built: &BuiltImage) -> String {
    let record = &built.record;
    format!(
        "{:<8} {:<18} {:>10}  {:>3} packages  built in {:>4} s  {}",
        record.name,
        record.release,
        mebibytes(record.bytes),
        record.packages.len(),
        record.build_s,
        built.path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        image: ImageArgs,
    }

    #[test]
    fn base_is_built_unless_another_is_named() {
        let name = |words: &[&str]| match Line::try_parse_from(words).map(|line| line.image.action) {
            Ok(Action::Build { name, again: false }) => Ok(name),
            other => Err(format!("{other:?}")),
        };
        assert_eq!(name(&["x", "build"]).as_deref(), Ok("base"));
        assert_eq!(name(&["x", "build", "build"]).as_deref(), Ok("build"));
        assert!(name(&["x", "build", "no-such-image"]).unwrap_err().contains("base"));
    }
}
