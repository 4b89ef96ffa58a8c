// SPDX-License-Identifier: Apache-2.0
//! `midge-scripted-model SCRIPT.json [ADDRESS:PORT]`: serves a script until it is killed; says where on standard output, then one
//! line of JSON a request.

use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

use midge_scripted_model::Server;
use midge_scripted_model::script::Script;
use serde_json::json;

/// How often it is looked for new requests.
const LOOK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("midge-scripted-model: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: midge-scripted-model SCRIPT.json [ADDRESS:PORT]")?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let script = Script::parse(&text).map_err(|error| format!("{path}: {error}"))?;
    let server = Server::listen(TcpListener::bind(&address).map_err(|error| format!("{address}: {error}"))?, script)?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", server.base_url())?;
    out.flush()?;
    let mut told = 0;
    loop {
        for asked in server.asked().into_iter().skip(told) {
            told += 1;
            writeln!(out, "{}", json!({"path": asked.path, "body": asked.body, "problem": asked.problem}))?;
            out.flush()?;
        }
        std::thread::sleep(LOOK);
    }
}
