// SPDX-License-Identifier: Apache-2.0
//! A transcript as one document: JSON for programs, a page for people. Both are written while the transcript is read, and hold
//! nothing but what was verified.

use std::io::{BufRead, Write};

use serde_json::json;

use crate::show::{Words, words};
use crate::{Line, Lines, ShowError, Speaker, State, printable};

/// What stands before the lines of a page. Nothing is loaded and nothing is run, whatever a transcript says.
const PAGE_HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
<title>Transcript of a run of Midge</title>\n<style>\n\
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}\n\
section{border-left:3px solid #7a8;padding:.1rem 0 .1rem .8rem;margin:.6rem 0}\n\
section.guest{border-color:#c96}\nh2{font-size:1rem;margin:0;font-weight:600}\n\
small{color:#666;font-weight:400}\npre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0;font-size:.85rem}\n\
summary{cursor:pointer;color:#555}\n</style></head><body>\n<h1>Transcript</h1>\n\
<p>Lines of the host are what it did; lines of the guest (brown) are what the guest says.</p>\n";
/// Longest text that a page shows unfolded, in bytes.
const UNFOLDED_BYTES: usize = 1500;

/// Writes a transcript as one JSON object: `lines` as they are, `state` (`finished` or `unfinished`), `run`, and `root`, which is null
/// when there is none.
///
/// # Errors
/// [`ShowError`]; what was written then is no whole document.
pub fn to_json(reader: impl BufRead, out: &mut impl Write) -> Result<State, ShowError> {
    let mut lines = Lines::new(reader);
    write!(out, "{{\"lines\":[")?;
    let mut separator = "\n";
    for line in &mut lines {
        write!(out, "{separator}{}", json!(line?))?;
        separator = ",\n";
    }
    let (state, root) = match lines.state() {
        State::Finished { root } => ("finished", Some(root)),
        State::Unfinished { .. } => ("unfinished", None),
    };
    let tail = json!({"root": root, "run": lines.run(), "state": state}).to_string();
    writeln!(out, "\n],{}", &tail[1..])?;
    Ok(lines.state())
}

/// Writes a transcript as a page of HTML that needs no other file.
///
/// # Errors
/// [`ShowError`]; what was written then is no whole page.
pub fn to_html(reader: impl BufRead, out: &mut impl Write) -> Result<State, ShowError> {
    let mut lines = Lines::new(reader);
    out.write_all(PAGE_HEAD.as_bytes())?;
    for line in &mut lines {
        section(out, &line?)?;
    }
    match lines.state() {
        State::Finished { root } => writeln!(out, "<p>Finished. Root: <code>{root}</code></p>\n</body></html>")?,
        State::Unfinished { .. } => writeln!(out, "<p>Unfinished: there is no root.</p>\n</body></html>")?,
    }
    Ok(lines.state())
}

fn section(out: &mut impl Write, line: &Line) -> std::io::Result<()> {
    let Words { head, text } = words(line);
    let class = match line.by {
        Speaker::Host => "host",
        Speaker::Guest => "guest",
    };
    let (head, text) = (escaped(&head), escaped(text.trim_end()));
    writeln!(
        out,
        "<section class=\"{class}\" id=\"l{}\"><h2><small>{} · {} ms · {class}</small> {head}</h2>",
        line.seq, line.seq, line.t_ms
    )?;
    match text.len() {
        0 => {}
        1..=UNFOLDED_BYTES => writeln!(out, "<pre>{text}</pre>")?,
        len => writeln!(out, "<details><summary>{len} bytes</summary><pre>{text}</pre></details>")?,
    }
    writeln!(out, "</section>")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::tests::{one_of_each, transcript};
    use crate::{Line, ReadError};

    #[test]
    fn json_holds_every_line_and_the_root() {
        let mut out = Vec::new();
        let state = to_json(transcript("x\"y").as_slice(), &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let lines: Vec<Line> = serde_json::from_value(value["lines"].clone()).unwrap();
        assert_eq!(lines.len(), one_of_each("").len() + 2);
        let State::Finished { root } = state else { panic!("{state:?}") };
        assert_eq!(value["root"], root.to_string());
        assert_eq!((&value["run"], &value["state"]), (&json!("run"), &json!("finished")));
    }

    #[test]
    fn unfinished_documents_say_so() {
        let bytes = transcript("x");
        let cut = bytes.iter().take(bytes.len() - 1).rposition(|byte| *byte == b'\n').unwrap() + 1;
        let mut out = Vec::new();
        to_json(&bytes[..cut], &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&value["state"], &value["root"]), (&json!("unfinished"), &json!(null)));
        let mut page = Vec::new();
        to_html(&bytes[..cut], &mut page).unwrap();
        assert!(String::from_utf8(page).unwrap().contains("Unfinished"));
        assert!(matches!(to_html(&b"x\n"[..], &mut Vec::new()), Err(ShowError::Read(ReadError::Broken { .. }))));
    }

    #[test]
    fn page_holds_no_markup_of_a_guest() {
        let evil = "</pre><script>alert(1)</script><img src=x onerror='x'>\"&\u{1b}";
        let mut out = Vec::new();
        to_html(transcript(evil).as_slice(), &mut out).unwrap();
        let page = String::from_utf8(out).unwrap();
        assert!(
            !page.contains("<script")
                && !page.contains("<img")
                && !page.contains("onerror='")
                && !page.contains('\u{1b}')
        );
        assert_eq!(page.matches("<section").count(), one_of_each("").len() + 2);
        assert_eq!(page.matches("<pre>").count(), page.matches("</pre>").count());
    }
}
