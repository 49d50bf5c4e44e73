//! What the daemon does when somebody else is never banned from now on.

use crate::daemon::Daemon;
use crate::enforcer::Restore;
use crate::jail::allow::Allow;
use crate::model::plain;
use crate::never::{self, News};

impl Daemon {
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
        let believed = Restore::Lost(self.believed());
        if let Err(refusal) = self.enforcer.install(self.config.layout(&self.own), believed).await {
            tracing::error!("the kernel does not know yet who is never banned now: {refusal}");
        }
        self.spare();
    }

    /// Judges by what is known now, and lifts the bans of those who are to be spared.
    pub(crate) fn spare(&mut self) {
        for jail in &self.config.jails {
            self.engine.spare(&jail.terms.name, Allow::new(&self.config.known.nets(&jail.ignoreip)));
        }
        let out = self.engine.handle_never(self.config.never(&self.own));
        self.follow(out);
    }
}
