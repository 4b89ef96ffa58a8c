// SPDX-License-Identifier: Apache-2.0
//! What the model may have meant when a text is not in a file: the lines that are most like it, as a difference. Bounded in time.

use std::time::{Duration, Instant};

use similar::TextDiff;

use super::super::clip;

/// Most lines of a file that are looked at.
const FILE_MAX_LINES: usize = 20_000;
/// Most bytes of a line that are compared.
const LINE_MAX_BYTES: usize = 200;
/// Most bytes of the hint.
const HINT_MAX_BYTES: usize = 2 << 10;
/// How alike the best place must be to be worth a word.
const ALIKE_MIN: f32 = 0.6;
/// How long may be looked.
const TIME_MAX: Duration = Duration::from_millis(500);

/// Where in `text` something like `wanted` stands, and how it differs.
pub(super) fn hint(text: &str, wanted: &str) -> Option<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').take(FILE_MAX_LINES).collect();
    let wanted_lines: Vec<&str> = wanted.split_inclusive('\n').collect();
    let first = place(&lines, &wanted_lines)?;
    let there: String = lines[first..].iter().take(wanted_lines.len()).copied().collect();
    let line = first + 1;
    if same_words(&there, wanted) {
        return Some(format!(
            "line {line} differs from it only in white space. There stands:\n{}",
            clip::head(&there, HINT_MAX_BYTES)
        ));
    }
    let diff = TextDiff::configure().timeout(TIME_MAX).diff_lines(wanted, there.as_str());
    let difference = diff.unified_diff().header("old, as given", "the file").to_string();
    Some(format!("most like it is line {line}:\n{}", clip::head(&difference, HINT_MAX_BYTES)))
}

/// The line at which `wanted` fits best.
fn place(lines: &[&str], wanted: &[&str]) -> Option<usize> {
    let deadline = Instant::now() + TIME_MAX;
    let anchor = wanted.iter().position(|line| !line.trim().is_empty())?;
    let mut best: Option<(f32, usize)> = None;
    for (at, line) in lines.iter().enumerate().skip(anchor) {
        let alike = likeness(line, wanted[anchor], deadline);
        if alike >= ALIKE_MIN {
            let first = at - anchor;
            let equal = wanted.iter().zip(&lines[first..]).filter(|(a, b)| a.trim() == b.trim()).count();
            // Whole lines that agree count more than letters of one.
            let score = alike + f32::from(u16::try_from(equal).unwrap_or(u16::MAX));
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, first));
            }
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    best.map(|(_, first)| first)
}

/// 0 for nothing in common, 1 for the same but for white space around.
fn likeness(a: &str, b: &str, deadline: Instant) -> f32 {
    let (a, b) = (clip::head(a.trim(), LINE_MAX_BYTES), clip::head(b.trim(), LINE_MAX_BYTES));
    if a == b {
        return 1.0;
    }
    let (short, long) = (a.len().min(b.len()), a.len().max(b.len()));
    // Twice the shorter over both is the most that can be in common.
    if short * 10 < long * 4 || !a.bytes().any(|byte| b.as_bytes().contains(&byte)) {
        return 0.0;
    }
    TextDiff::configure().deadline(deadline).diff_chars(a, b).ratio()
}

fn same_words(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "fn a() {\n    one();\n    two();\n}\n\nfn b() {\n    three(4);\n}\n";

    #[test]
    fn the_nearest_lines_are_shown_with_their_difference() {
        let white = hint(TEXT, "  one();\n\ttwo();\n").unwrap();
        assert!(
            white.contains("line 2 differs from it only in white space") && white.contains("    one();"),
            "{white}"
        );
        let near = hint(TEXT, "fn b() {\n    three(5);\n").unwrap();
        assert!(
            near.contains("line 6") && near.contains("-    three(5);") && near.contains("+    three(4);"),
            "{near}"
        );
        assert_eq!(hint(TEXT, "@@@@@@@@@@"), None);
        assert_eq!(hint(TEXT, "\n\n"), None);
        assert_eq!(hint("", "x"), None);
    }

    #[test]
    fn a_large_file_is_given_up_in_time() {
        let text = "let value = compute(argument, other_argument);\n".repeat(100_000);
        let began = Instant::now();
        let _ = hint(&text, &"let valve = computed(argument, another_argument);\n".repeat(2000));
        assert!(began.elapsed() < 20 * TIME_MAX, "{:?}", began.elapsed());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[a-c \n]{0,60}", wanted in "[a-c \n]{0,30}") {
            prop_assert!(hint(&text, &wanted).is_none_or(|hint| hint.len() <= HINT_MAX_BYTES + 100));
        }
    }
}
