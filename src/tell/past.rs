//! Why somebody is banned, what was before, and what happens now, as people read it.
#![forbid(unsafe_code)]

use super::escape::shown;
use super::screen::{columns, packets_and_bytes, row};
use crate::model::{Span, Timestamp};
use crate::status::{Count, Evidence, Happened, History, Kernel, News, Past, Why, WhyJail, brief};

/// What happened, after its time.
pub fn news(news: &News) -> String {
    let lines: String = news.lines.iter().map(|line| format!("    {}\n", shown(line))).collect();
    format!("{}  {}\n{lines}", news.at, shown(&news.text))
}

/// Everything that is held against somebody; the first line is the answer.
pub fn why(why: &Why) -> String {
    let banned: Vec<&str> =
        why.jails.iter().filter(|jail| is_out(jail)).map(|jail| jail.jail.as_str()).collect();
    let mut text = match banned.as_slice() {
        [] => format!("{} is not banned\n", why.target),
        names => format!("{} is banned in {}\n", why.target, names.join(", ")),
    };
    for who in &why.never {
        let jail = who.jail.as_ref().map_or_else(String::new, |jail| format!(" in {jail}"));
        text += &format!("{} is never banned{jail}, by {}\n", brief(&who.net), who.from);
    }
    for jail in &why.jails {
        text += &format!("\n{}", of_jail(jail, why));
    }
    if !why.past.is_empty() {
        text += "\nBEFORE\n";
        let rows: Vec<Vec<String>> = why.past.iter().map(past_row).collect();
        text += &columns(&rows);
    }
    text
}

fn is_out(jail: &WhyJail) -> bool {
    jail.ban.is_some() || jail.network.is_some()
}

fn of_jail(jail: &WhyJail, why: &Why) -> String {
    let mut text = format!("{} (rule {}, ports {})\n", jail.jail, jail.rule, jail.ports);
    if let Some(ban) = &jail.ban {
        let ends = ban.ends.map_or_else(|| "never ends".to_owned(), |ends| ends_at(ends, why.now));
        text += &format!("  banned since {}, {ends}\n", ban.at);
    }
    if let Some(network) = jail.network {
        text += &format!("  all of {network} is banned, this with it\n");
    }
    text += &match &jail.kernel {
        Kernel::NotAsked => String::new(),
        Kernel::Holds { ends: None } => "  the kernel holds it: no end\n".to_owned(),
        Kernel::Holds { ends: Some(ends) } => format!("  the kernel holds it: {}\n", ends_at(*ends, why.now)),
        Kernel::Misses => "  THE KERNEL DOES NOT HOLD IT: run nftjail doctor\n".to_owned(),
        Kernel::Silent(reason) => format!("  the kernel could not be asked: {reason}\n"),
    };
    if let Some(dropped) = jail.ban.as_ref().and_then(|ban| ban.dropped) {
        text += &format!("  dropped packets of it: {}\n", packets_and_bytes(dropped));
    }
    if jail.bans > 0 {
        text += &format!("  bans that are remembered: {}\n", jail.bans);
    }
    if jail.failures > 0 && !is_out(jail) {
        text += &format!("  {} of {} failures that ban\n", jail.failures, jail.maxretry);
    }
    if jail.friend {
        text += "  it logged in not long ago: a friend, who may fail more often\n";
    }
    let needle = why.target.network().to_string();
    for line in &jail.lines {
        text += &line_of(line, &needle);
    }
    if jail.lines.is_empty() && is_out(jail) {
        text += "  no line against it is remembered any more\n";
    }
    if !jail.since.is_empty() {
        text += &format!("  since then it failed {} times more, these were the last:\n", jail.since.len());
        jail.since.iter().for_each(|line| text += &line_of(line, &needle));
    }
    text
}

fn ends_at(ends: Timestamp, now: Timestamp) -> String {
    format!("ends {ends}, in {}", Span(ends.since(now)))
}

/// The line as it was written, the address underlined where it stands as we write it.
fn line_of(line: &Evidence, needle: &str) -> String {
    let text = shown(&line.text);
    let marks = text.find(needle).map_or_else(String::new, |at| {
        let before = text[..at].chars().count();
        format!("    {:before$}{:^<width$}\n", "", "", width = needle.len())
    });
    format!("    {text}\n{marks}")
}

fn past_row(past: &Past) -> Vec<String> {
    let what = match (past.event, past.ends) {
        (Happened::Unbanned, _) => "unbanned by hand".to_owned(),
        (event, None) => format!("{} forever", event.name()),
        (event, Some(ends)) => format!("{} for {}", event.name(), Span(ends.since(past.at))),
    };
    vec![format!("  {}", past.at), past.jail.to_string(), what]
}

/// Bans counted: a bar for each day, then who was banned most.
pub fn history(history: &History) -> String {
    let bans = if history.bans == 1 { "ban" } else { "bans" };
    let mut text = format!("{} {bans} since {}\n", history.bans, history.since);
    text += &counts("DAY (UTC)", &history.days);
    text += &counts("JAIL", &history.jails);
    text += &counts("ADDRESS", &history.targets);
    text + &counts("NETWORK", &history.networks)
}

/// The longest bar.
const BAR: u64 = 40;

fn counts(name: &str, counts: &[Count]) -> String {
    let most = counts.iter().map(|count| count.bans).max().unwrap_or(0).max(1);
    let mut rows = vec![row(&[name, "BANS", ""])];
    rows.extend(counts.iter().map(|count| {
        let bar = "#".repeat((count.bans * BAR).div_ceil(most) as usize);
        vec![count.of.clone(), count.bans.to_string(), bar]
    }));
    if counts.is_empty() { String::new() } else { format!("\n{}", columns(&rows)) }
}

