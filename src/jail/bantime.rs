//! Repeat offenders wait longer: how long the next ban of somebody is, and who was banned how often.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::Duration;

use super::room;
use crate::model::{Bantime, Target, Timestamp};

/// How bans grow from one to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Increment {
    pub growth: Growth,
    /// No ban grows beyond this.
    pub maxtime: Duration,
    /// Up to so much is added by chance, also to the longest, so that nobody can learn when a ban ends.
    pub rndtime: Duration,
    /// Bans of the same address in other jails count as well.
    pub overalljails: bool,
    /// For each such time without a ban, one earlier ban is forgotten.
    pub forget: Duration,
    /// This ban, counted from 1, and all after it never end.
    pub forever_at: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Each ban is so many times as long as the one before; at least 1.
    Factor(u32),
    /// The first ban is as long as the first of these, and so on; the last stays. Not empty.
    Steps(Vec<Duration>),
}

impl Increment {
    /// The length of a ban after `earlier` ones, where the first is `base`; `chance` may be any number.
    pub fn bantime(&self, base: Bantime, earlier: u32, chance: u64) -> Bantime {
        let Bantime::For(base) = base else { return Bantime::Forever };
        if self.forever_at.is_some_and(|number| earlier.saturating_add(1) >= number) {
            return Bantime::Forever;
        }
        let grown = match &self.growth {
            Growth::Factor(factor) => {
                let times = u32::checked_pow(*factor, earlier.min(32)).unwrap_or(u32::MAX);
                base.saturating_mul(times)
            }
            Growth::Steps(steps) => steps[(earlier as usize).min(steps.len() - 1)],
        };
        let added = u64::try_from(self.rndtime.as_millis()).unwrap_or(u64::MAX - 1);
        Bantime::For(grown.min(self.maxtime) + Duration::from_millis(chance % (added + 1)))
    }
}

/// The most targets whose earlier bans one jail remembers: about 6 MB.
const OFFENDERS_MAX: usize = 100_000;

/// Who was banned how often, with a memory that fades.
#[derive(Debug)]
pub struct Offenders {
    bans: HashMap<Target, (u32, Timestamp)>,
    most: usize,
}

impl Default for Offenders {
    fn default() -> Self {
        Offenders { bans: HashMap::new(), most: OFFENDERS_MAX }
    }
}

impl Offenders {
    /// How many earlier bans of a target still count at `now`, if one is forgotten for each `forget`.
    pub fn earlier(&self, target: Target, now: Timestamp, forget: Duration) -> u32 {
        let Some((count, last)) = self.bans.get(&target) else { return 0 };
        let faded = now.since(*last).as_millis() / forget.as_millis().max(1);
        count.saturating_sub(u32::try_from(faded).unwrap_or(u32::MAX))
    }

    /// Notes one more ban.
    pub fn note(&mut self, target: Target, at: Timestamp, forget: Duration) {
        let count = self.earlier(target, at, forget).saturating_add(1);
        // Logs may be read out of order: an older ban makes the last one no older.
        let last = self.bans.get(&target).map_or(at, |(_, last)| at.max(*last));
        self.restore(target, count, last);
    }

    /// Takes back what was saved. Where there are too many, those that were banned longest ago are forgotten.
    pub fn restore(&mut self, target: Target, count: u32, last: Timestamp) {
        if self.bans.len() >= self.most && !self.bans.contains_key(&target) {
            room::make(&mut self.bans, self.most, |(_, last)| *last);
        }
        self.bans.insert(target, (count, last));
    }

    pub fn pardon(&mut self, target: Target) {
        self.bans.remove(&target);
    }

    /// What is remembered of a target: how many bans, and the last.
    pub fn record(&self, target: Target) -> Option<(u32, Timestamp)> {
        self.bans.get(&target).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn increment(growth: Growth) -> Increment {
        Increment {
            growth,
            maxtime: 24 * HOUR,
            rndtime: Duration::ZERO,
            overalljails: false,
            forget: 10 * HOUR,
            forever_at: None,
        }
    }

    fn lengths(increment: &Increment, base: Bantime) -> Vec<String> {
        [0, 1, 2, 5, 40, u32::MAX].map(|earlier| increment.bantime(base, earlier, 7).to_string()).to_vec()
    }

    #[test]
    fn each_ban_is_longer_up_to_a_cap() {
        let base = Bantime::For(Duration::from_secs(600));
        assert_eq!(lengths(&increment(Growth::Factor(2)), base), ["10m", "20m", "40m", "5h20m", "1d", "1d"]);
        assert_eq!(lengths(&increment(Growth::Factor(1)), base), ["10m"; 6]);
        let steps = Growth::Steps([30, 300, 3_600].map(Duration::from_secs).to_vec());
        assert_eq!(lengths(&increment(steps), base), ["30s", "5m", "1h", "1h", "1h", "1h"]);
        assert_eq!(lengths(&increment(Growth::Factor(2)), Bantime::Forever), ["forever"; 6]);
    }

    #[test]
    fn the_third_is_for_good_where_that_is_asked() {
        let increment = Increment { forever_at: Some(3), ..increment(Growth::Factor(2)) };
        let base = Bantime::For(HOUR);
        assert_eq!(lengths(&increment, base), ["1h", "2h", "forever", "forever", "forever", "forever"]);
    }

    #[test]
    fn chance_adds_at_most_rndtime_also_at_the_cap() {
        let increment = Increment { rndtime: HOUR, ..increment(Growth::Factor(10)) };
        for chance in [0, 1, 3_600_000, u64::MAX] {
            let Bantime::For(length) = increment.bantime(Bantime::For(HOUR), 9, chance) else { panic!() };
            assert!((24 * HOUR..=25 * HOUR).contains(&length), "{length:?}");
        }
        let lengths: Vec<Bantime> =
            (0..9).map(|chance| increment.bantime(Bantime::For(HOUR), 0, chance)).collect();
        assert_ne!(lengths[0], lengths[8]);
    }

    #[test]
    fn an_old_ban_that_is_noted_late_makes_nobody_fade_sooner() {
        let at = |hours: i64| Timestamp::from_millis(hours * 3_600_000);
        let target: Target = "192.0.2.1".parse().unwrap();
        let mut offenders = Offenders::default();
        offenders.note(target, at(9), 10 * HOUR);
        offenders.note(target, at(1), 10 * HOUR);
        assert_eq!(offenders.earlier(target, at(18), 10 * HOUR), 2);
    }

    #[test]
    fn memory_fades_and_is_bounded() {
        let target = |n: u32| Target::of(std::net::Ipv4Addr::from_bits(0xC000_0200 + n).into());
        let at = |hours: i64| Timestamp::from_millis(hours * 3_600_000);
        let mut offenders = Offenders { most: 16, ..Offenders::default() };
        for hour in 0..3 {
            offenders.note(target(0), at(hour), 10 * HOUR);
        }
        assert_eq!(offenders.earlier(target(0), at(11), 10 * HOUR), 3);
        assert_eq!(offenders.earlier(target(0), at(12), 10 * HOUR), 2);
        assert_eq!(offenders.earlier(target(0), at(40), 10 * HOUR), 0);
        for n in 1..1_000 {
            offenders.note(target(n), at(50 + i64::from(n)), 10 * HOUR);
            assert!(offenders.bans.len() <= 16);
        }
        assert_eq!(offenders.record(target(0)), None, "the one banned longest ago went first");
    }
}
