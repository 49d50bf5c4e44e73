//! The judge as its documentation tells it, written the long way: every failure is kept and counted anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nftjail::jail::FORGET;
use nftjail::jail::bantime::{Growth, Increment};
use nftjail::model::{Ban, Bantime, Change, Failure, JailName, Target, Timestamp};

/// The law of one jail, as the engine's terms but for the networks, which nobody merged.
#[derive(Clone, Debug)]
pub struct Law {
    pub name: &'static str,
    pub maxretry: u32,
    pub findtime: Duration,
    pub distinct: bool,
    pub user_addrs: Option<u32>,
    pub friend_for: Option<Duration>,
    pub bantime: Bantime,
    pub increment: Option<Increment>,
    pub ignoreip: Vec<IpNet>,
    pub hears_bans: bool,
}

/// Whom or what an attempt is for, as the line says it.
#[derive(Clone, Copy, Debug, Default)]
pub struct About {
    pub user: Option<&'static str>,
    pub path: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct Failed {
    at: Timestamp,
    weight: u32,
    about: About,
}

#[derive(Debug)]
pub struct Court {
    pub law: Law,
    /// Every failure since the last straw, as they came. Those of break-in attempts are about nothing.
    failures: BTreeMap<Target, Vec<Failed>>,
    /// When each logged in last.
    friends: BTreeMap<Target, Timestamp>,
    /// Every failure of a stranger, by whom it was to be, as they came.
    strangers: BTreeMap<&'static str, Vec<(Timestamp, Target)>>,
    pub bans: BTreeMap<Target, Ban>,
    /// Bans that the kernel has not answered, in the order in which they were asked for.
    pub asked: Vec<Ban>,
    /// How often each was banned, and when last.
    offences: BTreeMap<Target, (u32, Timestamp)>,
}

pub struct Naive {
    pub courts: Vec<Court>,
    pub never: Vec<IpNet>,
}

impl Naive {
    pub fn new(laws: &[Law]) -> Self {
        let court = |law: &Law| Court {
            law: law.clone(),
            failures: BTreeMap::new(),
            friends: BTreeMap::new(),
            strangers: BTreeMap::new(),
            bans: BTreeMap::new(),
            asked: Vec::new(),
            offences: BTreeMap::new(),
        };
        Naive { courts: laws.iter().map(court).collect(), never: Vec::new() }
    }

    /// Whether a jail counts nothing of this address.
    fn ignores(&self, court: usize, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        addr.is_loopback()
            || self.never.iter().any(|net| net.contains(&addr))
            || self.courts[court].law.ignoreip.iter().any(|net| touch(*net, Target::of(addr)))
    }

    /// Whether nobody may ban the target by hand.
    pub fn spares(&self, court: usize, target: Target) -> bool {
        let nets = self.never.iter().chain(&self.courts[court].law.ignoreip);
        target.network().is_loopback() || nets.copied().any(|net| touch(net, target))
    }

    /// The ban that a failure leads to, if it is the last straw and nothing as long stands or is asked for.
    pub fn fail(&mut self, court: usize, failure: &Failure, about: About, now: Timestamp) -> Option<Ban> {
        if self.ignores(court, failure.addr) {
            return None;
        }
        let target = Target::of(failure.addr);
        let earlier = self.earlier(court, target, failure.at);
        let court = &mut self.courts[court];
        let friend = court.is_friend(target, failure.at);
        let series = !friend && about.user.is_some_and(|user| court.is_series(user, target, failure.at));
        let soft = friend && failure.bantime.is_none();
        let noted = if failure.bantime.is_some() { About::default() } else { about };
        let noted = Failed { at: failure.at, weight: failure.weight, about: noted };
        court.failures.entry(target).or_default().push(noted);
        let count: u32 = court.counted(target).iter().map(|failed| failed.weight).sum();
        let Court { law, failures, bans, asked, .. } = court;
        let most = if soft { (2 * law.maxretry).max(10) } else { law.maxretry };
        if count < most && !series {
            return None;
        }
        failures.remove(&target);
        let grown = length(law, failure.bantime.unwrap_or(law.bantime), earlier);
        let bantime = match (failure.bantime, grown) {
            (Some(own), grown) => own.max(grown),
            (None, grown) if !soft || earlier > 0 => grown,
            (None, Bantime::Forever) => Bantime::For(Duration::from_secs(3_600)),
            (None, Bantime::For(time)) if time < Duration::from_secs(60) => grown,
            (None, Bantime::For(time)) => {
                Bantime::For((time / 10).max(Duration::from_secs(60)).min(Duration::from_secs(3_600)))
            }
        };
        let ban = Ban { jail: law.name.parse().unwrap(), target, at: failure.at, bantime };
        let second = Duration::from_secs(1);
        let mut others = asked.iter().chain(bans.values()).filter(|other| other.target == target);
        let longer = others.all(|other| match (other.end(), ban.end()) {
            (None, _) => false,
            (_, None) => true,
            (Some(old), Some(new)) => old.plus(second) <= new,
        });
        if !longer || ban.end().is_some_and(|end| end <= now) {
            return None;
        }
        asked.push(ban.clone());
        Some(ban)
    }

