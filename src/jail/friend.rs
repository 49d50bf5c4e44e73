//! Who logged in lately: a friend may fail more often, and is banned for less at first. Softer, never immune: whoever
//! guesses may have an account of his own.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::Duration;

use super::room;
use crate::model::{Bantime, Target, Timestamp};

/// How long a log-in makes a friend where the jail does not say.
pub const FRIEND_FOR: Duration = Duration::from_secs(86_400);
/// The most friends that one jail remembers: about 1 MB.
const FRIENDS_MAX: usize = 10_000;
/// A friend may always fail so often, less one.
const MAXRETRY_MIN: u32 = 10;
/// The first ban of a friend is as long as this at least and at most.
const FIRST_BAN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));

/// How many failures ban a friend, where so many ban a stranger: twice as many, and at least 10.
pub fn maxretry(stranger: u32) -> u32 {
    stranger.saturating_mul(2).max(MAXRETRY_MIN)
}

/// The length of a friend's first ban, where a stranger's is `bantime`: a tenth, from a minute to an hour, and never
/// more than the stranger's.
pub fn first_ban(bantime: Bantime) -> Bantime {
    let (least, most) = FIRST_BAN;
    let tenth = match bantime {
        Bantime::For(time) => (time / 10).clamp(least, most),
        Bantime::Forever => most,
    };
    bantime.min(Bantime::For(tenth))
}

/// When each target logged in last.
#[derive(Debug)]
pub struct Friends {
    logins: HashMap<Target, Timestamp>,
    most: usize,
    forgotten: u64,
}

impl Default for Friends {
    fn default() -> Self {
        Friends { logins: HashMap::new(), most: FRIENDS_MAX, forgotten: 0 }
    }
}

impl Friends {
    /// Notes a log-in, in whatever order they come. Where there are too many friends, the oldest goes first.
    pub fn note(&mut self, target: Target, at: Timestamp) {
        if self.logins.len() >= self.most && !self.logins.contains_key(&target) {
            self.forgotten += room::make(&mut self.logins, self.most, |last| *last);
        }
        let last = self.logins.entry(target).or_insert(at);
        *last = at.max(*last);
    }

    /// Whether a target has logged in within `time` before `now`.
    pub fn knows(&self, target: Target, now: Timestamp, time: Duration) -> bool {
        self.logins.get(&target).is_some_and(|last| now.since(*last) <= time)
    }

    /// Who has logged in within `time` before `now`.
    pub fn of(&self, now: Timestamp, time: Duration) -> impl Iterator<Item = Target> {
        let lately = self.logins.iter().filter(move |(_, last)| now.since(**last) <= time);
        lately.map(|(target, _)| *target)
    }

    /// When a target logged in last: to save it.
    pub fn last(&self, target: Target) -> Option<Timestamp> {
        self.logins.get(&target).copied()
    }

    /// How many were forgotten because there were too many.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(n: u32) -> Target {
        Target::of(std::net::Ipv4Addr::from_bits(0xC000_0200 + n).into())
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    #[test]
    fn a_friend_is_one_until_the_time_is_over() {
        let mut friends = Friends::default();
        friends.note(target(1), at(100));
        friends.note(target(1), at(50));
        assert!(friends.knows(target(1), at(160), Duration::from_secs(60)));
        assert!(!friends.knows(target(1), at(161), Duration::from_secs(60)));
        assert!(!friends.knows(target(2), at(100), Duration::from_secs(60)));
    }

    #[test]
    fn the_oldest_friend_is_forgotten_first() {
        let mut friends = Friends { most: 16, ..Friends::default() };
        friends.note(target(0), at(0));
        for n in 1..1_000 {
            friends.note(target(n), at(i64::from(n)));
            friends.note(target(1), at(i64::from(n)));
            assert!(friends.logins.len() <= 16);
        }
        assert_eq!(friends.last(target(0)), None);
        assert!(friends.last(target(1)).is_some(), "the one who comes every day is kept");
        assert_eq!(friends.forgotten() + friends.logins.len() as u64, 1_000);
    }

    #[test]
    fn a_friend_fails_more_often_and_waits_less() {
        assert_eq!([1, 5, 20, u32::MAX].map(maxretry), [10, 10, 40, u32::MAX]);
        let first = |seconds| first_ban(Bantime::For(Duration::from_secs(seconds))).to_string();
        assert_eq!([30, 300, 3_600, 864_000].map(first), ["30s", "1m", "6m", "1h"]);
        assert_eq!(first_ban(Bantime::Forever).to_string(), "1h");
    }
}
