//! The whole decision without the world: lines and commands in, changes and events out.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::detect::{Clock, Detector, Finding, Rule, Verdict as Detected};
use crate::jail::allow::{Allow, is_unbannable};
use crate::jail::{Jail, Terms, Verdict};
use crate::model::{Ban, Change, Entry, Event, Failure, JailName, Memory, Target, Timestamp};

/// Which jails listen to one source, and with which rules.
pub struct Listener {
    pub jail: JailName,
    pub rule: Arc<Rule>,
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
    jails: Vec<Jail>,
    sources: Vec<Source>,
    never: Allow,
    /// Whose failures or bans changed since they were last saved.
    unsaved: BTreeSet<(JailName, Target)>,
    paused: BTreeSet<JailName>,
    /// A number that nobody outside knows, for what is left to chance.
    secret: u64,
}

struct Source {
    detector: Detector,
    /// For each rule of the detector, the index of its jail.
    jails: Vec<usize>,
}

impl Engine {
    /// `sources` are numbered by their order; each names jails of `terms`. `secret` is any number.
    pub fn new(terms: Vec<Terms>, sources: Vec<Vec<Listener>>, never: Allow, secret: u64) -> Self {
        let jails = terms.into_iter().map(Jail::new).collect();
        let mut engine = Engine {
            jails,
            sources: Vec::new(),
            never,
            unsaved: BTreeSet::new(),
            paused: BTreeSet::new(),
            secret,
        };
        engine.listen(sources);
        engine
    }

    /// Goes on under a new configuration; bans and failures of the jails that stay are kept.
    pub fn amend(&mut self, terms: Vec<Terms>, sources: Vec<Vec<Listener>>) {
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
        self.listen(sources);
    }

    fn listen(&mut self, sources: Vec<Vec<Listener>>) {
        let place = |name: &JailName| self.jails.iter().position(|jail| jail.terms().name == *name);
        self.sources = sources
            .into_iter()
            .map(|listeners| {
                let (jails, rules) = listeners
                    .into_iter()
                    .filter_map(|listener| Some((place(&listener.jail)?, listener.rule)))
                    .unzip();
                Source { detector: Detector::new(rules), jails }
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
                self.never.covers(target.network()) || jail.terms().ignoreip.touches(target.net())
            };
            let asked = jail.asked().filter(|target| jail.ban(*target).is_none());
            let held = jail.bans().map(|ban| ban.target).chain(asked);
            let spared = held.filter(spares);
            out.changes
                .extend(spared.map(|target| Change::Release { jail: jail.terms().name.clone(), target }));
        }
        out
    }

    /// Somebody asked the kernel for a change by hand.
    pub fn handle_asked(&mut self, change: &Change) {
        let Change::Ban(ban) = change else { return };
        if let Some(jail) = self.jails.iter_mut().find(|jail| jail.terms().name == ban.jail) {
            jail.note_asked(ban);
        }
    }

    /// Judges one line of a source.
    pub fn handle_line(
        &mut self,
        source: usize,
        text: &[u8],
        clock: Clock<'_>,
        now: Timestamp,
        out: &mut Outcome,
    ) {
        self.handle(source, now, out, |detector, found| detector.detect(text, clock, found));
    }

    /// Judges one journal entry of a source. The journal's own time counts, which nobody can choose.
    pub fn handle_entry(&mut self, source: usize, entry: Entry<'_>, now: Timestamp, out: &mut Outcome) {
        let clock = Clock::Arrived(entry.at.min(now));
        self.handle(source, now, out, |detector, found| detector.detect_entry(entry, clock, found));
    }

    fn handle(
        &mut self,
        source: usize,
        now: Timestamp,
        out: &mut Outcome,
        detect: impl FnOnce(&mut Detector, &mut dyn FnMut(usize, Detected)),
    ) {
        let mut failures = Vec::new();
        let Source { detector, jails } = &mut self.sources[source];
        detect(detector, &mut |rule, detected| {
            let Detected::Failure(finding) = detected else { return };
            let Finding { addr, at, weight, bantime, .. } = finding;
            failures.push((jails[rule], Failure { addr, at: at.min(now), weight, bantime }));
        });
        for (jail, failure) in failures {
            if !self.is_paused(&self.jails[jail].terms().name) {
                self.judge(jail, &failure, now, out);
            }
        }
    }

