//! The verb `replay`: the agent's own judgement on old logs; who would have been banned, and who nearly.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use crate::acquire::archive::Archive;
use crate::acquire::place::Place;
use crate::config::Config;
use crate::detect::{self, Clock};
use crate::engine::{Engine, Listener, Outcome};
use crate::model::plain;
use crate::model::{Event, JailName, Target, Timestamp};
use crate::status::{BanStatus, Nearly, Replayed};
use jiff::tz::TimeZone;

/// Judges the logs, one after the other, by the dates of their lines; `now` is for lines without one, `zone` for logs
/// of which no jail says another.
///
/// Each jail hears every line, as if all logs were its own. No clock is read and no kernel asked.
pub fn run(
    config: &Config,
    logs: &[PathBuf],
    now: Timestamp,
    zone: &TimeZone,
    progress: bool,
) -> Result<Replayed, String> {
    let terms = config.jails.iter().map(|jail| jail.terms.clone()).collect();
    let listener = |jail: &crate::resolve::JailConfig| Listener {
        jail: jail.terms.name.clone(),
        rule: jail.rule.clone(),
        zone: None,
    };
    let listeners = config.jails.iter().filter(|jail| !jail.terms.hears_bans).map(listener).collect();
    let mut engine = Engine::new(terms, vec![listeners], config.never(&[]), 0);
    let mut replay = Replay { result: Replayed { schema: 1, ..Replayed::default() }, peaks: BTreeMap::new() };
    for log in logs {
        let mut archive = Archive::open(log)?;
        let only = match &config.jails[..] {
            [only] => only.zone.as_ref(),
            _ => None,
        };
        let zone = config.zone_of(&Place::File(log.clone())).or(only).unwrap_or(zone);
        let mut bar = Bar { shown: progress && io::stderr().is_terminal(), last: 101 };
        let mut line = Vec::new();
        while archive.next_line(&mut line).map_err(|error| format!("{}: {}", log.display(), plain(&error)))? {
            replay.result.lines += 1;
            replay.line(&mut engine, &line, now, zone);
            if replay.result.lines.is_multiple_of(4_096) {
                bar.show(archive.taken(), archive.size);
            }
        }
        bar.clear();
    }
    Ok(replay.end())
}

struct Replay {
    result: Replayed,
    /// The most failures at once of each target, and how many banned then.
    peaks: BTreeMap<(JailName, Target), (u32, u32)>,
}

impl Replay {
    fn line(&mut self, engine: &mut Engine, line: &[u8], now: Timestamp, zone: &TimeZone) {
        let at = detect::date_of(line, now, zone).unwrap_or(now);
        let mut out = Outcome::default();
        engine.handle_timeout(at, &mut Outcome::default());
        engine.handle_line(0, line, Clock::Written { now, zone }, at.max(Timestamp::default()), &mut out);
        // A ban may be the last straw in a jail that hears bans.
        while let Some(change) = out.changes.pop() {
            engine.handle_taken(&change, at, &mut out);
        }
        for event in out.events {
            match event {
                Event::Failed { jail, addr, count, maxretry, .. } => {
                    self.result.failures += 1;
                    let peak = self.peaks.entry((jail, Target::of(addr))).or_default();
                    *peak = (*peak).max((count, maxretry));
                }
                Event::Banned { ban } | Event::Extended { ban } => {
                    let ends = ban.end();
                    self.result.bans.push(BanStatus {
                        jail: ban.jail,
                        target: ban.target,
                        at: ban.at,
                        ends,
                        dropped: None,
                    });
                }
                _ => {}
            }
        }
    }

    fn end(mut self) -> Replayed {
        let near = self
            .peaks
            .into_iter()
            .filter(|(_, (count, maxretry))| count < maxretry && count * 2 >= *maxretry);
        let mut nearly: Vec<Nearly> = near
            .map(|((jail, target), (failures, maxretry))| Nearly { jail, target, failures, maxretry })
            .collect();
        nearly.sort_by_key(|near| (std::cmp::Reverse(near.failures), near.target));
        self.result.nearly = nearly;
        self.result
    }
}

/// A line on standard error that says how far a long log was read.
struct Bar {
    shown: bool,
    last: u64,
}

impl Bar {
    fn show(&mut self, taken: u64, size: Option<u64>) {
        let Some(size) = size.filter(|size| self.shown && *size > 0) else { return };
        let percent = (taken * 100 / size).min(100);
        if percent != self.last {
            self.last = percent;
            let filled = "#".repeat(percent as usize / 4);
            // A terminal that is gone needs no progress.
            let _ = write!(io::stderr(), "\r[{filled:<25}] {percent:>3} %");
        }
    }

    fn clear(&self) {
        if self.shown && self.last <= 100 {
            let _ = write!(io::stderr(), "\r{:<40}\r", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Services;

    #[test]
    fn a_friend_comes_near_a_ban_by_a_friends_measure() {
        let dir = tempfile::tempdir().unwrap();
        let (config, log) = (dir.path().join("nftjail.yaml"), dir.path().join("auth.log"));
        std::fs::write(&config, "jails: {sshd: {port: 22}}").unwrap();
        let line = |n: u32, text: &str| {
            format!("2026-11-21T10:00:0{n}Z web01 sshd[{n}]: {text} for ann from 192.0.2.1 port 4242 ssh2\n")
        };
        let failed = (2..9).map(|n| line(n, "Failed password"));
        let lines = [line(0, "Failed password"), line(1, "Accepted password")].into_iter().chain(failed);
        std::fs::write(&log, lines.collect::<String>()).unwrap();
        let config = Config::load(Some(&config), &Services::of_this_host()).unwrap();
        let now = Timestamp::from_millis(1_795_255_200_000);
        let replayed = run(&config, &[log], now, &TimeZone::UTC, false).unwrap();
        assert_eq!((replayed.failures, replayed.bans.len()), (8, 0));
        let nearly: Vec<_> = replayed.nearly.iter().map(|near| (near.failures, near.maxretry)).collect();
        assert_eq!(nearly, [(7, 10)]);
    }
}
