//! Who is never banned: networks merged into ranges, asked by binary search.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::IpNet;

/// A set of addresses. IPv4 lives in its mapped form (RFC 4291, 2.5.5.2), so one list holds both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// First and last address of each range; sorted, apart from each other.
    ranges: Vec<(u128, u128)>,
}

impl Allow {
    pub fn new<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut ranges: Vec<(u128, u128)> =
            nets.into_iter().map(|net| (bits(net.network()), bits(last(net)))).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
                _ => merged.push((first, last)),
            }
        }
        Allow { ranges: merged }
    }

    pub fn covers(&self, addr: IpAddr) -> bool {
        let wanted = bits(addr);
        let after = self.ranges.partition_point(|(first, _)| *first <= wanted);
        after > 0 && wanted <= self.ranges[after - 1].1
    }

    /// Whether any address of `net` is in the set.
    pub fn touches(&self, net: IpNet) -> bool {
        self.first_in(net).is_some()
    }

    /// The first address of `net` that is in the set.
    pub fn first_in(&self, net: IpNet) -> Option<IpAddr> {
        let (first, last) = (bits(net.network()), bits(last(&net)));
        let (start, _) = self.ranges.get(self.ranges.partition_point(|(_, end)| *end < first))?;
        (*start <= last).then(|| IpAddr::V6(Ipv6Addr::from_bits(first.max(*start))).to_canonical())
    }

    /// Whether all addresses of `net` are in the set.
    pub fn holds(&self, net: IpNet) -> bool {
        let (first, last) = (bits(net.network()), bits(last(&net)));
        let range = self.ranges.get(self.ranges.partition_point(|(_, end)| *end < first));
        range.is_some_and(|(start, end)| *start <= first && last <= *end)
    }
}

/// The last address of a net; `IpNet::broadcast` says the same, under a name that fits IPv4 only.
fn last(net: &IpNet) -> IpAddr {
    net.broadcast()
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Addresses that no remote host can have, whatever a log says: loopback, unspecified, link-local, multicast
/// and reserved ones (RFC 6890). Banning one would cut the host from itself or its neighbours.
pub fn unbannable() -> &'static Allow {
    static NETS: LazyLock<Allow> = LazyLock::new(|| {
        let v4 = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"];
        let v6 = ["::/127", "fe80::/10", "ff00::/8"];
        let nets: Vec<IpNet> = v4.iter().chain(&v6).map(|net| net.parse().expect("a net")).collect();
        Allow::new(&nets)
    });
    &NETS
}

/// Loopback and private addresses (RFC 1918, RFC 4193): in a log that the world writes to, those of a proxy.
pub fn is_internal(addr: IpAddr) -> bool {
    match addr.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn overlapping_and_adjacent_nets_are_one() {
        let allow = Allow::new(&nets(&["192.0.2.0/25", "192.0.2.128/25", "192.0.2.7/32", "2001:db8::/32"]));
        assert_eq!(allow.ranges.len(), 2);
        for (addr, covered) in [
            ("192.0.2.0", true),
            ("192.0.2.255", true),
            ("::ffff:192.0.2.9", true),
            ("192.0.3.0", false),
            ("192.0.1.255", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
        ] {
            assert_eq!(allow.covers(addr.parse().unwrap()), covered, "{addr}");
        }
    }

    #[test]
    fn a_64_that_holds_one_allowed_address_is_touched() {
        let allow = Allow::new(&nets(&["2001:db8::7/128"]));
        assert!(allow.touches("2001:db8::/64".parse().unwrap()));
        assert!(!allow.touches("2001:db8:0:1::/64".parse().unwrap()));
    }

    #[test]
    fn of_a_network_the_first_allowed_address_is_named() {
        let allow = Allow::new(&nets(&["192.0.2.7/32", "192.0.2.9/32", "198.51.100.0/24", "2001:db8::/32"]));
        for (net, first) in [
            ("192.0.2.0/24", Some("192.0.2.7")),
            ("192.0.2.8/29", Some("192.0.2.9")),
            ("192.0.2.128/25", None),
            ("198.51.100.128/25", Some("198.51.100.128")),
            ("2001:db8:1::/48", Some("2001:db8:1::")),
            ("203.0.0.0/8", None),
        ] {
            assert_eq!(
                allow.first_in(net.parse().unwrap()),
                first.map(|addr| addr.parse().unwrap()),
                "{net}"
            );
        }
        for (net, all) in [("198.51.100.128/25", true), ("198.51.0.0/16", false), ("192.0.2.7/32", true)] {
            assert_eq!(allow.holds(net.parse().unwrap()), all, "{net}");
        }
    }

    #[test]
    fn what_no_remote_host_can_have_is_unbannable() {
        for addr in ["0.0.0.0", "0.1.2.3", "127.8.8.8", "169.254.1.1", "224.0.0.1", "255.255.255.255", "::"] {
            assert!(unbannable().covers(addr.parse().unwrap()), "{addr}");
        }
        for addr in ["::1", "fe80::1", "ff02::1", "::ffff:127.0.0.1"] {
            assert!(unbannable().covers(addr.parse().unwrap()), "{addr}");
        }
        for addr in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "223.255.255.255"] {
            assert!(!unbannable().covers(addr.parse().unwrap()), "{addr}");
        }
    }

    proptest! {
        #[test]
        fn covers_what_any_of_its_nets_contains(
            nets in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..20),
            probe in any::<u32>(),
            near in any::<prop::sample::Index>(),
        ) {
            let nets: Vec<IpNet> = nets
                .into_iter()
                .map(|(bits, len)| IpNet::new(Ipv4Addr::from_bits(bits).into(), len).unwrap().trunc())
                .collect();
            let allow = Allow::new(&nets);
            let mut probes = vec![IpAddr::from(Ipv4Addr::from_bits(probe))];
            if !nets.is_empty() {
                let net = nets[near.index(nets.len())];
                probes.extend([net.network(), net.broadcast()]);
            }
            for addr in probes {
                prop_assert_eq!(allow.covers(addr), nets.iter().any(|net| net.contains(&addr)));
            }
        }
    }
}
