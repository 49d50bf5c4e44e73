//! The judge: failures in, bans out. It is handed the time, returns what follows, and touches nothing.
#![forbid(unsafe_code)]

pub mod allow;
pub mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{Ban, Bantime, Change, Failure, JailName, Target, Timestamp};
use allow::{Allow, is_unbannable};
use window::Window;

/// The law of one jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub name: JailName,
    /// How many failures within `findtime` ban; at least 1.
    pub maxretry: u32,
    pub findtime: Duration,
    pub bantime: Bantime,
    /// Whom this jail never bans, beside those that no jail bans.
    pub ignoreip: Allow,
}

/// What became of one failure.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The address may not be banned; nothing was counted.
    Ignored,
    /// So many failures count now.
    Counted(u32),
    /// The last straw: this ban is asked for. It is believed when [`Jail::handle_taken`] says so.
    Ban(Ban),
    /// The last straw, but the ban that stands lasts as long.
    Standing,
}

/// Failures and bans of one jail.
///
/// A ban is asked for, then taken or refused by the kernel. Only what was taken is believed.
#[derive(Debug)]
pub struct Jail {
    terms: Terms,
    window: Window,
    /// Bans the kernel took.
    bans: BTreeMap<Target, Ban>,
    /// The ends of those that end, so that the next is found without looking at all.
    ends: BTreeSet<(Timestamp, Target)>,
    /// The ends of bans asked for and not answered yet.
    asked: BTreeMap<Target, Option<Timestamp>>,
    failed_total: u64,
    banned_total: u64,
}

/// A ban that stands is asked for again only if that moves its end by this much: a flood from one address
/// then costs one kernel transaction a second at most.
const EXTENSION_MIN: Duration = Duration::from_secs(1);

impl Jail {
    pub fn new(terms: Terms) -> Self {
        let window = Window::new(terms.maxretry, terms.findtime, window::TARGETS_MAX);
        Jail {
            terms,
            window,
            bans: BTreeMap::new(),
            ends: BTreeSet::new(),
            asked: BTreeMap::new(),
            failed_total: 0,
            banned_total: 0,
        }
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Goes on under a new law: bans stay as they are, failures count on if the window did not change.
    pub fn amend(&mut self, terms: Terms) {
        if (terms.maxretry, terms.findtime) != (self.terms.maxretry, self.terms.findtime) {
            self.window = Window::new(terms.maxretry, terms.findtime, window::TARGETS_MAX);
        }
        self.terms = terms;
    }

    /// Counts a failure. `never` are those whom no jail bans and the kernel accepts before any ban.
    pub fn handle_failure(&mut self, failure: &Failure, never: &Allow) -> Verdict {
        let addr = failure.addr.to_canonical();
        let target = Target::of(addr);
        // The kernel lets `never` pass before any ban, so only the address itself counts there; `ignoreip` of one
        // jail has no such guard, so its neighbours in a /64 are spared too.
        if is_unbannable(addr) || never.covers(addr) || self.terms.ignoreip.touches(target.net()) {
            return Verdict::Ignored;
        }
        self.failed_total += 1;
        if let Some(count) = self.window.record(target, failure.at, failure.weight) {
            return Verdict::Counted(count);
        }
        let jail = self.terms.name.clone();
        let bantime = failure.bantime.unwrap_or(self.terms.bantime);
        self.ask(Ban { jail, target, at: failure.at, bantime })
    }

    fn ask(&mut self, ban: Ban) -> Verdict {
        let held = self.asked.get(&ban.target).copied().or_else(|| self.bans.get(&ban.target).map(Ban::end));
        let extends = match (held, ban.end()) {
            (None, _) | (Some(Some(_)), None) => true,
            (Some(None), _) => false,
            (Some(Some(old)), Some(new)) => new >= old.plus(EXTENSION_MIN),
        };
        if !extends {
            return Verdict::Standing;
        }
        self.asked.insert(ban.target, ban.end());
        Verdict::Ban(ban)
    }

    /// The kernel took a change of this jail. True where a ban is new, false where one was changed or lifted.
    pub fn handle_taken(&mut self, change: &Change) -> bool {
        self.handle_refused(change.target());
        match change {
            Change::Ban(ban) => {
                let new = self.hold(ban.clone());
                self.banned_total += u64::from(new);
                new
            }
            Change::Release { target, .. } => {
                self.drop_ban(*target);
                self.window.forget(*target);
                false
            }
        }
    }

    /// The kernel did not take what was asked; what stood before stands.
    pub fn handle_refused(&mut self, target: Target) {
        self.asked.remove(&target);
    }

    /// Believes a ban that the kernel already holds.
    pub fn restore(&mut self, ban: Ban) {
        self.hold(ban);
    }

    /// When [`Jail::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Forgets the bans that ended by `now`; the kernel has dropped them by itself.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Vec<Ban> {
        let mut ended = Vec::new();
        while let Some((end, target)) = self.ends.first().copied() {
            if end > now {
                break;
            }
            ended.extend(self.drop_ban(target));
        }
        ended
    }

    pub fn ban(&self, target: Target) -> Option<&Ban> {
        self.bans.get(&target)
    }

    /// Every ban believed, by target.
    pub fn bans(&self) -> impl ExactSizeIterator<Item = &Ban> {
        self.bans.values()
    }

    pub fn window(&self) -> &Window {
        &self.window
    }

    pub fn window_mut(&mut self) -> &mut Window {
        &mut self.window
    }

    pub fn failed_total(&self) -> u64 {
        self.failed_total
    }

