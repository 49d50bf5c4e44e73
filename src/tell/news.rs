//! An event as programs are told of it: one object with stable names.
#![forbid(unsafe_code)]

use super::message;
use crate::model::{Ban, Event, Target, Timestamp};
use crate::status::{Happened, News};

/// `lines` are those that led to it, where it is a ban.
pub fn news(event: &Event, at: Timestamp, lines: Vec<String>) -> News {
    let (happened, ban) = match event {
        Event::Failed { .. } => (Happened::Failed, None),
        Event::Series { .. } => (Happened::Series, None),
        Event::Ignored { .. } => (Happened::Ignored, None),
        Event::Overdue { ban } => (Happened::Overdue, Some(ban)),
        Event::Banned { ban } => (Happened::Banned, Some(ban)),
        Event::Extended { ban } => (Happened::Extended, Some(ban)),
        Event::Knocked { ban } => (Happened::Knocked, Some(ban)),
        Event::PutBack { ban } => (Happened::PutBack, Some(ban)),
        Event::Repaired { .. } => (Happened::Repaired, None),
        Event::Adopted { ban, .. } => (Happened::Adopted, Some(ban)),
        Event::Restored { ban } => (Happened::Restored, Some(ban)),
        Event::Released { .. } => (Happened::Unbanned, None),
        Event::Ended { ban } => (Happened::Ended, Some(ban)),
        Event::Refused { .. } => (Happened::Refused, None),
    };
    let (jail, target) = match event {
        Event::Failed { jail, addr, .. }
        | Event::Series { jail, addr, .. }
        | Event::Ignored { jail, addr } => (Some(jail), Some(Target::of(*addr))),
        Event::Released { jail, target } | Event::Refused { jail, target, .. } => (Some(jail), Some(*target)),
        Event::Repaired { .. } => (None, None),
        _ => (ban.map(|ban| &ban.jail), ban.map(|ban| ban.target)),
    };
    News {
        schema: 1,
        at,
        event: happened,
        jail: jail.cloned(),
        target,
        bantime: ban.map(|ban| ban.bantime),
        ends: ban.and_then(Ban::end),
        lines,
        text: message::text(event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Bantime;
    use std::time::Duration;

    #[test]
    fn programs_are_told_in_stable_words() {
        let ban = Ban {
            jail: "sshd".parse().unwrap(),
            target: "192.0.2.1".parse().unwrap(),
            at: Timestamp::from_millis(1_000),
            bantime: Bantime::For(Duration::from_secs(60)),
        };
        let news =
            news(&Event::Banned { ban }, Timestamp::from_millis(2_000), vec!["x \u{1b}[2J".to_owned()]);
        let wanted = r#"{"schema":1,"at":"1970-01-01T00:00:02.000Z","event":"banned","jail":"sshd","target":"192.0.2.1","bantime":"60s","ends":"1970-01-01T00:01:01.000Z","lines":["x \u001b[2J"],"text":"sshd: banned 192.0.2.1 for 1m"}"#;
        assert_eq!(serde_json::to_string(&news).unwrap(), wanted);
        assert_eq!(serde_json::from_str::<News>(wanted).unwrap(), news);
    }

    #[test]
    fn each_kind_has_one_name() {
        for (kind, name) in Happened::ALL {
            assert_eq!(kind.name(), name);
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{name}\""));
        }
    }
}
