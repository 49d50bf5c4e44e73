//! The last failures of each target: an exact sliding window, bounded in memory.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use crate::model::{Target, Timestamp};

/// The most targets that one jail remembers failures of. With `maxretry` times of 8 bytes and about 100 bytes
/// of overhead each, a jail with `maxretry: 5` holds at most some 14 MB, whatever is in the log.
pub const TARGETS_MAX: usize = 100_000;

/// Answers one question: have the last `maxretry` failures of this target come within `findtime`?
#[derive(Debug)]
pub struct Window {
    maxretry: usize,
    findtime: Duration,
    targets_max: usize,
    /// The times of each target's last failures, oldest first; never empty, never more than `maxretry`.
    times: HashMap<Target, Vec<Timestamp>>,
    /// The number of targets at which the stale ones are looked for next.
    sweep_at: usize,
    forgotten: u64,
}

const SWEEP_MIN: usize = 1_024;

impl Window {
    /// `maxretry` is at least 1.
    pub fn new(maxretry: u32, findtime: Duration, targets_max: usize) -> Self {
        Window {
            maxretry: maxretry.max(1) as usize,
            findtime,
            targets_max,
            times: HashMap::new(),
            sweep_at: SWEEP_MIN,
            forgotten: 0,
        }
    }

    /// Notes `weight` failures at `at`, in whatever order they come. None: that was the last straw, and the
    /// target's failures are forgotten. Else the number of failures that now count.
    pub fn record(&mut self, target: Target, at: Timestamp, weight: u32) -> Option<u32> {
        if self.times.len() >= self.sweep_at.min(self.targets_max) && !self.times.contains_key(&target) {
            self.sweep(at);
        }
        let mut entry = match self.times.entry(target) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => entry.insert_entry(Vec::with_capacity(1)),
        };
        let times = entry.get_mut();
        for _ in 0..(weight as usize).min(self.maxretry) {
            times.insert(times.partition_point(|time| *time <= at), at);
        }
        let newest = times[times.len() - 1];
        let stale = times.partition_point(|time| newest.since(*time) > self.findtime);
        let surplus = times.len().saturating_sub(self.maxretry);
        if stale <= surplus && times.len() >= self.maxretry {
            entry.remove();
            return None;
        }
        times.drain(..stale.max(surplus));
        Some(times.len() as u32)
    }

    pub fn forget(&mut self, target: Target) {
        self.times.remove(&target);
    }

    /// How many targets it remembers failures of.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// How many targets were forgotten before their time because the table was full.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// What it remembers of one target, oldest first: to save it.
    pub fn times(&self, target: Target) -> &[Timestamp] {
        self.times.get(&target).map_or(&[], Vec::as_slice)
    }

    /// Takes back what was saved; the target had no failures before.
    pub fn restore(&mut self, target: Target, mut times: Vec<Timestamp>) {
        times.sort_unstable();
        times.drain(..times.len().saturating_sub(self.maxretry - 1));
        if !times.is_empty() && self.times.len() < self.targets_max {
            self.times.insert(target, times);
        }
    }

    /// Makes room: the stale go first; where that is not enough, the eighth that is least dangerous, which is
    /// the fewest failures, longest ago. Its cost is spread over as many records as it makes room for.
    fn sweep(&mut self, now: Timestamp) {
        let findtime = self.findtime;
        self.times.retain(|_, times| now.since(times[times.len() - 1]) <= findtime);
        if self.times.len() >= self.targets_max {
            let mut ranked: Vec<(usize, Timestamp, Target)> = self
                .times
                .iter()
                .map(|(target, times)| (times.len(), times[times.len() - 1], *target))
                .collect();
            let share = (self.targets_max / 8).max(1).min(ranked.len());
            ranked.select_nth_unstable(share - 1);
            for (_, _, target) in &ranked[..share] {
                self.times.remove(target);
            }
            self.forgotten += share as u64;
        }
        self.sweep_at = (self.times.len() * 2).max(SWEEP_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn target(n: u32) -> Target {
        Target::of(Ipv4Addr::from_bits(0xC000_0200 + n).into())
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    #[test]
    fn slow_failures_never_add_up() {
        let mut window = Window::new(5, Duration::from_secs(600), 100);
        for n in 0..100 {
            assert!(window.record(target(1), at(n * 200), 1).is_some());
        }
    }

    #[test]
    fn the_edge_of_the_window_counts() {
        let mut window = Window::new(2, Duration::from_secs(600), 100);
        window.record(target(1), at(0), 1);
        assert_eq!(window.record(target(1), at(600), 1), None);
        window.record(target(1), at(1_000), 1);
        assert_eq!(window.record(target(1), at(1_601), 1), Some(1));
    }

    #[test]
    fn weight_counts_as_many_failures() {
        let mut window = Window::new(5, Duration::from_secs(600), 100);
        assert_eq!(window.record(target(1), at(0), 2), Some(2));
        assert_eq!(window.record(target(1), at(1), 9), None);
        assert!(window.is_empty());
    }

    #[test]
    fn a_full_table_forgets_the_least_dangerous_and_stays_bounded() {
        let mut window = Window::new(5, Duration::from_secs(600), 80);
        for _ in 0..4 {
            window.record(target(0), at(0), 1);
        }
        for n in 1..10_000 {
            window.record(target(n), at(1), 1);
            assert!(window.len() <= 80);
        }
        assert!(window.forgotten() > 9_000);
        assert_eq!(window.record(target(0), at(2), 1), None, "the one with four failures was kept");
    }

    #[test]
    fn what_was_saved_counts_on() {
        let mut window = Window::new(3, Duration::from_secs(600), 100);
        window.restore(target(1), vec![at(5), at(1)]);
        assert_eq!(window.times(target(1)), [at(1), at(5)]);
        assert_eq!(window.record(target(1), at(6), 1), None);
    }

    /// Every failure ever seen, and the definition of the rule applied to it.
    #[derive(Default)]
    struct Naive(HashMap<Target, Vec<Timestamp>>);

    impl Naive {
        fn record(&mut self, target: Target, at: Timestamp, maxretry: usize, findtime: Duration) -> bool {
            let times = self.0.entry(target).or_default();
            times.push(at);
            times.sort_unstable();
            let newest = times[times.len() - 1];
            let banned = times.len() >= maxretry && newest.since(times[times.len() - maxretry]) <= findtime;
            if banned {
                times.clear();
            }
            banned
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_window_for_any_order(
            maxretry in 1u32..6,
            findtime in 1u64..30,
            failures in proptest::collection::vec((0u32..3, 0i64..60), 1..200),
        ) {
            let findtime = Duration::from_secs(findtime);
            let mut window = Window::new(maxretry, findtime, 1_000);
            let mut naive = Naive::default();
            for (who, second) in failures {
                let banned = window.record(target(who), at(second), 1).is_none();
                prop_assert_eq!(banned, naive.record(target(who), at(second), maxretry as usize, findtime));
            }
        }
    }
}