    /// Somebody logged in from this address.
    pub fn succeed(&mut self, court: usize, addr: IpAddr, user: Option<&str>, at: Timestamp) {
        if self.ignores(court, addr) {
            return;
        }
        let court = &mut self.courts[court];
        let last = court.friends.entry(Target::of(addr)).or_insert(at);
        *last = at.max(*last);
        if let (false, Some(user)) = (court.law.distinct, user) {
            let failures = court.failures.entry(Target::of(addr)).or_default();
            failures.retain(|failed| failed.about.user != Some(user) || failed.at > at);
        }
    }

    /// What the agent does not keep when it ends: whom and what the failures were about.
    pub fn restart(&mut self) {
        for court in &mut self.courts {
            for target in court.failures.keys().copied().collect::<Vec<_>>() {
                let mut counted = court.counted(target);
                counted.iter_mut().for_each(|failed| failed.about = About::default());
                court.failures.insert(target, counted);
            }
            court.strangers.clear();
        }
    }

    /// How many earlier bans of the target count, in this jail or in all.
    fn earlier(&self, court: usize, target: Target, at: Timestamp) -> u32 {
        let overall = self.courts[court].law.increment.as_ref().is_some_and(|grows| grows.overalljails);
        let count = |court: &Court| court.offences_at(target, at);
        match overall {
            true => self.courts.iter().map(count).sum(),
            false => count(&self.courts[court]),
        }
    }

    /// The kernel took a change. Returns the bans of the jails that hear of it.
    pub fn taken(&mut self, change: &Change, now: Timestamp) -> Vec<Ban> {
        self.answered(change);
        let index = self.court(change.jail());
        let court = &mut self.courts[index];
        let Change::Ban(ban) = change else {
            court.bans.remove(&change.target());
            court.failures.remove(&change.target());
            court.offences.remove(&change.target());
            return Vec::new();
        };
        let known = court.bans.insert(ban.target, ban.clone());
        if known.is_some() {
            return Vec::new();
        }
        let last = court.offences.get(&ban.target).map_or(ban.at, |(_, last)| ban.at.max(*last));
        let count = court.offences_at(ban.target, ban.at) + 1;
        court.offences.insert(ban.target, (count, last));
        if court.law.hears_bans {
            return Vec::new();
        }
        let addr = ban.target.network();
        let failure = Failure { addr, at: ban.at.min(now), weight: 1, bantime: None, user: None, path: None };
        let hears = (0..self.courts.len()).filter(|index| self.courts[*index].law.hears_bans);
        hears
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|index| self.fail(index, &failure, About::default(), now))
            .collect()
    }

    /// The kernel took or refused a change.
    pub fn answered(&mut self, change: &Change) {
        let Change::Ban(ban) = change else { return };
        let index = self.court(&ban.jail);
        let asked = &mut self.courts[index].asked;
        let place = asked.iter().position(|other| other.target == ban.target && other.end() == ban.end());
        asked.remove(place.expect("only what was asked is answered"));
    }

