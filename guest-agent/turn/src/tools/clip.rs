// SPDX-License-Identifier: Apache-2.0
//! Bytes of programs made text for a model, and long text cut in its middle.

/// `bytes` as text: line ends are line feeds, and each run of what is no text (controls, bytes that are no UTF-8) is one `U+FFFD`.
pub(super) fn text_of(bytes: &[u8]) -> String {
    let lossy = String::from_utf8_lossy(bytes);
    let mut text = String::with_capacity(lossy.len());
    let mut chars = lossy.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\r' if chars.peek() == Some(&'\n') => {}
            '\r' => text.push('\n'),
            '\n' | '\t' => text.push(char),
            char if char.is_control() || char == char::REPLACEMENT_CHARACTER => {
                if !text.ends_with(char::REPLACEMENT_CHARACTER) {
                    text.push(char::REPLACEMENT_CHARACTER);
                }
            }
            char => text.push(char),
        }
    }
    text
}

/// `bytes` as one line of text.
pub(super) fn line_of(bytes: &[u8]) -> String {
    text_of(bytes).replace('\n', "\u{fffd}")
}

/// The first and the last part of `text`, together at most `max_bytes`, cut at line ends where there are some near.
pub(super) fn ends(text: &str, max_bytes: usize) -> (&str, &str) {
    if text.len() <= max_bytes {
        return (text, "");
    }
    (head(text, max_bytes / 2), tail(text, max_bytes - max_bytes / 2))
}

/// The first part of `text`, at most `max_bytes`; a whole number of lines when that keeps most of it.
pub(super) fn head(text: &str, max_bytes: usize) -> &str {
    let cut = &text[..boundary(text, max_bytes)];
    if cut.len() == text.len() {
        return cut;
    }
    match cut.rfind('\n') {
        Some(at) if at >= cut.len() / 2 => &cut[..=at],
        _ => cut,
    }
}

/// The last place not after `at` where `text` can be cut.
pub(super) fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The last part of `text`, at most `max_bytes`; a whole number of lines when that keeps most of it.
pub(super) fn tail(text: &str, max_bytes: usize) -> &str {
    let first = text.len().saturating_sub(max_bytes);
    let at = (first..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let cut = &text[at..];
    if cut.len() == text.len() {
        return cut;
    }
    match cut.find('\n') {
        Some(at) if at < cut.len() / 2 => &cut[at + 1..],
        _ => cut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_that_are_no_text_are_marked_once_a_run() {
        assert_eq!(text_of(b"a\r\nb\rc\td"), "a\nb\nc\td");
        assert_eq!(text_of(b"x\0\0\xff\xfe\x1by"), "x\u{fffd}y");
        assert_eq!(text_of("grüße".as_bytes()), "grüße");
    }

    #[test]
    fn long_text_is_cut_at_lines() {
        let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let (head, tail) = ends(&text, 100);
        assert!(head.starts_with("line 0\n") && head.ends_with('\n'));
        assert!(tail.starts_with("line ") && tail.ends_with("line 999\n"));
        assert_eq!(ends("short", 5), ("short", ""));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_limits_hold(bytes in proptest::collection::vec(any::<u8>(), 0..300), max in 0_usize..400) {
            let text = text_of(&bytes);
            prop_assert!(text.chars().all(|char| !char.is_control() || char == '\n' || char == '\t'));
            let (head, tail) = ends(&text, max);
            prop_assert!(head.len() + tail.len() <= max);
            prop_assert!(text.starts_with(head) && text.ends_with(tail));
        }
    }
}
