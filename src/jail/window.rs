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

    /// Goes on under another law: what is remembered counts on, and bans no sooner than with the next failure.
    pub fn amend(&mut self, maxretry: u32, findtime: Duration) {
        self.maxretry = maxretry.max(1) as usize;
        self.findtime = findtime;
        self.times.retain(|_, times| {
            times.drain(..times.len().saturating_sub(self.maxretry - 1));
            !times.is_empty()
        });
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

    #[test]
    fn another_law_forgets_nothing_and_bans_nobody_by_itself() {
        let mut window = Window::new(5, Duration::from_secs(600), 100);
        for n in 0..4 {
            window.record(target(1), at(n), 1);
        }
        window.record(target(2), at(0), 1);
        window.amend(10, Duration::from_secs(3_600));
        assert_eq!(window.record(target(1), at(3_000), 1), Some(5));
        window.amend(3, Duration::from_secs(3_600));
        assert_eq!(window.times(target(1)), [at(3), at(3_000)]);
        assert_eq!(window.record(target(1), at(3_001), 1), None, "the next one is the last straw");
        assert_eq!(window.record(target(2), at(3_001), 1), Some(2));
        window.amend(3, Duration::from_secs(60));
        assert_eq!(window.record(target(2), at(3_002), 1), Some(2), "the first is too old by now");
        window.amend(1, Duration::from_secs(60));
        assert!(window.is_empty(), "and none is kept where one is enough");
    }

    /// So many bytes as the table holds, without what the allocator adds for each list.
    fn bytes(window: &Window) -> usize {
        let slots = window.times.capacity() * 8 / 7 * (size_of::<(Target, Vec<Timestamp>)>() + 1);
        slots + window.times.values().map(|times| times.capacity() * size_of::<Timestamp>()).sum::<usize>()
    }

    #[test]
    fn a_million_attackers_in_an_hour_cost_what_is_stated_and_the_most_dangerous_are_remembered() {
        let mut window = Window::new(5, Duration::from_secs(3_600), TARGETS_MAX);
        let (worst, old, recent) = (target(0), target(1), target(2));
        for _ in 0..4 {
            window.record(worst, at(0), 1);
        }
        for _ in 0..2 {
            window.record(old, at(0), 1);
        }
        for n in 3..1_000_000_u32 {
            window.record(target(n), at(i64::from(n) * 3_600 / 1_000_000), 1);
            assert!(window.len() <= TARGETS_MAX);
        }
        assert!(bytes(&window) <= 14 << 20, "{} bytes", bytes(&window));
        let told = window.forgotten() as usize + window.len();
        assert_eq!(told, 1_000_000 - 1, "each of them is remembered, or counted as forgotten");
        assert_eq!((window.times(worst).len(), window.times(old).len()), (4, 2), "more failures stay longer");
        assert_eq!(window.times(target(3)), [], "of those with one, the oldest went first");
        assert_eq!(window.times(target(999_999)).len(), 1);
        window.record(recent, at(3_600), 1);
        assert_eq!(window.record(worst, at(3_600), 1), None);
    }

    #[test]
    fn of_those_with_as_many_failures_the_one_seen_longest_ago_is_forgotten() {
        let mut window = Window::new(5, Duration::from_secs(600), 8);
        for (n, second) in [(0, 7), (1, 3), (2, 9), (3, 5)] {
            window.record(target(n), at(second), 2);
        }
        for (n, second) in [(4, 8), (5, 6), (6, 2), (7, 4)] {
            window.record(target(n), at(second), 1);
        }
        let mut gone = Vec::new();
        for newcomer in 10..17 {
            for _ in 0..3 {
                window.record(target(newcomer), at(10), 1);
            }
            let next = (0..8).find(|n| window.times(target(*n)).is_empty() && !gone.contains(n));
            gone.push(next.unwrap());
        }
        assert_eq!(gone, [6, 7, 5, 4, 1, 3, 0], "fewest first, and of those the oldest");
        assert_eq!(window.forgotten(), 7);
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