    /// Whose bans must go, by jail.
    pub fn spare(&mut self, never: Vec<IpNet>) -> BTreeSet<(JailName, Target)> {
        self.never = never;
        let bans = self.courts.iter().flat_map(|court| court.bans.values().chain(&court.asked));
        let spared = bans.filter(|ban| self.never.iter().any(|net| net.contains(&ban.target.network())));
        spared.map(|ban| (ban.jail.clone(), ban.target)).collect()
    }

    /// The bans that are over, and no longer believed.
    pub fn pass(&mut self, now: Timestamp) -> BTreeSet<(JailName, Target)> {
        let mut ended = BTreeSet::new();
        for court in &mut self.courts {
            court.bans.retain(|target, ban| {
                let over = ban.end().is_some_and(|end| end <= now);
                ended.extend(over.then(|| (ban.jail.clone(), *target)));
                !over
            });
        }
        ended
    }

    pub fn court(&self, jail: &JailName) -> usize {
        self.courts.iter().position(|court| court.law.name == jail.as_str()).unwrap()
    }
}

impl Court {
    fn is_friend(&self, target: Target, at: Timestamp) -> bool {
        let until = self.friends.get(&target).zip(self.law.friend_for).map(|(last, time)| last.plus(time));
        until.is_some_and(|until| at <= until)
    }

    /// The failures of a target that count: those within `findtime` of the newest, and where only distinct ones do,
    /// of those for the same path the last.
    fn counted(&self, target: Target) -> Vec<Failed> {
        let all = self.failures.get(&target).map_or(&[][..], Vec::as_slice);
        let Some(newest) = all.iter().map(|failed| failed.at).max() else { return Vec::new() };
        let path = |failed: &Failed| failed.about.path.map(|path| path.split('?').next().unwrap());
        let last = |failed: &Failed| {
            let same = all.iter().filter(|other| path(other) == path(failed));
            same.max_by_key(|other| other.at).is_some_and(|last| std::ptr::eq(last, failed))
        };
        let counts = |failed: &&Failed| !self.law.distinct || path(failed).is_none() || last(failed);
        let within = all.iter().filter(|failed| newest <= failed.at.plus(self.law.findtime));
        within.filter(counts).cloned().collect()
    }

    /// Notes one more stranger; whether enough others came before without a pause.
    fn is_series(&mut self, user: &'static str, target: Target, at: Timestamp) -> bool {
        let strangers = self.strangers.entry(user).or_default();
        strangers.push((at, target));
        let mut chain = BTreeSet::new();
        let mut last = strangers[0].0;
        for (index, (at, target)) in strangers.iter().enumerate() {
            if *at > last.plus(self.law.findtime) {
                chain.clear();
            }
            if index + 1 < strangers.len() {
                chain.insert(*target);
            }
            last = last.max(*at);
        }
        self.law.user_addrs.is_some_and(|addrs| chain.len() >= addrs as usize)
    }

    /// How many bans count at `now`: one is forgotten for each `forget` since the last.
    fn offences_at(&self, target: Target, now: Timestamp) -> u32 {
        let forget = self.law.increment.as_ref().map_or(FORGET, |increment| increment.forget);
        let Some((mut count, mut last)) = self.offences.get(&target).copied() else { return 0 };
        while count > 0 && last.plus(forget) <= now {
            count -= 1;
            last = last.plus(forget);
        }
        count
    }
}

/// The length of a ban after `earlier` ones: multiplied once for each.
fn length(law: &Law, base: Bantime, earlier: u32) -> Bantime {
    let (Some(increment), Bantime::For(base)) = (&law.increment, base) else { return base };
    if increment.forever_at.is_some_and(|at| earlier + 1 >= at) {
        return Bantime::Forever;
    }
    let mut grown = base;
    match &increment.growth {
        Growth::Factor(factor) => (0..earlier.min(20)).for_each(|_| grown *= *factor),
        Growth::Steps(steps) => grown = *steps.iter().take(earlier as usize + 1).next_back().unwrap(),
    }
    Bantime::For(grown.min(increment.maxtime))
}

/// Whether the two share an address: of two networks that do, one holds the other's first.
fn touch(net: IpNet, target: Target) -> bool {
    net.contains(&target.network()) || target.net().contains(&net.network())
}
