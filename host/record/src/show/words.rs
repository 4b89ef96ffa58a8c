// SPDX-License-Identifier: Apache-2.0
//! What an entry says, in words: one line, and the text that belongs to it. Not yet safe to print.

use midge_protocol::broker::{ItemState, Keep, Left, Told, Verdict};
use serde_json::Value;

use crate::{Decider, Decision, Entry, Line, Usage};

/// An entry in words.
pub(crate) struct Words {
    /// One line.
    pub(crate) head: String,
    /// What belongs to it.
    pub(crate) text: String,
}

/// What `line` says.
pub(crate) fn words(line: &Line) -> Words {
    let (head, text) = match line.entry() {
        Some(Entry::Told { told }) => said(told),
        Some(entry) => {
            model(&entry).or_else(|| egress(&entry)).or_else(|| others(&entry)).unwrap_or_else(|| run(entry))
        }
        None => (format!("{} (of a later version, or masked)", line.kind()), pretty(&line.entry)),
    };
    Words { head, text }
}

type Pair = (String, String);

fn model(entry: &Entry) -> Option<Pair> {
    Some(match entry {
        Entry::ModelRequest { exchange, path, model, body } => {
            let messages =
                ["messages", "input"].iter().find_map(|name| body.get(*name)?.as_array()).map_or(0, Vec::len);
            (format!("asks model {model} #{exchange}: {path}, {messages} messages"), last_message(body))
        }
        Entry::ModelAnswer { exchange, status, body, usage, money_micros, elapsed_ms, broken, .. } => {
            let bill = format!("{}, {}", tokens(usage), money(*money_micros));
            let broken = broken.as_ref().map(|why| format!("; not whole: {why}")).unwrap_or_default();
            let cut = if body.cut_bytes > 0 { format!("; {} bytes cut off", body.cut_bytes) } else { String::new() };
            (format!("model answers #{exchange}: {status}, {bill}, {elapsed_ms} ms{broken}{cut}"), body.text.clone())
        }
        Entry::ModelRefused { exchange, path, why } => {
            (format!("model not asked #{exchange}: {path}: {why}"), String::new())
        }
        _ => return None,
    })
}

fn egress(entry: &Entry) -> Option<Pair> {
    Some(match entry {
        Entry::EgressDecided { connection, method, scheme, host, port, path, rule, decision, why, address } => {
            let decided = match decision {
                Decision::Allow => "allowed",
                Decision::Deny => "denied",
            };
            let by = rule.as_ref().map_or_else(|| "by default".to_owned(), |rule| format!("by rule {rule}"));
            let at = address.map(|address| format!(" at {address}")).unwrap_or_default();
            let path = path.as_deref().unwrap_or_default();
            (
                format!("network #{connection}: {method} {scheme}://{host}:{port}{path}{at} {decided} {by}: {why}"),
                String::new(),
            )
        }
        Entry::EgressEnded { connection, status, sent_bytes, received_bytes, elapsed_ms, broken } => {
            let status = status.map(|status| format!("{status}, ")).unwrap_or_default();
            let broken = broken.as_ref().map(|why| format!("; ended: {why}")).unwrap_or_default();
            let sizes = format!("{sent_bytes} bytes out, {received_bytes} in");
            (format!("network #{connection} done: {status}{sizes}, {elapsed_ms} ms{broken}"), String::new())
        }
        _ => return None,
    })
}

fn others(entry: &Entry) -> Option<Pair> {
    let no_text = |head: String| (head, String::new());
    Some(match entry {
        Entry::Asked { question, asked, why } => (format!("question #{question}: {why}"), pretty(asked)),
        Entry::Decided { question, verdict, by } => decided(*question, verdict, *by),
        Entry::ChildAsked { child, request } => {
            (format!("child #{child} asked for"), serde_json::to_string_pretty(request).unwrap_or_default())
        }
        Entry::ChildRefused { child, why } => (format!("child #{child} refused"), why.join("\n")),
        Entry::ChildStarted { child, name, policy, share } => {
            (format!("child #{child} started: {name}, {}", budget(share)), policy.clone())
        }
        Entry::ChildEnded { child, code, spent, changed } => {
            let code = code.map_or_else(|| "was ended".to_owned(), |code| format!("exit code {code}"));
            (format!("child #{child}: {code}, spent {}", budget(spent)), changed.join("\n"))
        }
        Entry::ChildKept { child, keep, tar_bytes } => {
            let kept = match keep {
                Keep::Take => "taken",
                Keep::Drop => "dropped",
            };
            no_text(format!("child #{child}: changes {kept}, {tar_bytes} bytes"))
        }
        Entry::PeerOpened { tunnel, peer, port, inward } => {
            let what = port.map_or_else(|| "messages".to_owned(), |port| format!("tunnel to port {port}"));
            let whose = if *inward { "opened from there" } else { "opened" };
            no_text(format!("peer #{tunnel} {peer}: {what} {whose}"))
        }
        Entry::PeerRefused { tunnel, peer, why } => no_text(format!("peer #{tunnel} {peer} refused: {why}")),
        Entry::PeerMessage { peer, received, text } => {
            (format!("message {} {peer}", if *received { "from" } else { "to" }), text.clone())
        }
        Entry::PeerClosed { tunnel, peer, sent_bytes, received_bytes } => {
            no_text(format!("peer #{tunnel} {peer} closed: {sent_bytes} bytes out, {received_bytes} in"))
        }
        _ => return None,
    })
}

