// SPDX-License-Identifier: Apache-2.0

use super::*;

fn admits(address: &str, ranges: &[&str]) -> bool {
    let ranges: Vec<Range> = ranges.iter().map(|range| range.parse().unwrap()).collect();
    admit(address.parse().unwrap(), &ranges).is_ok()
}

#[test]
fn the_public_internet_needs_no_range() {
    for address in [
        "8.8.8.8",
        "93.184.215.14",
        "172.32.0.1",
        "172.15.255.255",
        "100.63.255.255",
        "100.128.0.1",
        "169.253.1.1",
        "2606:4700::1111",
        "2a00::1",
        "192.169.0.1",
        "223.255.255.255",
    ] {
        assert!(admits(address, &[]), "{address}");
    }
}

#[test]
fn every_special_range_is_refused_unless_it_is_named() {
    let special = [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.1.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:8.8.8.8",
        "::ffff:10.0.0.1",
        "::8.8.8.8",
        "64:ff9b::808:808",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:2::1",
        "2001:10::1",
        "2001:db8::1",
        "2002:808:808::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fdff::1",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
        "4000::1",
        "1000::1",
        "e000::1",
    ];
    for address in special {
        assert!(!admits(address, &[]), "{address}");
        let range = Special::of(address.parse().unwrap()).unwrap().range;
        assert!(range.to_string().parse::<Range>().is_ok(), "{address}: {range} can be named");
    }
    assert!(admits("10.1.2.3", &["10.0.0.0/8"]) && !admits("10.1.2.3", &["10.0.0.0/16"]));
    assert!(admits("::1", &["::1/128"]) && !admits("::1", &["127.0.0.0/8"]));
}

#[test]
fn an_address_inside_another_has_to_be_named_too() {
    assert!(admits("64:ff9b::808:808", &["64:ff9b::/96"]));
    assert!(!admits("64:ff9b::a00:1", &["64:ff9b::/96"]), "NAT64 to 10.0.0.1");
    assert!(admits("64:ff9b::a00:1", &["64:ff9b::/96", "10.0.0.0/8"]));
    assert!(!admits("::ffff:127.0.0.1", &["::ffff:0.0.0.0/96"]));
    assert!(!admits("2002:7f00:1::1", &["2002::/16"]), "6to4 of 127.0.0.1");
    assert!(!admits("2001:0:a9fe:a9fe::1", &["2001::/32"]), "Teredo by 169.254.169.254");
    assert!(!admits("64:ff9b::a9fe:a9fe", &["64:ff9b::/96", "169.254.0.0/16"]), "NAT64 to a metadata service");
}

#[test]
fn a_metadata_service_is_named_by_itself_only() {
    for address in ["169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254", "168.63.129.16"] {
        assert!(!admits(address, &[]), "{address}");
        assert!(!admits(address, &["169.254.0.0/16", "100.64.0.0/10", "fd00::/8", "169.254.169.254/31"]), "{address}");
        let bits = if address.contains(':') { 128 } else { 32 };
        assert!(admits(address, &[&format!("{address}/{bits}")]), "{address}");
    }
}

#[test]
fn ranges_lie_in_one_special_range() {
    for text in ["10.0.0.0/8", "10.1.2.3/32", "fd00::/8", "::1/128", "168.63.129.16/32", "127.0.0.0/8"] {
        assert_eq!(text.parse::<Range>().unwrap().to_string(), text);
    }
    for text in [
        "0.0.0.0/0",
        "::/0",
        "8.8.8.8/32",
        "8.0.0.0/5",
        "10.0.0.1/8",
        "10.0.0.0",
        "10.0.0.0/33",
        "",
        "172.16.0.0/8",
        "a/8",
        "168.63.129.0/24",
    ] {
        assert!(text.parse::<Range>().is_err(), "{text}");
    }
}

#[test]
fn what_holds_a_range_admits_all_that_it_admits() {
    let ranges = [
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.5/32",
        "169.254.0.0/16",
        "169.254.169.254/32",
        "169.254.169.254/31",
        "64:ff9b::/96",
        "fd00::/8",
        "fd00:ec2::254/128",
    ];
    let addresses = ["10.0.0.5", "10.1.0.1", "169.254.169.254", "169.254.169.255", "fd00::1", "fd00:ec2::254"]
        .map(|text| text.parse::<IpAddr>().unwrap());
    let ranges = ranges.map(|text| text.parse::<Range>().unwrap());
    for (one, two) in ranges.iter().flat_map(|one| ranges.iter().map(move |two| (*one, *two))) {
        for address in addresses {
            assert!(!one.covers(two) || !two.admits(address) || one.admits(address), "{one} {two} {address}");
            let both = one.meet(two).is_some_and(|both| both.admits(address));
            assert!(!both || (one.admits(address) && two.admits(address)), "{one} {two} {address}");
        }
    }
}
