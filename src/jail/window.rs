//! The last failures of each target: an exact sliding window, bounded in memory.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use super::room;
use crate::model::{Mark, Target, Timestamp};

/// The most targets that one jail remembers failures of. With `maxretry` failures of 16 bytes and about 100 bytes
/// of overhead each, a jail with `maxretry: 5` holds at most some 22 MB, whatever is in the log.
pub const TARGETS_MAX: usize = 100_000;

/// Answers one question: have so many failures of this target come within `findtime`?
#[derive(Debug)]
pub struct Window {
    findtime: Duration,
    /// Failures about the same thing count as one: the last of them.
    distinct: bool,
    targets_max: usize,
    /// Each target's last failures, oldest first; never empty, never so many that the last would have banned.
    failures: HashMap<Target, Vec<Noted>>,
    /// The number of targets at which the stale ones are looked for next.
    sweep_at: usize,
    forgotten: u64,
}

/// One failure, and what it was about.
#[derive(Clone, Copy, Debug)]
struct Noted {
    at: Timestamp,
    about: Option<Mark>,
}

const SWEEP_MIN: usize = 1_024;

impl Window {
    pub fn new(findtime: Duration, distinct: bool, targets_max: usize) -> Self {
        Window {
            findtime,
            distinct,
            targets_max,
            failures: HashMap::new(),
            sweep_at: SWEEP_MIN,
            forgotten: 0,
        }
    }

    /// Goes on under another law: what is remembered counts on, and bans no sooner than with the next failure. Of each
    /// target `most` failures are kept.
    pub fn amend(&mut self, findtime: Duration, distinct: bool, most: usize) {
        (self.findtime, self.distinct) = (findtime, distinct);
        self.failures.retain(|_, noted| {
            noted.drain(..noted.len().saturating_sub(most));
            !noted.is_empty()
        });
    }

