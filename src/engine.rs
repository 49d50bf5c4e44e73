//! The whole decision without the world: lines and commands in, changes and events out.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::detect::skew::Skew;
use crate::detect::{Clock, Detector, Finding, Rule, Verdict as Detected};
use crate::evidence::Evidence;
use crate::jail::allow::Allow;
use crate::jail::{Jail, Terms, Verdict};
use crate::model::{Ban, Bantime, Change, Entry, Event, Failure, JailName, Memory, Target, Timestamp};
use crate::probe::{PROBE_BANTIME, PROBED, Probes};
use crate::proxied::Proxied;
use crate::secret::{chance, mark};

/// Which jails listen to one source, and with which rules.
pub struct Listener {
    pub jail: JailName,
    pub rule: Arc<Rule>,
    /// The zone of the source, where the jail knows it.
    pub zone: Option<TimeZone>,
}

/// What follows from an input: changes to ask the kernel for, and what to tell.
#[must_use]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub changes: Vec<Change>,
    pub events: Vec<Event>,
}

/// All jails, and a detector for each source.
pub struct Engine {
    pub(crate) jails: Vec<Jail>,
    pub(crate) sources: Vec<Source>,
    never: Allow,
    pub(crate) proxies: Allow,
    /// Whose failures or bans changed since they were last saved.
    unsaved: BTreeSet<(JailName, Target)>,
    paused: BTreeSet<JailName>,
    /// A number that nobody outside knows, for what is left to chance and for marks.
    secret: u64,
    probes: Probes,
    /// Who is not banned, and when it is to be seen that the kernel does not hold him.
    pub(crate) freed: BTreeSet<(Timestamp, JailName, Target)>,
    evidence: Evidence,
}

pub(crate) struct Source {
    detector: Detector,
    /// For each rule of the detector, the index of its jail.
    jails: Vec<usize>,
    pub(crate) proxied: Proxied,
    /// The zone of its dates, where one of its listeners knows it.
    zone: Option<TimeZone>,
}

impl Engine {
    /// `sources` are numbered by their order; each names jails of `terms`. `secret` is any number.
    pub fn new(terms: Vec<Terms>, sources: Vec<Vec<Listener>>, never: Allow, secret: u64) -> Self {
        let jails = terms.into_iter().map(Jail::new).collect();
        let mut engine = Engine {
            jails,
            sources: Vec::new(),
            never,
            proxies: Allow::default(),
            unsaved: BTreeSet::new(),
            paused: BTreeSet::new(),
            secret,
            probes: Probes::default(),
            freed: BTreeSet::new(),
            evidence: Evidence::default(),
        };
        engine.listen(sources);
        engine
    }

    /// Goes on under a new configuration; bans and failures of the jails that stay are kept. `was` is the number
    /// that each source had before, if it was there: what is known of it is kept as well.
    pub fn amend(&mut self, terms: Vec<Terms>, sources: Vec<Vec<Listener>>, was: &[Option<usize>]) {
        let mut old: Vec<Jail> = std::mem::take(&mut self.jails);
        for terms in terms {
            let known = old.iter().position(|jail| jail.terms().name == terms.name);
            self.jails.push(match known {
                Some(index) => {
                    let mut jail = old.swap_remove(index);
                    jail.amend(terms);
                    jail
                }
                None => Jail::new(terms),
            });
        }
        let mut old: Vec<_> = std::mem::take(&mut self.sources).into_iter().map(Some).collect();
        self.listen(sources);
        for (source, was) in self.sources.iter_mut().zip(was) {
            if let Some(old) = was.and_then(|was| old[was].take()) {
                source.detector.inherit(old.detector);
            }
        }
    }

