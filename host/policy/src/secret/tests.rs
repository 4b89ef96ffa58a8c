// SPDX-License-Identifier: Apache-2.0

use super::*;

fn command(argv: &[&str]) -> SecretSource {
    SecretSource::Command(argv.iter().map(|&word| word.to_owned()).collect())
}

#[test]
fn a_secret_is_read_from_each_source_without_its_line_feed() {
    let path = std::env::temp_dir().join(format!("midge-policy-secret-{}", std::process::id()));
    std::fs::write(&path, "s3cret\r\n").unwrap();
    let read = Secret::read(&SecretSource::File(path.clone()));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read.unwrap().expose(), "s3cret");
    assert_eq!(Secret::read(&command(&["echo", "s3cret"])).unwrap().expose(), "s3cret");
    let (name, value) = std::env::vars().find(|(_, value)| Secret::new(value).is_ok()).unwrap();
    assert_eq!(Secret::read(&SecretSource::Env(name)).unwrap().expose(), value);
}

#[test]
fn a_source_that_is_not_there_is_told_by_name() {
    let told = |source: &SecretSource| Secret::read(source).unwrap_err().to_string();
    assert!(told(&SecretSource::Env("MIDGE_NO_SUCH_VARIABLE".into())).contains("MIDGE_NO_SUCH_VARIABLE"));
    assert!(told(&SecretSource::File("/no/such/file".into())).contains("/no/such/file"));
    assert!(told(&command(&["/no/such/program"])).contains("/no/such/program"));
    assert!(told(&command(&["false"])).contains("exit status: 1"));
    assert!(told(&command(&["true"])).contains("empty"));
}

#[test]
fn what_no_header_can_hold_is_no_secret_and_is_not_told() {
    let long = "x".repeat(SECRET_MAX_BYTES + 1);
    for text in ["", "\n", "two\nlines", "nul\0", "tab\t", "umläut", " lead", "trail ", "s3cret\n\n", &long] {
        let error = Secret::new(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    }
    assert!(Secret::new(&long[1..]).is_ok());
    let read = Secret::read(&command(&["head", "-c", "100000", "/dev/zero"]));
    assert!(
        matches!(read, Err(SecretError::Command { .. } | SecretError::Unfit { .. })),
        "not more is read than is accepted"
    );
}

#[test]
fn a_secret_is_not_shown() {
    let secret = Secret::new("s3cret").unwrap();
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    assert_eq!(secret.within("Bearer ", "!").expose(), "Bearer s3cret!");
    assert_eq!(secret.basic("user").expose(), "Basic dXNlcjpzM2NyZXQ=");
}
