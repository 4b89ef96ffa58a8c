// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Option<String> {
    HostName::parse(text).ok().map(|host| host.as_str().to_owned())
}

fn address(text: &str) -> Option<IpAddr> {
    HostName::parse(text).ok().and_then(|host| host.address())
}

#[test]
fn names_have_one_spelling() {
    for text in
        ["example.org", "EXAMPLE.org", "example.org.", "ＥＸＡＭＰＬＥ．org", "example。org", "exa\u{ad}mple.org"]
    {
        assert_eq!(read(text).as_deref(), Some("example.org"), "{text:?}");
    }
    assert_eq!(read("bücher.example").as_deref(), Some("xn--bcher-kva.example"));
    assert_eq!(read("BÜCHER.example.").as_deref(), Some("xn--bcher-kva.example"));
    assert_eq!(read("xn--bcher-kva.example").as_deref(), Some("xn--bcher-kva.example"));
    assert_eq!(read("_dmarc.a-b.org").as_deref(), Some("_dmarc.a-b.org"));
}

#[test]
fn whatever_a_resolver_takes_for_ipv4_is_an_address() {
    let spelt = [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7F.1",
        "0177.0.0.1",
        "017700000001",
        "0x7f.0x0.0x0.0x1",
        "１２７.0.0.1",
        "127。0。0。1",
    ];
    for text in spelt {
        assert_eq!(address(text), Some("127.0.0.1".parse().unwrap()), "{text}");
    }
    assert_eq!(address("0"), Some("0.0.0.0".parse().unwrap()));
    // It ends in a number, so it is an address or nothing.
    for text in ["256.0.0.1", "1.2.3.4.5", "4294967296", "0x1ffffffff", "a.1", "09.1", "1.2.3.256", "127..1"] {
        assert_eq!(read(text), None, "{text}");
    }
}

#[test]
fn ipv6_literals_stand_with_and_without_brackets_and_without_zones() {
    for text in ["::1", "[::1]", "0:0:0:0:0:0:0:1", "[0000::0001]"] {
        assert_eq!(address(text), Some("::1".parse().unwrap()), "{text}");
    }
    assert_eq!(HostName::parse("[FE80::A]").unwrap().authority(), "[fe80::a]");
    // An IPv4-mapped one stays what it is: the table of addresses refuses it as that.
    assert_eq!(address("[::ffff:127.0.0.1]"), Some("::ffff:127.0.0.1".parse().unwrap()));
    for text in ["fe80::1%eth0", "[fe80::1%25eth0]", "[::1", "::1]", "[]", "[1.2.3.4]", "1:2", "[::1]:80", ":::"] {
        assert_eq!(read(text), None, "{text}");
    }
}

#[test]
fn what_is_no_bare_host_is_refused() {
    let long_label = format!("{}.org", "a".repeat(64));
    let long_name = format!("{}org", "a.".repeat(126));
    let refused = [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a b",
        "a/b",
        "a:80",
        "user@a",
        "http://a",
        "a?b",
        "a#b",
        "a\\b",
        "a%2eb",
        "%61.org",
        "a\0b",
        "a\nb",
        "a\tb",
        "a<b",
        "a^b",
        "a|b",
        "*.a",
        "a,b",
        "a\u{200d}b",
        &long_label,
        &long_name,
        "xn--",
        "xn--a",
    ];
    for text in refused {
        assert_eq!(read(text), None, "{text:?}");
    }
    assert!(read(&"a".repeat(63)).is_some());
    assert_eq!(read(&"a".repeat(SPELLING_MAX_BYTES + 1)), None);
}

#[test]
fn below_is_at_a_dot() {
    let below = |host: &str, name: &str| HostName::parse(host).unwrap().is_below(name);
    assert!(below("a.b.org", "b.org") && below("x.a.b.org", "b.org"));
    assert!(!below("b.org", "b.org") && !below("ab.org", "b.org") && !below("10.0.0.1", "0.0.1"));
}

proptest! {
    #[test]
    fn reading_is_stable(text in "\\PC{0,40}") {
        if let Ok(host) = HostName::parse(&text) {
            prop_assert_eq!(HostName::parse(host.as_str()), Ok(host.clone()));
            prop_assert_eq!(HostName::parse(&host.authority()), Ok(host.clone()));
            prop_assert!(host.as_str().bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
        }
    }

    #[test]
    fn upper_case_and_a_last_dot_say_nothing(name in "[a-z][a-z0-9-]{0,9}(\\.[a-z][a-z0-9]{0,9}){0,4}") {
        prop_assume!(HostName::parse(&name).is_ok());
        let upper = format!("{}.", name.to_uppercase());
        prop_assert_eq!(HostName::parse(&upper), HostName::parse(&name));
    }

    #[test]
    fn addresses_in_every_spelling_are_themselves(bits: u32) {
        let plain = std::net::Ipv4Addr::from_bits(bits);
        for text in [bits.to_string(), format!("{bits:#x}"), format!("0{bits:o}"), format!("{plain}.")] {
            prop_assert_eq!(HostName::parse(&text), Ok(plain.into()));
        }
    }
}