fn run(entry: Entry) -> Pair {
    let no_text = |head: String| (head, String::new());
    match entry {
        Entry::Opened { format, run } => no_text(format!("transcript of {run}, format {format}")),
        Entry::Started(started) => {
            let of = |name: &str, value: &Option<String>| {
                value.as_ref().map(|value| format!(", {name} {value}")).unwrap_or_default()
            };
            let origin = of("template", &started.template)
                + &of("child of", &started.parent)
                + &of("replay of", &started.replay_of);
            let versions: Vec<String> =
                started.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
            let head =
                format!("run starts: {} {}{origin}, {}", started.provider, started.model, budget(&started.budget));
            (head, format!("{}\n{}\n{}", started.task, versions.join(", "), started.policy))
        }
        Entry::Narrowed { policy } => ("policy narrowed".to_owned(), policy),
        Entry::Malformed { door, why, excerpt } => (format!("nonsense at the door {door}: {why}"), excerpt),
        Entry::Exhausted { budget } => no_text(format!("budget used up: {budget}")),
        Entry::Changes { changed, applied } => {
            let what = if applied { "applied" } else { "not applied" };
            (format!("{} changes in the workspace, {what}", changed.len()), changed.join("\n"))
        }
        Entry::Ended { how, exit_code, text, spent } => {
            (format!("run ends: {how}, exit code {exit_code}, spent {}", budget(&spent)), text)
        }
        Entry::Root { lines } => no_text(format!("root of {lines} lines")),
        other => ("entry".to_owned(), format!("{other:?}")),
    }
}

fn decided(question: u64, verdict: &Verdict, by: Decider) -> Pair {
    let who = match by {
        Decider::Approver => "",
        Decider::Remembered => " (as before in this run)",
        Decider::TimeOut => " (nobody answered in time)",
        Decider::Nobody => " (nobody was asked)",
    };
    let (what, text) = match verdict {
        Verdict::Allow => ("allowed", String::new()),
        Verdict::AllowForRun => ("allowed for this run", String::new()),
        Verdict::Edited { input } => ("allowed as edited", pretty(input)),
        Verdict::Deny { why } => ("denied", why.clone()),
        Verdict::Text { text } => ("answered", text.clone()),
    };
    (format!("question #{question}: {what}{who}"), text)
}

fn said(told: Told) -> Pair {
    match told {
        Told::Said { text } => ("says".to_owned(), text),
        Told::Thought { text } => ("thinks".to_owned(), text),
        Told::ToolCall { id, name, input } => (format!("calls {name} ({id})"), pretty(&input)),
        Told::ToolResult { id, is_error, output, elided_bytes, elapsed_ms } => {
            let failed = if is_error { "failed" } else { "done" };
            let elided = if elided_bytes > 0 { format!(", {elided_bytes} bytes more") } else { String::new() };
            (format!("tool {failed} ({id}), {elapsed_ms} ms{elided}"), output)
        }
        Told::Todo { items } => {
            let mark = |state| match state {
                ItemState::Pending => "[ ]",
                ItemState::Doing => "[>]",
                ItemState::Done => "[x]",
            };
            let lines: Vec<String> = items.iter().map(|item| format!("{} {}", mark(item.state), item.text)).collect();
            ("list".to_owned(), lines.join("\n"))
        }
        Told::Retry { why, wait_ms } => (format!("waits {wait_ms} ms before it asks again: {why}"), String::new()),
        Told::Compacted { what } => (format!("shortens the conversation: {what}"), String::new()),
        Told::Finished { end, text } => (format!("is at its end: {end:?}"), text),
    }
}

/// The last message of a request: what is before it was in the one before.
fn last_message(body: &Value) -> String {
    let last = ["messages", "input"].iter().find_map(|name| body.get(*name)?.as_array()?.last());
    last.map(|message| message.get("content").and_then(Value::as_str).map_or_else(|| pretty(message), str::to_owned))
        .unwrap_or_default()
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn tokens(usage: &Usage) -> String {
    format!("{} tokens in, {} out", usage.tokens() - usage.output_tokens.min(usage.tokens()), usage.output_tokens)
}

/// Millionths of a US dollar as dollars.
fn money(micros: u64) -> String {
    format!("${}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

fn budget(left: &Left) -> String {
    let parts = [
        left.turns.map(|n| format!("{n} turns")),
        left.tool_calls.map(|n| format!("{n} tool calls")),
        left.tokens.map(|n| format!("{n} tokens")),
        left.money_micros.map(money),
        left.wall_ms.map(|n| format!("{}.{:03} s", n / 1000, n % 1000)),
        left.egress_bytes.map(|n| format!("{n} bytes of network")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "no budget".to_owned() } else { parts.join(", ") }
}
