//! Bans that the kernel extends by itself because the host tries again: how the jail learns of it.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::Jail;
use super::network::LINGER;
use crate::model::{Ban, Bantime, Dropped, Target, Timestamp};

/// The kernel is asked so long before the end of a ban, so that the ban itself can be made longer in time.
const AHEAD_MAX: Duration = Duration::from_secs(2);
/// So many bans are looked up in the kernel at once: some milliseconds of its time.
const LOOKS_MAX: usize = 1_000;

/// What a look at the kernel came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked {
    /// Nobody holds the ban any more.
    Ended(Ban),
    /// The kernel holds the host for longer than the ban was, which is believed; the ban itself is to be asked for.
    Extended(Ban),
    /// There is nothing to do yet.
    Unchanged,
}

impl Jail {
    /// When something is to be done about a ban, if ever: where the kernel may hold it longer, it is asked before.
    ///
    /// The ban of a network is believed for a second after its end: the kernel's timer was set a moment later, and
    /// while its element is there, no other network may overlap it.
    pub(super) fn due(&self, ban: &Ban) -> Option<Timestamp> {
        let end = ban.end()?;
        Some(match self.ahead() {
            _ if ban.target.is_network() => end.plus(LINGER),
            Some(ahead) => end.minus(ahead),
            None => end,
        })
    }

    fn ahead(&self) -> Option<Duration> {
        self.terms.extend_on_knock.map(|silence| AHEAD_MAX.min(silence / 2))
    }

    /// Whether the end of a target's bans is the kernel's to tell.
    pub(super) fn must_look(&self, target: Target) -> bool {
        self.terms.extend_on_knock.is_some() && !target.is_network()
    }

    /// No more can be looked up for now.
    pub(super) fn looks_enough(&self) -> bool {
        self.unsure.len() >= LOOKS_MAX
    }

    /// Bans to look up in the kernel now. For each, [`Jail::handle_look`] is to be told what the kernel says, or
    /// [`Jail::look_again`] when to try once more.
    pub fn take_unsure(&mut self) -> Vec<Target> {
        std::mem::take(&mut self.unsure)
    }

    /// The kernel holds a banned host that tried again for so much longer, or does not.
    pub fn handle_look(&mut self, target: Target, left: Option<Duration>, now: Timestamp) -> Looked {
        let Some((ban, end)) = self.bans.get(&target).and_then(|ban| Some((ban, ban.end()?))) else {
            return Looked::Unchanged;
        };
        // Until then the ban itself may still stand in the kernel, whose timer was set a moment later, and the host may
        // come to be held.
        let is_over = now >= end.plus(LINGER);
        let worth = end.plus(self.ahead().unwrap_or_default());
        let until = left.map(|left| now.plus(left)).filter(|until| is_over || *until > worth);
        match until {
            Some(until) => {
                let longer = Ban { bantime: Bantime::For(until.since(ban.at)), ..ban.clone() };
                self.note_asked(&longer);
                self.hold(longer.clone());
                self.renewing.insert(target);
                Looked::Extended(longer)
            }
            None if is_over => self.drop_ban(target).map_or(Looked::Unchanged, Looked::Ended),
            None => {
                self.look_again(target, end.plus(LINGER));
                Looked::Unchanged
            }
        }
    }

    pub fn look_again(&mut self, target: Target, at: Timestamp) {
        self.ends.insert((at, target));
    }

    /// Whether a ban was asked for, until now, only to make it as long as the kernel holds the host anyway.
    pub fn take_renewing(&mut self, target: Target) -> bool {
        self.renewing.remove(&target)
    }

    /// A packet was dropped that the ban of this target, or of a network around it, is for.
    pub fn note_dropped(&mut self, target: Target, bytes: u64) {
        let mut around = std::iter::once(target).chain(target.around());
        if let Some(banned) = around.find(|target| self.bans.contains_key(target)) {
            let dropped = self.dropped.entry(banned).or_default();
            *dropped = Dropped { packets: dropped.packets + 1, bytes: dropped.bytes.saturating_add(bytes) };
        }
    }