    fn listen(&mut self, sources: Vec<Vec<Listener>>) {
        let place = |name: &JailName| self.jails.iter().position(|jail| jail.terms().name == *name);
        self.sources = sources
            .into_iter()
            .map(|listeners| {
                let zone = listeners.iter().find_map(|listener| listener.zone.clone());
                let (jails, rules) = listeners
                    .into_iter()
                    .filter_map(|listener| Some((place(&listener.jail)?, listener.rule)))
                    .unzip();
                Source { detector: Detector::new(rules), jails, zone, proxied: Proxied::default() }
            })
            .collect();
    }

    /// Whom one jail does not ban from now on. [`Engine::handle_never`] lifts the standing bans of them.
    pub fn spare(&mut self, jail: &JailName, ignoreip: Allow) {
        if let Some(jail) = self.jails.iter_mut().find(|held| held.terms().name == *jail) {
            jail.spare(ignoreip);
        }
    }

    /// Whom no jail bans from now on. Bans of them are lifted, those on their way to the kernel as well, and of those
    /// whom their own jail spares.
    pub fn handle_never(&mut self, never: Allow) -> Outcome {
        self.never = never;
        let mut out = Outcome::default();
        for jail in &self.jails {
            let spares = |target: &Target| {
                // The kernel lets those who are never banned pass before any ban, so only where all of a target are is
                // its ban of no use; one jail's `ignoreip` has no such guard.
                self.never.holds(target.net()) || jail.terms().ignoreip.touches(target.net())
            };
            let asked = jail.asked().filter(|target| jail.ban(*target).is_none());
            let held = jail.bans().map(|ban| ban.target).chain(asked);
            let spared = held.filter(spares).filter(|target| !jail.is_taken_over(*target));
            out.changes
                .extend(spared.map(|target| Change::Release { jail: jail.terms().name.clone(), target }));
        }
        out
    }

    /// Somebody bans by hand: what to ask the kernel for, or why nobody is banned.
    pub fn handle_ban(
        &mut self,
        name: &JailName,
        targets: &[Target],
        bantime: Bantime,
        now: Timestamp,
    ) -> Result<Vec<Change>, String> {
        let jail = self.jails.iter_mut().find(|jail| jail.terms().name == *name);
        let changes =
            jail.map_or(Ok(Vec::new()), |jail| jail.handle_ban(targets, bantime, now, &self.never))?;
        let Engine { evidence, .. } = self;
        targets.iter().for_each(|target| evidence.note(name, *target, now, b"(banned by hand)"));
        Ok(changes)
    }

    /// Judges one line of a source. Where the source has a zone of its own, it goes before the clock's.
    pub fn handle_line(
        &mut self,
        source: usize,
        text: &[u8],
        clock: Clock<'_>,
        now: Timestamp,
        out: &mut Outcome,
    ) {
        let zone = self.sources[source].zone.clone();
        let clock = match (clock, &zone) {
            (Clock::Written { now, .. }, Some(zone)) => Clock::Written { now, zone },
            (clock, _) => clock,
        };
        self.handle(source, text, now, out, |detector, found| detector.detect(text, clock, found));
    }

    /// Judges one journal entry of a source. The journal's own time counts, which nobody can choose.
    pub fn handle_entry(&mut self, source: usize, entry: Entry<'_>, now: Timestamp, out: &mut Outcome) {
        let clock = Clock::Arrived(entry.at.min(now));
        self.handle(source, entry.message, now, out, |judge, found| judge.detect_entry(entry, clock, found));
    }

    fn handle(
        &mut self,
        source: usize,
        text: &[u8],
        now: Timestamp,
        out: &mut Outcome,
        detect: impl FnOnce(&mut Detector, &mut dyn FnMut(usize, Detected)),
    ) {
        let mut heard = Vec::new();
        let Source { detector, jails, .. } = &mut self.sources[source];
        detect(detector, &mut |rule, detected| heard.push((jails[rule], detected)));
        for (jail, detected) in heard {
            if matches!(&detected, Detected::Failure(finding) if self.meet_probe(jail, finding.addr, now, out))
                || self.is_paused(&self.jails[jail].terms().name)
            {
                continue;
            }
            match detected {
                Detected::Failure(finding) => {
                    let counted =
                        self.judge(jail, &self.failure(&finding, now), finding.user, text, now, out);
                    self.note_proxied(source, finding.addr, counted);
                }
                Detected::Success(finding) => {
                    let Failure { addr, at, user, .. } = self.failure(&finding, now);
                    let jail = &mut self.jails[jail];
                    if jail.handle_success(addr, user, at, &self.never) {
                        self.unsaved.insert((jail.terms().name.clone(), Target::of(addr)));
                    }
                }
                Detected::Noted { .. } => {}
            }
        }
    }

