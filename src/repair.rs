//! What the daemon does when somebody else changed our table: it makes the kernel hold what is believed again.

use std::time::Duration;

use crate::control::{Failed, failed};
use crate::daemon::{Daemon, Waiting};
use crate::enforcer::{self, Done, Restore};
use crate::engine::Outcome;
use crate::host;
use crate::jail::Jail;
use crate::model::{Ban, Change, Event, Timestamp};
use crate::nft::Refusal;
use crate::nft::news::Damage;
use crate::status;

/// Two programs that undo each other's work would keep a core busy: beyond so many repairs ...
const REPAIRS_MAX: u32 = 1_000;
/// ... within this time the next one waits until it is over.
const WINDOW: Duration = Duration::from_secs(10);
/// What the kernel refused is tried again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The damage that is not repaired yet, and how many repairs there were.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    damage: Option<Damage>,
    /// Not before this.
    not_before: Timestamp,
    window_began: Timestamp,
    in_window: u32,
    pub(crate) done: status::Repairs,
}

impl Repairs {
    /// When there is something to repair next.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.damage.as_ref().map(|_| self.not_before)
    }

    fn due(&mut self, now: Timestamp) -> Option<Damage> {
        if self.not_before > now { None } else { self.damage.take() }
    }

    fn note(&mut self, now: Timestamp, by: String) {
        if now.since(self.window_began) >= WINDOW {
            (self.window_began, self.in_window) = (now, 0);
        }
        self.in_window += 1;
        if self.in_window >= REPAIRS_MAX {
            self.not_before = self.window_began.plus(WINDOW);
        }
        self.done = status::Repairs { total: self.done.total + 1, last: Some(now), by: Some(by) };
    }
}

impl Daemon {
    /// Every ban that the kernel should hold.
    pub(crate) fn believed(&self) -> Vec<Ban> {
        self.engine.jails().iter().flat_map(Jail::bans).cloned().collect()
    }

    /// Somebody else changed our table.
    pub(crate) fn handle_damage(&mut self, damage: Damage) {
        match &mut self.repairs.damage {
            Some(earlier) => earlier.absorb(damage),
            none => *none = Some(damage),
        }
    }

    /// Repairs what is to be repaired by now.
    pub(crate) async fn repair(&mut self) {
        let now = host::now();
        let Some(damage) = self.repairs.due(now) else { return };
        let mut out = Outcome::default();
        if damage.structure || damage.missed {
            match self.reinstall(damage.missed).await {
                Ok(strangers) => {
                    out.events.push(Event::Repaired { by: damage.by.clone() });
                    strangers.into_iter().for_each(|net| self.engine.adopt(net, &damage.by, &mut out));
                }
                Err(refusal) => {
                    tracing::error!(
                        "{} changed our table, and it cannot be put back yet: {refusal}",
                        damage.by
                    );
                    self.repairs.not_before = now.plus(AGAIN_AFTER);
                    return self.handle_damage(damage);
                }
            }
        }
        let lasts = |ban: &&Ban| ban.end().is_none_or(|end| end > now);
        for (jail, target) in &damage.touched {
            let ban = self.engine.jail(jail).and_then(|jail| jail.ban(*target)).filter(lasts);
            out.changes.extend(ban.cloned().map(Change::Ban));
        }
        for standing in &damage.added {
            self.engine.adopt(enforcer::ban(standing, now), &damage.by, &mut out);
        }
        if out != Outcome::default() {
            self.repairs.note(now, damage.by);
        }
        self.follow(out);
    }

    /// Makes the kernel hold the layout; the bans of sets that are gone, or `all` of them, are put in. Returns the
    /// networks that it holds beside these.
    pub(crate) async fn reinstall(&mut self, all: bool) -> Result<Vec<Ban>, Refusal> {
        let believed = self.believed();
        let restore = if all { Restore::All(believed) } else { Restore::Lost(believed) };
        self.enforcer.install(self.config.layout(&self.spared()), restore).await
    }

    /// Changes met no table, or a damaged one, before its end was heard of: it is put back, then they are asked for
    /// again.
    pub(crate) async fn handle_lost(&mut self, done: Done) {
        let changes: Vec<Change> = done.refused.into_iter().map(|(change, _)| change).collect();
        let Err(refusal) = self.reinstall(false).await else {
            self.pending += changes.len();
            self.enforcer.apply(done.ticket, changes);
            return;
        };
        let why = refusal.to_string();
        let mut out = Outcome::default();
        for change in &changes {
            self.engine.handle_refused(change, &why, &mut out);
        }
        if let Some(Waiting { answer, .. }) = self.waiting.remove(&done.ticket) {
            // A client that hung up does not want to know.
            let _ = answer.send(failed(Failed::Refused, why));
        }
        self.follow(out);
    }
}
