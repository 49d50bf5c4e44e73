//! Whole networks: banned with enough neighbours or by hand, and never two that overlap.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

use super::allow::{Allow, unbannable};
use super::{Jail, Verdict};
use crate::model::{Ban, Bantime, Change, Target, Timestamp};

/// So long after a ban's end the kernel's timer, which was set a moment later, is over as well.
pub const LINGER: Duration = Duration::from_secs(1);

impl Jail {
    /// Somebody bans by hand: what to ask the kernel for, or why nobody is banned.
    pub fn handle_ban(
        &mut self,
        targets: &[Target],
        bantime: Bantime,
        now: Timestamp,
        never: &Allow,
    ) -> Result<Vec<Change>, String> {
        let nets: BTreeSet<Target> = targets.iter().copied().filter(|target| target.is_network()).collect();
        // In this order a network comes right before those in it.
        for (wide, narrow) in nets.iter().zip(nets.iter().skip(1)) {
            if wide.covers(*narrow) {
                return Err(format!("{narrow} is in {wide}: name one of them"));
            }
        }
        let mut changes = Vec::new();
        for target in targets {
            if let Some((addr, why)) = self.spared_in(*target, never) {
                let whom =
                    if target.is_network() { format!(" for the sake of {addr}") } else { String::new() };
                return Err(format!("{target} is never banned{whom}: {why}"));
            }
            let ban = Ban { jail: self.terms.name.clone(), target: *target, at: now, bantime };
            changes.extend(self.changes_for(&ban).map_err(|other| match other.covers(*target) {
                true => format!("{target} is banned already, with all of {other}"),
                false => format!("{other} in {target} is banned for longer: unban it first"),
            })?);
        }
        for change in &changes {
            if let Change::Ban(ban) = change {
                self.note_asked(ban);
            }
        }
        Ok(changes)
    }

    /// The kernel took a new ban: the ban of its network, and the release of others in it, where it was the last straw
    /// for that. No network is banned by rule that has somebody to be spared in it.
    pub fn handle_neighbour(&mut self, ban: &Ban, never: &Allow, now: Timestamp) -> Vec<Change> {
        let Some(neighbours) = self.neighbours.as_mut().filter(|_| !ban.target.is_network()) else {
            return Vec::new();
        };
        let Some(target) = neighbours.note(ban.target, ban.at) else { return Vec::new() };
        // One who never comes free again shall not keep all of his network out with him.
        let bantime = if ban.bantime == Bantime::Forever { self.terms.bantime } else { ban.bantime };
        let wide = Ban { target, bantime, ..ban.clone() };
        let over = wide.end().is_some_and(|end| end <= now);
        if over || self.spared_in(target, never).is_some() || self.has_friend_in(target, ban.at) {
            return Vec::new();
        }
        let Ok(changes) = self.changes_for(&wide) else { return Vec::new() };
        match self.ask(wide) {
            Verdict::Ban(_) => changes,
            _ => Vec::new(),
        }
    }

    /// The first address in a target that is never banned, and why.
    pub fn spared_in(&self, target: Target, never: &Allow) -> Option<(IpAddr, &'static str)> {
        let lists = [
            (unbannable(), "no remote host can have such an address"),
            (
                never,
                "it is ignored by hand or in ignoreip, a trusted proxy, or the host itself, its gateway, resolver or local network",
            ),
            (&self.terms.ignoreip, "it is in the jail's ignoreip"),
        ];
        lists.into_iter().find_map(|(list, why)| Some((list.first_in(target.net())?, why)))
    }

    /// Whether a friend who is not banned himself is in a network.
    fn has_friend_in(&self, net: Target, now: Timestamp) -> bool {
        let Some(time) = self.terms.friend_for else { return false };
        self.friends.of(now, time).any(|friend| net.covers(friend) && !self.bans.contains_key(&friend))
    }

    /// What to ask the kernel for so that a ban stands. Networks never overlap there: one takes over those in it.
    /// The error is one that the ban overlaps and that it must leave alone: a wider one, or one that lasts longer.
    pub fn changes_for(&self, ban: &Ban) -> Result<Vec<Change>, Target> {
        let mut changes = Vec::new();
        if ban.target.is_network() {
            if let Some(wider) = self.banned_around(ban.target) {
                return Err(wider);
            }
            // One that stands or is asked for has taken over what is in it.
            let known = self.ends_of(ban.target).next().is_some();
            let taken_over = if known { BTreeSet::new() } else { self.networks_in(ban.target) };
            for target in taken_over {
                let outlasts = |end: Option<Timestamp>| match (end, ban.end()) {
                    (_, None) => false,
                    (None, Some(_)) => true,
                    (Some(old), Some(new)) => old > new,
                };
                if self.ends_of(target).any(outlasts) {
                    return Err(target);
                }
                changes.push(Change::Release { jail: ban.jail.clone(), target });
            }
        }
        changes.push(Change::Ban(ban.clone()));
        Ok(changes)
    }

    /// Whether a ban that the kernel holds is believed, or will be with what is on its way, or is on its way out.
    pub fn knows(&self, ban: &Ban) -> bool {
        let overlaps = || self.changes_for(ban).is_ok_and(|changes| changes.len() > 1);
        self.ends_of(ban.target).next().is_some() || self.is_taken_over(ban.target) || overlaps()
    }

    /// The network that a target is in and that is banned, or asked to be.
    pub fn banned_around(&self, target: Target) -> Option<Target> {
        target.around().find(|net| self.bans.contains_key(net) || self.asked.contains_key(net))
    }

    /// Whether a wider network has taken this one over, or is about to.
    pub fn is_taken_over(&self, target: Target) -> bool {
        target.is_network() && self.banned_around(target).is_some()
    }

    /// The narrower networks that are banned in this one, or asked to be.
    fn networks_in(&self, net: Target) -> BTreeSet<Target> {
        let range = (Bound::Excluded(net), Bound::Unbounded);
        let (bans, asked) = (self.bans.range(range), self.asked.range(range));
        let bans = bans.map(|(target, _)| *target).take_while(|target| net.covers(*target));
        let asked = asked.map(|(target, _)| *target).take_while(|target| net.covers(*target));
        bans.chain(asked).filter(|target| target.is_network()).collect()
    }
}