    /// A finding as a jail takes it: not of the future, and without text.
    fn failure(&self, finding: &Finding, now: Timestamp) -> Failure {
        let Finding { addr, at, user, weight, bantime, path, .. } = finding;
        Failure {
            addr: *addr,
            at: now.min(*at),
            weight: *weight,
            bantime: *bantime,
            user: user.as_ref().map(|user| mark(self.secret, user.as_bytes())),
            path: path.as_ref().map(|path| mark(self.secret, path)),
        }
    }

    /// Waits for a failure of an address that nobody real has, in this jail, and says which address. The line that
    /// shows it bans it for [`PROBE_BANTIME`]; neither is counted, told or saved.
    pub fn handle_probe(&mut self, name: &JailName, now: Timestamp) -> Result<IpAddr, String> {
        if self.is_paused(name) {
            return Err("it is paused".to_owned());
        }
        let is_free = |addr: &Ipv4Addr| {
            let target = Target::of((*addr).into());
            let stands = |jail: &Jail| jail.ban(target).is_some() || jail.banned_around(target).is_some();
            self.jail(name).is_some_and(|jail| !stands(jail) && jail.spared_in(target, &self.never).is_none())
        };
        let Some(addr) = PROBED.into_iter().find(is_free) else {
            return Err(format!(
                "{PROBED:?} are all in ignoreip, or banned: one must be free for the self-test"
            ));
        };
        self.probes.expect(name.clone(), Target::of(addr.into()), now);
        Ok(addr.into())
    }

    /// Whether a failure is a self-test's. It bans in the jail that waits for it, and counts in no other.
    fn meet_probe(&mut self, jail: usize, addr: IpAddr, now: Timestamp, out: &mut Outcome) -> bool {
        let met = self.probes.meet(&self.jails[jail].terms().name, Target::of(addr), now);
        for ban in met.iter().flatten() {
            self.note_freed(&ban.jail, ban.target, now.plus(PROBE_BANTIME));
            out.changes.push(Change::Ban(ban.clone()));
        }
        met.is_some()
    }

    /// What the kernel took without what self-tests asked for, which is not believed, told or saved.
    pub fn without_probes(&self, taken: Vec<Change>) -> Vec<Change> {
        self.probes.without(taken)
    }

    /// Compares the date of a line that arrived just now with the clock; whether something new is found. `zone` is
    /// this host's, for sources without one of their own.
    pub fn compare_clocks(&mut self, source: usize, text: &[u8], now: Timestamp, zone: &TimeZone) -> bool {
        let source = &mut self.sources[source];
        source.detector.compare_clocks(text, now, source.zone.as_ref().unwrap_or(zone))
    }

    /// How the dates of a source differ from the clock.
    pub fn skew(&self, source: usize) -> Option<Skew> {
        self.sources[source].detector.skew()
    }

    /// Counts a failure that no log showed, as if one had.
    pub fn handle_attempt(&mut self, jail: &JailName, addr: IpAddr, now: Timestamp, out: &mut Outcome) {
        let failure = anonymous(addr.to_canonical(), now);
        if let Some(index) = self.jails.iter().position(|held| held.terms().name == *jail) {
            self.judge(index, &failure, None, b"(counted by hand)", now, out);
        }
    }

    /// A paused jail counts nothing that a log shows or another jail bans; its bans stay.
    pub fn handle_pause(&mut self, jail: &JailName, paused: bool) {
        if paused {
            self.paused.insert(jail.clone());
        } else {
            self.paused.remove(jail);
        }
    }