    pub fn banned_total(&self) -> u64 {
        self.banned_total
    }

    fn hold(&mut self, ban: Ban) -> bool {
        let new = self.drop_ban(ban.target).is_none();
        self.ends.extend(ban.end().map(|end| (end, ban.target)));
        self.bans.insert(ban.target, ban);
        new
    }

    fn drop_ban(&mut self, target: Target) -> Option<Ban> {
        let ban = self.bans.remove(&target)?;
        if let Some(end) = ban.end() {
            self.ends.remove(&(end, target));
        }
        Some(ban)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn jail(maxretry: u32) -> Jail {
        Jail::new(Terms {
            name: "sshd".parse().unwrap(),
            maxretry,
            findtime: Duration::from_secs(600),
            bantime: Bantime::For(Duration::from_secs(60)),
            ignoreip: Allow::new(&["198.51.100.0/24".parse().unwrap(), "2001:db8:1::7/128".parse().unwrap()]),
        })
    }

    fn failure(addr: &str, second: i64) -> Failure {
        Failure {
            addr: addr.parse().unwrap(),
            at: Timestamp::from_millis(second * 1_000),
            weight: 1,
            bantime: None,
        }
    }

    fn target(addr: &str) -> Target {
        Target::of(addr.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn a_ban_is_believed_only_when_it_was_taken() {
        let mut jail = jail(2);
        let never = Allow::default();
        assert_eq!(jail.handle_failure(&failure("192.0.2.1", 0), &never), Verdict::Counted(1));
        let Verdict::Ban(ban) = jail.handle_failure(&failure("192.0.2.1", 1), &never) else { panic!() };
        assert_eq!(ban.end(), Some(Timestamp::from_millis(61_000)));
        assert_eq!(jail.bans().len(), 0);
        assert!(jail.handle_taken(&Change::Ban(ban.clone())));
        assert_eq!(jail.bans().next(), Some(&ban));
        assert_eq!(jail.poll_timeout(), ban.end());
        assert_eq!(jail.handle_timeout(Timestamp::from_millis(60_999)), []);
        assert_eq!(jail.handle_timeout(Timestamp::from_millis(61_000)), [ban]);
        assert_eq!((jail.poll_timeout(), jail.bans().len()), (None, 0));
    }

    #[test]
    fn a_refused_ban_can_be_asked_for_again() {
        let mut jail = jail(1);
        let never = Allow::default();
        assert!(matches!(jail.handle_failure(&failure("192.0.2.1", 0), &never), Verdict::Ban(_)));
        assert_eq!(jail.handle_failure(&failure("192.0.2.1", 0), &never), Verdict::Standing);
        jail.handle_refused(target("192.0.2.1"));
        assert!(matches!(jail.handle_failure(&failure("192.0.2.1", 0), &never), Verdict::Ban(_)));
    }

    #[test]
    fn a_standing_ban_is_extended_never_shortened() {
        let mut jail = jail(1);
        let never = Allow::default();
        let long = Ban {
            jail: "sshd".parse().unwrap(),
            target: target("192.0.2.1"),
            at: Timestamp::from_millis(0),
            bantime: Bantime::For(Duration::from_secs(100)),
        };
        jail.restore(long);
        assert_eq!(jail.handle_failure(&failure("192.0.2.1", 40), &never), Verdict::Standing);
        assert!(matches!(jail.handle_failure(&failure("192.0.2.1", 41), &never), Verdict::Ban(_)));
    }

    #[test]
    fn a_break_in_attempt_bans_for_its_own_time() {
        let attempt = Failure { bantime: Some(Bantime::Forever), ..failure("192.0.2.1", 0) };
        let Verdict::Ban(ban) = jail(1).handle_failure(&attempt, &Allow::default()) else { panic!() };
        assert_eq!(ban.bantime, Bantime::Forever);
    }

    #[test]
    fn nobody_to_be_spared_is_counted() {
        let mut jail = jail(1);
        let own = Allow::new(&["2001:db8::7/128".parse().unwrap()]);
        for addr in ["198.51.100.9", "127.0.0.1", "::ffff:127.0.0.1", "2001:db8::7", "2001:db8:1::99"] {
            assert_eq!(jail.handle_failure(&failure(addr, 0), &own), Verdict::Ignored, "{addr}");
        }
        assert_eq!(jail.failed_total(), 0);
        assert!(matches!(jail.handle_failure(&failure("2001:db8::99", 0), &own), Verdict::Ban(_)));
    }

    #[test]
    fn one_64_is_one_target() {
        let mut jail = jail(3);
        let never = Allow::default();
        assert_eq!(jail.handle_failure(&failure("2001:db8::1", 0), &never), Verdict::Counted(1));
        assert_eq!(jail.handle_failure(&failure("2001:db8::2", 0), &never), Verdict::Counted(2));
        assert_eq!(jail.handle_failure(&failure("2001:db8:0:1::2", 0), &never), Verdict::Counted(1));
        assert!(matches!(jail.handle_failure(&failure("2001:db8::3", 0), &never), Verdict::Ban(_)));
    }

    #[test]
    fn a_release_forgets_the_failures_too() {
        let mut jail = jail(2);
        let never = Allow::default();
        let _ = jail.handle_failure(&failure("192.0.2.1", 0), &never);
        let release = Change::Release { jail: "sshd".parse().unwrap(), target: target("192.0.2.1") };
        assert!(!jail.handle_taken(&release));
        assert_eq!(jail.handle_failure(&failure("192.0.2.1", 1), &never), Verdict::Counted(1));
    }
}
