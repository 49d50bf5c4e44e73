//! Neighbours who were banned: when enough of them share a network, the network is to be banned.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use crate::model::{Target, Timestamp};

/// When a jail bans networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixLaw {
    /// The prefix lengths of these networks, of IPv4 and of IPv6.
    pub v4: Vec<u8>,
    pub v6: Vec<u8>,
    /// So many targets banned in one network ban it; at least 2.
    pub offenders: u32,
    /// The time within which they must have been banned.
    pub findtime: Duration,
}

/// The most offenders that one jail counts: about 6 MB.
const OFFENDERS_MAX: usize = 100_000;

/// Who was banned lately, in order of addresses: targets, and networks in place of all in them.
#[derive(Debug)]
pub struct Neighbours {
    law: PrefixLaw,
    banned: BTreeMap<Target, Timestamp>,
    most: usize,
}

impl Neighbours {
    pub fn new(law: PrefixLaw) -> Self {
        Neighbours { law, banned: BTreeMap::new(), most: OFFENDERS_MAX }
    }

    pub fn law(&self) -> &PrefixLaw {
        &self.law
    }

    /// Notes that a target was banned. Returns the network that is to be banned for it, of several the widest.
    ///
    /// A network that is to be banned counts as one offender from then on: a wide one is banned for offenders in
    /// many of its parts, not for many in one.
    pub fn note(&mut self, target: Target, at: Timestamp) -> Option<Target> {
        if !self.remember(target, at) {
            return None;
        }
        let mut lengths = if target.is_v4() { self.law.v4.clone() } else { self.law.v6.clone() };
        lengths.sort_unstable();
        let nets = lengths.into_iter().rev().filter_map(|length| target.within(length));
        nets.filter(|net| {
            let due = self.count(*net) >= self.law.offenders as usize;
            if due {
                self.remember(*net, at);
            }
            due
        })
        .last()
    }

    /// Notes that a target was banned, where nothing follows from it. False where its network was banned since.
    pub fn remember(&mut self, target: Target, at: Timestamp) -> bool {
        if target.around().any(|net| self.banned.get(&net).is_some_and(|since| *since >= at)) {
            return false;
        }
        let in_place_of: Vec<Target> =
            self.inside(target).filter(|(_, then)| *then <= at).map(|(offender, _)| offender).collect();
        for offender in in_place_of {
            self.banned.remove(&offender);
        }
        if self.banned.len() >= self.most && !self.banned.contains_key(&target) {
            self.sweep();
        }
        let last = self.banned.entry(target).or_insert(at);
        *last = at.max(*last);
        true
    }

    /// A target, or all of a network, counts as if it had never been banned.
    pub fn forget(&mut self, target: Target) {
        for offender in self.inside(target).map(|(offender, _)| offender).collect::<Vec<_>>() {
            self.banned.remove(&offender);
        }
        self.banned.remove(&target);
    }

    /// How many offenders of a network count together with the last one. The others are forgotten, so that the next
    /// count need not look at them: between two bans of a network it sees each a few times at most.
    fn count(&mut self, net: Target) -> usize {
        let Some(newest) = self.inside(net).map(|(_, at)| at).max() else { return 0 };
        let findtime = self.law.findtime;
        let (counts, stale): (Vec<_>, Vec<_>) =
            self.inside(net).partition(|(_, at)| newest.since(*at) <= findtime);
        for (offender, _) in stale {
            self.banned.remove(&offender);
        }
        counts.len()
    }

    fn inside(&self, net: Target) -> impl Iterator<Item = (Target, Timestamp)> {
        let later = self.banned.range((Excluded(net), Unbounded)).map(|(offender, at)| (*offender, *at));
        later.take_while(move |(offender, _)| net.covers(*offender))
    }

