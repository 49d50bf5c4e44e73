//! Whom a ban is for: one address, or a network.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// One IPv4 address or one IPv6 /64, which is what one customer is given (RFC 6177), or a network of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(IpNet);

/// A prefix length for IPv4 and one for IPv6.
type Lengths = (u8, u8);

/// What one host or customer has.
const HOST: Lengths = (32, 64);
/// The widest networks that may be banned without `force`: a large provider's or a national one's.
const FLOOR: Lengths = (16, 32);
/// The widest networks that may be banned at all.
const WIDEST: Lengths = (8, 16);

impl Target {
    /// The target that an address is judged and banned as; IPv4-mapped IPv6 counts as IPv4.
    pub fn of(addr: IpAddr) -> Self {
        Target(match addr.to_canonical() {
            IpAddr::V4(v4) => IpNet::V4(Ipv4Net::from(v4)),
            IpAddr::V6(v6) => {
                let network = Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64));
                IpNet::V6(Ipv6Net::new_assert(network, 64))
            }
        })
    }

    /// The network of this length that the target is in; none where it is no wider than the target, or so wide
    /// that nobody may ban it.
    pub fn within(self, length: u8) -> Option<Self> {
        let wider = (of_family(self.0, WIDEST)..self.0.prefix_len()).contains(&length);
        let net = IpNet::new(self.0.addr(), length).ok().filter(|_| wider)?;
        Some(Target(net.trunc()))
    }

    /// The networks that the target is in, the widest first.
    pub fn around(self) -> impl Iterator<Item = Self> {
        (0..self.0.prefix_len()).filter_map(move |length| self.within(length))
    }

    /// The first address of the target.
    pub fn network(self) -> IpAddr {
        self.0.network()
    }

    pub fn net(self) -> IpNet {
        self.0
    }

    pub fn is_v4(self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// Whether it is wider than what one host or customer has.
    pub fn is_network(self) -> bool {
        self.0.prefix_len() < of_family(self.0, HOST)
    }

    /// Whether it is wider than /16, or /32 for IPv6: nobody may ban that without saying `force`.
    pub fn needs_force(self) -> bool {
        self.0.prefix_len() < of_family(self.0, FLOOR)
    }

    /// Whether all of `other` is in it.
    pub fn covers(self, other: Target) -> bool {
        self.0.contains(&other.0)
    }
}

fn of_family(net: IpNet, (v4, v6): Lengths) -> u8 {
    match net {
        IpNet::V4(_) => v4,
        IpNet::V6(_) => v6,
    }
}

impl TryFrom<IpNet> for Target {
    type Error = String;

    /// Refuses what is too wide for anybody to ban, and a network that is not written by its first address.
    fn try_from(net: IpNet) -> Result<Self, String> {
        if let IpNet::V6(v6) = net
            && let (Some(v4), Some(length)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96))
        {
            return Target::try_from(IpNet::V4(Ipv4Net::new_assert(v4, length)));
        }
        let (length, widest) = (net.prefix_len(), of_family(net, WIDEST));
        if length >= of_family(net, HOST) {
            Ok(Target::of(net.addr()))
        } else if length < widest {
            Err(format!("{net} is too much of the internet to be banned: /{widest} is the widest"))
        } else if net.trunc() != net {
            Err(format!("{net} has bits beyond its prefix: write {}", net.trunc()))
        } else {
            Ok(Target(net))
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpNet::V4(v4) if !self.is_network() => f.pad(&v4.addr().to_string()),
            net => f.pad(&net.to_string()),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    /// Takes an address, or a network: `203.0.113.0/24`, `2001:db8::/48`.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
            (Ok(addr), _) => Ok(Target::of(addr)),
            (_, Ok(net)) => Target::try_from(net),
            _ => Err(format!("\"{text}\" is not an IP address or network")),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn ipv6_is_judged_by_its_64_and_mapped_addresses_as_ipv4() {
        for (text, wanted) in [
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:3:4:5:6/128", "2001:db8:1:2::/64"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("192.0.2.1/32", "192.0.2.1"),
        ] {
            assert_eq!(target(text).to_string(), wanted);
        }
    }

    #[test]
    fn what_is_too_wide_or_not_written_as_a_network_is_refused() {
        for (text, wanted) in [
            ("0.0.0.0/0", "0.0.0.0/0 is too much of the internet to be banned: /8 is the widest"),
            ("203.0.113.0/7", "/8 is the widest"),
            ("::/0", "/16 is the widest"),
            ("2001:db8::/15", "/16 is the widest"),
            ("::ffff:0:0/96", "/8 is the widest"),
            ("203.0.113.7/24", "203.0.113.7/24 has bits beyond its prefix: write 203.0.113.0/24"),
            ("2001:db8::7/48", "write 2001:db8::/48"),
            ("203.0.113", "\"203.0.113\" is not an IP address or network"),
        ] {
            let told = text.parse::<Target>().unwrap_err();
            assert!(told.contains(wanted), "{text}: {told}");
        }
    }

    #[test]
    fn networks_that_need_force_are_those_wider_than_the_floor() {
        for (text, network, force) in [
            ("203.0.113.7", false, false),
            ("203.0.113.6/31", true, false),
            ("203.0.0.0/16", true, false),
            ("203.0.0.0/15", true, true),
            ("2001:db8::/64", false, false),
            ("2001:db8::/63", true, false),
            ("2001:db8::/32", true, false),
            ("2001:db8::/31", true, true),
        ] {
            assert_eq!((target(text).is_network(), target(text).needs_force()), (network, force), "{text}");
        }
    }

    #[test]
    fn the_networks_around_a_target_are_those_that_can_be_banned() {
        let around: Vec<Target> = target("203.0.113.128/26").around().collect();
        assert_eq!(
            (around.len(), around[0], around[17]),
            (18, target("203.0.0.0/8"), target("203.0.113.128/25"))
        );
        assert_eq!(target("2001:db8:1:2::/64").around().count(), 48);
        assert_eq!(target("203.0.113.7").within(24), Some(target("203.0.113.0/24")));
        assert_eq!(target("203.0.113.0/24").within(24), None);
        assert_eq!(target("2001:db8:1:2::/64").within(15), None);
    }
}
