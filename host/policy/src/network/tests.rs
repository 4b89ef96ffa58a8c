// SPDX-License-Identifier: Apache-2.0

use super::*;

fn credential(rest: &str) -> Credential {
    let text = format!("name = \"c\"\nhosts = [\"a.org\"]\nsecret = {{ env = \"X\" }}\n{rest}");
    toml::from_str(&text).unwrap()
}

#[test]
fn the_header_is_made_of_the_secret() {
    let secret = Secret::new("s3cret").unwrap();
    let value = |rest: &str| credential(rest).header_value(&secret).expose().to_owned();
    assert_eq!(value(""), "Bearer s3cret");
    assert_eq!(value("value = \"token {secret};\""), "token s3cret;");
    assert_eq!(value("basic_user = \"x-access-token\""), "Basic eC1hY2Nlc3MtdG9rZW46czNjcmV0");
    assert_eq!(credential("").header.as_str(), "authorization");
}

#[test]
fn ports_are_those_of_the_schemes_unless_they_are_named() {
    let rule = |rest: &str| toml::from_str::<Rule>(&format!("name = \"r\"\nhosts = [\"a.org\"]\n{rest}")).unwrap();
    assert!(
        rule("").is_at(Scheme::Https, 443) && !rule("").is_at(Scheme::Http, 80) && !rule("").is_at(Scheme::Https, 80)
    );
    let both = rule("schemes = [\"http\", \"https\"]");
    assert!(both.is_at(Scheme::Http, 80) && both.is_at(Scheme::Https, 443) && !both.is_at(Scheme::Http, 443));
    let named = rule("schemes = [\"http\", \"tcp\"]\nports = [8080]");
    assert!(named.is_at(Scheme::Tcp, 8080) && named.is_at(Scheme::Http, 8080) && !named.is_at(Scheme::Http, 80));
}
