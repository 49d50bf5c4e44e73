//! What only the kernel knows of bans: who tried again and is held for it, and what each ban counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::enforcer::{self, Worker};
use crate::model::{Ban, Cell, Change, Dropped, JailName, Layout, Target};
use crate::nft::Refusal;
use crate::nft::banned::{knock_set, knock_sets};
use crate::nft::plan::{bans_sets, set_name};
use crate::nft::table::{Element, Key, Standing, TIMEOUT_MAX};
use crate::nft::transaction::{Operation, Transaction};

/// Who is meant.
pub type Who = (JailName, Target);

/// For how long each is still held, if he is.
pub type Held = Vec<(Who, Option<Duration>)>;

/// A ban as long as the kernel holds it, by whichever set, and what it counted.
pub type Found = (Standing, Option<Dropped>);

/// Whom to ask the kernel about, or to take out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// Whose bans end: how long are they held beyond that?
    pub unsure: Vec<Who>,
    /// Who is not banned: a packet on its way when the ban was lifted may have had him held.
    pub freed: Vec<Who>,
}

/// What the kernel knows of one ban beside its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The host tried again, and is held until it was silent.
    pub held: Option<Ban>,
    /// What the ban counted, where it counts.
    pub dropped: Option<Dropped>,
}

/// The jails with sets that this is about.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Their hosts are held when they try again.
    extending: BTreeSet<JailName>,
    /// Their bans count.
    counting: BTreeSet<JailName>,
}

impl Watched {
    pub(crate) fn of(layout: &Layout) -> Watched {
        let jails = |is: fn(&Cell) -> bool| {
            layout.cells.iter().filter(|cell| is(cell)).map(|cell| cell.jail.clone()).collect()
        };
        Watched {
            extending: jails(|cell| cell.knock.extends.is_some()),
            counting: jails(|cell| cell.knock.counts),
        }
    }
}

/// How often somebody is taken out who comes back at once, by packets that are on their way.
const TAKEN_OUT_MAX: usize = 5;

impl Worker {
    /// For how long each of the unsure is still held; the freed are not held any more.
    pub(crate) fn knocks(&mut self, looks: &Looks) -> Result<Held, Refusal> {
        for (jail, target) in &looks.freed {
            self.let_go(jail, *target)?;
        }
        let mut found = Vec::new();
        for (jail, target) in &looks.unsure {
            let held = self.held(jail, *target)?;
            let left = held.map(|element| element.expires.unwrap_or(TIMEOUT_MAX));
            found.push(((jail.clone(), *target), left));
        }
        Ok(found)
    }

    /// One ban, where the kernel holds it.
    pub(crate) fn find(&mut self, jail: &JailName, target: Target) -> Result<Option<Found>, Refusal> {
        let ban = self.firewall.element(&set_name(jail, target), Key::of(target))?;
        let held = self.held(jail, target)?;
        let dropped = ban.as_ref().and_then(|element| element.dropped);
        let longest = match (ban, held) {
            (Some(ban), Some(held)) if ban.expires.is_some_and(|left| Some(left) < held.expires) => {
                Some(held)
            }
            (ban, held) => ban.or(held),
        };
        Ok(longest.and_then(|element| element.standing(jail)).map(|standing| (standing, dropped)))
    }

    /// Whoever is in the set of those who tried again.
    pub(crate) fn held(&mut self, jail: &JailName, target: Target) -> Result<Option<Element>, Refusal> {
        match knock_set(jail, target).filter(|_| self.watched.extending.contains(jail)) {
            Some((set, key)) => self.firewall.element(&set, key),
            None => Ok(None),
        }
    }

    /// Whoever is released must not be held either. In a full set nothing can be added to make a deletion sure, so it
    /// is looked up instead.
    pub(crate) fn let_go(&mut self, jail: &JailName, target: Target) -> Result<(), Refusal> {
        let Some((set, key)) = knock_set(jail, target) else { return Ok(()) };
        for _ in 0..TAKEN_OUT_MAX {
            if self.held(jail, target)?.is_none() {
                break;
            }
            let mut transaction = Transaction::default();
            let elements = [Element::permanent(key)].into();
            transaction.push(Operation::DeleteElements { set: set.clone(), elements });
            match self.firewall.commit(&transaction) {
                // It ended meanwhile.
                Ok(()) | Err(Refusal::Missing { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// What bans that are asked for have counted until now, by their place among the changes: they go on from there.
    pub(crate) fn counted(&mut self, asked: &[Change]) -> Result<BTreeMap<usize, Dropped>, Refusal> {
        let mut counted = BTreeMap::new();
        for (index, change) in asked.iter().enumerate() {
            let (Change::Ban(ban), true) = (change, self.watched.counting.contains(change.jail())) else {
                continue;
            };
            let held = self.firewall.element(&set_name(&ban.jail, ban.target), Key::of(ban.target))?;
            counted.extend(held.and_then(|element| element.dropped).map(|dropped| (index, dropped)));
        }
        Ok(counted)
    }

    /// What the kernel knows of the bans of these jails. Reads their sets, each as a whole.
    pub(crate) fn seen(&mut self, jails: &[JailName]) -> Result<BTreeMap<Who, Seen>, Refusal> {
        let mut seen: BTreeMap<Who, Seen> = BTreeMap::new();
        for jail in jails {
            if self.watched.counting.contains(jail) {
                for set in bans_sets(jail) {
                    for element in self.firewall.elements(&set)? {
                        let Some(target) = element.key.target() else { continue };
                        seen.entry((jail.clone(), target)).or_default().dropped = element.dropped;
                    }
                }
            }
            if self.watched.extending.contains(jail) {
                for set in knock_sets(jail) {
                    let elements = self.firewall.elements(&set)?;
                    let now = (self.now)();
                    for standing in elements.iter().filter_map(|element| element.standing(jail)) {
                        let held = Some(enforcer::ban(&standing, now));
                        seen.entry((jail.clone(), standing.target)).or_default().held = held;
                    }
                }
            }
        }
        Ok(seen)
    }
}