    /// Counts a failure that no log showed, as if one had.
    pub fn handle_attempt(&mut self, jail: &JailName, addr: IpAddr, now: Timestamp, out: &mut Outcome) {
        let failure = Failure { addr: addr.to_canonical(), at: now, weight: 1, bantime: None };
        if let Some(index) = self.jails.iter().position(|held| held.terms().name == *jail) {
            self.judge(index, &failure, now, out);
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

    /// The kernel took a change. A new ban is a failure in the jails that hear bans, but for those of their kind.
    pub fn handle_taken(&mut self, change: &Change, now: Timestamp, out: &mut Outcome) {
        let Some(index) = self.jails.iter().position(|jail| jail.terms().name == *change.jail()) else {
            return;
        };
        let new = self.jails[index].handle_taken(change);
        self.unsaved.insert((change.jail().clone(), change.target()));
        out.events.push(match change.clone() {
            Change::Ban(ban) if new => Event::Banned { ban },
            Change::Ban(ban) => Event::Extended { ban },
            Change::Release { jail, target } => Event::Released { jail, target },
        });
        let Change::Ban(ban) = change else { return };
        if new && !self.jails[index].terms().hears_bans {
            let failure =
                Failure { addr: ban.target.network(), at: ban.at.min(now), weight: 1, bantime: None };
            for listener in 0..self.jails.len() {
                let terms = self.jails[listener].terms();
                if terms.hears_bans && !self.is_paused(&terms.name) {
                    self.judge(listener, &failure, now, out);
                }
            }
        }
    }

    /// The kernel refused a change, and `why`.
    pub fn handle_refused(&mut self, change: &Change, why: &str, out: &mut Outcome) {
        let (name, target) = (change.jail().clone(), change.target());
        if let Some(jail) = self.jails.iter_mut().find(|jail| jail.terms().name == name) {
            jail.handle_refused(change);
        }
        out.events.push(Event::Refused { jail: name, target, why: why.to_owned() });
    }

    /// A ban that the kernel holds is believed. One that is believed already stays as it was decided, which is
    /// more exact than what the kernel's clock tells of it.
    pub fn restore(&mut self, ban: Ban) {
        let jail = self.jails.iter_mut().find(|jail| jail.terms().name == ban.jail);
        if let Some(jail) = jail.filter(|jail| jail.ban(ban.target).is_none()) {
            jail.restore(ban);
        }
    }

    /// What was saved of a target counts on.
    pub fn restore_memory(&mut self, (jail, target, times, offender): Memory) {
        let Some(jail) = self.jails.iter_mut().find(|held| held.terms().name == jail) else { return };
        jail.window_mut().restore(target, times);
        if let Some((count, last)) = offender {
            jail.restore_offender(target, count, last);
        }
    }

    /// When [`Engine::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.jails.iter().filter_map(Jail::poll_timeout).min()
    }

    /// Forgets what the kernel has dropped by `now`.
    pub fn handle_timeout(&mut self, now: Timestamp, out: &mut Outcome) {
        for jail in &mut self.jails {
            out.events.extend(jail.handle_timeout(now).into_iter().map(|ban| Event::Ended { ban }));
        }
    }

    /// Why this jail never bans this target; none where it may.
    pub fn spares(&self, jail: &JailName, target: Target) -> Option<&'static str> {
        let ignored = |jail: &Jail| jail.terms().ignoreip.touches(target.net());
        if is_unbannable(target.network()) {
            Some("no remote host can have such an address")
        } else if self.never.touches(target.net()) {
            Some("it is in ignoreip, or the host itself, its gateway, resolver or local network")
        } else if self.jail(jail).is_some_and(ignored) {
            Some("it is in the jail's ignoreip")
        } else {
            None
        }
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
        let memory = |(name, target): (JailName, Target)| {
            let jail = self.jail(&name);
            let times = jail.map_or(&[][..], |jail| jail.window().times(target)).to_vec();
            let offender = jail.and_then(|jail| jail.offender(target));
            (name, target, times, offender)
        };
        unsaved.into_iter().map(memory).collect()
    }

    fn judge(&mut self, index: usize, failure: &Failure, now: Timestamp, out: &mut Outcome) {
        let target = Target::of(failure.addr);
        let elsewhere = self.banned_elsewhere(index, target, failure.at);
        let chance = chance(self.secret, target, failure.at);
        let jail = &mut self.jails[index];
        let name = jail.terms().name.clone();
        let (addr, at, maxretry) = (failure.addr, failure.at, jail.terms().maxretry);
        let verdict = jail.handle_failure(failure, &self.never, elsewhere, chance);
        if verdict != Verdict::Ignored {
            self.unsaved.insert((name.clone(), target));
        }
        let (count, ban) = match verdict {
            Verdict::Ignored => return out.events.push(Event::Ignored { jail: name, addr }),
            Verdict::Counted(count) => (count, None),
            Verdict::Standing => (maxretry, None),
            Verdict::Ban(ban) => (maxretry, Some(ban)),
        };
        out.events.push(Event::Failed { jail: name, addr, at, count, maxretry });
        match ban {
            Some(ban) if ban.end().is_some_and(|end| end <= now) => {
                jail.handle_refused(&Change::Ban(ban.clone()));
                out.events.push(Event::Overdue { ban });
            }
            Some(ban) => out.changes.push(Change::Ban(ban)),
            None => {}
        }
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

/// A number that looks random to whoever does not know the secret (SplitMix64's finaliser over all three).
fn chance(secret: u64, target: Target, at: Timestamp) -> u64 {
    let bits = match target.network() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    };
    let mut mixed = secret;
    for part in [bits, at.as_millis() as u64] {
        mixed = (mixed ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    mixed
}
