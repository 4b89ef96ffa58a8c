// SPDX-License-Identifier: Apache-2.0
//! `midge log`: transcripts of runs, verified, shown, and as one document.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand, ValueEnum};
use midge::cache::mebibytes;
use midge::error::chain;
use midge::runs::{self, Kept, RunsError};
use midge_record::{Hash, ReadError, ShowError, State, Verified, printable, show, to_html, to_json, verify};

use super::MIDGE_FAILED;
use super::fail::say;

/// The transcript is not what was recorded.
const BROKEN: u8 = 1;
/// It has no root.
const UNFINISHED: u8 = 3;

const NOTES: &str = "A transcript is written by the host while an agent runs: what it asked a model and was answered, its tool calls, \
approvals, network connections, children and changes, with the values of secrets masked. Each line holds the hash of the line before it, \
and the last one, the root, stands for the whole.\n\n\
FILE|RUN is a file, or the name of a run in $MIDGE_STATE/runs, else $XDG_STATE_HOME/midge/runs, else ~/.local/state/midge/runs.\n\n\
Exit code: 0 the transcript is whole; 1 it was changed; 3 it has no root: its run goes on or was killed, or its end was cut off; 125 it \
cannot be read. Only a root that is known from elsewhere (`midge agent` prints it) shows that nobody wrote the whole anew: --root.";

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub(crate) struct LogArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say whether a transcript is what was recorded, or which line is the first that is not
    #[command(after_long_help = NOTES)]
    Verify {
        /// The transcript
        #[arg(value_name = "FILE|RUN")]
        transcript: PathBuf,
        /// The root that it must have, as 64 hexadecimal digits
        #[arg(long, value_name = "HASH", value_parser = parse_root)]
        root: Option<Hash>,
        /// Print JSON instead of a sentence
        #[arg(long)]
        json: bool,
    },
    /// Print a transcript for reading
    Show {
        /// The transcript
        #[arg(value_name = "FILE|RUN")]
        transcript: PathBuf,
        /// Print long texts whole
        #[arg(long)]
        all: bool,
    },
    /// Print a transcript as one document
    Export {
        /// The transcript
        #[arg(value_name = "FILE|RUN")]
        transcript: PathBuf,
        /// What it becomes
        #[arg(long, value_enum, default_value = "json")]
        format: Format,
    },
    /// List the runs whose transcripts are kept
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// What a transcript is exported as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object with all lines
    Json,
    /// A page for a browser that loads nothing
    Html,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error(transparent)]
    Runs(#[from] RunsError),
    #[error("opening the transcript {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Show(#[from] ShowError),
}

fn parse_root(text: &str) -> Result<Hash, String> {
    Hash::parse(text).ok_or_else(|| "64 lower-case hexadecimal digits are accepted".to_owned())
}

/// Does it and gives the exit code.
pub(crate) fn main(args: &LogArgs) -> u8 {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = run(&args.action, &mut out).and_then(|code| {
        out.flush().map_err(ShowError::from)?;
        Ok(code)
    });
    match done {
        Ok(code) => code,
        // A reader that closed the pipe has seen what it wanted.
        Err(LogError::Show(ShowError::Write(error))) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            say(&printable(&chain(&error)));
            code_of(&error)
        }
    }
}

fn code_of(error: &LogError) -> u8 {
    match error {
        LogError::Show(ShowError::Read(ReadError::Broken { .. })) => BROKEN,
        _ => MIDGE_FAILED,
    }
}

fn run(action: &Action, out: &mut impl Write) -> Result<u8, LogError> {
    let state = match action {
        Action::Verify { transcript, root, json } => {
            let found = verify(open(transcript)?);
            return tell(found, root.as_ref(), *json, out);
        }
        Action::Show { transcript, all } => show(open(transcript)?, out, *all)?,
        Action::Export { transcript, format: Format::Json } => to_json(open(transcript)?, out)?,
        Action::Export { transcript, format: Format::Html } => to_html(open(transcript)?, out)?,
        Action::List { json } => {
            let text = list(&runs::list()?, SystemTime::now(), *json);
            out.write_all(text.as_bytes()).map_err(ShowError::from)?;
            return Ok(0);
        }
    };
    Ok(match state {
        State::Finished { .. } => 0,
        State::Unfinished { .. } => UNFINISHED,
    })
}

fn open(transcript: &Path) -> Result<BufReader<File>, LogError> {
    let path = runs::find(transcript)?;
    File::open(&path).map(BufReader::new).map_err(|source| LogError::Open { path, source })
}

/// Says what `verify` found.
fn tell(
    found: Result<Verified, ReadError>,
    expected: Option<&Hash>,
    json: bool,
    out: &mut impl Write,
) -> Result<u8, LogError> {
    let found = match found {
        Err(ReadError::Broken { line, why }) if json => {
            let value = serde_json::json!({"state": "broken", "line": line, "why": why});
            writeln!(out, "{value}").map_err(ShowError::from)?;
            return Ok(BROKEN);
        }
        found => found.map_err(ShowError::from)?,
    };
    let Verified { run, lines, state } = found;
    let (word, root, torn, code) = match state {
        State::Finished { root } if expected.is_some_and(|expected| *expected != root) => {
            ("other", Some(root), 0, BROKEN)
        }
        State::Finished { root } => ("finished", Some(root), 0, 0),
        State::Unfinished { torn_bytes } => ("unfinished", None, torn_bytes, UNFINISHED),
    };
    let text = if json {
        serde_json::json!({"state": word, "run": run, "lines": lines, "root": root, "torn_bytes": torn}).to_string()
    } else {
        let torn = if torn > 0 { format!(", and {torn} bytes of a line that is not whole") } else { String::new() };
        let run = printable(&run).replace(['\n', '\t'], " ");
        match (word, root) {
            ("finished", Some(root)) => format!("{run}: whole, {lines} lines, root {root}"),
            (_, Some(root)) => format!("{run}: another transcript than the one asked for: its root is {root}"),
            _ => format!("{run}: unfinished: {lines} lines as they were recorded{torn}, and no root"),
        }
    };
    writeln!(out, "{text}").map_err(ShowError::from)?;
    Ok(code)
}

