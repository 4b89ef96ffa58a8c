// SPDX-License-Identifier: Apache-2.0
//! A Rust source file as the tidy rules see it: code apart from comments and strings, test code
//! apart from the rest, functions with their extent.
//!
//! A lexer, not a parser: it knows comments, strings, characters and braces, and no grammar.

use std::ops::Range;

/// One file, split so that a rule looks only at what it is about. All vectors have one entry a line.
#[derive(Debug)]
pub struct Source {
    /// Path relative to the repository's root, with `/`.
    pub path: String,
    /// The lines as they are.
    pub raw: Vec<String>,
    /// The lines with comments and the insides of strings and characters blanked.
    pub code: Vec<String>,
    /// Whether the line belongs to test code.
    pub test: Vec<bool>,
}

/// A function's name and its lines, counted from 0.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// The identifier after `fn`.
    pub name: String,
    /// From the line of `fn` to the line after its closing brace.
    pub lines: Range<usize>,
}

impl Source {
    /// Splits `text`; a file under a `tests` directory or named `tests.rs` is all test code.
    #[must_use]
    pub fn new(path: &str, text: &str) -> Self {
        let code: Vec<String> = mask(text).lines().map(str::to_owned).collect();
        let all_test = path.split('/').any(|part| matches!(part, "tests" | "benches" | "fuzz" | "examples"))
            || path.ends_with("/tests.rs")
            || code.iter().any(|line| line.trim() == "#![cfg(test)]");
        let mut test = vec![all_test; code.len()];
        for lines in test_items(&code) {
            test[lines].fill(true);
        }
        Self { path: path.to_owned(), raw: text.lines().map(str::to_owned).collect(), code, test }
    }

    /// Lines of code that are neither tests nor after the end.
    #[must_use]
    pub fn non_test_lines(&self) -> usize {
        self.test.iter().filter(|test| !**test).count()
    }

    /// The code lines outside tests, with their numbers counted from 1.
    pub fn product_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().zip(&self.test).enumerate();
        lines.filter(|(_, (_, test))| !**test).map(|(index, (line, _))| (index + 1, line.as_str()))
    }

    /// Names of modules declared as `#[cfg(test)] mod name;`: their files are test code too.
    #[must_use]
    pub fn test_modules(&self) -> Vec<String> {
        let outside = |lines: &Range<usize>| self.code[lines.clone()].join(" ");
        let names = test_items(&self.code).into_iter().map(|lines| outside(&lines));
        names.filter_map(|item| Some(item.split_once("mod ")?.1.split_once(';')?.0.trim().to_owned())).collect()
    }

    /// Every function with a body, in order, nested ones included.
    #[must_use]
    pub fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for (row, line) in self.code.iter().enumerate() {
            for (column, _) in line.match_indices("fn ") {
                if line[..column].ends_with(is_word) {
                    continue;
                }
                let name: String = line[column + 3..].chars().take_while(|c| is_word(*c)).collect();
                let body = body_end(&self.code, row, column);
                if let (false, Some(end)) = (name.is_empty(), body) {
                    found.push(Function { name, lines: row..end + 1 });
                }
            }
        }
        found
    }
}

/// True for the characters of an identifier.
#[must_use]
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `line` as a whole identifier.
#[must_use]
pub fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let after = &line[at + word.len()..];
        !line[..at].ends_with(is_word) && !after.starts_with(is_word)
    })
}

/// The line of the brace that closes the item that starts at (`row`, `column`); `None` if a `;` ends it first.
fn body_end(code: &[String], row: usize, column: usize) -> Option<usize> {
    let (mut round, mut curly) = (0_i32, 0_i32);
    for (index, line) in code.iter().enumerate().skip(row) {
        let from = if index == row { column } else { 0 };
        for c in line[from..].chars() {
            match c {
                '(' | '[' => round += 1,
                ')' | ']' => round -= 1,
                '{' => curly += 1,
                '}' => curly -= 1,
                ';' if round == 0 && curly == 0 => return None,
                _ => continue,
            }
            if c == '}' && curly == 0 {
                return Some(index);
            }
        }
    }
    None
}

/// The line ranges of items behind a `#[cfg(test)]`-like attribute, or `#[cfg(fuzzing)]`, attribute included.
fn test_items(code: &[String]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (row, line) in code.iter().enumerate() {
        let attribute = line.trim_start();
        let is_about = |word| has_word(attribute, word) && !attribute.contains(&format!("not({word}"));
        let for_tests = attribute.starts_with("#[cfg(") && (is_about("test") || is_about("fuzzing"));
        if !for_tests && attribute != "#[test]" {
            continue;
        }
        let ends = code.iter().enumerate().skip(row + 1).find(|(_, line)| !line.trim_start().starts_with("#["));
        let Some((item, _)) = ends else { continue };
        let last = body_end(code, item, 0).or_else(|| semicolon(code, item)).unwrap_or(item);
        found.push(row..last + 1);
    }
    found
}

