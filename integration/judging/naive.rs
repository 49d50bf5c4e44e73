//! The judge as its documentation tells it, written the long way: every failure is kept and counted anew.

use std::collections::{BTreeMap, BTreeSet};
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
    pub bantime: Bantime,
    pub increment: Option<Increment>,
    pub ignoreip: Vec<IpNet>,
    pub hears_bans: bool,
}

#[derive(Debug)]
pub struct Court {
    pub law: Law,
    /// Every failure since the last straw.
    failures: BTreeMap<Target, Vec<Timestamp>>,
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
            bans: BTreeMap::new(),
            asked: Vec::new(),
            offences: BTreeMap::new(),
        };
        Naive { courts: laws.iter().map(court).collect(), never: Vec::new() }
    }

    /// Whether a jail counts no failure of this address.
    fn ignores(&self, court: usize, failure: &Failure) -> bool {
        let addr = failure.addr.to_canonical();
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
    pub fn fail(&mut self, court: usize, failure: &Failure, now: Timestamp) -> Option<Ban> {
        if self.ignores(court, failure) {
            return None;
        }
        let target = Target::of(failure.addr);
        let earlier = self.earlier(court, target, failure.at);
        let Court { law, failures, bans, asked, .. } = &mut self.courts[court];
        let times = failures.entry(target).or_default();
        times.extend((0..failure.weight).map(|_| failure.at));
        times.sort();
        times.reverse();
        let newest = times[0];
        let straw =
            times.get(law.maxretry as usize - 1).is_some_and(|first| newest <= first.plus(law.findtime));
        if !straw {
            return None;
        }
        times.clear();
        let grown = length(law, failure.bantime.unwrap_or(law.bantime), earlier);
        let bantime = failure.bantime.map_or(grown, |own| if own > grown { own } else { grown });
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
        let failure = Failure { addr, at: ban.at.min(now), weight: 1, bantime: None };
        let hears = (0..self.courts.len()).filter(|index| self.courts[*index].law.hears_bans);
        hears.collect::<Vec<_>>().into_iter().filter_map(|index| self.fail(index, &failure, now)).collect()
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
