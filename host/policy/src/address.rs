// SPDX-License-Identifier: Apache-2.0
//! Which addresses of a resolved name may be connected to. Those that are not the public Internet's are refused unless a rule
//! names them by range. The tables are of the IANA special-purpose registries (RFC 6890 and its updates).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::text::{Malformed, text_type};

/// A network by CIDR that a rule names: all of it inside one range that is special, such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range(IpNet);

text_type!(
    Range,
    "midge-range",
    "a network by CIDR that lies in one special range, such as 10.0.0.0/8, 192.168.1.7/32 or fd00::/8"
);

/// What an address is for, when it is not of the public Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Special {
    /// In words, such as `private (RFC 1918)`.
    pub what: &'static str,
    /// The whole range.
    pub range: IpNet,
    /// The address in it that a gateway would go on to.
    pub embedded: Option<Ipv4Addr>,
}

/// Services of clouds that hand out credentials to whoever asks. A range lets one through only as that one address.
const METADATA: [IpAddr; 11] = [
    v4(169, 254, 169, 254),
    v4(169, 254, 170, 2),
    v4(169, 254, 170, 23),
    v4(169, 254, 0, 23),
    v4(100, 100, 100, 200),
    v4(168, 63, 129, 16),
    v4(192, 0, 0, 192),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]),
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42]),
];

/// How a range of IPv6 carries an address of IPv4.
#[derive(Clone, Copy)]
enum Carries {
    Nothing,
    /// From this bit of the address, counted from its first.
    At(u32),
}

use Carries::{At, Nothing};

/// Special ranges, the narrower before the wider.
const RANGES: [(IpAddr, u8, &str, Carries); 37] = [
    (v4(0, 0, 0, 0), 8, "this network, unspecified (RFC 1122)", Nothing),
    (v4(10, 0, 0, 0), 8, "private (RFC 1918)", Nothing),
    (v4(100, 64, 0, 0), 10, "shared by carriers, CGNAT (RFC 6598)", Nothing),
    (v4(127, 0, 0, 0), 8, "loopback (RFC 1122)", Nothing),
    (v4(169, 254, 0, 0), 16, "link-local (RFC 3927)", Nothing),
    (v4(172, 16, 0, 0), 12, "private (RFC 1918)", Nothing),
    (v4(192, 0, 0, 0), 24, "protocol assignments (RFC 6890)", Nothing),
    (v4(192, 0, 2, 0), 24, "documentation (RFC 5737)", Nothing),
    (v4(192, 88, 99, 0), 24, "6to4 relays (RFC 7526)", Nothing),
    (v4(192, 168, 0, 0), 16, "private (RFC 1918)", Nothing),
    (v4(198, 18, 0, 0), 15, "benchmarks (RFC 2544)", Nothing),
    (v4(198, 51, 100, 0), 24, "documentation (RFC 5737)", Nothing),
    (v4(203, 0, 113, 0), 24, "documentation (RFC 5737)", Nothing),
    (v4(224, 0, 0, 0), 4, "multicast (RFC 5771)", Nothing),
    (v4(240, 0, 0, 0), 4, "reserved and broadcast (RFC 1112)", Nothing),
    (v6([0; 8]), 128, "unspecified (RFC 4291)", Nothing),
    (v6([0, 0, 0, 0, 0, 0, 0, 1]), 128, "loopback (RFC 4291)", Nothing),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0]), 96, "IPv4-mapped (RFC 4291)", At(96)),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0]), 96, "IPv4-translated (RFC 2765)", At(96)),
    (v6([0; 8]), 96, "IPv4-compatible (RFC 4291)", At(96)),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0]), 96, "NAT64 (RFC 6052)", At(96)),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0]), 48, "NAT64 of one network (RFC 8215)", At(96)),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0]), 64, "discarded (RFC 6666)", Nothing),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0]), 32, "Teredo (RFC 4380)", At(32)),
    (v6([0x2001, 2, 0, 0, 0, 0, 0, 0]), 48, "benchmarks (RFC 5180)", Nothing),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0]), 23, "protocol assignments (RFC 2928)", Nothing),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0]), 32, "documentation (RFC 3849)", Nothing),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0]), 16, "6to4 (RFC 3056)", At(16)),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0]), 20, "documentation (RFC 9637)", Nothing),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0]), 16, "segment routing (RFC 9602)", Nothing),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0]), 7, "unique local (RFC 4193)", Nothing),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 10, "link-local (RFC 4291)", Nothing),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0]), 10, "site-local (RFC 3879)", Nothing),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8, "multicast (RFC 4291)", Nothing),
    // What is left outside of 2000::/3 is assigned to nobody.
    (v6([0; 8]), 3, "not assigned (RFC 4291)", Nothing),
    (v6([0x4000, 0, 0, 0, 0, 0, 0, 0]), 2, "not assigned (RFC 4291)", Nothing),
    (v6([0x8000, 0, 0, 0, 0, 0, 0, 0]), 1, "not assigned (RFC 4291)", Nothing),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(s: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]))
}