    pub fn is_paused(&self, jail: &JailName) -> bool {
        self.paused.contains(jail)
    }

    /// The kernel took a change. A new ban of an address is a failure in the jails that hear bans, but for those of
    /// their kind, and may be the last straw for its network.
    pub fn handle_taken(&mut self, change: &Change, now: Timestamp, out: &mut Outcome) {
        let Some(index) = self.jails.iter().position(|jail| jail.terms().name == *change.jail()) else {
            return;
        };
        let held = matches!(change, Change::Ban(ban) if self.jails[index].ban(ban.target) == Some(ban));
        let new = self.jails[index].handle_taken(change);
        let renewed = self.jails[index].take_renewing(change.target());
        self.unsaved.insert((change.jail().clone(), change.target()));
        out.events.extend(match change.clone() {
            // It was told when the kernel was found to hold him.
            Change::Ban(_) if renewed => None,
            Change::Ban(ban) if held => Some(Event::PutBack { ban }),
            Change::Ban(ban) if new => Some(Event::Banned { ban }),
            Change::Ban(ban) => Some(Event::Extended { ban }),
            // What is told is the ban that takes its place.
            Change::Release { target, .. } if self.jails[index].is_taken_over(target) => None,
            Change::Release { jail, target } => Some(Event::Released { jail, target }),
        });
        let Change::Ban(ban) = change else {
            return self.note_freed(change.jail(), change.target(), now);
        };
        if !new || ban.target.is_network() {
            return;
        }
        let network = self.jails[index].handle_neighbour(ban, &self.never, now);
        if let Some(Change::Ban(network)) = network.last() {
            let text = format!("(too many in it were banned, {} the last)", ban.target);
            self.evidence.note(&network.jail, network.target, now, text.as_bytes());
        }
        out.changes.extend(network);
        if !self.jails[index].terms().hears_bans {
            let failure = anonymous(ban.target.network(), ban.at.min(now));
            let text = format!("(banned in {} for {})", ban.jail, ban.bantime);
            for listener in 0..self.jails.len() {
                let terms = self.jails[listener].terms();
                if terms.hears_bans && !self.is_paused(&terms.name) {
                    self.judge(listener, &failure, None, text.as_bytes(), now, out);
                }
            }
        }
    }

    /// The kernel refused a change, and `why`.
    pub fn handle_refused(&mut self, change: &Change, why: &str, out: &mut Outcome) {
        let (name, target) = (change.jail().clone(), change.target());
        if let Some(jail) = self.jails.iter_mut().find(|jail| jail.terms().name == name) {
            jail.handle_refused(change);
            // The kernel holds him by another set.
            if jail.take_renewing(target) {
                return;
            }
        }
        out.events.push(Event::Refused { jail: name, target, why: why.to_owned() });
    }

    /// A ban that the kernel holds is believed. One that is believed already stays as it was decided, which is
    /// more exact than what the kernel's clock tells of it; one whose answer is on its way is believed with that.
    pub fn restore(&mut self, ban: Ban) {
        let jail = self.jails.iter_mut().find(|jail| jail.terms().name == ban.jail);
        if let Some(jail) = jail.filter(|jail| jail.ban(ban.target).is_none() && !jail.is_asked(ban.target)) {
            jail.restore(ban);
        }
    }

    /// Somebody else, named in words, put a ban into the kernel. It is believed, unless its end is known better.
    pub fn adopt(&mut self, ban: Ban, by: &str, out: &mut Outcome) {
        let known = self.jail(&ban.jail).is_none_or(|jail| jail.knows(&ban));
        if !known {
            self.restore(ban.clone());
            out.events.push(Event::Adopted { ban, by: by.to_owned() });
        }
    }

    /// What was saved of a target counts on.
    pub fn restore_memory(&mut self, memory: Memory) {
        if let Some(jail) = self.jails.iter_mut().find(|held| held.terms().name == memory.jail) {
            jail.restore_memory(memory);
        }
    }

