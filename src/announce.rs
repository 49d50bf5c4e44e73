//! What happened goes out: into the agent's own log, into the state, and to those who watch.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::daemon::Daemon;
use crate::evidence::Clue;
use crate::host;
use crate::model::{Ban, Event, JailName, Target, Timestamp};
use crate::status::{Happened, Past};
use crate::tell::{self, news::news};

impl Daemon {
    pub(crate) fn announce(&mut self, events: &[Event]) {
        events.iter().for_each(tell::log);
        let now = host::now();
        let lines = Lines::of(self, events);
        let remembered: Vec<Past> = events.iter().filter_map(|event| past(event, now, &lines)).collect();
        // Nobody listens most of the time, and a flood of failures is not put into words for nobody.
        if self.news.receiver_count() > 0 {
            for event in events {
                // Who hung up just now does not want to know.
                let _ = self.news.send(Arc::new(news(event, now, lines.of_event(event))));
            }
        }
        self.past.extend(remembered);
    }
}

/// The lines that led to the bans of some events.
struct Lines<'a>(HashMap<(JailName, Target), VecDeque<&'a Clue>>);

impl<'a> Lines<'a> {
    fn of(daemon: &'a Daemon, events: &[Event]) -> Self {
        let whom: HashSet<(JailName, Target)> = events.iter().filter_map(begun).map(key).collect();
        Lines(if whom.is_empty() { HashMap::new() } else { daemon.engine.evidence().against(&whom) })
    }

    fn of_event(&self, event: &Event) -> Vec<String> {
        begun(event).map(|ban| self.of_ban(ban)).unwrap_or_default()
    }

    fn of_ban(&self, ban: &Ban) -> Vec<String> {
        self.0.get(&key(ban)).into_iter().flatten().map(|clue| clue.text.to_string()).collect()
    }
}

fn key(ban: &Ban) -> (JailName, Target) {
    (ban.jail.clone(), ban.target)
}

/// The ban that an event is the beginning of.
fn begun(event: &Event) -> Option<&Ban> {
    match event {
        Event::Banned { ban } | Event::Extended { ban } => Some(ban),
        _ => None,
    }
}

/// What is remembered of an event when it is over.
fn past(event: &Event, now: Timestamp, lines: &Lines<'_>) -> Option<Past> {
    let of_ban = |event, ban: &Ban| Past {
        at: ban.at,
        event,
        jail: ban.jail.clone(),
        target: ban.target,
        ends: ban.end(),
        lines: lines.of_ban(ban),
    };
    match event {
        Event::Banned { ban } => Some(of_ban(Happened::Banned, ban)),
        Event::Extended { ban } => Some(of_ban(Happened::Extended, ban)),
        Event::Released { jail, target } => Some(Past {
            at: now,
            event: Happened::Unbanned,
            jail: jail.clone(),
            target: *target,
            ends: None,
            lines: Vec::new(),
        }),
        _ => None,
    }
}
