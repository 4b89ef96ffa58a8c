// SPDX-License-Identifier: Apache-2.0
//! `midge policy`: the flags, and what is printed. The checks and the decisions are those of the library.

use std::io::{self, Read, Write};

use clap::{Args, Subcommand};
use midge::error::chain;
use midge_policy::{FILE_MAX_BYTES, LoadError, PROFILES, Policy, Verdict, Would, schema};
use serde_json::json;

use super::{MIDGE_FAILED, fail};

/// A policy with problems, or something that it denies.
const REFUSED: u8 = 1;

const NOTES: &str = "A policy says what one sandbox may do; what it does not name is denied. FILE is a TOML file, - is standard \
input; PROFILE is one of those that `midge policy list` shows. Every field is in docs/policy.md.\n\n\
Exit code: 0 the policy is right, or allows it (perhaps after a question, or if each request is seen); 1 it has problems, or \
denies it; 2 the question cannot be understood; 125 it cannot be read.\n\n\
Examples:\n  \
midge policy show offline > my.toml\n  \
midge policy check my.toml\n  \
midge policy explain my.toml --would \"GET https://pypi.org/simple/six/\"\n  \
midge policy explain my.toml --would \"CONNECT example.org:22\" --would \"tool shell\"\n  \
midge policy schema > policy.schema.json";

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say whether a policy is right, and everything that is wrong with it
    #[command(after_long_help = NOTES)]
    Check {
        /// The policy
        #[arg(value_name = "FILE|PROFILE")]
        policy: String,

        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Say what a policy makes of something, which rule decides, and why the others do not
    #[command(after_long_help = NOTES)]
    Explain {
        /// The policy
        #[arg(value_name = "FILE|PROFILE")]
        policy: String,

        /// "METHOD URL", "CONNECT HOST:PORT", "tool NAME [COMMAND]", "model NAME" or "change PATH"; may be repeated
        #[arg(long, value_name = "WHAT", required = true)]
        would: Vec<String>,

        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Print a policy with every default written out
    Show {
        /// The policy
        #[arg(value_name = "FILE|PROFILE")]
        policy: String,
    },
    /// List the policies that are shipped with Midge
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of a policy file
    Schema,
}

/// What an action printed, and its exit code.
type Done = (String, u8);

/// Does it and gives the exit code.
pub(crate) fn main(args: PolicyArgs) -> u8 {
    let (text, code) = match args.action {
        Action::Check { policy, json } => check(&policy, json),
        Action::Explain { policy, would, json } => explain(&policy, &would, json),
        Action::Show { policy } => show(&policy),
        Action::List { json } => (list(json), 0),
        Action::Schema => (pretty(&schema()), 0),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => code,
        // A reader that closed the pipe has seen what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(error) => {
            fail::say(&format!("printing: {error}"));
            MIDGE_FAILED
        }
    }
}

fn load(name: &str) -> Result<Policy, LoadError> {
    if name != "-" {
        return Policy::load(name);
    }
    let mut text = Vec::new();
    let read = io::stdin().lock().take(FILE_MAX_BYTES as u64 + 1).read_to_end(&mut text);
    read.map_err(|source| LoadError::Read { path: "(standard input)".into(), source })?;
    Ok(Policy::parse(text, "(standard input)")?)
}

/// Tells why there is no policy, and gives the exit code.
fn refuse(error: &LoadError) -> u8 {
    match error {
        LoadError::Problems(problems) => {
            for line in problems.to_string().lines() {
                fail::say(line);
            }
            REFUSED
        }
        LoadError::Read { .. } | LoadError::NoProfile { .. } => {
            fail::say(&chain(error));
            MIDGE_FAILED
        }
    }
}

fn check(name: &str, json: bool) -> Done {
    match (load(name), json) {
        (Ok(_), true) => (pretty(&json!({ "ok": true, "problems": [] })), 0),
        (Ok(_), false) => (format!("{name}: no problems\n"), 0),
        (Err(LoadError::Problems(problems)), true) => {
            let found = json!({ "ok": false, "problems": problems.problems, "more": problems.more });
            (pretty(&found), REFUSED)
        }
        (Err(error), _) => (String::new(), refuse(&error)),
    }
}

fn explain(name: &str, would: &[String], json: bool) -> Done {
    let policy = match load(name) {
        Ok(policy) => policy,
        Err(error) => return (String::new(), refuse(&error)),
    };
    let (mut text, mut all, mut code) = (String::new(), Vec::new(), 0);
    for asked in would {
        let parsed = match asked.parse::<Would>() {
            Ok(parsed) => parsed,
            Err(why) => {
                fail::say(&format!("--would {asked:?} {why}"));
                return (text, super::USAGE);
            }
        };
        let explanation = policy.explain(&parsed);
        if explanation.verdict == Verdict::Deny {
            code = REFUSED;
        }
        if would.len() > 1 {
            text += &format!("{asked:?}\n");
        }
        text += &format!("{explanation}\n");
        all.push(json!({ "would": asked, "explanation": explanation }));
    }
    (if json { pretty(&json!(all)) } else { text }, code)
}

fn show(name: &str) -> Done {
    match load(name) {
        Ok(policy) => (policy.to_toml(), 0),
        Err(error) => (String::new(), refuse(&error)),
    }
}

fn list(json: bool) -> String {
    let profiles = PROFILES.map(|profile| {
        let policy = Policy::profile(profile.name);
        (profile.name, policy.as_ref().and_then(Policy::about).unwrap_or_default().to_owned())
    });
    if json {
        return pretty(&json!(profiles.map(|(name, about)| json!({ "name": name, "about": about }))));
    }
    profiles.map(|(name, about)| format!("{name:<25}  {about}\n")).concat()
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    #[test]
    fn a_question_is_needed_and_may_be_repeated() {
        let parse = |line: &[&str]| Line::try_parse_from(["x"].iter().chain(line));
        assert!(parse(&["explain", "offline"]).is_err());
        let parsed = parse(&["explain", "offline", "--would", "tool shell", "--would", "GET http://a.org"]).unwrap();
        assert!(matches!(parsed.policy.action, Action::Explain { would, .. } if would.len() == 2));
    }

    #[test]
    fn codes_tell_denied_from_misunderstood_from_absent() {
        let explain = |policy: &str, would: &[&str]| {
            explain(policy, &would.iter().map(|&text| text.to_owned()).collect::<Vec<_>>(), false).1
        };
        let get = "GET https://pypi.org/simple/six/";
        assert_eq!(explain("package-install", &[get]), 0);
        assert_eq!(explain("offline", &[get]), 1);
        assert_eq!(explain("package-install", &[get, "DELETE https://pypi.org/"]), 1, "one that is denied is enough");
        assert_eq!(explain("offline", &["what?"]), 2);
        assert_eq!(explain("no-such-profile", &[get]), 125);
        assert_eq!(check("no-such-profile", true).1, 125);
        assert_eq!(check("offline", false).1, 0);
    }

    #[test]
    fn what_is_shown_is_a_policy_and_lists_name_every_profile() {
        for profile in PROFILES {
            let (text, code) = show(profile.name);
            assert_eq!((Policy::parse(&text, "shown").ok(), code), (Policy::profile(profile.name), 0));
            let line = list(false).lines().find(|line| line.starts_with(profile.name)).map(str::len);
            assert!(line.is_some_and(|len| len > 40), "{}", list(false));
            assert!(list(true).contains(profile.name));
        }
    }
}
