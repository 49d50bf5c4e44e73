//! What the daemon answers when it is asked.

use tokio::sync::oneshot;

use crate::config::JailConfig;
use crate::control::{Asked, Failed, Request, Response, failed};
use crate::daemon::{Daemon, Waiting};
use crate::engine::Outcome;
use crate::host;
use crate::jail::Jail;
use crate::model::{Ban, Bantime, Change, JailName, Span, Target};
use crate::status::{BanStatus, JailStatus, Status};
use crate::yaml;

impl Daemon {
    pub(crate) async fn handle_question(&mut self, asked: Asked) {
        let Asked { request, answer } = asked;
        let response = match request {
            Request::Status { jail } => return self.answer_status(jail, answer),
            Request::Bans { jail } => self.bans(jail.as_ref()),
            Request::Ban { jail, target, bantime } => match self.ban(&jail, target, bantime) {
                Ok((changes, done)) => return self.ask_kernel(changes, done, answer),
                Err(response) => *response,
            },
            Request::Unban { target, jail } => match self.unban(target, jail.as_ref()) {
                Ok((changes, done)) => return self.ask_kernel(changes, done, answer),
                Err(response) => *response,
            },
            Request::Reload => self.reload().await,
        };
        // A client that hung up does not want to know.
        let _ = answer.send(response);
    }

    fn ask_kernel(&mut self, changes: Vec<Change>, done: String, answer: oneshot::Sender<Response>) {
        changes.iter().for_each(|change| self.engine.handle_asked(change));
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
            let _ = answer.send(Response::Status(status));
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
            .map(|(jail, config)| jail_status(jail, config))
            .collect();
        let listened = |name: &String| jails.iter().any(|jail| jail.sources.contains(name));
        Status {
            schema: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.started,
            now: host::now(),
            pending: self.pending,
            sources: self.sources.status().into_iter().filter(|source| listened(&source.name)).collect(),
            troubles: self.troubles.clone(),
            jails,
        }
    }

    fn bans(&self, only: Option<&JailName>) -> Response {
        if let Some(name) = only
            && self.engine.jail(name).is_none()
        {
            return self.no_such_jail(name);
        }
        let wanted = |jail: &&Jail| only.is_none_or(|only| jail.terms().name == *only);
        let bans = self.engine.jails().iter().filter(wanted).flat_map(Jail::bans).map(|ban| BanStatus {
            jail: ban.jail.clone(),
            target: ban.target,
            at: ban.at,
            ends: ban.end(),
        });
        Response::Bans(bans.collect())
    }

    fn no_such_jail(&self, name: &JailName) -> Response {
        let names: Vec<&str> = self.engine.jails().iter().map(|jail| jail.terms().name.as_str()).collect();
        failed(Failed::NotFound, yaml::unknown("jail", name.as_str(), &names))
    }

    fn ban(
        &self,
        name: &JailName,
        target: Target,
        bantime: Option<Bantime>,
    ) -> Result<(Vec<Change>, String), Box<Response>> {
        let jail = self.engine.jail(name).ok_or_else(|| Box::new(self.no_such_jail(name)))?;
        let bantime = bantime.unwrap_or(jail.terms().bantime);
        if let Some(why) = self.engine.spares(name, target) {
            let message = format!("{target} is never banned: {why}");
            return Err(Box::new(failed(Failed::Refused, message)));
        }
        let ban = Ban { jail: name.clone(), target, at: host::now(), bantime };
        Ok((vec![Change::Ban(ban)], format!("{target} is banned in {name} for {bantime}")))
    }

    fn unban(&self, target: Target, only: Option<&JailName>) -> Result<(Vec<Change>, String), Box<Response>> {
        if let Some(name) = only
            && self.engine.jail(name).is_none()
        {
            return Err(Box::new(self.no_such_jail(name)));
        }
        let held =
            self.engine.jails().iter().filter(|jail| {
                only.is_none_or(|only| jail.terms().name == *only) && jail.ban(target).is_some()
            });
        let jails: Vec<JailName> = held.map(|jail| jail.terms().name.clone()).collect();
        if jails.is_empty() {
            let place = only.map_or_else(|| "any jail".to_owned(), |name| format!("the jail {name}"));
            let message = format!("{target} is not banned in {place}");
            return Err(Box::new(failed(Failed::NotFound, message)));
        }
        let names: Vec<&str> = jails.iter().map(JailName::as_str).collect();
        let done = format!("{target} is free again (was banned in {})", names.join(", "));
        Ok((jails.into_iter().map(|jail| Change::Release { jail, target }).collect(), done))
    }
}

fn jail_status(jail: &Jail, config: &JailConfig) -> JailStatus {
    let terms = jail.terms();
    JailStatus {
        name: terms.name.clone(),
        rule: config.rule.name().to_owned(),
        mode: config.mode.clone(),
        ports: config.ports.to_string(),
        maxretry: terms.maxretry,
        findtime: Span(terms.findtime).to_string(),
        bantime: terms.bantime.to_string(),
        failing: jail.window().len(),
        failed_total: jail.failed_total(),
        banned: jail.bans().len(),
        banned_total: jail.banned_total(),
        forgotten_total: jail.window().forgotten(),
        dropped: None,
        sources: config.logpath.iter().map(|path| path.display().to_string()).collect(),
    }
}
