//! The whole decision without the world: lines and commands in, changes and events out.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::detect::{Clock, Detector, Finding, Rule, Verdict as Detected};
use crate::jail::allow::{Allow, is_unbannable};
use crate::jail::{Jail, Terms, Verdict};
use crate::model::{Ban, Change, Event, Failure, JailName, Target, Timestamp};

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
    /// Whose failures changed since they were last saved.
    unsaved: BTreeSet<(JailName, Target)>,
}

struct Source {
    detector: Detector,
    /// For each rule of the detector, the index of its jail.
    jails: Vec<usize>,
}

impl Engine {
    /// `sources` are numbered by their order; each names jails of `terms`.
    pub fn new(terms: Vec<Terms>, sources: Vec<Vec<Listener>>, never: Allow) -> Self {
        let jails = terms.into_iter().map(Jail::new).collect();
        let mut engine = Engine { jails, sources: Vec::new(), never, unsaved: BTreeSet::new() };
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

    /// Whom no jail bans from now on. Standing bans of them are lifted.
    pub fn handle_never(&mut self, never: Allow) -> Outcome {
        self.never = never;
        let mut out = Outcome::default();
        for jail in &self.jails {
            let spared = jail.bans().filter(|ban| self.never.covers(ban.target.network()));
            out.changes
                .extend(spared.map(|ban| Change::Release { jail: ban.jail.clone(), target: ban.target }));
        }
        out
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
        let Engine { jails, sources, never, unsaved } = self;
        let Source { detector, jails: indexes } = &mut sources[source];
        detector.detect(text, clock, |rule, detected| {
            let Detected::Failure(finding) = detected else { return };
            let Finding { addr, at, weight, bantime, .. } = finding;
            let failure = Failure { addr, at: at.min(now), weight, bantime };
            judge(&mut jails[indexes[rule]], &failure, never, now, unsaved, out);
        });
    }

    /// The kernel took a change.
    pub fn handle_taken(&mut self, change: &Change, out: &mut Outcome) {
        let Some(jail) = self.jails.iter_mut().find(|jail| jail.terms().name == *change.jail()) else {
            return;
        };
        let new = jail.handle_taken(change);
        out.events.push(match change.clone() {
            Change::Ban(ban) if new => Event::Banned { ban },
            Change::Ban(ban) => Event::Extended { ban },
            Change::Release { jail, target } => {
                self.unsaved.insert((jail.clone(), target));
                Event::Released { jail, target }
            }
        });
    }

    /// The kernel refused a change, and `why`.
    pub fn handle_refused(&mut self, change: &Change, why: &str, out: &mut Outcome) {
        let (name, target) = (change.jail().clone(), change.target());
        if let Some(jail) = self.jails.iter_mut().find(|jail| jail.terms().name == name) {
            jail.handle_refused(target);
        }
        out.events.push(Event::Refused { jail: name, target, why: why.to_owned() });
    }

    /// A ban that the kernel holds already is believed.
    pub fn restore(&mut self, ban: Ban) {
        if let Some(jail) = self.jails.iter_mut().find(|jail| jail.terms().name == ban.jail) {
            jail.restore(ban);
        }
    }

    /// Failures that were saved count on.
    pub fn restore_failures(&mut self, jail: &JailName, target: Target, times: Vec<Timestamp>) {
        if let Some(jail) = self.jails.iter_mut().find(|held| held.terms().name == *jail) {
            jail.window_mut().restore(target, times);
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
            Some("it is the host's own, or in ignoreip")
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

    /// Whether something is to be saved.
    pub fn is_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// The failures that changed since the last call, as they are now; empty where they are forgotten.
    pub fn take_unsaved(&mut self) -> Vec<(JailName, Target, Vec<Timestamp>)> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let times = |(name, target): (JailName, Target)| {
            let times = self.jail(&name).map_or(&[][..], |jail| jail.window().times(target)).to_vec();
            (name, target, times)
        };
        unsaved.into_iter().map(times).collect()
    }
}

fn judge(
    jail: &mut Jail,
    failure: &Failure,
    never: &Allow,
    now: Timestamp,
    unsaved: &mut BTreeSet<(JailName, Target)>,
    out: &mut Outcome,
) {
    let name = jail.terms().name.clone();
    let (addr, maxretry) = (failure.addr, jail.terms().maxretry);
    let verdict = jail.handle_failure(failure, never);
    if verdict != Verdict::Ignored {
        unsaved.insert((name.clone(), Target::of(addr)));
    }
    match verdict {
        Verdict::Ignored => out.events.push(Event::Ignored { jail: name, addr }),
        Verdict::Counted(count) => {
            out.events.push(Event::Failed { jail: name, addr, at: failure.at, count, maxretry });
        }
        Verdict::Standing => {
            out.events.push(Event::Failed { jail: name, addr, at: failure.at, count: maxretry, maxretry });
        }
        Verdict::Ban(ban) => {
            out.events.push(Event::Failed { jail: name, addr, at: failure.at, count: maxretry, maxretry });
            if ban.end().is_some_and(|end| end <= now) {
                jail.handle_refused(ban.target);
                out.events.push(Event::Overdue { ban });
            } else {
                out.changes.push(Change::Ban(ban));
            }
        }
    }
}
