//! Many events → one message: a subject, and a text that names the worst.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::escape::shown;
use crate::model::Span;
use crate::status::{Happened, News};

/// A message to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// One line.
    pub subject: String,
    pub body: String,
}

/// So many of the addresses that were banned most are named.
const TOP: usize = 5;
/// So many events are told one by one.
const SHOWN: usize = 50;

/// `missed` were lost before, because too many waited.
pub fn message(news: &[News], missed: u64, host: &str) -> Message {
    let mut body = String::new();
    let subject = match news {
        [only] if missed == 0 => format!("[{host}] {}", only.text),
        _ => {
            let counts = counted(news);
            body += &format!("{counts} within {}\n", over(news));
            body += &top(news);
            body.push('\n');
            format!("[{host}] {counts}")
        }
    };
    if missed > 0 {
        body += &format!("{missed} events before these were not told: too many waited\n\n");
    }
    for one in news.iter().take(SHOWN) {
        body += &format!("{}  {}\n", one.at, shown(&one.text));
        for line in &one.lines {
            body += &format!("    {}\n", shown(line));
        }
    }
    if news.len() > SHOWN {
        body += &format!("... and {} more: nftjail history, nftjail bans\n", news.len() - SHOWN);
    }
    Message { subject: shown(&subject), body }
}

/// `37 banned, 2 unbanned`.
fn counted(news: &[News]) -> String {
    let mut counts: BTreeMap<Happened, usize> = BTreeMap::new();
    news.iter().for_each(|one| *counts.entry(one.event).or_default() += 1);
    let texts: Vec<String> =
        counts.iter().map(|(event, count)| format!("{count} {}", event.name().replace('_', " "))).collect();
    texts.join(", ")
}

fn over(news: &[News]) -> Span {
    let (first, last) = (news.iter().map(|one| one.at).min(), news.iter().map(|one| one.at).max());
    Span(first.zip(last).map(|(first, last)| last.since(first)).unwrap_or_default())
}

/// Who was banned most, where somebody was more than once, and which jails banned.
fn top(news: &[News]) -> String {
    let banned = || news.iter().filter(|one| one.event == Happened::Banned);
    let of = |names: &mut dyn Iterator<Item = String>| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        names.for_each(|name| *counts.entry(name).or_default() += 1);
        let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let texts: Vec<String> =
            counts.iter().take(TOP).map(|(name, count)| format!("{name} ({count})")).collect();
        texts.join(", ")
    };
    let jails = of(&mut banned().filter_map(|one| one.jail.as_ref()).map(ToString::to_string));
    let targets = of(&mut banned().filter_map(|one| one.target).map(|target| target.to_string()));
    if jails.is_empty() { String::new() } else { format!("jails: {jails}\naddresses: {targets}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn news(second: i64, event: Happened, target: &str) -> News {
        News {
            schema: 1,
            at: Timestamp::from_millis(second * 1_000),
            event,
            jail: Some("sshd".parse().unwrap()),
            target: Some(target.parse().unwrap()),
            bantime: None,
            ends: None,
            lines: Vec::new(),
            text: format!("sshd: {} {target}", event.name()),
        }
    }

    #[test]
    fn one_event_is_its_own_subject_and_moves_nothing() {
        let mut one = news(1, Happened::Banned, "192.0.2.1");
        one.lines.push("Failed\r\nBcc: everybody \u{1b}[2J".to_owned());
        one.text += "\r\nX: y";
        let message = message(&[one], 0, "web01");
        assert_eq!(message.subject, r"[web01] sshd: banned 192.0.2.1\r\nX: y");
        let wanted = r"1970-01-01T00:00:01.000Z  sshd: banned 192.0.2.1\r\nX: y
    Failed\r\nBcc: everybody \u{1b}[2J
";
        assert_eq!(message.body, wanted);
    }

    #[test]
    fn many_are_counted() {
        let mut all: Vec<News> =
            (0..60).map(|n| news(n, Happened::Banned, &format!("192.0.2.{}", n % 59))).collect();
        all.push(news(600, Happened::Unbanned, "192.0.2.1"));
        let message = message(&all, 3, "web01");
        assert_eq!(message.subject, "[web01] 60 banned, 1 unbanned");
        let start = "60 banned, 1 unbanned within 10m\njails: sshd (60)\naddresses: 192.0.2.0 (2), 192.0.2.1 (1), \
                     192.0.2.10 (1), 192.0.2.11 (1), 192.0.2.12 (1)\n\n3 events before these were not told";
        assert!(message.body.starts_with(start), "{}", message.body);
        assert!(message.body.ends_with("... and 11 more: nftjail history, nftjail bans\n"));
    }
}
