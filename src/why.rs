//! What the daemon answers to who asks why somebody is banned, and what was before.

use std::collections::HashSet;

use tokio::sync::oneshot;

use crate::control::{Failed, Period, Response, failed};
use crate::daemon::Daemon;
use crate::enforcer;
use crate::evidence::Clue;
use crate::held::Found;
use crate::history::{Part, Reader};
use crate::host;
use crate::jail::Jail;
use crate::jail::allow::unbannable;
use crate::model::{Ban, Dropped, Target, Timestamp};
use crate::nft::Refusal;
use crate::resolve::JailConfig;
use crate::status::{BanStatus, Evidence, IgnoredStatus, Kernel, Past, Why, WhyJail};

impl Daemon {
    /// The kernel and the disk may take their time: nobody else waits for them.
    pub(crate) fn answer_why(&self, target: Target, answer: oneshot::Sender<Response>) {
        let now = host::now();
        let jails = self.engine.jails().iter().zip(&self.config.jails);
        let jails = jails.filter_map(|(jail, config)| self.why(jail, config, target, now)).collect();
        let concerns =
            |who: &IgnoredStatus| who.net.contains(&target.net()) || target.net().contains(&who.net);
        let mut never: Vec<IgnoredStatus> = self.never_banned().into_iter().filter(concerns).collect();
        if unbannable().covers(target.network()) {
            let from = "what it is (loopback, link-local, multicast or reserved)".to_owned();
            never.push(IgnoredStatus { net: target.net(), jail: None, from });
        }
        let mut why = Why { schema: 1, target, now, jails, never, past: Vec::new() };
        let (enforcer, reader) = (self.enforcer.clone(), Reader::of(&self.places.state));
        tokio::spawn(async move {
            for jail in &mut why.jails {
                if let Some(target) = jail.ban.as_ref().map(|ban| ban.target).or(jail.network) {
                    let found = enforcer.look(jail.jail.clone(), target).await;
                    if let (Some(ban), Ok(Some((_, dropped)))) = (&mut jail.ban, &found) {
                        ban.dropped = dropped.or(ban.dropped);
                    }
                    jail.kernel = kernel(found);
                }
            }
            let past = tokio::task::spawn_blocking(move || reader.of_target(target)).await;
            match past {
                Ok(Ok(past)) => why.past = past,
                Ok(Err(message)) => tracing::warn!("{message}"),
                Err(_) => tracing::error!("reading the past ended in a panic"),
            }
            why.jails.iter_mut().for_each(|jail| remember(jail, &why.past));
            let _ = answer.send(Response::Why(Box::new(why)));
        });
    }

    /// What one jail holds against a target; none where that is nothing.
    fn why(&self, jail: &Jail, config: &JailConfig, target: Target, now: Timestamp) -> Option<WhyJail> {
        let terms = jail.terms();
        let key = (terms.name.clone(), target);
        let clues = self.engine.evidence().against(&HashSet::from([key.clone()])).remove(&key);
        let ban = jail.ban(target);
        let begun = ban.map_or(now, |ban| ban.at);
        let (lines, since): (Vec<&Clue>, Vec<&Clue>) =
            clues.into_iter().flatten().partition(|clue| clue.at <= begun);
        let of = |clues: Vec<&Clue>| {
            clues.into_iter().map(|clue| Evidence { at: clue.at, text: clue.text.to_string() }).collect()
        };
        let why = WhyJail {
            jail: terms.name.clone(),
            rule: config.rule.name().to_owned(),
            ports: config.ports.to_string(),
            ban: ban.map(|ban| status(ban, jail.dropped(target))),
            network: jail.banned_around(target),
            kernel: Kernel::NotAsked,
            bans: jail.earlier_bans(target, now),
            failures: jail.window().times(target).len() as u32,
            maxretry: terms.maxretry,
            friend: jail.is_friend(target, now),
            lines: of(lines),
            since: of(since),
        };
        let is_something = why.ban.is_some()
            || why.network.is_some()
            || why.bans > 0
            || why.failures > 0
            || !why.lines.is_empty();
        is_something.then_some(why)
    }

    /// Bans of the past, counted or one by one.
    pub(crate) fn answer_past(&self, period: Period, counted: bool, answer: oneshot::Sender<Response>) {
        let Period { since, jail, within } = period;
        let reader = Reader::of(&self.places.state);
        tokio::task::spawn_blocking(move || {
            let part = Part { since, jail, within };
            let found = match counted {
                true => reader.counted(&part).map(Response::History),
                false => reader.all(&part).map(Response::Past),
            };
            let _ = answer.send(found.unwrap_or_else(|why| failed(Failed::Refused, why)));
        });
    }
}

pub(crate) fn status(ban: &Ban, dropped: Option<Dropped>) -> BanStatus {
    BanStatus { jail: ban.jail.clone(), target: ban.target, at: ban.at, ends: ban.end(), dropped }
}

fn kernel(found: Result<Option<Found>, Refusal>) -> Kernel {
    match found {
        Ok(Some((standing, _))) => Kernel::Holds { ends: enforcer::ban(&standing, host::now()).end() },
        Ok(None) => Kernel::Misses,
        Err(refusal) => Kernel::Silent(refusal.to_string()),
    }
}

/// A ban of an earlier run, or of long ago, has its lines in the state only.
fn remember(jail: &mut WhyJail, past: &[Past]) {
    let Some(ban) = jail.ban.as_ref().filter(|_| jail.lines.is_empty()) else { return };
    let same = past.iter().find(|past| past.jail == ban.jail && !past.lines.is_empty());
    let lines = same.map(|past| (past.at, past.lines.clone()));
    if let Some((at, lines)) = lines {
        jail.lines = lines.into_iter().map(|text| Evidence { at, text }).collect();
    }
}
