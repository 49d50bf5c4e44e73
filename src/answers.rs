//! What the daemon answers when it is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tokio::sync::oneshot;

use crate::control::{Failed, Request, Response, Whom, failed};
use crate::daemon::{Daemon, Waiting};
use crate::engine::Outcome;
use crate::held::{Seen, Who};
use crate::host;
use crate::jail::Jail;
use crate::model::{Ban, Bantime, Change, JailName, Span, Target};
use crate::resolve::JailConfig;
use crate::server::Asked;
use crate::status::{BanStatus, BrokenStatus, JailStatus, Status};
use crate::tell::message;
use crate::why;
use crate::yaml;

/// The sets of a jail with more bans than this are not read for an answer: bans would wait for it.
const SEEN_MAX: usize = 50_000;

impl Daemon {
    pub(crate) async fn handle_question(&mut self, asked: Asked) {
        let Asked { request, answer } = asked;
        let response = match request {
            Request::Status { jail } => return self.answer_status(jail, answer),
            Request::Bans { jail } => return self.answer_bans(jail, answer),
            Request::Ban { jail, targets, bantime } => match self.ban(&jail, &targets, bantime) {
                Ok((changes, done)) => return self.ask_kernel(changes, done, answer),
                Err(response) => *response,
            },
            Request::Unban { whom, jail } => match self.unban(&whom, jail.as_ref()) {
                Ok((changes, done)) => return self.ask_kernel(changes, done, answer),
                Err(response) => *response,
            },
            Request::Attempt { jail, addr } => self.attempt(&jail, addr),
            Request::Pause { jail, paused } => self.pause(&jail, paused),
            Request::Reload => self.reload().await,
            Request::Probe { jail } => self.probe(&jail),
            Request::IgnoreAdd { net, force } => match self.ignore(net, force).await {
                Ok((Some(ticket), done)) => {
                    self.waiting.insert(ticket, Waiting { answer, done });
                    return;
                }
                Ok((None, done)) => Response::Done(done),
                Err(response) => *response,
            },
            Request::IgnoreRemove { net } => self.heed(net).await,
            Request::IgnoreList => Response::Ignored(self.never_banned()),
            Request::Why { target } => return self.answer_why(target, answer),
            Request::History(period) => return self.answer_past(period, true, answer),
            Request::Past(period) => return self.answer_past(period, false, answer),
            // The server has no need to ask.
            Request::Watch { .. } => Response::Watching,
            Request::LogLevel { level } => self.set_log_level(&level),
        };
        // A client that hung up does not want to know.
        let _ = answer.send(response);
    }

    fn ask_kernel(&mut self, changes: Vec<Change>, done: String, answer: oneshot::Sender<Response>) {
        if let Some(ticket) = self.follow(Outcome { changes, ..Outcome::default() }) {
            self.waiting.insert(ticket, Waiting { answer, done });
        }
    }

    /// The counters are the kernel's, and a busy enforcer may take its time: nobody else waits for it.
    fn answer_status(&self, jail: Option<JailName>, answer: oneshot::Sender<Response>) {
        if let Some(name) = &jail
            && self.engine.jail(name).is_none()
        {
            let _ = answer.send(self.no_such_jail(name));
            return;
        }
        let mut status = self.status(jail.as_ref());
        let enforcer = self.enforcer.clone();
        tokio::spawn(async move {
            match enforcer.dropped().await {
                Ok(dropped) => {
                    status.jails.iter_mut().for_each(|jail| jail.dropped = dropped.get(&jail.name).copied());
                }
                Err(refusal) => status.troubles.push(refusal.to_string()),
            }
            let _ = answer.send(Response::Status(Box::new(status)));
        });
    }

    pub(crate) fn status(&self, only: Option<&JailName>) -> Status {
        let wanted = |name: &JailName| only.is_none_or(|only| only == name);
        let jails: Vec<JailStatus> = self
            .engine
            .jails()
            .iter()
            .zip(&self.config.jails)
            .filter(|(jail, _)| wanted(&jail.terms().name))
            .map(|(jail, config)| {
                let paused = self.engine.is_paused(&jail.terms().name);
                JailStatus { paused, ..jail_status(jail, config) }
            })
            .collect();
        let broken = self.config.broken.iter().filter(|broken| wanted(&broken.terms.name)).map(|broken| {
            let name = &broken.terms.name;
            let banned = self.engine.jail(name).map_or(0, |jail| jail.bans().len());
            let why = broken.faults.iter().map(ToString::to_string).collect();
            BrokenStatus { jail: name.clone(), why, banned }
        });
        let proxied = (0..self.sources.len()).filter_map(|source| self.proxied(source));
        let skewed = (0..self.sources.len()).filter_map(|source| self.skewed(source));
        let listened = |name: &String| jails.iter().any(|jail| jail.sources.contains(name));
        Status {
            schema: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.started,
            loaded: self.loaded,
            audited: self.audit.done,
            now: host::now(),
            pending: self.pending,
            repairs: self.repairs.done.clone(),
            sources: self.sources.status().into_iter().filter(|source| listened(&source.name)).collect(),
            broken: broken.collect(),
            auto: self.config.auto.iter().filter(|auto| wanted(&auto.jail)).cloned().collect(),
            ignored: self.ignored.iter().copied().collect(),
            troubles: (self
                .troubles
                .iter()
                .chain(&self.config.troubles)
                .chain(self.config.known.troubles())
                .cloned())
            .chain(proxied)
            .chain(skewed)
            .collect(),
            jails,
        }
    }