    /// When [`Engine::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let freed = self.freed.first().map(|(at, ..)| *at);
        self.jails.iter().filter_map(Jail::poll_timeout).chain(freed).min()
    }

    /// Forgets what the kernel has dropped by `now`.
    pub fn handle_timeout(&mut self, now: Timestamp, out: &mut Outcome) {
        for jail in &mut self.jails {
            out.events.extend(jail.handle_timeout(now).into_iter().map(|ban| Event::Ended { ban }));
        }
    }

    /// The last lines of those who failed.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    pub fn jails(&self) -> &[Jail] {
        &self.jails
    }

    pub fn jail(&self, name: &JailName) -> Option<&Jail> {
        self.jails.iter().find(|jail| jail.terms().name == *name)
    }

    /// What changed since the last call, as it is now.
    pub fn take_unsaved(&mut self) -> Vec<Memory> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let memory = |(name, target): (JailName, Target)| Some(self.jail(&name)?.memory(target));
        unsaved.into_iter().filter_map(memory).collect()
    }

    /// `user` is who the failure was as, where it is known, and `text` the line that shows it. False where the address may not be banned, and nothing was
    /// counted.
    fn judge(
        &mut self,
        index: usize,
        failure: &Failure,
        user: Option<String>,
        text: &[u8],
        now: Timestamp,
        out: &mut Outcome,
    ) -> bool {
        let target = Target::of(failure.addr);
        let elsewhere = self.banned_elsewhere(index, target, failure.at);
        let chance = chance(self.secret, target, failure.at);
        let jail = &mut self.jails[index];
        let name = jail.terms().name.clone();
        let (addr, at, maxretry) = (failure.addr, failure.at, jail.maxretry(failure));
        let verdict = jail.handle_failure(failure, &self.never, elsewhere, chance);
        if verdict != Verdict::Ignored {
            self.unsaved.insert((name.clone(), target));
            self.evidence.note(&name, target, at, text);
        }
        let (count, ban, series) = match verdict {
            Verdict::Ignored => {
                out.events.push(Event::Ignored { jail: name, addr });
                return false;
            }
            Verdict::Counted(count) => (count, None, None),
            Verdict::Standing => (maxretry, None, None),
            Verdict::Ban(ban) => (maxretry, Some(ban), None),
            Verdict::Series(ban, addrs) => (maxretry, Some(ban), user.map(|user| (user, addrs))),
        };
        out.events.push(Event::Failed { jail: name.clone(), addr, at, count, maxretry });
        if let Some((user, addrs)) = series {
            out.events.push(Event::Series { jail: name, addr, user, addrs });
        }
        match ban {
            Some(ban) if ban.end().is_some_and(|end| end <= now) => {
                jail.handle_refused(&Change::Ban(ban.clone()));
                out.events.push(Event::Overdue { ban });
            }
            Some(ban) => out.changes.push(Change::Ban(ban)),
            None => {}
        }
        true
    }

    /// How often other jails banned a target, for a jail that wants to know.
    fn banned_elsewhere(&self, index: usize, target: Target, at: Timestamp) -> u32 {
        let increment = self.jails[index].terms().increment.as_ref();
        if !increment.is_some_and(|increment| increment.overalljails) {
            return 0;
        }
        let others = self.jails.iter().enumerate().filter(|(other, _)| *other != index);
        others.map(|(_, jail)| jail.earlier_bans(target, at)).sum()
    }
}

