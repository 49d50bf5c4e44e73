//! Banned hosts that try again: who is held for it is looked up before a ban is over, and what is told of them counts.

use std::net::IpAddr;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::engine::{Engine, Outcome};
use crate::held::{Held, Looks};
use crate::host;
use crate::jail::knock::Looked;
use crate::model::{Change, Event, JailName, Target, Timestamp};

/// What the kernel could not be asked is asked again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A packet that met the kernel's rules before a ban was lifted is through with them by then.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

impl Engine {
    /// Whom to ask the kernel about by `now`.
    pub fn take_looks(&mut self, now: Timestamp) -> Looks {
        let mut looks = Looks::default();
        for jail in &mut self.jails {
            let unsure = jail.take_unsure();
            looks.unsure.extend(unsure.into_iter().map(|target| (jail.terms().name.clone(), target)));
        }
        while let Some((at, jail, target)) = self.freed.pop_first() {
            if at > now {
                self.freed.insert((at, jail, target));
                break;
            }
            let is_banned =
                self.jail(&jail).is_none_or(|jail| jail.ban(target).is_some() || jail.is_asked(target));
            looks.freed.extend((!is_banned).then_some((jail, target)));
        }
        looks
    }

    /// Somebody who is not banned may be held by a packet of the last moment: that is seen to.
    pub(crate) fn note_freed(&mut self, jail: &JailName, target: Target, from: Timestamp) {
        let extends = self.jail(jail).is_some_and(|jail| jail.terms().extend_on_knock.is_some());
        if extends && !target.is_network() {
            self.freed.insert((from.plus(SETTLED_AFTER), jail.clone(), target));
        }
    }

    /// What the kernel said of the unsure: for how long each is held, if he is.
    pub fn handle_looks(&mut self, found: Held, now: Timestamp, out: &mut Outcome) {
        for ((name, target), left) in found {
            let Some(jail) = self.jails.iter_mut().find(|jail| jail.terms().name == name) else { continue };
            match jail.handle_look(target, left, now) {
                Looked::Ended(ban) => out.events.push(Event::Ended { ban }),
                Looked::Extended(ban) => {
                    out.events.push(Event::Knocked { ban: ban.clone() });
                    out.changes.push(Change::Ban(ban));
                }
                Looked::Unchanged => {}
            }
        }
    }

    /// The kernel could not be asked.
    pub fn put_off_looks(&mut self, looks: Looks, now: Timestamp) {
        let again = now.plus(AGAIN_AFTER);
        for (name, target) in looks.unsure {
            if let Some(jail) = self.jails.iter_mut().find(|jail| jail.terms().name == name) {
                jail.look_again(target, again);
            }
        }
        self.freed.extend(looks.freed.into_iter().map(|(jail, target)| (again, jail, target)));
    }

    /// The kernel told of a packet that a jail's bans dropped.
    pub fn handle_dropped(&mut self, jail: &JailName, from: IpAddr, bytes: u64) {
        if let Some(jail) = self.jails.iter_mut().find(|held| held.terms().name == *jail) {
            jail.note_dropped(Target::of(from), bytes);
        }
    }
}

impl Daemon {
    /// Asks the kernel about whom it is time to ask.
    pub(crate) async fn look(&mut self) {
        let looks = self.engine.take_looks(host::now());
        if looks == Looks::default() {
            return;
        }
        let mut out = Outcome::default();
        match self.enforcer.knocks(looks.clone()).await {
            Ok(found) => self.engine.handle_looks(found, host::now(), &mut out),
            Err(refusal) => {
                tracing::warn!("who tries again could not be asked: {refusal}");
                self.engine.put_off_looks(looks, host::now());
            }
        }
        self.follow(out);
    }
}

