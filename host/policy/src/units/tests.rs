// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;

fn bytes(text: &str) -> Option<u64> {
    text.parse::<Bytes>().ok().map(Bytes::get)
}

fn ms(text: &str) -> Option<u64> {
    text.parse::<Period>().ok().map(Period::as_ms)
}

fn micros(text: &str) -> Option<u64> {
    text.parse::<Money>().ok().map(Money::micros)
}

#[test]
fn bytes_have_a_unit_and_a_range() {
    assert_eq!(bytes("1GiB"), Some(1 << 30));
    assert_eq!(bytes("10 MB"), Some(10_000_000));
    assert_eq!(bytes("1024TiB"), Some(BYTES_MAX));
    assert_eq!(bytes("1B"), Some(1));
    for text in [
        "",
        "1",
        "1gib",
        "GiB",
        "0B",
        "1025TiB",
        "1.5GiB",
        "-1B",
        "1GiBx",
        "99999999999999999999B",
        "18446744073709551615TiB",
    ] {
        assert_eq!(bytes(text), None, "{text}");
    }
}

#[test]
fn periods_add_up_from_the_longest_unit_down() {
    assert_eq!(ms("30m"), Some(1_800_000));
    assert_eq!(ms("1h30m"), Some(5_400_000));
    assert_eq!(ms("1m5ms"), Some(60_005));
    assert_eq!(ms("365d"), Some(PERIOD_MAX_MS));
    for text in ["", "30", "0s", "365d1ms", "30m1h", "1h1h", "1.5h", "h", "1 h", "-1s", "99999999999999999999s"] {
        assert_eq!(ms(text), None, "{text}");
    }
}

#[test]
fn money_is_exact() {
    assert_eq!(micros("5.00"), Some(5_000_000));
    assert_eq!(micros("0"), Some(0));
    assert_eq!(micros("0.000001"), Some(1));
    assert_eq!(micros("1000000"), Some(MONEY_MAX_MICROS));
    for text in
        ["", ".", "5.", ".5", "1000000.000001", "0.0000001", "-1", "+1", "1e3", "$5", "5,00", "99999999999999999999"]
    {
        assert_eq!(micros(text), None, "{text}");
    }
    assert_eq!(Money::from_micros(5_000_000).to_string(), "5.00");
    assert_eq!(Money::from_micros(250_001).to_string(), "0.250001");
}

#[test]
fn rates_tell_what_may_come_at_once_and_in_an_hour() {
    let rate: Rate = "100/m".parse().unwrap();
    assert_eq!((rate.count(), rate.per_hour(), rate.per().as_secs()), (100, 6000, 60));
    for text in ["", "0/s", "1000001/s", "10", "10/d", "10 /s", "1.5/s", "/s"] {
        assert!(text.parse::<Rate>().is_err(), "{text}");
    }
    let low = "10/s".parse::<Rate>().unwrap().meet(rate);
    assert_eq!(low.to_string(), "10/m");
}

proptest! {
    #[test]
    fn what_is_shown_is_read_as_the_same(number in 1..=BYTES_MAX, time in 1..=PERIOD_MAX_MS, money in 0..=MONEY_MAX_MICROS, count in 1..=RATE_MAX) {
        prop_assert_eq!(Bytes::new(number).to_string().parse(), Ok(Bytes::new(number)));
        prop_assert_eq!(Period::from_ms(time).to_string().parse(), Ok(Period::from_ms(time)));
        prop_assert_eq!(Money::from_micros(money).to_string().parse(), Ok(Money::from_micros(money)));
        let rate: Rate = format!("{count}/h").parse().unwrap();
        prop_assert_eq!(rate.to_string().parse(), Ok(rate));
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in ".{0,24}") {
        let _ = (text.parse::<Bytes>(), text.parse::<Period>(), text.parse::<Money>(), text.parse::<Rate>());
    }
}