/// A failure of which only the address is known.
fn anonymous(addr: IpAddr, at: Timestamp) -> Failure {
    Failure { addr, at, weight: 1, bantime: None, user: None, path: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Library;
    use crate::model::Bantime;
    use crate::probe::PROBE_PATIENCE;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn engine() -> Engine {
        let rule = Arc::new(Library::shipped().compile("sshd", None).unwrap());
        let terms = |name: &str| Terms {
            name: name.parse().unwrap(),
            maxretry: 1,
            findtime: Duration::from_secs(600),
            bantime: Bantime::Forever,
            distinct: false,
            user_addrs: None,
            friend_for: None,
            increment: None,
            ignoreip: Allow::default(),
            hears_bans: name == "recidive",
            prefix: None,
            extend_on_knock: None,
        };
        let listeners =
            ["a", "b"].map(|jail| Listener { jail: jail.parse().unwrap(), rule: rule.clone(), zone: None });
        let terms = ["a", "b", "recidive"].map(terms).into();
        Engine::new(terms, vec![listeners.into()], Allow::default(), 0)
    }

    fn read(engine: &mut Engine, addr: IpAddr, now: Timestamp) -> Outcome {
        let mut out = Outcome::default();
        let line = format!("sshd[1]: Failed password for root from {addr} port 4242 ssh2");
        engine.handle_line(0, line.as_bytes(), Clock::Arrived(now), now, &mut out);
        out
    }

    #[test]
    fn a_self_test_bans_once_in_its_jail_and_counts_nowhere() {
        let mut engine = engine();
        let jail: JailName = "a".parse().unwrap();
        let addr = engine.handle_probe(&jail, NOW).unwrap();
        let out = read(&mut engine, addr, NOW);
        assert_eq!(out.events, []);
        let [Change::Ban(ban)] = &out.changes[..] else { panic!("{out:?}") };
        assert_eq!((&ban.jail, ban.end()), (&jail, Some(NOW.plus(PROBE_BANTIME))));
        assert_eq!(engine.without_probes(out.changes), []);
        assert_eq!(read(&mut engine, addr, NOW), Outcome::default(), "the line was met");
        assert_eq!(engine.take_unsaved(), []);
        assert!(engine.jails().iter().all(|jail| jail.failed_total() == 0));

        let late = read(&mut engine, addr, NOW.plus(PROBE_PATIENCE));
        assert_eq!(late.changes.len(), 2, "later it is an address like any other");
        assert_eq!(engine.without_probes(late.changes.clone()), late.changes);
    }

    #[test]
    fn a_self_test_takes_nobody_who_is_banned_or_spared() {
        let mut engine = engine();
        let jail: JailName = "a".parse().unwrap();
        let target = Target::of(PROBED[0].into());
        engine.restore(Ban { jail: jail.clone(), target, at: NOW, bantime: Bantime::Forever });
        assert_eq!(engine.handle_probe(&jail, NOW), Ok(PROBED[1].into()));
        let _ = engine.handle_never(Allow::new(&["198.51.100.0/24".parse().unwrap()]));
        assert_eq!(engine.handle_probe(&jail, NOW), Ok(PROBED[2].into()));
        engine.handle_pause(&jail, true);
        assert!(engine.handle_probe(&jail, NOW).is_err());
    }

    #[test]
    fn a_source_is_read_and_compared_in_its_own_zone() {
        let rule = Arc::new(Library::shipped().compile("sshd", None).unwrap());
        let jail: JailName = "sshd".parse().unwrap();
        let listener = |zone| vec![Listener { jail: jail.clone(), rule: rule.clone(), zone }];
        let sources = vec![listener(None), listener(Some(TimeZone::UTC))];
        let mut engine = Engine::new(Vec::new(), sources, Allow::default(), 0);
        let host = TimeZone::fixed(jiff::tz::offset(2));
        let mut news = [0, 0];
        for minute in 0..30 {
            let now = Timestamp::from_millis(1_795_255_200_000 + 60_000 * minute);
            let line = format!("Nov 21 10:{minute:02}:00 h sshd[1]: x");
            for (source, news) in news.iter_mut().enumerate() {
                *news += u32::from(engine.compare_clocks(source, line.as_bytes(), now, &host));
            }
        }
        assert_eq!(news, [1, 0]);
        assert_eq!([0, 1].map(|source| engine.skew(source).map(|skew| skew.ahead_s)), [Some(-7200), None]);
    }
}
