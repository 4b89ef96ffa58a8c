// SPDX-License-Identifier: Apache-2.0
//! Body of the fuzz target `transcript`: any file as a transcript, and any text as one with a secret in it.

use crate::{Entry, Masker, ReadError, Recorder, Replay, ShowError, State, show, to_html, to_json, verify};

/// Reads `data` in every way; then records text of it and reads that again.
///
/// # Panics
/// When a reader disagrees with another, when something comes out that a terminal would obey, or when what was recorded does not verify.
pub fn transcript(data: &[u8]) {
    let whole = verify(data);
    let mut text = Vec::new();
    let shown = show(data, &mut text, false);
    assert_eq!(whole.is_ok(), shown.is_ok(), "one reader for all");
    let text = String::from_utf8(text).expect("text");
    assert!(text.chars().all(|c| matches!(c, '\n' | '\t') || !c.is_control()), "nothing to obey");
    let mut document = Vec::new();
    if to_json(data, &mut document).is_ok() {
        serde_json::from_slice::<serde::de::IgnoredAny>(&document).expect("one JSON document");
    }
    let page = to_html(data, &mut std::io::sink());
    assert!(!matches!(page, Err(ShowError::Write(_))), "a sink has room");
    if let Ok(mut replay) = Replay::read(data) {
        // Whatever it answers, or why not.
        let _ = replay
            .answer("/v1/messages", &serde_json::Value::Null)
            .map(|(answer, differ)| (answer.status, differ.len()));
    }
    recorded(data);
}

/// The first bytes are a secret, the rest is what is recorded with it.
fn recorded(data: &[u8]) {
    let Some((secret, rest)) = data.split_at_checked(8) else { return };
    let Ok(masker) = Masker::new([secret]) else { return };
    let Ok((recorder, memory)) = Recorder::in_memory("fuzz", masker) else { return };
    let excerpt = String::from_utf8_lossy(rest).into_owned();
    recorder.note(&Entry::Malformed { door: "fuzz".to_owned(), why: String::new(), excerpt }).expect("memory has room");
    let body = serde_json::from_slice(rest).unwrap_or_default();
    let request = Entry::ModelRequest { exchange: 1, path: String::new(), model: String::new(), body };
    recorder.note(&request).expect("memory has room");
    let root = recorder.finish().expect("memory has room");
    let found = verify(memory.bytes().as_slice());
    let state = found.as_ref().map(|found| found.state);
    assert!(matches!(state, Ok(State::Finished { root: last }) if last == root), "{:?}", found.err().map(why));
}

fn why(error: ReadError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_real_transcript_passes() {
        transcript(&crate::show::tests::transcript("words \u{1b}[2J"));
        transcript(b"");
    }

    proptest! {
        #[test]
        fn any_file_passes(data: Vec<u8>) {
            transcript(&data);
        }

        #[test]
        fn any_text_passes(text: String) {
            transcript(format!("secret78{text}").as_bytes());
        }
    }
}