    /// Notes `weight` failures at `at`, in whatever order they come, where `maxretry` within `findtime` ban; both
    /// are at least 1. None: that was the last straw, and the target's failures are forgotten. Else the number of
    /// failures that now count.
    pub fn record(
        &mut self,
        target: Target,
        at: Timestamp,
        weight: u32,
        about: Option<Mark>,
        maxretry: u32,
    ) -> Option<u32> {
        if self.failures.len() >= self.sweep_at.min(self.targets_max) && !self.failures.contains_key(&target)
        {
            self.sweep(at);
        }
        let mut entry = match self.failures.entry(target) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => entry.insert_entry(Vec::with_capacity(1)),
        };
        let noted = entry.get_mut();
        let is_same = |other: &Noted| self.distinct && about.is_some() && other.about == about;
        if !noted.iter().any(|other| is_same(other) && other.at > at) {
            noted.retain(|other| !is_same(other));
            let place = noted.partition_point(|other| other.at <= at);
            let times = weight.min(maxretry) as usize;
            noted.splice(place..place, std::iter::repeat_n(Noted { at, about }, times));
        }
        let newest = noted[noted.len() - 1].at;
        let stale = noted.partition_point(|other| newest.since(other.at) > self.findtime);
        noted.drain(..stale);
        if noted.len() >= maxretry as usize {
            entry.remove();
            return None;
        }
        Some(noted.len() as u32)
    }

    pub fn forget(&mut self, target: Target) {
        self.failures.remove(&target);
    }

    /// What a target failed about this until `at` counts no more.
    pub fn forgive(&mut self, target: Target, about: Mark, at: Timestamp) {
        let Entry::Occupied(mut entry) = self.failures.entry(target) else { return };
        entry.get_mut().retain(|noted| noted.about != Some(about) || noted.at > at);
        if entry.get().is_empty() {
            entry.remove();
        }
    }

    /// How many targets it remembers failures of.
    pub fn len(&self) -> usize {
        self.failures.len()
    }

    pub fn is_empty(&self) -> bool {
        self.failures.is_empty()
    }

    /// How many targets were forgotten before their time because the table was full.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// When the failures of one target were, oldest first: to save them.
    pub fn times(&self, target: Target) -> Vec<Timestamp> {
        self.failures.get(&target).into_iter().flatten().map(|noted| noted.at).collect()
    }

    /// Takes back what was saved, but for what the failures were about; the target had none before. `most` are
    /// remembered.
    pub fn restore(&mut self, target: Target, mut times: Vec<Timestamp>, most: usize) {
        times.sort_unstable();
        times.drain(..times.len().saturating_sub(most));
        if !times.is_empty() && self.failures.len() < self.targets_max {
            let noted = times.into_iter().map(|at| Noted { at, about: None });
            self.failures.insert(target, noted.collect());
        }
    }

    /// Makes room: the stale go first; where that is not enough, the least dangerous, which is the fewest failures,
    /// longest ago.
    fn sweep(&mut self, now: Timestamp) {
        let last = |noted: &Vec<Noted>| noted[noted.len() - 1].at;
        self.failures.retain(|_, noted| now.since(last(noted)) <= self.findtime);
        self.forgotten +=
            room::make(&mut self.failures, self.targets_max, |noted| (noted.len(), last(noted)));
        self.sweep_at = (self.failures.len() * 2).max(SWEEP_MIN);
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

    fn window(targets_max: usize) -> Window {
        Window::new(Duration::from_secs(600), false, targets_max)
    }

    #[test]
    fn slow_failures_never_add_up() {
        let mut window = window(100);
        for n in 0..100 {
            assert!(window.record(target(1), at(n * 200), 1, None, 5).is_some());
        }
    }

    #[test]
    fn the_edge_of_the_window_counts() {
        let mut window = window(100);
        window.record(target(1), at(0), 1, None, 2);
        assert_eq!(window.record(target(1), at(600), 1, None, 2), None);
        window.record(target(1), at(1_000), 1, None, 2);
        assert_eq!(window.record(target(1), at(1_601), 1, None, 2), Some(1));
    }

    #[test]
    fn weight_counts_as_many_failures() {
        let mut window = window(100);
        assert_eq!(window.record(target(1), at(0), 2, None, 5), Some(2));
        assert_eq!(window.record(target(1), at(1), 9, None, 5), None);
        assert!(window.is_empty());
    }

    #[test]
    fn one_thing_again_and_again_is_one_failure_where_only_distinct_ones_count() {
        let about = |n: u64| Some(Mark::MIN.saturating_add(n));
        let mut window = Window::new(Duration::from_secs(600), true, 100);
        for second in 0..20 {
            assert_eq!(window.record(target(1), at(second), 1, about(1), 3), Some(1));
        }
        assert_eq!(window.record(target(1), at(600), 1, about(2), 3), Some(2));
        assert_eq!(window.record(target(1), at(5), 1, about(2), 3), Some(2), "an old one changes nothing");
        assert_eq!(
            window.record(target(1), at(620), 1, about(3), 3),
            Some(2),
            "the first was last seen at 19"
        );
        assert_eq!(
            window.record(target(1), at(620), 1, None, 3),
            None,
            "what is about nothing counts each time"
        );
    }

    #[test]
    fn what_is_forgiven_is_what_it_was_about_until_then() {
        let about = |n: u64| Mark::MIN.saturating_add(n);
        let mut window = window(100);
        for (second, what) in [(0, Some(about(1))), (1, Some(about(2))), (2, None), (3, Some(about(1)))] {
            window.record(target(1), at(second), 1, what, 9);
        }
        window.forgive(target(1), about(1), at(2));
        assert_eq!(window.times(target(1)), [at(1), at(2), at(3)]);
        window.record(target(2), at(0), 1, Some(about(1)), 9);
        window.forgive(target(2), about(1), at(2));
        assert_eq!(window.len(), 1);
    }

    #[test]
    fn a_full_table_forgets_the_least_dangerous_and_stays_bounded() {
        let mut window = window(80);
        for _ in 0..4 {
            window.record(target(0), at(0), 1, None, 5);
        }
        for n in 1..10_000 {
            window.record(target(n), at(1), 1, None, 5);
            assert!(window.len() <= 80);
        }
        assert_eq!(window.forgotten() + window.len() as u64, 10_000);
        assert_eq!(window.record(target(0), at(2), 1, None, 5), None, "the one with four failures was kept");
    }

    #[test]
    fn what_was_saved_counts_on() {
        let mut window = window(100);
        window.restore(target(1), vec![at(5), at(1)], 2);
        window.restore(target(2), vec![at(5), at(1)], 1);
        assert_eq!(window.times(target(1)), [at(1), at(5)]);
        assert_eq!(window.times(target(2)), [at(5)]);
        assert_eq!(window.record(target(1), at(6), 1, None, 3), None);
    }

    #[test]
    fn another_law_forgets_nothing_and_bans_nobody_by_itself() {
        let mut window = window(100);
        for n in 0..4 {
            window.record(target(1), at(n), 1, None, 5);
        }
        window.record(target(2), at(0), 1, None, 5);
        window.amend(Duration::from_secs(3_600), false, 9);
        assert_eq!(window.record(target(1), at(3_000), 1, None, 10), Some(5));
        window.amend(Duration::from_secs(3_600), false, 2);
        assert_eq!(window.times(target(1)), [at(3), at(3_000)]);
        assert_eq!(window.record(target(1), at(3_001), 1, None, 3), None, "the next one is the last straw");
        assert_eq!(window.record(target(2), at(3_001), 1, None, 3), Some(2));
        window.amend(Duration::from_secs(60), false, 2);
        assert_eq!(window.record(target(2), at(3_002), 1, None, 3), Some(2), "the first is too old by now");
        window.amend(Duration::from_secs(60), true, 2);
        for _ in 0..2 {
            assert_eq!(
                window.record(target(3), at(3_002), 1, Some(Mark::MIN), 3),
                Some(1),
                "one thing counts once"
            );
        }
        window.amend(Duration::from_secs(60), false, 0);
        assert!(window.is_empty(), "and none is kept where one is enough");
    }

    /// So many bytes as the table holds, without what the allocator adds for each list.
    fn bytes(window: &Window) -> usize {
        let slots = window.failures.capacity() * 8 / 7 * (size_of::<(Target, Vec<Noted>)>() + 1);
        slots + window.failures.values().map(|noted| noted.capacity() * size_of::<Noted>()).sum::<usize>()
    }

    #[test]
    fn a_million_attackers_in_an_hour_cost_what_is_stated_and_the_most_dangerous_are_remembered() {
        let mut window = Window::new(Duration::from_secs(3_600), false, TARGETS_MAX);
        let record = |window: &mut Window, n, second| window.record(target(n), at(second), 1, None, 5);
        for _ in 0..4 {
            let _ = record(&mut window, 0, 0);
        }
        for _ in 0..2 {
            let _ = record(&mut window, 1, 0);
        }
        for n in 3..1_000_000_u32 {
            let _ = record(&mut window, n, i64::from(n) * 3_600 / 1_000_000);
            assert!(window.len() <= TARGETS_MAX);
        }
        assert!(bytes(&window) <= 22 << 20, "{} bytes", bytes(&window));
        let told = window.forgotten() as usize + window.len();
        assert_eq!(told, 1_000_000 - 1, "each of them is remembered, or counted as forgotten");
        let kept = (window.times(target(0)).len(), window.times(target(1)).len());
        assert_eq!(kept, (4, 2), "more failures stay longer");
        assert_eq!(window.times(target(3)), [], "of those with one, the oldest went first");
        assert_eq!(window.times(target(999_999)).len(), 1);
        assert_eq!(record(&mut window, 0, 3_600), None);
    }

    #[test]
    fn of_those_with_as_many_failures_the_one_seen_longest_ago_is_forgotten() {
        let mut window = window(8);
        for (n, second) in [(0, 7), (1, 3), (2, 9), (3, 5)] {
            window.record(target(n), at(second), 2, None, 5);
        }
        for (n, second) in [(4, 8), (5, 6), (6, 2), (7, 4)] {
            window.record(target(n), at(second), 1, None, 5);
        }
        let mut gone = Vec::new();
        for newcomer in 10..17 {
            window.record(target(newcomer), at(10), 3, None, 5);
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
            let mut window = Window::new(findtime, false, 1_000);
            let mut naive = Naive::default();
            for (who, second) in failures {
                let banned = window.record(target(who), at(second), 1, None, maxretry).is_none();
                prop_assert_eq!(banned, naive.record(target(who), at(second), maxretry as usize, findtime));
            }
        }
    }
}
