// SPDX-License-Identifier: Apache-2.0

use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;

const SECRET: &str = "sk-ant-0123456789+/=abcdef";

fn masker() -> Masker {
    Masker::new([SECRET]).unwrap()
}

fn percent(bytes: &[u8], all: bool, upper: bool) -> String {
    let one = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' if !all => char::from(*byte).to_string(),
        _ if upper => format!("%{byte:02X}"),
        _ => format!("%{byte:02x}"),
    };
    bytes.iter().map(one).collect()
}

fn json(text: &str) -> String {
    let quoted = serde_json::to_string(text).unwrap();
    quoted[1..quoted.len() - 1].to_owned()
}

fn ascii_json(text: &str) -> String {
    text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn wrapped(text: &str, columns: usize, with: &str) -> String {
    text.as_bytes().chunks(columns).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect::<Vec<_>>().join(with)
}

#[test]
fn text_around_a_secret_stays() {
    assert_eq!(masker().masked(&format!("Bearer {SECRET}, ok")).unwrap(), "Bearer [secret 1], ok");
    assert_eq!(masker().masked(SECRET).unwrap(), "[secret 1]");
    assert_eq!(masker().masked(&format!("{SECRET}{SECRET}")).unwrap(), "[secret 1][secret 1]");
    for harmless in ["", "sk-ant-0123456789+/=abcde", "%", "\\", "%2", "\\u00", "é\\", "sk-ant-"] {
        assert_eq!(masker().masked(harmless), None, "{harmless}");
    }
}

#[test]
fn overlapping_secrets_leave_nothing_of_either() {
    let masker = Masker::new(["abcdefgh", "efghijkl", "cdefghij"]).unwrap();
    assert_eq!(masker.masked("x abcdefghijkl y").unwrap(), "x [secret 1] y");
    assert_eq!(masker.masked("x efghijkl y").unwrap(), "x [secret 2] y");
}

#[test]
fn repetitive_secret_is_masked_to_its_end() {
    assert_eq!(Masker::new(["aaaaaaaa"]).unwrap().masked("baaaaaaaaaaac").unwrap(), "b[secret 1]c");
}

#[test]
fn white_space_at_the_ends_is_no_part() {
    let masker = Masker::new(["  token-token\n"]).unwrap();
    assert_eq!(masker.masked("(token-token)").unwrap(), "([secret 1])");
    assert_eq!(Masker::new(["   a   \n"]).unwrap_err(), SecretError::Short { number: 1, len: 1 });
}

#[test]
fn basic_authentication_is_found_with_its_neighbours() {
    for user in ["", "a", "ab", "abc"] {
        let header = format!("Basic {}", STANDARD.encode(format!("{user}:{SECRET}")));
        let masked = masker().masked(&header).unwrap();
        let rest = masked.split("[secret 1]").next().unwrap().len() - "Basic ".len();
        assert!(rest <= user.len() + 2, "{masked}");
    }
}

#[test]
fn escapes_of_the_secret_itself_are_read_both_ways() {
    for secret in
        ["a\\\\b\\c\"defg", "50%25%2Fabc", "%41%42%43", "C:\\new\\table", "pass word with spaces", "geheim-ä-€-😀"]
    {
        let masker = Masker::new([secret]).unwrap();
        let twice = percent(percent(secret.as_bytes(), false, true).as_bytes(), false, true);
        for spelled in [
            secret.to_owned(),
            json(secret),
            json(&json(secret)),
            json(&json(&json(secret))),
            ascii_json(secret),
            twice,
        ] {
            let masked = masker.masked(&format!("<{spelled}>"));
            assert_eq!(masked.as_deref(), Some("<[secret 1]>"), "{secret} as {spelled}");
        }
    }
    assert_eq!(
        Masker::new(["pass word with spaces"]).unwrap().masked("p=pass+word+with+spaces&").unwrap(),
        "p=[secret 1]&"
    );
}

#[test]
fn secrets_that_are_no_text_are_found_encoded() {
    let secret = [0xff, 0x00, 0x80, 0xc3, 0x28, 0x01, 0xfe, 0x7f, 0x99];
    let masker = Masker::new([secret]).unwrap();
    for spelled in [STANDARD.encode(secret), hex(&secret), percent(&secret, true, true)] {
        assert!(masker.masked(&spelled).is_some_and(|text| text.starts_with("[secret 1]")), "{spelled}");
    }
    // What would begin in the middle of a character takes the whole of it.
    let inside = Masker::new([b"\xa4bcdefgh"]).unwrap();
    assert_eq!(inside.masked("xäbcdefghy").unwrap(), "x[secret 1]y");
}

#[test]
fn numbers_and_keys_are_masked_and_nothing_is_lost() {
    let masker = Masker::new(["1234567890", "secret-key"]).unwrap();
    let mut value =
        serde_json::json!({"a": 1_234_567_890_u64, "secret-key 1": 1, "[secret 2] 1": 2, "n": [true, null]});
    masker.mask(&mut value);
    assert_eq!(value["a"], "[secret 1]");
    assert_eq!(value.as_object().unwrap().len(), 4, "{value}");
    assert!(!value.to_string().contains("secret-key"));
}

#[test]
fn limits_are_told() {
    assert!(matches!(Masker::new([vec![b'a'; SECRET_MAX_BYTES + 1]]), Err(SecretError::Long { .. })));
    assert!(matches!(Masker::new(vec!["abcdefgh"; SECRETS_MAX + 1]), Err(SecretError::Many)));
    assert!(!format!("{:?}", masker()).contains("sk-ant"));
    assert!(!Masker::new(["abc"]).unwrap_err().to_string().contains("abc"));
}

#[test]
fn pathological_text_takes_bounded_time() {
    let secret = "\\".repeat(30);
    let masker = Masker::new([secret.as_str(), "%25%25%25%25%25", SECRET]).unwrap();
    let _ = masker.masked(&("\\".repeat(4000) + &"%25".repeat(4000)));
}

/// Nothing of the middle of a secret may be left: not its first or last bytes, which encodings share with their neighbours.
fn nothing_left(masked: &str, spelled: &str) -> bool {
    let inner = &spelled[spelled.len().min(4)..spelled.len().saturating_sub(4)];
    inner.len() < 6 || !masked.contains(inner)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_spelling_of_a_secret_survives(
        secret in "[!-~]{8,40}",
        before in "[a-z =:]{0,5}",
        after in "[a-z =:]{0,5}",
        columns in 20..76_usize,
    ) {
        // A secret made of the mask's own words is not what this is about.
        prop_assume!(!"[secret 1]".contains(secret.as_str()));
        let masker = Masker::new([&secret]).unwrap();
        let around = format!("{before}{secret}{after}");
        let base64 = STANDARD.encode(&around);
        let spellings = [
            secret.clone(),
            json(&secret),
            json(&json(&secret)),
            ascii_json(&secret),
            json(&ascii_json(&secret)),
            secret.replace('/', "\\/"),
            percent(secret.as_bytes(), false, true),
            percent(secret.as_bytes(), true, false),
            percent(percent(secret.as_bytes(), true, false).as_bytes(), false, true),
            hex(secret.as_bytes()),
            hex(secret.as_bytes()).to_uppercase(),
            wrapped(&hex(secret.as_bytes()), columns, "\n"),
        ];
        for spelled in spellings {
            let masked = masker.masked(&format!("{before} {spelled} {after}"));
            let masked = masked.ok_or_else(|| TestCaseError::fail(format!("not found: {spelled}")))?;
            prop_assert!(!masker.finds(&masked) && nothing_left(&masked, &spelled), "{spelled} in {masked}");
        }
        let based = [
            base64.clone(),
            URL_SAFE_NO_PAD.encode(&around),
            wrapped(&base64, columns, "\n"),
            wrapped(&base64, columns, "\r\n"),
            json(&wrapped(&base64, columns, "\n")),
            percent(base64.as_bytes(), false, true),
        ];
        for spelled in based {
            let masked = masker.masked(&spelled);
            let masked = masked.ok_or_else(|| TestCaseError::fail(format!("not found: {spelled}")))?;
            prop_assert!(!masker.finds(&masked), "{masked}");
            // Nothing that only the secret decides is left, not even between line breaks.
            let left: String = masked.replace("[secret 1]", "\0").chars().filter(|c| !"\r\n".contains(*c)).collect();
            for before in 0..3 {
                let own = STANDARD_NO_PAD.encode([&vec![0; before], secret.as_bytes()].concat());
                let sure = &own.as_bytes()[4..own.len() - 2];
                let found = sure.windows(6).any(|six| left.as_bytes().windows(6).any(|other| other == six));
                prop_assert!(!found, "{own} in {masked}");
            }
        }
    }

    #[test]
    fn text_without_a_secret_is_left_alone(text in "[ -~äß\n\\\\%]{0,200}") {
        prop_assert_eq!(Masker::new(["\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}\u{8}"]).unwrap().masked(&text), None);
    }

    #[test]
    fn any_text_and_secret_are_survived(secret in prop::collection::vec(any::<u8>(), 8..12), text: String) {
        if let Ok(masker) = Masker::new([secret]) {
            let _ = masker.masked(&text);
        }
    }
}