/// The jail, the address and the bytes that a line about a dropped packet names, where the kernel wrote it for one of
/// our rules: `kernel: nftjail sshd dropped: IN=eth0 … SRC=192.0.2.1 … LEN=60 …`.
pub fn dropped(line: &[u8]) -> Option<(JailName, IpAddr, u64)> {
    let line = std::str::from_utf8(line).ok()?;
    let (jail, packet) = line.strip_prefix("kernel: nftjail ")?.split_once(" dropped: ")?;
    let field = |name: &str| packet.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    Some((jail.parse().ok()?, field("SRC")?.parse().ok()?, field("LEN")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::Who;
    use crate::jail::Terms;
    use crate::jail::allow::Allow;
    use crate::model::{Ban, Bantime};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn who() -> Who {
        ("sshd".parse().unwrap(), "192.0.2.1".parse().unwrap())
    }

    fn ban() -> Ban {
        let (jail, target) = who();
        Ban { jail, target, at: at(0), bantime: Bantime::For(Duration::from_secs(100)) }
    }

    fn engine() -> Engine {
        let terms = Terms {
            name: "sshd".parse().unwrap(),
            maxretry: 1,
            findtime: Duration::from_secs(600),
            bantime: Bantime::Forever,
            distinct: false,
            user_addrs: None,
            friend_for: None,
            increment: None,
            ignoreip: Allow::default(),
            hears_bans: false,
            prefix: None,
            extend_on_knock: Some(Duration::from_secs(10)),
        };
        Engine::new(vec![terms], Vec::new(), Allow::default(), 0)
    }

    /// What is due at a moment, and what follows where the kernel holds the host for so long.
    fn turn(engine: &mut Engine, now: i64, held: Option<u64>) -> Outcome {
        let mut out = Outcome::default();
        engine.handle_timeout(at(now), &mut out);
        let looks = engine.take_looks(at(now));
        let found = looks.unsure.into_iter().map(|who| (who, held.map(Duration::from_secs))).collect();
        engine.handle_looks(found, at(now), &mut out);
        out
    }

    #[test]
    fn who_tries_again_is_told_of_once_and_put_in_again() {
        let mut engine = engine();
        engine.restore(ban());
        let out = turn(&mut engine, 98, Some(10));
        let longer = Ban { bantime: Bantime::For(Duration::from_secs(108)), ..ban() };
        assert_eq!(out.events, [Event::Knocked { ban: longer.clone() }]);
        assert_eq!(out.changes, [Change::Ban(longer.clone())]);
        let mut answered = Outcome::default();
        engine.handle_taken(&out.changes[0], at(98), &mut answered);
        assert_eq!(answered, Outcome::default(), "it is neither a new ban nor one that was taken out");

        let out = turn(&mut engine, 106, Some(10));
        engine.handle_refused(&out.changes[0], "the set is full", &mut answered);
        assert_eq!(answered, Outcome::default(), "the kernel holds it all the same");
        assert_eq!(turn(&mut engine, 114, None), Outcome::default());
        let out = turn(&mut engine, 117, None);
        assert!(matches!(&out.events[..], [Event::Ended { ban }] if ban.at == at(0)), "{out:?}");
    }

    #[test]
    fn what_the_kernel_cannot_answer_is_asked_again() {
        let mut engine = engine();
        engine.restore(ban());
        engine.note_freed(&who().0, "192.0.2.2".parse().unwrap(), at(97));
        let mut out = Outcome::default();
        engine.handle_timeout(at(98), &mut out);
        let looks = engine.take_looks(at(98));
        assert_eq!((looks.unsure.len(), looks.freed.len()), (1, 1));
        engine.put_off_looks(looks.clone(), at(98));
        assert_eq!((out, engine.poll_timeout()), (Outcome::default(), Some(at(99))));
        engine.handle_timeout(at(99), &mut Outcome::default());
        assert_eq!(engine.take_looks(at(99)), looks);
    }

    #[test]
    fn who_was_freed_is_looked_after_unless_banned_anew() {
        let mut engine = engine();
        let (jail, target) = who();
        let release = Change::Release { jail: jail.clone(), target };
        engine.handle_taken(&release, at(0), &mut Outcome::default());
        assert_eq!((engine.poll_timeout(), engine.take_looks(at(0))), (Some(at(1)), Looks::default()));
        assert_eq!(engine.take_looks(at(1)).freed, [who()]);
        engine.handle_taken(&release, at(2), &mut Outcome::default());
        engine.restore(ban());
        assert_eq!(engine.take_looks(at(3)), Looks::default());
    }

    #[test]
    fn only_what_the_kernel_wrote_for_our_rules_names_a_dropped_packet() {
        let line =
            "kernel: nftjail sshd dropped: IN=eth0 OUT= MAC= SRC=192.0.2.1 DST=198.51.100.1 LEN=60 TOS=0x00";
        let wanted = ("sshd".parse().unwrap(), "192.0.2.1".parse().unwrap(), 60);
        assert_eq!(dropped(line.as_bytes()), Some(wanted));
        for other in ["nftjail sshd dropped: SRC=192.0.2.1 LEN=60", "kernel: drop: SRC=192.0.2.1 LEN=60"] {
            assert_eq!(dropped(other.as_bytes()), None);
        }
        assert_eq!(dropped(b"kernel: nftjail SSHD dropped: SRC=192.0.2.1 LEN=60"), None);
        assert_eq!(dropped(b"kernel: nftjail sshd dropped: SRC=192.0.2.1"), None);
    }
}
