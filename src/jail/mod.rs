//! The judge: failures in, bans out. It is handed the time, returns what follows, and touches nothing.
#![forbid(unsafe_code)]

pub mod allow;
pub mod bantime;
pub mod friend;
pub mod knock;
pub mod network;
pub mod prefix;
pub mod room;
pub mod series;
pub mod window;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

use crate::model::{Ban, Bantime, Change, Dropped, Failure, JailName, Mark, Memory, Target, Timestamp};
use allow::{Allow, unbannable};
use bantime::{Increment, Offenders};
use friend::Friends;
use network::LINGER;
use prefix::{Neighbours, PrefixLaw};
use series::Series;
use window::Window;

/// The law of one jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub name: JailName,
    /// How many failures within `findtime` ban a stranger; at least 1.
    pub maxretry: u32,
    pub findtime: Duration,
    /// Failures for the same path count as one.
    pub distinct: bool,
    /// After so many addresses failed as one user, without a pause longer than `findtime`, every stranger is banned at
    /// the first failure as that user; none where only addresses are counted.
    pub user_addrs: Option<u32>,
    /// How long a good log-in makes its address a friend; none where it does not.
    pub friend_for: Option<Duration>,
    /// The length of a first ban.
    pub bantime: Bantime,
    /// How later ones grow; none where they do not.
    pub increment: Option<Increment>,
    /// Whom this jail never bans, beside those that no jail bans.
    pub ignoreip: Allow,
    /// Its failures are the bans of other jails.
    pub hears_bans: bool,
    /// When whole networks are banned; none where they never are.
    pub prefix: Option<PrefixLaw>,
    /// A banned host that tries again stays banned until it was silent for so long; none where a ban just ends.
    pub extend_on_knock: Option<Duration>,
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
    /// So is this one, because so many addresses have tried the same user before.
    Series(Ban, u32),
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
    /// How many of these are networks.
    networks: usize,
    /// When those that end are forgotten, or looked up, so that the next is found without looking at all.
    ends: BTreeSet<(Timestamp, Target)>,
    /// Whose bans are to be looked up in the kernel.
    unsure: Vec<Target>,
    /// Whose bans are believed to be longer, and asked to be.
    renewing: BTreeSet<Target>,
    /// What was told of dropped packets, by the ban that they met.
    dropped: BTreeMap<Target, Dropped>,
    /// The ends of bans asked for and not answered yet; of one target there may be several.
    asked: BTreeMap<Target, Vec<Option<Timestamp>>>,
    offenders: Offenders,
    friends: Friends,
    series: Series,
    neighbours: Option<Neighbours>,
    failed_total: u64,
    banned_total: u64,
}

/// An earlier ban is remembered for so long where the jail does not say.
pub const FORGET: Duration = Duration::from_secs(30 * 86_400);

/// A ban that stands is asked for again only if that moves its end by this much: a flood from one address
/// then costs one kernel transaction a second at most.
const EXTENSION_MIN: Duration = Duration::from_secs(1);