    /// What is wrong with a log that names nobody but a proxy.
    pub(crate) fn proxied(&self, source: usize) -> Option<String> {
        let (addr, trusted) = self.engine.proxied(source)?;
        Some(message::proxied(&self.sources.name(source), addr, trusted))
    }

    /// What is wrong with a log that is written by another clock.
    pub(crate) fn skewed(&self, source: usize) -> Option<String> {
        Some(format!("{} {}", self.sources.name(source), self.engine.skew(source)?))
    }

    /// Where the kernel knows more of bans than we do, it is asked; nobody else waits for that.
    fn answer_bans(&self, only: Option<JailName>, answer: oneshot::Sender<Response>) {
        if let Some(name) = &only
            && self.engine.jail(name).is_none()
        {
            let _ = answer.send(self.no_such_jail(name));
            return;
        }
        let wanted = |jail: &&Jail| only.as_ref().is_none_or(|only| jail.terms().name == *only);
        let jails: Vec<&Jail> = self.engine.jails().iter().filter(wanted).collect();
        let status =
            |jail: &&Jail| jail.bans().map(|ban| why::status(ban, jail.dropped(ban.target))).collect();
        let bans: Vec<Vec<BanStatus>> = jails.iter().map(status).collect();
        let asks = |config: &&JailConfig| config.knock.extends.is_some() || config.knock.counts;
        let asked = self.config.jails.iter().filter(asks).map(|config| &config.terms.name);
        let few = |name: &&JailName| {
            jails.iter().any(|jail| jail.terms().name == **name && jail.bans().len() <= SEEN_MAX)
        };
        let asked: Vec<JailName> = asked.filter(few).cloned().collect();
        let (enforcer, bans) = (self.enforcer.clone(), bans.concat());
        tokio::spawn(async move {
            let seen = if asked.is_empty() { Ok(BTreeMap::new()) } else { enforcer.seen(asked).await };
            let _ = answer.send(match seen {
                Ok(seen) => Response::Bans(as_seen(bans, seen)),
                Err(refusal) => failed(Failed::Refused, refusal.to_string()),
            });
        });
    }

    fn no_such_jail(&self, name: &JailName) -> Response {
        if let Some(off) = self.config.auto.iter().find(|auto| auto.jail == *name && !auto.on) {
            return failed(Failed::NotFound, format!("the jail {name} is off: {}", off.why));
        }
        let names: Vec<&str> = self.engine.jails().iter().map(|jail| jail.terms().name.as_str()).collect();
        failed(Failed::NotFound, yaml::unknown("jail", name.as_str(), &names))
    }

    fn ban(
        &mut self,
        name: &JailName,
        targets: &[Target],
        bantime: Option<Bantime>,
    ) -> Result<(Vec<Change>, String), Box<Response>> {
        let jail = self.engine.jail(name).ok_or_else(|| Box::new(self.no_such_jail(name)))?;
        let bantime = bantime.unwrap_or(jail.terms().bantime);
        let refused = |why| Box::new(failed(Failed::Refused, format!("{why}; nobody was banned")));
        let changes = self.engine.handle_ban(name, targets, bantime, host::now()).map_err(refused)?;
        let whom = match targets {
            [only] => format!("{only} is"),
            many => format!("{} targets are", many.len()),
        };
        Ok((changes, format!("{whom} banned in {name} for {bantime}")))
    }