impl Special {
    /// What `address` is for; `None` for one of the public Internet.
    #[must_use]
    pub fn of(address: IpAddr) -> Option<Self> {
        if METADATA.contains(&address) {
            return Some(Self { what: "a cloud's metadata service", range: address.into(), embedded: None });
        }
        RANGES.into_iter().find_map(|(start, bits, what, carries)| {
            let range = IpNet::new_assert(start, bits);
            let embedded = match (carries, address) {
                (At(from), IpAddr::V6(address)) => {
                    Some(Ipv4Addr::from_bits(u32::try_from(address.to_bits() << from >> 96).unwrap_or_default()))
                }
                _ => None,
            };
            range.contains(&address).then_some(Self { what, range, embedded })
        })
    }
}

/// Why an address may not be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {what}, and no range of the rule names it")]
pub struct AddressRefused {
    /// Which.
    pub address: IpAddr,
    /// What it is for.
    pub what: &'static str,
}

/// Whether `address` may be connected to by a rule with these ranges.
pub(crate) fn admit(address: IpAddr, ranges: &[Range]) -> Result<(), AddressRefused> {
    let Some(special) = Special::of(address) else { return Ok(()) };
    if !ranges.iter().any(|range| range.admits(address)) {
        return Err(AddressRefused { address, what: special.what });
    }
    special.embedded.map_or(Ok(()), |inner| admit(inner.into(), ranges))
}

impl Range {
    /// The network.
    #[must_use]
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Whether it names `address`. The address of a metadata service is named by nothing but itself.
    fn admits(self, address: IpAddr) -> bool {
        if METADATA.contains(&address) { self.0 == IpNet::from(address) } else { self.0.contains(&address) }
    }

    /// Whether it names every address that `other` names.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        if other.is_one_service() { self.0 == other.0 } else { self.0.contains(&other.0) }
    }

    /// What both name: one of the two, or nothing.
    pub(crate) fn meet(self, other: Self) -> Option<Self> {
        if self.covers(other) { Some(other) } else { other.covers(self).then_some(self) }
    }

    fn is_one_service(self) -> bool {
        METADATA.iter().any(|address| self.0 == IpNet::from(*address))
    }
}

impl FromStr for Range {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let net: IpNet = text.parse().map_err(|_| Malformed::new("is not an address, a / and a number of bits"))?;
        if net != net.trunc() {
            return Err(Malformed::new(format!("has bits beyond its length; that network is {}", net.trunc())));
        }
        if Self(net).is_one_service() {
            return Ok(Self(net));
        }
        let inside = RANGES.iter().any(|(start, bits, ..)| IpNet::new_assert(*start, *bits).contains(&net));
        if !inside {
            return Err(Malformed::new("is not inside one special range: public addresses are named by their hosts"));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests;
