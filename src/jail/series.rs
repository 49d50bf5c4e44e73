//! One user tried from many addresses: a chain of strangers without a long pause.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::Duration;

use super::room;
use crate::model::{Mark, Target, Timestamp};

/// The most users that one jail remembers the strangers of: with 8 addresses each, about 2 MB.
const USERS_MAX: usize = 10_000;

/// Who failed as whom.
#[derive(Debug)]
pub struct Series {
    chains: HashMap<Mark, Chain>,
    most: usize,
    forgotten: u64,
}

/// The failures of one user, none of them longer after another than the pause that ends a chain.
#[derive(Debug)]
struct Chain {
    last: Timestamp,
    /// Each once, and no more than make a series.
    targets: Vec<Target>,
}

impl Default for Series {
    fn default() -> Self {
        Series { chains: HashMap::new(), most: USERS_MAX, forgotten: 0 }
    }
}

impl Series {
    /// Notes that a target failed as a user. True where `addrs` targets had failed as that user before, with no pause
    /// longer than `pause` between one failure and the next; it may be one of them.
    pub fn record(&mut self, user: Mark, target: Target, at: Timestamp, addrs: u32, pause: Duration) -> bool {
        if self.chains.len() >= self.most && !self.chains.contains_key(&user) {
            self.chains.retain(|_, chain| at.since(chain.last) <= pause);
            // The fewest addresses, longest ago, are the least dangerous.
            self.forgotten +=
                room::make(&mut self.chains, self.most, |chain| (chain.targets.len(), chain.last));
        }
        let chain = self.chains.entry(user).or_insert_with(|| Chain { last: at, targets: Vec::new() });
        if at.since(chain.last) > pause {
            chain.targets.clear();
        }
        chain.last = at.max(chain.last);
        let is_series = chain.targets.len() >= addrs as usize;
        if !is_series && !chain.targets.contains(&target) {
            chain.targets.push(target);
        }
        is_series
    }

    /// How many users were forgotten before their time because there were too many.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(600);

    fn user(n: u64) -> Mark {
        Mark::MIN.saturating_add(n)
    }

    fn target(n: u32) -> Target {
        Target::of(std::net::Ipv4Addr::from_bits(0xC000_0200 + n).into())
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    #[test]
    fn whoever_comes_after_so_many_others_belongs_to_the_series() {
        let mut series = Series::default();
        let mut record =
            |target_number, second| series.record(user(1), target(target_number), at(second), 3, PAUSE);
        for (number, second) in [(1, 0), (2, 600), (2, 700), (1, 800), (3, 1_300)] {
            assert!(!record(number, second), "{number}");
        }
        assert!(record(4, 1_900), "slow, but without a pause");
        assert!(record(1, 2_500));
        assert!(record(5, 1_000), "a line that is read late");
        assert!(record(6, 3_100), "ends nothing");
        assert!(!record(7, 3_701), "after a pause it begins anew");
        assert!(!record(8, 3_701) && !record(9, 3_701) && record(10, 3_701));
    }

    #[test]
    fn one_user_is_not_another() {
        let mut series = Series::default();
        for n in 0..100 {
            assert!(!series.record(user(u64::from(n)), target(n), at(0), 1, PAUSE));
        }
        assert!(series.record(user(7), target(200), at(0), 1, PAUSE));
    }

    #[test]
    fn names_by_the_thousand_push_out_no_series() {
        let mut series = Series { most: 16, ..Series::default() };
        for n in 0..3 {
            assert!(!series.record(user(0), target(n), at(0), 3, PAUSE));
        }
        for n in 1..1_000 {
            assert!(!series.record(user(n), target(9), at(1), 3, PAUSE));
            assert!(series.chains.len() <= 16);
        }
        assert!(series.record(user(0), target(10), at(2), 3, PAUSE));
        assert_eq!(series.forgotten() + series.chains.len() as u64, 1_000);
        let forgotten = series.forgotten();
        for n in 2_000..2_010 {
            series.record(user(n), target(0), at(900), 3, PAUSE);
        }
        assert_eq!(series.forgotten(), forgotten, "those whose chain is over make room");
    }
}