    /// Makes room: the eighth that was banned longest ago is forgotten.
    fn sweep(&mut self) {
        let mut ranked: Vec<(Timestamp, Target)> =
            self.banned.iter().map(|(target, at)| (*at, *target)).collect();
        let share = (self.most / 8).max(1).min(ranked.len());
        ranked.select_nth_unstable(share - 1);
        for (_, target) in &ranked[..share] {
            self.banned.remove(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1_000)
    }

    fn neighbours(offenders: u32) -> Neighbours {
        let findtime = Duration::from_secs(60);
        Neighbours::new(PrefixLaw { v4: vec![24], v6: vec![48, 56], offenders, findtime })
    }

    #[test]
    fn as_many_neighbours_as_the_law_says_ban_their_network() {
        let mut neighbours = neighbours(3);
        assert_eq!(neighbours.note(target("192.0.2.1"), at(0)), None);
        assert_eq!(neighbours.note(target("192.0.2.1"), at(1)), None, "one counts once");
        assert_eq!(neighbours.note(target("192.0.3.1"), at(1)), None, "who is elsewhere does not count");
        assert_eq!(neighbours.note(target("192.0.2.9"), at(2)), None);
        assert_eq!(neighbours.note(target("192.0.2.255"), at(3)), Some(target("192.0.2.0/24")));
        assert_eq!(neighbours.note(target("192.0.2.77"), at(4)), None, "the count begins anew");
    }

    #[test]
    fn offences_long_ago_do_not_count_in_whatever_order_they_come() {
        let mut neighbours = neighbours(3);
        neighbours.note(target("192.0.2.1"), at(100));
        assert_eq!(neighbours.note(target("192.0.2.2"), at(39)), None);
        assert_eq!(neighbours.note(target("192.0.2.3"), at(40)), None, "61 seconds are too long");
        assert_eq!(neighbours.note(target("192.0.2.4"), at(41)), Some(target("192.0.2.0/24")));
    }

    #[test]
    fn a_wide_network_is_banned_for_many_of_its_parts_not_for_many_in_one() {
        let mut neighbours = neighbours(3);
        for n in 0..2 {
            assert_eq!(neighbours.note(target(&format!("2001:db8:0:{n}::/64")), at(0)), None);
        }
        assert_eq!(neighbours.note(target("2001:db8:0:2::/64"), at(0)), Some(target("2001:db8::/56")));
        assert_eq!(
            neighbours.note(target("2001:db8:0:100::/64"), at(0)),
            None,
            "the /56 and this one are two"
        );
        assert_eq!(neighbours.note(target("2001:db8:0:200::/64"), at(0)), Some(target("2001:db8::/48")));
    }

    #[test]
    fn the_pardoned_do_not_count() {
        let mut neighbours = neighbours(2);
        neighbours.note(target("192.0.2.1"), at(0));
        neighbours.forget(target("192.0.2.1"));
        assert_eq!(neighbours.note(target("192.0.2.2"), at(0)), None);
        neighbours.forget(target("192.0.0.0/16"));
        assert_eq!(neighbours.note(target("192.0.2.3"), at(0)), None);
        neighbours.remember(target("192.0.2.4"), at(0));
        assert!(neighbours.note(target("192.0.2.5"), at(0)).is_some());
    }

    #[test]
    fn it_is_bounded_and_forgets_those_banned_longest_ago() {
        let mut neighbours = Neighbours { most: 16, ..neighbours(2) };
        for n in 0..1_000_u32 {
            let addr = std::net::Ipv4Addr::from_bits(0x0A00_0000 + n * 256);
            assert_eq!(neighbours.note(Target::of(addr.into()), at(i64::from(n))), None);
            assert!(neighbours.banned.len() <= 16);
        }
        assert_eq!(neighbours.note(target("10.3.231.9"), at(1_000)), Some(target("10.3.231.0/24")));
    }

    proptest! {
        /// The definition, applied to every ban since the network was last due.
        #[test]
        fn agrees_with_a_naive_count_of_neighbours(
            offenders in 2u32..5,
            bans in proptest::collection::vec((0u8..3, 0u8..6, 0i64..200), 1..200),
        ) {
            let mut neighbours = neighbours(offenders);
            let mut naive: BTreeMap<u8, BTreeMap<u8, Timestamp>> = BTreeMap::new();
            let mut since = BTreeMap::new();
            for (net, host, second) in bans {
                let found = neighbours.note(target(&format!("192.0.{net}.{host}")), at(second));
                if since.get(&net).is_some_and(|since| *since >= second) {
                    prop_assert_eq!(found, None);
                    continue;
                }
                let known = naive.entry(net).or_default();
                let last = known.entry(host).or_insert(at(second));
                *last = at(second).max(*last);
                let newest = *known.values().max().unwrap();
                let due = known.values().filter(|at| newest.since(**at).as_secs() <= 60).count();
                let wanted = (due >= offenders as usize).then(|| target(&format!("192.0.{net}.0/24")));
                prop_assert_eq!(found, wanted);
                if wanted.is_some() {
                    since.insert(net, second);
                    known.retain(|_, last| *last > at(second));
                }
            }
        }
    }
}
