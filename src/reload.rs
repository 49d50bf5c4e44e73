//! What the daemon does when it is to go on by another configuration: all of it at once, and nothing is lost.

use ipnet::IpNet;

use crate::control::{Failed, Response, failed};
use crate::daemon::{Daemon, date_of, listeners, load, longest_findtime};
use crate::enforcer::Restore;
use crate::host;
use crate::model::plain;
use crate::never;
use crate::tell;
use crate::yaml;

impl Daemon {
    /// Reads the configuration again and goes on by it, or by the old one where it is not in order.
    pub(crate) async fn reload(&mut self) -> Response {
        let loaded = host::now();
        let mut config = match load(&self.places) {
            Ok(config) => config,
            Err(faults) => return failed(Failed::BadConfiguration, yaml::told(&faults)),
        };
        config.heed(self.can_own);
        config.known.inherit(&self.config.known);
        let own = never::of_this_host(config.ban_local).unwrap_or_else(|_| self.own.clone());
        let spared: Vec<IpNet> = own.iter().chain(&self.ignored).copied().collect();
        let believed = Restore::Lost(self.believed());
        if let Err(refusal) = self.enforcer.install(config.layout(&spared), believed).await {
            return failed(Failed::Refused, refusal.to_string());
        }
        let (before, _) = listeners(&self.config);
        let (logs, listeners) = listeners(&config);
        let was: Vec<_> = logs.iter().map(|log| before.iter().position(|old| old == log)).collect();
        self.engine.amend(config.terms(), listeners, &was);
        if let Err(error) =
            self.sources.follow(&logs, longest_findtime(&config), host::now(), &date_of(&config, &self.zone))
        {
            return failed(Failed::Refused, plain(&error));
        }
        self.own = own;
        self.watch = never::Watch::over(&config.known);
        (self.config, self.loaded) = (config, loaded);
        self.spare();
        self.keeper.want(!self.config.notices.is_empty());
        let truth = tell::screen::truth(&self.status(None));
        tracing::info!("reloaded: {truth}");
        Response::Done(format!("reloaded: {truth}"))
    }
}