impl Jail {
    pub fn new(terms: Terms) -> Self {
        Jail {
            window: Window::new(terms.findtime, terms.distinct, window::TARGETS_MAX),
            neighbours: terms.prefix.clone().map(Neighbours::new),
            terms,
            bans: BTreeMap::new(),
            networks: 0,
            ends: BTreeSet::new(),
            unsure: Vec::new(),
            renewing: BTreeSet::new(),
            dropped: BTreeMap::new(),
            asked: BTreeMap::new(),
            offenders: Offenders::default(),
            friends: Friends::default(),
            series: Series::default(),
            failed_total: 0,
            banned_total: 0,
        }
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Goes on under a new law: bans stay as they are, failures count on.
    pub fn amend(&mut self, terms: Terms) {
        let most = friend::maxretry(terms.maxretry) as usize - 1;
        self.window.amend(terms.findtime, terms.distinct, most);
        if terms.prefix != self.terms.prefix {
            self.neighbours = terms.prefix.clone().map(Neighbours::new);
        }
        self.terms = terms;
        let due = |ban: &Ban| Some((self.due(ban)?, ban.target));
        self.ends = self.bans.values().filter_map(due).collect();
    }

    /// Whom this jail does not ban from now on, beside those that no jail bans.
    pub fn spare(&mut self, ignoreip: Allow) {
        self.terms.ignoreip = ignoreip;
    }

    /// Counts a failure. `never` are those whom no jail bans and the kernel accepts before any ban; `elsewhere` is
    /// how often other jails banned the address, and `chance` any number.
    pub fn handle_failure(
        &mut self,
        failure: &Failure,
        never: &Allow,
        elsewhere: u32,
        chance: u64,
    ) -> Verdict {
        let target = Target::of(failure.addr);
        if self.spares(failure.addr, never) {
            return Verdict::Ignored;
        }
        self.failed_total += 1;
        let series = self.series(failure);
        // A break-in attempt is neither forgiven nor counted as one with another.
        let about = match failure.bantime {
            Some(_) => None,
            None if self.terms.distinct => failure.path,
            None => failure.user,
        };
        let maxretry = self.maxretry(failure);
        if series.is_some() {
            self.window.forget(target);
        } else if let Some(count) = self.window.record(target, failure.at, failure.weight, about, maxretry) {
            return Verdict::Counted(count);
        }
        let earlier = self.earlier_bans(target, failure.at).saturating_add(elsewhere);
        let base = failure.bantime.unwrap_or(self.terms.bantime);
        let increment = self.terms.increment.as_ref();
        let grown = increment.map_or(base, |increment| increment.bantime(base, earlier, chance));
        let bantime = match failure.bantime {
            // What a rule asks for a break-in attempt is the least, whatever steps or cap the jail has for the others.
            Some(own) => grown.max(own),
            None if earlier == 0 && self.is_friend(target, failure.at) => friend::first_ban(grown),
            None => grown,
        };
        let verdict = self.ask(Ban { jail: self.terms.name.clone(), target, at: failure.at, bantime });
        match (verdict, series) {
            (Verdict::Ban(ban), Some(addrs)) => Verdict::Series(ban, addrs),
            (verdict, _) => verdict,
        }
    }

    /// How many failures ban whoever has this one. A break-in attempt is a stranger's, whoever makes it.
    pub fn maxretry(&self, failure: &Failure) -> u32 {
        let is_soft = failure.bantime.is_none() && self.is_friend(Target::of(failure.addr), failure.at);
        if is_soft { friend::maxretry(self.terms.maxretry) } else { self.terms.maxretry }
    }

    /// Somebody logged in: a friend from now on, in this jail only, since an account that is worth little elsewhere
    /// must not open more tries here. What failed from there as the same user counts no more; all other failures do,
    /// or one good account would buy any number of guesses at others. True where anything followed.
    pub fn handle_success(&mut self, addr: IpAddr, user: Option<Mark>, at: Timestamp, never: &Allow) -> bool {
        if self.spares(addr, never) {
            return false;
        }
        let target = Target::of(addr);
        if let Some(user) = user {
            self.window.forgive(target, user, at);
        }
        if self.terms.friend_for.is_some() {
            self.friends.note(target, at);
        }
        true
    }

    /// Whether it logged in not long ago.
    pub fn is_friend(&self, target: Target, at: Timestamp) -> bool {
        self.terms.friend_for.is_some_and(|time| self.friends.knows(target, at, time))
    }

    /// Notes whom a stranger tried to be. So many others had tried it before, where that makes a series.
    fn series(&mut self, failure: &Failure) -> Option<u32> {
        let (user, addrs) = failure.user.zip(self.terms.user_addrs)?;
        let target = Target::of(failure.addr);
        let is_stranger = !self.is_friend(target, failure.at);
        let pause = self.terms.findtime;
        (is_stranger && self.series.record(user, target, failure.at, addrs, pause)).then_some(addrs)
    }

    /// Whether an address is not judged at all. The kernel lets `never` pass before any ban, so only the address itself
    /// counts there; `ignoreip` of one jail has no such guard, so its neighbours in a /64 are spared too.
    fn spares(&self, addr: IpAddr, never: &Allow) -> bool {
        let addr = addr.to_canonical();
        unbannable().covers(addr) || never.covers(addr) || self.terms.ignoreip.touches(Target::of(addr).net())
    }

    fn ask(&mut self, ban: Ban) -> Verdict {
        let stands = self.ends_of(ban.target).any(|end| match (end, ban.end()) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(old), Some(new)) => new < old.plus(EXTENSION_MIN),
        });
        if stands {
            return Verdict::Standing;
        }
        self.note_asked(&ban);
        Verdict::Ban(ban)
    }

    /// When the bans of a target end, as they stand and as they are asked for: all of these, not only the last, since
    /// each may be taken, and the kernel keeps whichever came last.
    fn ends_of(&self, target: Target) -> impl Iterator<Item = Option<Timestamp>> {
        let asked = self.asked.get(&target).into_iter().flatten().copied();
        asked.chain(self.bans.get(&target).map(Ban::end))
    }

    /// A ban is on its way to the kernel; no shorter one is asked for after it.
    pub fn note_asked(&mut self, ban: &Ban) {
        self.asked.entry(ban.target).or_default().push(ban.end());
    }

    /// Whose bans are on their way to the kernel.
    pub fn asked(&self) -> impl Iterator<Item = Target> {
        self.asked.keys().copied()
    }

    pub fn is_asked(&self, target: Target) -> bool {
        self.asked.contains_key(&target)
    }

    /// The kernel took a change of this jail. True where a ban is new, false where one was changed or lifted.
    pub fn handle_taken(&mut self, change: &Change) -> bool {
        self.handle_refused(change);
        match change {
            Change::Ban(ban) => {
                let new = self.hold(ban.clone());
                if new {
                    self.banned_total += 1;
                    self.offenders.note(ban.target, ban.at, self.forget());
                }
                if let Some(neighbours) = self.neighbours.as_mut().filter(|_| ban.target.is_network()) {
                    neighbours.remember(ban.target, ban.at);
                }
                new
            }
            Change::Release { target, .. } => {
                self.drop_ban(*target);
                self.renewing.remove(target);
                self.window.forget(*target);
                self.offenders.pardon(*target);
                if let Some(neighbours) = self.neighbours.as_mut() {
                    neighbours.forget(*target);
                }
                false
            }
        }
    }

    /// The kernel did not take what was asked; what stood before stands.
    pub fn handle_refused(&mut self, change: &Change) {
        let Change::Ban(ban) = change else { return };
        let Entry::Occupied(mut asked) = self.asked.entry(ban.target) else { return };
        if let Some(index) = asked.get().iter().position(|end| *end == ban.end()) {
            asked.get_mut().remove(index);
        }
        if asked.get().is_empty() {
            asked.remove();
        }
    }

    /// Believes a ban that the kernel already holds.
    pub fn restore(&mut self, ban: Ban) {
        self.hold(ban);
    }

    /// When [`Jail::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Forgets the bans that ended by `now`; the kernel has dropped them by itself. Those that it may hold longer are
    /// [to be looked up](Jail::take_unsure).
    pub fn handle_timeout(&mut self, now: Timestamp) -> Vec<Ban> {
        let mut ended = Vec::new();
        while let Some((end, target)) = self.ends.first().copied() {
            if end > now || self.looks_enough() {
                break;
            }
            match self.must_look(target) {
                true => {
                    self.ends.pop_first();
                    self.unsure.push(target);
                }
                false => ended.extend(self.drop_ban(target)),
            }
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

    /// Bans believed of targets beyond `after`.
    pub fn bans_after(&self, after: Option<Target>) -> impl Iterator<Item = &Ban> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.bans.range((start, Bound::Unbounded)).map(|(_, ban)| ban)
    }

    /// How many of the bans of hosts that are believed last beyond `moment`.
    pub fn hosts_beyond(&self, moment: Timestamp) -> usize {
        let over = self.ends.iter().take_while(|(end, _)| *end <= moment);
        let hosts = self.bans.len() - self.networks;
        hosts.saturating_sub(over.filter(|(_, target)| !target.is_network()).count())
    }

    /// How many earlier bans of a target count at `now`.
    pub fn earlier_bans(&self, target: Target, now: Timestamp) -> u32 {
        self.offenders.earlier(target, now, self.forget())
    }

    /// What is to be remembered of a target.
    pub fn memory(&self, target: Target) -> Memory {
        Memory {
            jail: self.terms.name.clone(),
            target,
            times: self.window.times(target),
            offender: self.offenders.record(target),
            friend: self.friends.last(target),
        }
    }

    /// Takes back what was saved of a target.
    pub fn restore_memory(&mut self, memory: Memory) {
        let Memory { target, times, offender, friend, .. } = memory;
        let most = friend::maxretry(self.terms.maxretry) as usize - 1;
        self.window.restore(target, times, most);
        if let Some((count, last)) = offender {
            self.offenders.restore(target, count, last);
            if let Some(neighbours) = self.neighbours.as_mut() {
                neighbours.remember(target, last);
            }
        }
        if let Some(last) = friend {
            self.friends.note(target, last);
        }
    }

    fn forget(&self) -> Duration {
        self.terms.increment.as_ref().map_or(FORGET, |increment| increment.forget)
    }

    pub fn window(&self) -> &Window {
        &self.window
    }

    /// How many addresses, friends and users were forgotten before their time because there were too many.
    pub fn forgotten_total(&self) -> u64 {
        self.window.forgotten() + self.friends.forgotten() + self.series.forgotten()
    }

    pub fn failed_total(&self) -> u64 {
        self.failed_total
    }

    pub fn banned_total(&self) -> u64 {
        self.banned_total
    }

    fn hold(&mut self, ban: Ban) -> bool {
        let dropped = self.dropped(ban.target);
        let new = self.drop_ban(ban.target).is_none();
        self.dropped.extend(dropped.map(|dropped| (ban.target, dropped)));
        self.ends.extend(self.due(&ban).map(|due| (due, ban.target)));
        self.networks += usize::from(ban.target.is_network());
        self.bans.insert(ban.target, ban);
        new
    }

    fn drop_ban(&mut self, target: Target) -> Option<Ban> {
        let ban = self.bans.remove(&target)?;
        self.networks -= usize::from(target.is_network());
        self.dropped.remove(&target);
        for due in self.due(&ban).into_iter().chain(ban.end().map(|end| end.plus(LINGER))) {
            self.ends.remove(&(due, target));
        }
        Some(ban)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jail(maxretry: u32) -> Jail {
        Jail::new(Terms {
            name: "sshd".parse().unwrap(),
            maxretry,
            findtime: Duration::from_secs(600),
            distinct: false,
            user_addrs: None,
            friend_for: None,
            bantime: Bantime::For(Duration::from_secs(60)),
            increment: None,
            hears_bans: false,
            prefix: None,
            extend_on_knock: None,
            ignoreip: Allow::new(&["198.51.100.0/24".parse().unwrap(), "2001:db8:1::7/128".parse().unwrap()]),
        })
    }

    fn failure(addr: &str, second: i64) -> Failure {
        Failure {
            addr: addr.parse().unwrap(),
            at: Timestamp::from_millis(second * 1_000),
            weight: 1,
            bantime: None,
            user: None,
            path: None,
        }
    }

    fn target(addr: &str) -> Target {
        Target::of(addr.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn a_ban_is_believed_only_when_it_was_taken() {
        let mut jail = jail(2);
        let never = Allow::default();
        assert_eq!(jail.handle_failure(&failure("192.0.2.1", 0), &never, 0, 0), Verdict::Counted(1));
        let Verdict::Ban(ban) = jail.handle_failure(&failure("192.0.2.1", 1), &never, 0, 0) else { panic!() };
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
        let Verdict::Ban(ban) = jail.handle_failure(&failure("192.0.2.1", 0), &never, 0, 0) else { panic!() };
        assert_eq!(jail.handle_failure(&failure("192.0.2.1", 0), &never, 0, 0), Verdict::Standing);
        jail.handle_refused(&Change::Ban(ban));
        assert!(matches!(jail.handle_failure(&failure("192.0.2.1", 0), &never, 0, 0), Verdict::Ban(_)));
    }

    #[test]
    fn an_answer_to_one_ban_does_not_let_a_shorter_one_overtake_the_next() {
        let mut jail = jail(1);
        let never = Allow::default();
        let worst = Failure { bantime: Some(Bantime::Forever), ..failure("192.0.2.1", 1) };
        let Verdict::Ban(first) = jail.handle_failure(&failure("192.0.2.1", 0), &never, 0, 0) else {
            panic!()
        };
        assert!(matches!(jail.handle_failure(&worst, &never, 0, 0), Verdict::Ban(_)));
        jail.handle_taken(&Change::Ban(first));
        assert_eq!(jail.handle_failure(&failure("192.0.2.1", 9), &never, 0, 0), Verdict::Standing);
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
        assert_eq!(jail.handle_failure(&failure("192.0.2.1", 40), &never, 0, 0), Verdict::Standing);
        assert!(matches!(jail.handle_failure(&failure("192.0.2.1", 41), &never, 0, 0), Verdict::Ban(_)));
    }

    #[test]
    fn a_break_in_attempt_bans_for_its_own_time() {
        let attempt = Failure { bantime: Some(Bantime::Forever), ..failure("192.0.2.1", 0) };
        let Verdict::Ban(ban) = jail(1).handle_failure(&attempt, &Allow::default(), 0, 0) else { panic!() };
        assert_eq!(ban.bantime, Bantime::Forever);
        let mut stepping = jail(1);
        let hour = Duration::from_secs(3_600);
        stepping.terms.increment = Some(Increment {
            growth: bantime::Growth::Steps(vec![Duration::from_secs(30)]),
            maxtime: hour,
            rndtime: Duration::ZERO,
            overalljails: false,
            forget: hour,
            forever_at: None,
        });
        let attempt = Failure { bantime: Some(Bantime::For(24 * hour)), ..failure("192.0.2.1", 0) };
        let Verdict::Ban(ban) = stepping.handle_failure(&attempt, &Allow::default(), 0, 0) else { panic!() };
        assert_eq!(ban.bantime, Bantime::For(24 * hour), "no step makes it shorter");
    }

    #[test]
    fn an_offender_waits_longer_until_pardoned() {
        let mut jail = jail(1);
        let hour = Duration::from_secs(3_600);
        jail.terms.increment = Some(Increment {
            growth: bantime::Growth::Factor(2),
            maxtime: hour,
            rndtime: Duration::ZERO,
            overalljails: false,
            forget: hour,
            forever_at: None,
        });
        let mut lengths = Vec::new();
        let mut second = 0;
        for round in 0..4 {
            let failure = failure("192.0.2.1", second);
            let Verdict::Ban(ban) = jail.handle_failure(&failure, &Allow::default(), 0, 0) else { panic!() };
            lengths.push(ban.bantime.to_string());
            let end = ban.end().unwrap();
            jail.handle_taken(&Change::Ban(ban));
            jail.handle_timeout(end);
            second = end.as_millis() / 1_000 + 1;
            if round == 2 {
                let jail_name = jail.terms.name.clone();
                jail.handle_taken(&Change::Release { jail: jail_name, target: target("192.0.2.1") });
            }
        }
        assert_eq!(lengths, ["1m", "2m", "4m", "1m"]);
        let elsewhere = jail.handle_failure(&failure("192.0.2.2", 0), &Allow::default(), 3, 0);
        assert!(matches!(elsewhere, Verdict::Ban(ban) if ban.bantime.to_string() == "8m"));
    }

    #[test]
    fn nobody_to_be_spared_is_counted() {
        let mut jail = jail(1);
        let own = Allow::new(&["2001:db8::7/128".parse().unwrap()]);
        for addr in ["198.51.100.9", "127.0.0.1", "::ffff:127.0.0.1", "2001:db8::7", "2001:db8:1::99"] {
            assert_eq!(jail.handle_failure(&failure(addr, 0), &own, 0, 0), Verdict::Ignored, "{addr}");
        }
        assert_eq!(jail.failed_total(), 0);
        assert!(matches!(jail.handle_failure(&failure("2001:db8::99", 0), &own, 0, 0), Verdict::Ban(_)));
    }

    #[test]
    fn nobody_to_be_spared_becomes_a_friend() {
        let mut jail = jail(1);
        jail.terms.friend_for = Some(friend::FRIEND_FOR);
        let own = Allow::new(&["192.0.2.7/32".parse().unwrap()]);
        for addr in ["198.51.100.9", "192.0.2.7"] {
            let at = Timestamp::from_millis(0);
            assert!(!jail.handle_success(addr.parse().unwrap(), None, at, &own));
            assert_eq!(jail.memory(target(addr)).friend, None);
        }
    }

    #[test]
    fn a_break_in_attempt_is_soft_for_nobody() {
        let mut jail = jail(1);
        jail.terms.friend_for = Some(friend::FRIEND_FOR);
        let never = Allow::default();
        let (addr, user) = ("192.0.2.1".parse().unwrap(), Some(Mark::MIN));
        assert!(jail.handle_success(addr, user, Timestamp::from_millis(0), &never));
        for second in 0..9 {
            let verdict = jail.handle_failure(&failure("192.0.2.1", second), &never, 0, 0);
            assert_eq!(verdict, Verdict::Counted(second as u32 + 1));
        }
        let day = Bantime::For(Duration::from_secs(86_400));
        let attempt = Failure { bantime: Some(day), user, ..failure("192.0.2.1", 9) };
        let Verdict::Ban(ban) = jail.handle_failure(&attempt, &never, 0, 0) else { panic!() };
        assert_eq!(ban.bantime, day);
        jail.terms.maxretry = 2;
        assert_eq!(jail.handle_failure(&attempt, &never, 0, 0), Verdict::Counted(1));
        jail.handle_success(addr, user, attempt.at, &never);
        assert_eq!(jail.handle_failure(&attempt, &never, 0, 0), Verdict::Standing, "nor is it forgiven");
    }

    #[test]
    fn a_name_that_many_strangers_tried_bans_the_next_but_no_friend() {
        let mut jail = jail(5);
        jail.terms.user_addrs = Some(2);
        jail.terms.friend_for = Some(friend::FRIEND_FOR);
        let never = Allow::default();
        jail.handle_success("192.0.2.9".parse().unwrap(), None, Timestamp::from_millis(0), &never);
        let mut fail =
            |addr: &str, user| jail.handle_failure(&Failure { user, ..failure(addr, 1) }, &never, 0, 0);
        let admin = Some(Mark::MIN);
        for addr in ["192.0.2.9", "192.0.2.1", "192.0.2.2"] {
            assert_eq!(fail(addr, admin), Verdict::Counted(1), "{addr}");
        }
        assert_eq!(fail("192.0.2.9", admin), Verdict::Counted(2), "a friend");
        assert_eq!(fail("192.0.2.3", None), Verdict::Counted(1), "as nobody");
        assert_eq!(fail("192.0.2.3", admin.map(|mark| mark.saturating_add(1))), Verdict::Counted(2));
        let Verdict::Series(ban, 2) = fail("192.0.2.3", admin) else { panic!() };
        assert_eq!(ban.bantime.to_string(), "1m");
        assert!(matches!(fail("192.0.2.1", admin), Verdict::Series(..)), "who began it comes back");
    }

    #[test]
    fn one_64_is_one_target() {
        let mut jail = jail(3);
        let never = Allow::default();
        assert_eq!(jail.handle_failure(&failure("2001:db8::1", 0), &never, 0, 0), Verdict::Counted(1));
        assert_eq!(jail.handle_failure(&failure("2001:db8::2", 0), &never, 0, 0), Verdict::Counted(2));
        assert_eq!(jail.handle_failure(&failure("2001:db8:0:1::2", 0), &never, 0, 0), Verdict::Counted(1));
        assert!(matches!(jail.handle_failure(&failure("2001:db8::3", 0), &never, 0, 0), Verdict::Ban(_)));
    }

    fn net_ban(net: &str, second: i64, seconds: u64) -> Ban {
        Ban {
            jail: "sshd".parse().unwrap(),
            target: net.parse().unwrap(),
            at: Timestamp::from_millis(second * 1_000),
            bantime: Bantime::For(Duration::from_secs(seconds)),
        }
    }

    /// A jail that bans a /24, /56 or /48 for two offenders in a minute.
    fn jail_of_networks() -> Jail {
        let findtime = Duration::from_secs(60);
        let mut terms = jail(1).terms;
        terms.prefix = Some(PrefixLaw { v4: vec![24], v6: vec![56, 48], offenders: 2, findtime });
        Jail::new(terms)
    }

    /// The failure of an address that is banned for one, taken by the kernel, and what follows for its network.
    fn banned(jail: &mut Jail, addr: &str, second: i64, never: &Allow) -> Vec<Change> {
        let Verdict::Ban(ban) = jail.handle_failure(&failure(addr, second), never, 0, 0) else { panic!() };
        assert!(jail.handle_taken(&Change::Ban(ban.clone())));
        jail.handle_neighbour(&ban, never, ban.at)
    }

    #[test]
    fn the_last_offender_of_many_bans_the_network_for_as_long_as_himself() {
        let (mut jail, never) = (jail_of_networks(), Allow::default());
        assert_eq!(banned(&mut jail, "192.0.2.1", 0, &never), []);
        assert_eq!(banned(&mut jail, "192.0.2.2", 9, &never), [Change::Ban(net_ban("192.0.2.0/24", 9, 60))]);
        assert!(jail.is_taken_over(net_ban("192.0.2.0/25", 0, 1).target), "also while it is only asked for");
        assert_eq!(banned(&mut jail, "2001:db8:9::1", 10, &never), []);
        let first = banned(&mut jail, "2001:db8:9:1::1", 10, &never);
        assert_eq!(first, [Change::Ban(net_ban("2001:db8:9::/56", 10, 60))]);
        jail.handle_taken(&first[0]);
        let narrow = first[0].target();
        let wide = [
            Change::Release { jail: jail.terms.name.clone(), target: narrow },
            Change::Ban(net_ban("2001:db8:9::/48", 20, 60)),
        ];
        assert_eq!(banned(&mut jail, "2001:db8:9:100::1", 20, &never), wide);
    }

    #[test]
    fn no_rule_bans_a_network_with_somebody_to_be_spared_in_it() {
        for (second, never) in [("198.51.101.9", "198.51.101.7/32"), ("2001:db8:1:1::", "::/128")] {
            let (mut jail, never) = (jail_of_networks(), Allow::new(&[never.parse().unwrap()]));
            let first = if second.contains(':') { "2001:db8:1:2::" } else { "198.51.101.8" };
            assert_eq!(banned(&mut jail, first, 0, &never), []);
            assert_eq!(banned(&mut jail, second, 0, &never), [], "{second}");
        }
    }

    #[test]
    fn no_rule_bans_a_network_with_a_friend_in_it_who_is_not_banned_himself() {
        for (friend, spared) in [("192.0.2.9", true), ("192.0.2.1", false), ("192.0.3.9", false)] {
            let (mut jail, never) = (jail_of_networks(), Allow::default());
            jail.terms.friend_for = Some(Duration::from_secs(60));
            banned(&mut jail, "192.0.2.1", 0, &never);
            jail.handle_success(friend.parse().unwrap(), None, Timestamp::from_millis(500), &never);
            assert_eq!(banned(&mut jail, "192.0.2.2", 1, &never).is_empty(), spared, "{friend}");
        }
    }

    #[test]
    fn the_bans_of_hosts_are_counted_apart_from_those_of_networks() {
        let mut jail = jail(1);
        for (target, seconds) in
            [("192.0.2.0/24", 60), ("192.0.2.7", 60), ("192.0.2.8", 9), ("192.0.3.0/24", 9)]
        {
            jail.restore(net_ban(target, 0, seconds));
        }
        let at = |second: i64| Timestamp::from_millis(second * 1_000);
        assert_eq!([0, 9, 60].map(|second| jail.hosts_beyond(at(second))), [2, 1, 0]);
        jail.handle_timeout(at(60));
        assert_eq!(
            (jail.hosts_beyond(at(0)), jail.bans().len()),
            (0, 1),
            "a network is believed a little longer"
        );
    }

    #[test]
    fn a_ban_for_ever_is_the_hosts_own() {
        let (mut jail, never) = (jail_of_networks(), Allow::default());
        banned(&mut jail, "192.0.2.1", 0, &never);
        let ban = Ban { bantime: Bantime::Forever, ..net_ban("192.0.2.2", 0, 1) };
        assert!(jail.handle_taken(&Change::Ban(ban.clone())));
        let wide = jail.handle_neighbour(&ban, &never, ban.at);
        assert_eq!(wide, [Change::Ban(net_ban("192.0.2.0/24", 0, 60))]);
        let late = Timestamp::from_millis(60_000);
        assert_eq!(jail.handle_neighbour(&net_ban("192.0.2.3", 1, 10), &never, late), [], "it is over");
    }

    #[test]
    fn networks_never_overlap_and_no_ban_is_shortened_by_another() {
        let mut jail = jail(1);
        let release =
            |net: &str| Change::Release { jail: "sshd".parse().unwrap(), target: net.parse().unwrap() };
        for ban in [net_ban("192.0.2.0/26", 0, 100), net_ban("192.0.2.9", 0, 1_000)] {
            jail.restore(ban);
        }
        jail.note_asked(&net_ban("192.0.2.128/26", 0, 60));
        let wide = net_ban("192.0.2.0/24", 0, 100);
        let all = [release("192.0.2.0/26"), release("192.0.2.128/26"), Change::Ban(wide.clone())];
        assert_eq!(jail.changes_for(&wide), Ok(all.to_vec()), "a host's own ban is left alone");
        let shorter = net_ban("192.0.2.0/24", 0, 99);
        assert_eq!(jail.changes_for(&shorter), Err("192.0.2.0/26".parse().unwrap()));
        jail.handle_taken(&Change::Ban(wide.clone()));
        jail.handle_taken(&release("192.0.2.0/26"));
        let narrow = net_ban("192.0.2.64/26", 50, 1_000);
        assert_eq!(jail.changes_for(&narrow), Err(wide.target));
        let again = net_ban("192.0.2.0/24", 1, 7);
        assert_eq!(
            jail.changes_for(&again),
            Ok(vec![Change::Ban(again.clone())]),
            "nothing is taken over twice"
        );
        let host = net_ban("192.0.2.7", 0, 7);
        assert_eq!(jail.changes_for(&host), Ok(vec![Change::Ban(host.clone())]));
    }

    #[test]
    fn a_network_is_believed_until_its_element_is_gone_for_sure() {
        let mut jail = jail(1);
        let ban = net_ban("192.0.2.0/24", 0, 60);
        jail.restore(ban.clone());
        assert_eq!(jail.poll_timeout(), Some(Timestamp::from_millis(61_000)));
        assert_eq!(jail.handle_timeout(Timestamp::from_millis(60_999)), []);
        assert_eq!(jail.handle_timeout(Timestamp::from_millis(61_000)), [ban]);
        assert_eq!(jail.poll_timeout(), None);
    }

    fn offender(target: Target) -> Memory {
        let jail = "sshd".parse().unwrap();
        Memory { jail, target, times: Vec::new(), offender: Some((1, Timestamp::default())), friend: None }
    }

    #[test]
    fn neighbours_count_on_after_a_restart_and_the_pardoned_do_not() {
        let (mut jail, never) = (jail_of_networks(), Allow::default());
        jail.restore_memory(offender(target("192.0.2.1")));
        assert_eq!(banned(&mut jail, "192.0.2.2", 0, &never).len(), 1);
        jail.restore_memory(offender(target("203.0.113.1")));
        let name = jail.terms.name.clone();
        jail.handle_taken(&Change::Release { jail: name, target: target("203.0.113.1") });
        assert_eq!(banned(&mut jail, "203.0.113.2", 0, &never), []);
    }

    #[test]
    fn a_release_forgets_the_failures_too() {
        let mut jail = jail(2);
        let never = Allow::default();
        let _ = jail.handle_failure(&failure("192.0.2.1", 0), &never, 0, 0);
        let release = Change::Release { jail: "sshd".parse().unwrap(), target: target("192.0.2.1") };
        assert!(!jail.handle_taken(&release));
        assert_eq!(jail.handle_failure(&failure("192.0.2.1", 1), &never, 0, 0), Verdict::Counted(1));
    }
}