    fn unban(&self, whom: &Whom, only: Option<&JailName>) -> Result<(Vec<Change>, String), Box<Response>> {
        if let Some(name) = only
            && self.engine.jail(name).is_none()
        {
            return Err(Box::new(self.no_such_jail(name)));
        }
        let asked = |jail: &&Jail| only.is_none_or(|only| jail.terms().name == *only);
        let jails: Vec<&Jail> = self.engine.jails().iter().filter(asked).collect();
        let held = jails.iter().flat_map(|jail| jail.bans().filter(|ban| !jail.is_taken_over(ban.target)));
        let lifted: Vec<&Ban> = held.filter(|ban| whom.covers(ban.target)).collect();
        let around = around(&jails, whom);
        if lifted.is_empty() {
            let place = only.map_or_else(|| "any jail".to_owned(), |name| format!("the jail {name}"));
            let message = match whom {
                Whom::Target(target) if around.is_empty() => format!("{target} is not banned in {place}"),
                Whom::Target(target) => format!("{target} itself is not banned in {place}{around}"),
                Whom::Net(net) => format!("nobody of {net} is banned in {place}{around}"),
                Whom::Everybody => format!("nobody is banned in {place}"),
            };
            return Err(Box::new(failed(Failed::NotFound, message)));
        }
        let names: BTreeSet<&str> = lifted.iter().map(|ban| ban.jail.as_str()).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let done = match (whom, &lifted[..]) {
            (Whom::Target(target), _) if around.is_empty() => {
                format!("{target} is free again (was banned in {names})")
            }
            (Whom::Target(target), _) => format!("the ban of {target} itself was lifted ({names}){around}"),
            (_, [only]) => format!("the ban of {} was lifted ({names}){around}", only.target),
            (_, many) => format!("{} bans were lifted ({names}){around}", many.len()),
        };
        let release = |ban: &Ban| Change::Release { jail: ban.jail.clone(), target: ban.target };
        Ok((lifted.into_iter().map(release).collect(), done))
    }

    fn attempt(&mut self, name: &JailName, addr: IpAddr) -> Response {
        if self.engine.jail(name).is_none() {
            return self.no_such_jail(name);
        }
        let mut out = Outcome::default();
        self.engine.handle_attempt(name, addr, host::now(), &mut out);
        let told: Vec<String> = out.events.iter().map(message::text).collect();
        self.follow(out);
        Response::Done(told.join("\n"))
    }

    fn probe(&mut self, name: &JailName) -> Response {
        if self.engine.jail(name).is_none() {
            return self.no_such_jail(name);
        }
        match self.engine.handle_probe(name, host::now()) {
            Ok(addr) => Response::Probe(addr),
            Err(why) => failed(Failed::Refused, why),
        }
    }

    fn set_log_level(&self, level: &str) -> Response {
        let Ok(parsed) = level.parse() else {
            let why = format!("\"{level}\" is no level: there are error, warn, info and debug");
            return failed(Failed::Refused, why);
        };
        (self.log_level)(parsed);
        Response::Done(format!("the agent's log has level {level} from now on"))
    }

    fn pause(&mut self, name: &JailName, paused: bool) -> Response {
        if self.engine.jail(name).is_none() {
            return self.no_such_jail(name);
        }
        self.engine.handle_pause(name, paused);
        let done = format!(
            "{name} {}",
            if paused { "is paused: it counts nothing, its bans stay" } else { "listens again" }
        );
        tracing::info!("{done}");
        Response::Done(done)
    }
}

/// What is believed, with what the kernel has counted, and as long as it holds who tried again; also whom it holds of
/// whom we do not know.
fn as_seen(mut bans: Vec<BanStatus>, mut seen: BTreeMap<Who, Seen>) -> Vec<BanStatus> {
    for ban in &mut bans {
        let Some(Seen { held, dropped }) = seen.remove(&(ban.jail.clone(), ban.target)) else { continue };
        ban.ends =
            ban.ends.map(|ends| held.and_then(|held| held.end()).map_or(ends, |until| ends.max(until)));
        ban.dropped = dropped.or(ban.dropped);
    }
    let unknown = seen.into_values().filter_map(|seen| Some(why::status(&seen.held?, seen.dropped)));
    bans.extend(unknown);
    bans
}

/// The wider networks that keep somebody out though he himself is not banned, and what frees them.
fn around(jails: &[&Jail], whom: &Whom) -> String {
    let target = match whom {
        Whom::Target(target) => Some(*target),
        Whom::Net(net) => Target::try_from(*net).ok(),
        Whom::Everybody => None,
    };
    let around = |jail: &&Jail| {
        let net = jail.banned_around(target?)?;
        Some(format!("; but all of {net} is banned in {}: nftjail unban {net}", jail.terms().name))
    };
    jails.iter().filter_map(around).collect()
}

fn jail_status(jail: &Jail, config: &JailConfig) -> JailStatus {
    let terms = jail.terms();
    JailStatus {
        name: terms.name.clone(),
        rule: config.rule.name().to_owned(),
        mode: config.mode.clone(),
        ports: config.ports.to_string(),
        paused: false,
        block: config.block,
        hooks: config.hooks.iter().copied().collect(),
        maxretry: terms.maxretry,
        findtime: Span(terms.findtime).to_string(),
        bantime: terms.bantime.to_string(),
        extend_on_knock: terms.extend_on_knock.map(|silence| Span(silence).to_string()),
        failing: jail.window().len(),
        failed_total: jail.failed_total(),
        banned: jail.bans().len(),
        banned_total: jail.banned_total(),
        forgotten_total: jail.forgotten_total(),
        dropped: None,
        sources: config.logpath.iter().map(ToString::to_string).collect(),
    }
}
