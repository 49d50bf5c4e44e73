//! What the daemon does when somebody else is never banned from now on, or is asked who that is.

use ipnet::IpNet;

use crate::config::List;
use crate::control::{Failed, Response, failed};
use crate::daemon::Daemon;
use crate::jail::allow::Allow;
use crate::model::{JailName, plain};
use crate::never::{self, News};
use crate::status::{IgnoredStatus, brief};

/// So many can be spared by hand; a longer list belongs into a file that `ignoreip` names.
const IGNORED_MAX: usize = 1_000;

/// The widest networks that are spared without being forced.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 16;

impl Daemon {
    /// Whom this host cannot do without, and those who are spared by hand.
    pub(crate) fn spared(&self) -> Vec<IpNet> {
        self.own.iter().chain(&self.ignored).copied().collect()
    }

    /// The host's own addresses or its gateways changed.
    pub(crate) async fn handle_addresses(&mut self) {
        match never::of_this_host(self.config.ban_local) {
            Ok(own) if own == self.own => {}
            Ok(own) => {
                self.own = own;
                self.protect().await;
            }
            Err(error) => tracing::error!("the host's new addresses cannot be read: {}", plain(&error)),
        }
    }

    /// A file or a name in `ignoreip` was asked again.
    pub(crate) async fn handle_news(&mut self, news: News) {
        if self.config.known.learn(news) {
            self.protect().await;
        }
    }

    /// Those who are never banned now must pass in the kernel, the others no longer.
    async fn protect(&mut self) {
        if let Err(refusal) = self.reinstall(false).await {
            tracing::error!("the kernel does not know yet who is never banned now: {refusal}");
        }
        self.spare();
    }

    /// Judges by what is known now, and lifts the bans of those who are to be spared: how many, and by which ticket.
    pub(crate) fn spare(&mut self) -> (usize, Option<u64>) {
        for jail in &self.config.jails {
            self.engine.spare(&jail.terms.name, Allow::new(&self.config.known.nets(&jail.ignoreip)));
        }
        self.engine.trust(self.config.proxies());
        let out = self.engine.handle_never(self.config.never(&self.spared()));
        (out.changes.len(), self.follow(out))
    }

    /// Spares somebody by hand. The answer, and the ticket that it waits for where bans are lifted.
    pub(crate) async fn ignore(
        &mut self,
        net: IpNet,
        force: bool,
    ) -> Result<(Option<u64>, String), Box<Response>> {
        let refused = |why: String| Err(Box::new(failed(Failed::Refused, why)));
        let name = brief(&net);
        let widest = if matches!(net, IpNet::V4(_)) { WIDEST_V4 } else { WIDEST_V6 };
        if net.prefix_len() < widest && !force {
            return refused(format!(
                "{name} is not ignored: wider than a /{widest}, it would switch the jails off; say --force if you mean it"
            ));
        }
        if self.ignored.len() >= IGNORED_MAX && !self.ignored.contains(&net) {
            return refused(format!(
                "{name} is not ignored: {IGNORED_MAX} are already; put long lists into a file, and name that in ignoreip"
            ));
        }
        let new = self.ignored.insert(net);
        if let Err(refusal) = self.reinstall(false).await {
            if new {
                self.ignored.remove(&net);
            }
            return refused(refusal.to_string());
        }
        let (lifted, ticket) = self.spare();
        self.save_soon();
        let lifted = match lifted {
            0 => String::new(),
            1 => "; 1 ban was lifted".to_owned(),
            many => format!("; {many} bans were lifted"),
        };
        let kept = if self.state.is_some() { "" } else { " until the agent ends (it can keep no state)" };
        tracing::info!("{name} is never banned from now on, by hand");
        Ok((ticket, format!("{name} is never banned from now on{kept}{lifted}")))
    }

    /// Takes back what [`Daemon::ignore`] did.
    pub(crate) async fn heed(&mut self, net: IpNet) -> Response {
        let name = brief(&net);
        if !self.ignored.remove(&net) {
            let all = self.never_banned();
            let same = all.iter().find(|who| who.net == net);
            return match same.or_else(|| all.iter().find(|who| who.net.contains(&net))) {
                Some(who) => {
                    let part = if who.net == net { String::new() } else { format!("part of {}, ", who.net) };
                    let why = format!("{name} was not added: it is {part}never banned by {}", who.from);
                    failed(Failed::Refused, why)
                }
                None => failed(Failed::NotFound, format!("{name} is not ignored")),
            };
        }
        if let Err(refusal) = self.reinstall(false).await {
            self.ignored.insert(net);
            return failed(Failed::Refused, refusal.to_string());
        }
        self.spare();
        self.save_soon();
        tracing::info!("{name} is no longer ignored by hand");
        let still = self.never_banned().into_iter().find(|who| who.jail.is_none() && who.net.contains(&net));
        let still = still.map_or_else(String::new, |who| match who.net == net {
            true => format!(" by hand, but still by {}", who.from),
            false => format!(" by itself, but {} is, by {}", who.net, who.from),
        });
        Response::Done(format!("{name} is no longer ignored{still}"))
    }

    /// Everybody who is never banned, and who says so.
    pub(crate) fn never_banned(&self) -> Vec<IgnoredStatus> {
        let known = &self.config.known;
        let row = |jail: Option<&JailName>, net: IpNet, from: &str| IgnoredStatus {
            net,
            jail: jail.cloned(),
            from: from.to_owned(),
        };
        let mut all: Vec<IgnoredStatus> = self.ignored.iter().map(|net| row(None, *net, "hand")).collect();
        let List { entries, at } = &self.config.ignoreip;
        let trusted = &self.config.trusted_proxies;
        let lists = [
            (None, format!("ignoreip ({at})"), entries),
            (None, format!("trusted_proxies ({})", trusted.at), &trusted.entries),
        ];
        let jails = self.config.jails.iter();
        let own = jails
            .map(|jail| (Some(&jail.terms.name), format!("ignoreip of {}", jail.terms.name), &jail.ignoreip));
        for (jail, key, entries) in lists.into_iter().chain(own) {
            for entry in entries {
                let from = entry.elsewhere().map_or_else(|| key.clone(), |what| format!("{key}, {what}"));
                all.extend(
                    known.nets(std::slice::from_ref(entry)).into_iter().map(|net| row(jail, net, &from)),
                );
            }
        }
        all.extend(self.own.iter().map(|net| row(None, *net, "this host (its own, or one it needs)")));
        all
    }
}
