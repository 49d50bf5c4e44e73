//! Once a minute the kernel is compared with what is believed: the second line, for what no event told.

use std::time::Duration;

use crate::daemon::Daemon;
use crate::enforcer::Sample;
use crate::host;
use crate::jail::Jail;
use crate::model::{Ban, JailName, Target, Timestamp};
use crate::nft::news::Damage;

const EVERY: Duration = Duration::from_secs(60);
/// So many bans are looked up each time, others the next time: a millisecond of the kernel's time.
const SAMPLE: usize = 100;
/// Bans that end sooner are left alone: the audit may have to wait for its turn.
const ENDS_SOON: Duration = Duration::from_secs(10);
/// Who did what no event told of.
const UNSEEN: &str = "somebody unseen";

/// When the kernel is compared next, and where the sample goes on.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    due: Option<Timestamp>,
    last: Option<(JailName, Target)>,
    /// When it was compared last.
    pub(crate) done: Option<Timestamp>,
}

impl Audit {
    /// When the next one is due; none while nobody is banned.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.due
    }

    /// Bans to look up, from where the last sample ended.
    fn sample(&mut self, jails: &[Jail], now: Timestamp) -> Sample {
        let total: usize = jails.iter().map(|jail| jail.bans().len()).sum();
        let whole = total <= SAMPLE;
        let start = self.last.take().filter(|_| !whole);
        let at =
            start.as_ref().and_then(|(name, _)| jails.iter().position(|jail| jail.terms().name == *name));
        let (at, target) = (at.unwrap_or(0), at.and(start).map(|(_, target)| target));
        let first = jails.get(at).into_iter().flat_map(|jail| jail.bans_after(target));
        let rest = jails.iter().cycle().skip(at + 1).take(jails.len()).flat_map(Jail::bans);
        let bans: Vec<Ban> = first.chain(rest).take(SAMPLE.min(total)).cloned().collect();
        self.last = bans.last().map(|ban| (ban.jail.clone(), ban.target));
        let beyond = now.plus(ENDS_SOON);
        let counts =
            jails.iter().map(|jail| (jail.terms().name.clone(), jail.hosts_beyond(beyond))).collect();
        Sample { bans, counts, whole }
    }
}

impl Daemon {
    /// Compares where it is due and nothing is on its way to the kernel; what deviates is repaired as damage.
    pub(crate) async fn audit(&mut self) {
        let now = host::now();
        if self.engine.jails().iter().all(|jail| jail.bans().len() == 0) {
            self.audit.due = None;
            return;
        }
        let due = *self.audit.due.get_or_insert(now.plus(EVERY));
        if due > now || self.pending > 0 {
            return;
        }
        self.audit.due = Some(now.plus(EVERY));
        let sample = self.audit.sample(self.engine.jails(), now);
        match self.enforcer.audit(self.config.layout(&self.own), sample).await {
            Ok(damage) => {
                self.audit.done = Some(now);
                if damage.is_some() {
                    self.handle_damage(Damage { by: UNSEEN.to_owned(), ..damage });
                }
            }
            Err(refusal) => tracing::warn!("what the kernel holds could not be compared: {refusal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::Terms;
    use crate::jail::allow::Allow;
    use crate::model::Bantime;

    fn jail(name: &str, bans: u8) -> Jail {
        let name: JailName = name.parse().unwrap();
        let mut jail = Jail::new(Terms {
            name: name.clone(),
            maxretry: 1,
            findtime: EVERY,
            distinct: false,
            user_addrs: None,
            friend_for: None,
            bantime: Bantime::Forever,
            increment: None,
            ignoreip: Allow::default(),
            hears_bans: false,
            prefix: None,
            extend_on_knock: None,
        });
        for n in 0..bans {
            let target = format!("192.0.2.{n}").parse().unwrap();
            jail.restore(Ban {
                jail: name.clone(),
                target,
                at: Timestamp::default(),
                bantime: Bantime::Forever,
            });
        }
        jail
    }

    #[test]
    fn every_ban_is_looked_at_in_turn() {
        let jails = [jail("a", 130), jail("b", 0), jail("c", 70)];
        let mut audit = Audit::default();
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..4 {
            let sample = audit.sample(&jails, Timestamp::default());
            assert_eq!((sample.bans.len(), sample.whole), (SAMPLE, false));
            for ban in sample.bans {
                *seen.entry((ban.jail, ban.target)).or_insert(0) += 1;
            }
        }
        assert_eq!(seen.len(), 200);
        assert!(seen.values().all(|count| *count == 2), "{seen:?}");
    }

    #[test]
    fn a_few_bans_are_looked_at_each_time_and_each_once() {
        let jails = [jail("a", 3), jail("b", 2)];
        let mut audit = Audit::default();
        for _ in 0..3 {
            let sample = audit.sample(&jails, Timestamp::default());
            assert!(sample.whole);
            let targets: std::collections::BTreeSet<_> =
                sample.bans.into_iter().map(|ban| (ban.jail, ban.target)).collect();
            assert_eq!(targets.len(), 5);
            assert_eq!(sample.counts.into_values().collect::<Vec<_>>(), [3, 2]);
        }
    }
}
