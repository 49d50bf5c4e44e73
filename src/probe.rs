//! Self-tests under way: whose next failure bans for a moment, and counts nowhere.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::model::{Ban, Bantime, Change, JailName, Target, Timestamp};

/// Whom self-tests ban: nobody real has such an address (RFC 5737). The first that nobody spares is taken.
pub const PROBED: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 213), Ipv4Addr::new(198, 51, 100, 213), Ipv4Addr::new(203, 0, 113, 213)];
/// How long a self-test bans.
pub const PROBE_BANTIME: Duration = Duration::from_secs(2);
/// How long its line may take.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub struct Probes(Vec<Probe>);

#[derive(Debug)]
struct Probe {
    jail: JailName,
    target: Target,
    /// What comes later counts again.
    until: Timestamp,
    /// The line came.
    met: bool,
}

impl Probes {
    /// Waits for a failure of a target in a jail.
    pub fn expect(&mut self, jail: JailName, target: Target, now: Timestamp) {
        self.0.retain(|probe| probe.until > now);
        self.0.push(Probe { jail, target, until: now.plus(PROBE_PATIENCE), met: false });
    }

    /// Whether a failure is a self-test's, and the ban that it asks for in the jail that waits for it; in all others
    /// it counts as nothing.
    pub fn meet(&mut self, jail: &JailName, target: Target, now: Timestamp) -> Option<Option<Ban>> {
        let waits = |probe: &&mut Probe| probe.target == target && probe.until > now;
        let mut probes = self.0.iter_mut().filter(waits);
        let first = probes.next()?;
        let mut all = std::iter::once(first).chain(probes);
        Some(all.find(|probe| probe.jail == *jail && !probe.met).map(|probe| {
            probe.met = true;
            Ban { jail: jail.clone(), target, at: now, bantime: Bantime::For(PROBE_BANTIME) }
        }))
    }

    /// What the kernel took without what self-tests asked for, which is not believed, told or saved.
    pub fn without(&self, mut taken: Vec<Change>) -> Vec<Change> {
        let is_one = |ban: &Ban| {
            let known = |probe: &Probe| probe.met && probe.jail == ban.jail && probe.target == ban.target;
            ban.bantime == Bantime::For(PROBE_BANTIME) && self.0.iter().any(known)
        };
        taken.retain(|change| !matches!(change, Change::Ban(ban) if is_one(ban)));
        taken
    }
}
