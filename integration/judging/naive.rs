//! The judge as its documentation tells it, written the long way: every failure is kept and counted anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nftjail::jail::FORGET;
use nftjail::jail::bantime::{Growth, Increment};
use nftjail::jail::network::LINGER;
use nftjail::jail::prefix::PrefixLaw;
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
    pub prefix: Option<PrefixLaw>,
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
    /// Who counts for his network: everybody who was banned, but for those whose network was banned since.
    neighbours: BTreeMap<Target, Timestamp>,
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
            neighbours: BTreeMap::new(),
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
        let Court { law, failures, .. } = court;
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
        if !court.outlasts_its_own(&ban) || ban.end().is_some_and(|end| end <= now) {
            return None;
        }
        court.asked.push(ban.clone());
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

    /// The kernel took a change. Returns what follows: for the network, and in the jails that hear of it.
    pub fn taken(&mut self, change: &Change, now: Timestamp) -> Vec<Change> {
        self.answered(change);
        let index = self.court(change.jail());
        let court = &mut self.courts[index];
        let Change::Ban(ban) = change else {
            let target = change.target();
            court.bans.remove(&target);
            court.failures.remove(&target);
            court.offences.remove(&target);
            court.neighbours.retain(|known, _| !target.covers(*known));
            return Vec::new();
        };
        let known = court.bans.insert(ban.target, ban.clone());
        if known.is_none() {
            let last = court.offences.get(&ban.target).map_or(ban.at, |(_, last)| ban.at.max(*last));
            let count = court.offences_at(ban.target, ban.at) + 1;
            court.offences.insert(ban.target, (count, last));
        }
        if ban.target.is_network() {
            court.note_neighbour(ban.target, ban.at);
        }
        if known.is_some() || ban.target.is_network() {
            return Vec::new();
        }
        let mut follows = self.network_of(index, ban, now);
        if self.courts[index].law.hears_bans {
            return follows;
        }
        let addr = ban.target.network();
        let failure = Failure { addr, at: ban.at.min(now), weight: 1, bantime: None, user: None, path: None };
        for index in 0..self.courts.len() {
            if self.courts[index].law.hears_bans {
                follows.extend(self.fail(index, &failure, About::default(), now).map(Change::Ban));
            }
        }
        follows
    }

    /// What a new ban asks for its network: of those that are due the widest.
    fn network_of(&mut self, index: usize, ban: &Ban, now: Timestamp) -> Vec<Change> {
        let court = &mut self.courts[index];
        let Some(law) = court.law.prefix.clone() else { return Vec::new() };
        if !court.note_neighbour(ban.target, ban.at) {
            return Vec::new();
        }
        let mut due = None;
        for length in (8..64).rev() {
            let lengths = if ban.target.is_v4() { &law.v4 } else { &law.v6 };
            let net = ban.target.within(length).filter(|_| lengths.contains(&length));
            let Some(net) = net else { continue };
            let inside = |known: &Target| net.covers(*known) && net != *known;
            let times = || court.neighbours.iter().filter(|(known, _)| inside(known)).map(|(_, at)| *at);
            let Some(newest) = times().max() else { continue };
            if times().filter(|at| newest <= at.plus(law.findtime)).count() >= law.offenders as usize {
                court.note_neighbour(net, ban.at);
                due = Some(net);
            }
        }
        let Some(target) = due else { return Vec::new() };
        let bantime = if ban.bantime == Bantime::Forever { court.law.bantime } else { ban.bantime };
        let wide = Ban { target, bantime, ..ban.clone() };
        let court = &self.courts[index];
        let is_friend = |friend: &&Target| {
            target.covers(**friend) && court.is_friend(**friend, ban.at) && !court.bans.contains_key(friend)
        };
        if court.friends.keys().find(is_friend).is_some() {
            return Vec::new();
        }
        if self.spares(index, target) || wide.end().is_some_and(|end| end <= now) {
            return Vec::new();
        }
        let court = &mut self.courts[index];
        let Some(changes) = court.changes_for(&wide) else { return Vec::new() };
        if !court.outlasts_its_own(&wide) {
            return Vec::new();
        }
        court.asked.push(wide);
        changes
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
        let mut spared = BTreeSet::new();
        for court in &self.courts {
            let held = court.bans.values().chain(&court.asked);
            let of_no_use = held.filter(|ban| {
                let all = self.never.iter().any(|net| net.contains(&ban.target.net()));
                all || court.law.ignoreip.iter().any(|net| touch(*net, ban.target))
            });
            let lifted = of_no_use.filter(|ban| !court.is_taken_over(ban.target));
            spared.extend(lifted.map(|ban| (ban.jail.clone(), ban.target)));
        }
        spared
    }

    /// The bans that are over, and no longer believed.
    pub fn pass(&mut self, now: Timestamp) -> BTreeSet<(JailName, Target)> {
        let mut ended = BTreeSet::new();
        for court in &mut self.courts {
            court.bans.retain(|target, ban| {
                let over = court_end(ban).is_some_and(|end| end <= now);
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

/// When a ban that ends is believed no longer.
pub fn court_end(ban: &Ban) -> Option<Timestamp> {
    ban.end().map(|end| if ban.target.is_network() { end.plus(LINGER) } else { end })
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

    /// Notes that somebody was banned, in place of all in him. False where that is known of his network.
    fn note_neighbour(&mut self, target: Target, at: Timestamp) -> bool {
        let since = |(net, then): (&Target, &Timestamp)| *net != target && net.covers(target) && *then >= at;
        if self.neighbours.iter().any(since) {
            return false;
        }
        self.neighbours.retain(|known, then| *known == target || !target.covers(*known) || *then > at);
        let last = self.neighbours.entry(target).or_insert(at);
        *last = at.max(*last);
        true
    }

    /// What a new agent knows of neighbours: who was banned, and when last.
    pub fn restart(&mut self, now: Timestamp) {
        self.bans.retain(|_, ban| ban.end().is_none_or(|end| end > now));
        self.neighbours.clear();
        for (target, (_, last)) in self.offences.clone() {
            self.note_neighbour(target, last);
        }
    }

    /// Every network that is banned or asked for, and shares an address with another target.
    fn overlapping(&self, target: Target) -> impl Iterator<Item = &Ban> {
        let others = self.bans.values().chain(&self.asked).filter(|ban| ban.target.is_network());
        others.filter(move |ban| ban.target != target && touch(ban.target.net(), target))
    }

    pub fn is_taken_over(&self, target: Target) -> bool {
        target.is_network() && self.overlapping(target).any(|ban| ban.target.covers(target))
    }

    /// What to ask for a ban, with the releases of the networks that it takes over; none where another stands in its way.
    pub fn changes_for(&self, ban: &Ban) -> Option<Vec<Change>> {
        let mut released = BTreeSet::new();
        if ban.target.is_network() {
            let known = self.bans.values().chain(&self.asked).any(|other| other.target == ban.target);
            for other in self.overlapping(ban.target) {
                if other.target.covers(ban.target) {
                    return None;
                }
                let longer = ban.end().is_some_and(|end| other.end().is_none_or(|other| other > end));
                if longer && !known {
                    return None;
                }
                released.extend((!known).then_some(other.target));
            }
        }
        let release = |target| Change::Release { jail: ban.jail.clone(), target };
        Some(released.into_iter().map(release).chain([Change::Ban(ban.clone())]).collect())
    }

    /// Whether a ban ends a second later than all of the same target.
    fn outlasts_its_own(&self, ban: &Ban) -> bool {
        let second = Duration::from_secs(1);
        let mut others =
            self.asked.iter().chain(self.bans.values()).filter(|other| other.target == ban.target);
        others.all(|other| match (other.end(), ban.end()) {
            (None, _) => false,
            (_, None) => true,
            (Some(old), Some(new)) => old.plus(second) <= new,
        })
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