    /// What was told of a ban's dropped packets, where any were.
    pub fn dropped(&self, target: Target) -> Option<Dropped> {
        self.dropped.get(&target).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::Terms;
    use crate::jail::allow::Allow;
    use crate::model::{Change, JailName};

    const SILENCE: Duration = Duration::from_secs(10);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn left(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    fn terms(extend_on_knock: Option<Duration>) -> Terms {
        Terms {
            name: "sshd".parse().unwrap(),
            maxretry: 1,
            findtime: SILENCE,
            distinct: false,
            user_addrs: None,
            friend_for: None,
            bantime: Bantime::Forever,
            increment: None,
            ignoreip: Allow::default(),
            hears_bans: false,
            prefix: None,
            extend_on_knock,
        }
    }

    fn host() -> Target {
        "192.0.2.1".parse().unwrap()
    }

    /// A host that is banned from 0 to 100.
    fn jail() -> Jail {
        let mut jail = Jail::new(terms(Some(SILENCE)));
        let (name, bantime): (JailName, _) = ("sshd".parse().unwrap(), Bantime::For(10 * SILENCE));
        jail.restore(Ban { jail: name, target: host(), at: at(0), bantime });
        jail
    }

    #[test]
    fn the_kernel_is_asked_before_the_end_and_after_it_and_only_then_a_ban_is_over() {
        let mut jail = jail();
        assert_eq!(jail.poll_timeout(), Some(at(98)));
        assert_eq!((jail.handle_timeout(at(98)), jail.take_unsure()), (vec![], vec![host()]));
        assert_eq!(jail.handle_look(host(), None, at(98)), Looked::Unchanged);
        assert_eq!(jail.poll_timeout(), Some(at(101)));
        assert_eq!((jail.handle_timeout(at(101)), jail.take_unsure()), (vec![], vec![host()]));
        assert!(matches!(jail.handle_look(host(), None, at(101)), Looked::Ended(_)));
        assert_eq!((jail.bans().len(), jail.poll_timeout()), (0, None));
    }

    #[test]
    fn whom_the_kernel_holds_longer_is_banned_for_so_long_from_where_the_ban_began() {
        let mut jail = jail();
        let Looked::Extended(ban) = jail.handle_look(host(), left(10), at(98)) else { panic!() };
        assert_eq!((ban.at, ban.end()), (at(0), Some(at(108))));
        assert_eq!(jail.ban(host()), Some(&ban), "the kernel has said so");
        assert!(!jail.handle_taken(&Change::Ban(ban.clone())) && jail.take_renewing(host()));
        assert!(!jail.take_renewing(host()));
        assert_eq!((jail.banned_total(), jail.poll_timeout()), (0, Some(at(106))), "it is no new ban");
        // What is hardly longer is not worth a change: it is looked up again when the ban is over.
        assert_eq!(jail.handle_look(host(), left(4), at(106)), Looked::Unchanged);
        let Looked::Extended(ban) = jail.handle_look(host(), left(1), at(109)) else { panic!() };
        assert_eq!(ban.end(), Some(at(110)));
        jail.handle_taken(&Change::Release { jail: ban.jail, target: host() });
        assert_eq!(
            (jail.poll_timeout(), jail.handle_look(host(), left(9), at(110))),
            (None, Looked::Unchanged)
        );
    }

    #[test]
    fn a_jail_that_extends_no_more_ends_its_bans_by_itself() {
        let mut jail = jail();
        jail.look_again(host(), at(50));
        jail.amend(terms(None));
        assert_eq!(jail.poll_timeout(), Some(at(100)));
        assert_eq!((jail.handle_timeout(at(100)).len(), jail.take_unsure()), (1, vec![]));
        assert_eq!(jail.hosts_beyond(at(100)), 0);
    }

    #[test]
    fn dropped_packets_count_for_the_ban_they_meet_until_it_ends() {
        let mut jail = jail();
        let net: Target = "198.51.100.0/24".parse().unwrap();
        let name: JailName = "sshd".parse().unwrap();
        jail.restore(Ban { jail: name.clone(), target: net, at: at(0), bantime: Bantime::Forever });
        for addr in ["192.0.2.1", "192.0.2.1", "192.0.2.2", "198.51.100.7"] {
            jail.note_dropped(addr.parse().unwrap(), 60);
        }
        assert_eq!(jail.dropped(host()), Some(Dropped { packets: 2, bytes: 120 }));
        assert_eq!(jail.dropped(net), Some(Dropped { packets: 1, bytes: 60 }));
        let _ = jail.handle_look(host(), left(10), at(98));
        assert_eq!(jail.dropped(host()), Some(Dropped { packets: 2, bytes: 120 }), "it is the same ban");
        jail.handle_taken(&Change::Release { jail: name, target: host() });
        assert_eq!(jail.dropped(host()), None);
    }
}