/// The line of the first `;` at or after `row`.
fn semicolon(code: &[String], row: usize) -> Option<usize> {
    code.iter().enumerate().skip(row).find(|(_, line)| line.contains(';')).map(|(index, _)| index)
}

/// `text` with comments and the insides of literals turned into spaces; line ends stay.
#[must_use]
pub fn mask(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let (keep, end) = token(&chars, at);
        for (offset, c) in chars[at..end].iter().enumerate() {
            let kept = *c == '\n' || offset < keep || (keep > 0 && keep < end - at && at + offset + 1 == end);
            out.push(if kept { *c } else { ' ' });
        }
        at = end;
    }
    out
}

/// The token at `at`: how many of its first characters stay visible, and where it ends.
/// Comments keep none, literals their opening and closing quote, everything else all.
fn token(chars: &[char], at: usize) -> (usize, usize) {
    let rest = &chars[at..];
    let before_is_word = at > 0 && is_word(chars[at - 1]);
    match rest {
        ['/', '/', ..] => (0, at + rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())),
        ['/', '*', ..] => (0, at + block_comment(rest)),
        ['"', ..] => (1, at + quoted(rest, 0)),
        ['r', '"' | '#', ..] if !before_is_word => {
            raw_string(rest, 1).map_or((1, at + 1), |(keep, len)| (keep, at + len))
        }
        ['b' | 'c', 'r', '"' | '#', ..] if !before_is_word => {
            raw_string(rest, 2).map_or((1, at + 1), |(keep, len)| (keep, at + len))
        }
        ['\'', '\\', ..] => (1, at + 3 + rest[3..].iter().position(|c| *c == '\'').map_or(0, |end| end + 1)),
        ['\'', _, '\'', ..] => (1, at + 3),
        _ => (1, at + 1),
    }
}

/// The length of the (nested) block comment that opens at the start.
fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the string whose opening quote is at `open`, escapes understood.
fn quoted(rest: &[char], open: usize) -> usize {
    let mut at = open + 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// A raw string whose prefix has `prefix` letters: (visible start, length); `None` for a raw identifier.
fn raw_string(rest: &[char], prefix: usize) -> Option<(usize, usize)> {
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&'"') {
        return None;
    }
    let closes =
        |at: &usize| rest[*at] == '"' && rest[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    let end = (open + 1..rest.len()).find(closes).map_or(rest.len(), |at| at + 1 + hashes);
    Some((open + 1, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_blanks_comments_and_literals_but_keeps_lines() {
        let text = "let a = \"x // y {\"; // z {\nlet b = r#\"q \" {\"#; /* { /* n */ } */ c('{', b'\\'', 'l');\n";
        let masked = mask(text);
        assert_eq!(masked.lines().count(), 2);
        assert_eq!(masked.len(), text.len());
        assert!(!masked.contains('{') && !masked.contains('z') && !masked.contains('q'), "{masked}");
        assert!(masked.contains("let a = \"") && masked.contains("c('"), "{masked}");
    }

    #[test]
    fn lifetimes_and_raw_identifiers_are_not_literals() {
        let masked = mask("fn f<'a>(r#type: &'a str) -> &'static str { r#type }");
        assert_eq!(masked, "fn f<'a>(r#type: &'a str) -> &'static str { r#type }");
    }

    #[test]
    fn escaped_quote_does_not_end_a_string() {
        assert_eq!(mask(r#"a("\"{", 1)"#), r#"a("   ", 1)"#);
    }

    #[test]
    fn functions_have_their_extent_and_declarations_have_none() {
        let source = Source::new(
            "a.rs",
            "trait T { fn declared(&self, a: [u8; 4]); }\nfn one() {\n    {\n    }\n}\nfn two() {}\n",
        );
        let found = source.functions();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], Function { name: "one".into(), lines: 1..5 });
        assert_eq!(found[1], Function { name: "two".into(), lines: 5..6 });
    }

    #[test]
    fn test_code_is_told_apart() {
        let text = "fn a() {}\n#[cfg(test)]\nmod fake;\n#[cfg(not(test))]\nfn b() {}\n#[cfg(test)]\nmod tests {\n  fn c() {}\n}\n";
        let source = Source::new("x/a.rs", text);
        assert_eq!(source.test, [false, true, true, false, false, true, true, true, true]);
        assert_eq!(source.test_modules(), ["fake"]);
        assert_eq!(source.non_test_lines(), 3);
        assert_eq!(Source::new("x/a.rs", "#[cfg(fuzzing)]\npub mod fuzz;\n").test_modules(), ["fuzz"]);
        assert_eq!(Source::new("x/tests.rs", text).non_test_lines(), 0);
        assert_eq!(Source::new("x/tests/a.rs", text).non_test_lines(), 0);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe { }", "unsafe") && has_word("(unsafe)", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe") && !has_word("not_unsafe", "unsafe"));
    }
}
