// SPDX-License-Identifier: Apache-2.0
//! `midge-turn`: one [`Run`] as JSON on standard input, done to its end. It prints nothing but errors; what it does, it tells the record.
//!
//! | exit | the run |
//! | --- | --- |
//! | 0 | is done, says the model |
//! | 1 | failed |
//! | 3 | was ended by a budget |
//! | 4 | was denied something that the task needs |
//! | 130 | was cancelled: SIGINT or SIGTERM ends it in good order, a second one at once |

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use midge_protocol::GUEST_DIR;
use midge_protocol::broker::{End, Run};
use midge_turn::drive::{Setting, drive};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Most bytes of a [`Run`].
const RUN_MAX_BYTES: u64 = 16 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(end) => ExitCode::from(end.exit_code()),
        Err(error) => {
            let mut text = format!("midge-turn: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<End, Box<dyn std::error::Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the first signal sets the flag, the second finds it set.
        flag::register_conditional_shutdown(signal, i32::from(End::Cancelled.exit_code()), Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    let mut text = String::new();
    std::io::stdin().take(RUN_MAX_BYTES).read_to_string(&mut text)?;
    let run: Run = serde_json::from_str(&text)
        .map_err(|error| format!("standard input is not a run as JSON (midge_protocol::broker::Run): {error}"))?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let setting = Setting {
        doors: std::env::var_os("MIDGE_DOORS").map_or_else(|| PathBuf::from(GUEST_DIR), PathBuf::from),
        spool: std::env::temp_dir().join(format!("midge-output-{}", std::process::id())),
        seed: u64::from(since_epoch.subsec_nanos()) ^ u64::from(std::process::id()) << 32,
    };
    Ok(drive(&run, &setting, &stop)?)
}