/// One row for each ban and each unban by hand, with a head (RFC 4180, but for line ends, which are LF). None of the
/// cells can hold a comma or a quote, nor be taken for a formula.
pub fn csv(all: &[Past]) -> String {
    let mut text = "at,event,jail,target,ends\n".to_owned();
    for Past { at, event, jail, target, ends, .. } in all {
        let ends = ends.map(|ends| ends.to_string()).unwrap_or_default();
        text += &format!("{at},{},{jail},{target},{ends}\n", event.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Dropped;
    use crate::status::{BanStatus, IgnoredStatus};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn evidence(second: i64, text: &str) -> Evidence {
        Evidence { at: at(second), text: text.to_owned() }
    }

    fn banned() -> Why {
        let jail = WhyJail {
            jail: "sshd".parse().unwrap(),
            rule: "sshd".to_owned(),
            ports: "22/tcp".to_owned(),
            ban: Some(BanStatus {
                jail: "sshd".parse().unwrap(),
                target: "192.0.2.1".parse().unwrap(),
                at: at(10),
                ends: Some(at(70)),
                dropped: Some(Dropped { packets: 3, bytes: 180 }),
            }),
            network: None,
            kernel: Kernel::Holds { ends: Some(at(70)) },
            bans: 2,
            failures: 0,
            maxretry: 5,
            friend: false,
            lines: vec![evidence(9, "Failed password for \u{1b}[2J from 192.0.2.1 port 1")],
            since: vec![evidence(11, "again")],
        };
        let past = Past {
            at: at(1),
            event: Happened::Banned,
            jail: jail.jail.clone(),
            target: "192.0.2.1".parse().unwrap(),
            ends: Some(at(6)),
            lines: Vec::new(),
        };
        let unbanned = Past { event: Happened::Unbanned, ends: None, at: at(3), ..past.clone() };
        let target = "192.0.2.1".parse().unwrap();
        Why {
            schema: 1,
            target,
            now: at(30),
            jails: vec![jail],
            never: Vec::new(),
            past: vec![unbanned, past],
        }
    }

    #[test]
    fn a_ban_is_explained() {
        let wanted = r"192.0.2.1 is banned in sshd

sshd (rule sshd, ports 22/tcp)
  banned since 1970-01-01T00:00:10.000Z, ends 1970-01-01T00:01:10.000Z, in 40s
  the kernel holds it: ends 1970-01-01T00:01:10.000Z, in 40s
  dropped packets of it: 3 (180 B)
  bans that are remembered: 2
    Failed password for \u{1b}[2J from 192.0.2.1 port 1
                                       ^^^^^^^^^
  since then it failed 1 times more, these were the last:
    again

BEFORE
  1970-01-01T00:00:03.000Z  sshd  unbanned by hand
  1970-01-01T00:00:01.000Z  sshd  banned for 5s
";
        assert_eq!(why(&banned()), wanted);
    }

    #[test]
    fn what_is_no_ban_is_explained_too() {
        let mut free = banned();
        free.past.clear();
        let jail = free.jails.remove(0);
        free.jails.push(WhyJail {
            ban: None,
            kernel: Kernel::NotAsked,
            bans: 0,
            failures: 3,
            friend: true,
            since: Vec::new(),
            lines: Vec::new(),
            ..jail
        });
        free.never =
            vec![IgnoredStatus { net: "192.0.2.0/24".parse().unwrap(), jail: None, from: "hand".to_owned() }];
        let wanted = "192.0.2.1 is not banned
192.0.2.0/24 is never banned, by hand

sshd (rule sshd, ports 22/tcp)
  3 of 5 failures that ban
  it logged in not long ago: a friend, who may fail more often
";
        assert_eq!(why(&free), wanted);
        free.jails[0].network = Some("192.0.2.0/26".parse().unwrap());
        free.jails[0].kernel = Kernel::Misses;
        let text = why(&free);
        assert!(
            text.contains("all of 192.0.2.0/26 is banned") && text.contains("THE KERNEL DOES NOT HOLD IT"),
            "{text}"
        );
    }

    #[test]
    fn the_past_is_counted_with_bars() {
        let count = |of: &str, bans| Count { of: of.to_owned(), bans };
        let text = history(&History {
            schema: 1,
            since: at(0),
            bans: 5,
            days: vec![count("1970-01-02", 4), count("1970-01-01", 1)],
            jails: vec![count("sshd", 5)],
            targets: Vec::new(),
            networks: Vec::new(),
        });
        let wanted = "5 bans since 1970-01-01T00:00:00.000Z

DAY (UTC)   BANS
1970-01-02  4     ########################################
1970-01-01  1     ##########

JAIL  BANS
sshd  5     ########################################
";
        assert_eq!(text, wanted);
    }

    #[test]
    fn every_ban_is_a_row_of_csv() {
        let wanted = "at,event,jail,target,ends
1970-01-01T00:00:03.000Z,unbanned,sshd,192.0.2.1,
1970-01-01T00:00:01.000Z,banned,sshd,192.0.2.1,1970-01-01T00:00:06.000Z
";
        assert_eq!(csv(&banned().past), wanted);
    }

    #[test]
    fn news_comes_with_its_time_and_its_lines() {
        let news = News {
            schema: 1,
            at: at(1),
            event: Happened::Banned,
            jail: None,
            target: None,
            bantime: None,
            ends: None,
            lines: vec!["a\r\nb".to_owned()],
            text: "sshd: banned".to_owned(),
        };
        assert_eq!(super::news(&news), "1970-01-01T00:00:01.000Z  sshd: banned\n    a\\r\\nb\n");
    }
}
