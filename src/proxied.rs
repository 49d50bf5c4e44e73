//! Logs that name nobody but a proxy, so that their jails can ban nobody: how they are found out.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::engine::{Engine, Source};
use crate::jail::allow::{Allow, is_internal};

/// How many failures of a source came in a row from those who only pass on what others send, and from whom the last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Proxied {
    row: u32,
    last: Option<IpAddr>,
    told: bool,
}

/// A log in which so many failures in a row are those of proxies names no client at all.
const PROXIED_ENOUGH: u32 = 20;

impl Engine {
    /// Who only passes on what others send. A log that shows nobody else is found out.
    pub fn trust(&mut self, proxies: Allow) {
        self.proxies = proxies;
    }

    /// The proxy that all failures of a source come from lately, if they do, and whether it is a trusted one.
    pub fn proxied(&self, source: usize) -> Option<(IpAddr, bool)> {
        let proxied = self.sources[source].proxied;
        let addr = proxied.last.filter(|_| proxied.row >= PROXIED_ENOUGH)?;
        Some((addr, self.proxies.covers(addr)))
    }

    /// The sources of which [`Engine::proxied`] has found so since the last call; each once.
    pub fn take_proxied(&mut self) -> Vec<usize> {
        let news = |(number, source): (usize, &mut Source)| {
            let proxied = &mut source.proxied;
            let found = proxied.row >= PROXIED_ENOUGH && !proxied.told;
            proxied.told |= found;
            found.then_some(number)
        };
        self.sources.iter_mut().enumerate().filter_map(news).collect()
    }

    /// Somebody failed, as a source shows it, and was counted or not.
    pub(crate) fn note_proxied(&mut self, source: usize, addr: IpAddr, counted: bool) {
        let passes_on = self.proxies.covers(addr) || is_internal(addr);
        let proxied = &mut self.sources[source].proxied;
        proxied.row = if counted || !passes_on { 0 } else { proxied.row.saturating_add(1) };
        proxied.last = Some(addr);
    }
}