fn list(kept: &[Kept], now: SystemTime, json: bool) -> String {
    let age = |kept: &Kept| now.duration_since(kept.written).unwrap_or_default().as_secs();
    if json {
        let one = |kept: &Kept| serde_json::json!({"run": kept.name, "bytes": kept.len_bytes, "age_s": age(kept)});
        return serde_json::Value::Array(kept.iter().map(one).collect()).to_string() + "\n";
    }
    let line = |kept: &Kept| {
        let minutes = age(kept) / 60;
        let age = match minutes {
            0..120 => format!("{minutes}m"),
            120..2880 => format!("{}h", minutes / 60),
            _ => format!("{}d", minutes / 1440),
        };
        format!("{:>6}  {:>10}  {}\n", age, mebibytes(kept.len_bytes), printable(&kept.name))
    };
    let head = if kept.is_empty() { String::new() } else { format!("{:>6}  {:>10}  {}\n", "AGE", "SIZE", "RUN") };
    head + &kept.iter().map(line).collect::<String>()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use midge_record::{Entry, Masker, Recorder};

    use super::*;

    /// A transcript in a file, with its root or without.
    fn transcript(finish: bool) -> (tempfile::TempDir, PathBuf, Option<Hash>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.jsonl");
        let recorder = Recorder::create(&path, "run", Masker::default()).unwrap();
        recorder.note(&Entry::Exhausted { budget: "tokens".into() }).unwrap();
        let root = finish.then(|| recorder.finish().unwrap());
        (dir, path, root)
    }

    fn done(action: &Action) -> (Result<u8, u8>, String) {
        let mut out = Vec::new();
        let code = run(action, &mut out).map_err(|error| code_of(&error));
        (code, String::from_utf8(out).unwrap())
    }

    fn verify_of(path: &Path, root: Option<Hash>, json: bool) -> Action {
        Action::Verify { transcript: path.to_owned(), root, json }
    }

    #[test]
    fn whole_unfinished_broken_and_other_have_codes_of_their_own() {
        let (_dir, path, root) = transcript(true);
        let (code, text) = done(&verify_of(&path, root, false));
        assert_eq!(code, Ok(0));
        assert_eq!(text, format!("run: whole, 3 lines, root {}\n", root.unwrap()));
        assert_eq!(done(&verify_of(&path, Some(Hash::ZERO), false)).0, Ok(BROKEN), "written anew");
        let (_dir, open, _) = transcript(false);
        let (code, text) = done(&verify_of(&open, None, false));
        assert_eq!(code, Ok(UNFINISHED), "{text}");
        let edited = std::fs::read_to_string(&path).unwrap().replace("tokens", "turns");
        std::fs::write(&path, edited).unwrap();
        assert_eq!(done(&verify_of(&path, None, false)).0, Err(BROKEN));
        let (code, json) = done(&verify_of(&path, None, true));
        assert_eq!((code, json.contains("\"line\":2")), (Ok(BROKEN), true), "{json}");
        assert_eq!(done(&verify_of(Path::new("/nowhere/at/all"), None, false)).0, Err(MIDGE_FAILED));
    }

    #[test]
    fn documents_are_shown_and_exported() {
        let (_dir, path, root) = transcript(true);
        let (code, text) = done(&Action::Show { transcript: path.clone(), all: false });
        assert_eq!((code, text.contains("budget used up: tokens")), (Ok(0), true), "{text}");
        let (code, text) = done(&Action::Export { transcript: path.clone(), format: Format::Json });
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &value["root"]), (Ok(0), &serde_json::json!(root)));
        let (code, text) = done(&Action::Export { transcript: path, format: Format::Html });
        assert_eq!((code, text.ends_with("</html>\n")), (Ok(0), true));
        let (_dir, open, _) = transcript(false);
        assert_eq!(done(&Action::Show { transcript: open, all: true }).0, Ok(UNFINISHED));
    }

    #[test]
    fn roots_are_read_in_one_spelling() {
        assert!(parse_root(&"0f".repeat(32)).is_ok());
        assert!(parse_root(&"0F".repeat(32)).is_err() && parse_root("").is_err());
    }

    #[test]
    fn runs_are_listed_with_age_and_size() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let kept = Kept { name: "fix".into(), len_bytes: 3 << 20, written: now - Duration::from_secs(7200) };
        let text = list(std::slice::from_ref(&kept), now, false);
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!((words[3], words.last()), ("2h", Some(&"fix")), "{text}");
        assert_eq!(list(&[], now, false), "");
        let json: serde_json::Value = serde_json::from_str(&list(&[kept], now, true)).unwrap();
        assert_eq!(json, serde_json::json!([{"run": "fix", "bytes": 3 << 20, "age_s": 7200}]));
    }
}
