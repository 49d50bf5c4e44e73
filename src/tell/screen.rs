//! Status and bans as people read them: aligned columns, the line of truth on top.
#![forbid(unsafe_code)]

use crate::model::{Dropped, Hook, Span, Timestamp};
use crate::status::{
    AutoStatus, BanStatus, IgnoredStatus, JailStatus, Repairs, Replayed, SourceStatus, Status, brief,
};

/// So many of those who are spared by hand are named in the status.
const IGNORED_SHOWN: usize = 10;

/// The whole status: one line that says how things stand, then jails, then sources.
pub fn status(status: &Status) -> String {
    let mut text = truth(status) + "\n";
    for line in status.broken.iter().flat_map(|broken| &broken.why).flat_map(|why| why.lines()) {
        text += &format!("  {line}\n");
    }
    for trouble in &status.troubles {
        text += &format!("  {trouble}\n");
    }
    if let Repairs { total, last: Some(last), by: Some(by) } = &status.repairs {
        let age = Span(status.now.since(*last));
        text += &format!("  our table was put back {total} times, last {age} ago after a change by {by}\n");
    }
    if !status.ignored.is_empty() {
        let shown: Vec<String> = status.ignored.iter().take(IGNORED_SHOWN).map(brief).collect();
        let more = match status.ignored.len() - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more (nftjail ignore list)"),
        };
        text += &format!("  never banned, by hand: {}{more}\n", shown.join(", "));
    }
    for jail in status.jails.iter().filter(|jail| jail.forgotten_total > 0) {
        text += &format!(
            "  {}: {} addresses were forgotten early, those with the fewest failures first: too many failed at once\n",
            jail.name, jail.forgotten_total
        );
    }
    let dropped = |jail: &JailStatus| match jail.dropped {
        Some(dropped) => packets_and_bytes(dropped),
        None => "?".to_owned(),
    };
    let mut rows = vec![row(&["JAIL", "BANNED", "TOTAL", "FAILING", "FAILED", "DROPPED", "PORTS", "TERMS"])];
    rows.extend(status.jails.iter().map(|jail| {
        vec![
            jail.name.to_string(),
            jail.banned.to_string(),
            jail.banned_total.to_string(),
            jail.failing.to_string(),
            jail.failed_total.to_string(),
            dropped(jail),
            jail.ports.clone() + &hooks(jail),
            terms(jail),
        ]
    }));
    text += "\n";
    text += &columns(&rows);
    if !status.auto.is_empty() {
        text += "\n";
        text += &auto(&status.auto);
    }
    let mut rows = vec![row(&["SOURCE", "STATE", "LINES", "LOST", "TOO LONG", "LAST LINE"])];
    rows.extend(status.sources.iter().map(|source| {
        let age = source.last_line.map(|at| format!("{} ago", Span(status.now.since(at))));
        let mut state = source.state.clone();
        if source.behind > 0 {
            state += &format!(", {} KiB behind", source.behind.div_ceil(1024));
        }
        vec![
            source.name.clone(),
            state,
            source.lines.to_string(),
            source.lost.to_string(),
            source.overlong.to_string(),
            age.unwrap_or_else(|| "none yet".to_owned()),
        ]
    }));
    text += "\n";
    text + &columns(&rows)
}

/// Jails with `enabled: auto`: which of them run, and why.
pub fn auto(auto: &[AutoStatus]) -> String {
    let mut rows = vec![row(&["AUTO", "IS", "BECAUSE"])];
    rows.extend(auto.iter().map(|auto| {
        vec![auto.jail.to_string(), if auto.on { "on" } else { "off" }.to_owned(), auto.why.clone()]
    }));
    columns(&rows)
}

fn terms(jail: &JailStatus) -> String {
    let silence = jail.extend_on_knock.iter().map(|silence| format!(", then until silent for {silence}"));
    format!("{} in {}: {}", jail.maxretry, jail.findtime, jail.bantime) + &silence.collect::<String>()
}

/// Where a jail's bans are met, if not where most are.
fn hooks(jail: &JailStatus) -> String {
    let names: Vec<&str> = jail.hooks.iter().map(|hook| hook.name()).collect();
    if jail.hooks == [Hook::Prerouting] { String::new() } else { format!(" at {}", names.join(", ")) }
}

/// One line: how many jails are well, and what the others wait for. A jail is well when one of its
/// logs is read, or it has none because it hears the bans of others.
pub fn truth(status: &Status) -> String {
    let is_read =
        |name: &String| status.sources.iter().any(|source| source.name == *name && source.is_read());
    let (ok, deaf): (Vec<&JailStatus>, Vec<&JailStatus>) =
        status.jails.iter().partition(|jail| jail.sources.is_empty() || jail.sources.iter().any(is_read));
    let mut text = format!("{} {} ok", ok.len(), if ok.len() == 1 { "jail" } else { "jails" });
    if !deaf.is_empty() {
        text += &format!(", {} waiting", deaf.len());
    }
    if !status.broken.is_empty() {
        text += &format!(", {} BROKEN", status.broken.len());
    }
    for broken in &status.broken {
        text += &match broken.banned {
            0 => format!("; {} does not run", broken.jail),
            bans => format!("; {} does not run, only its bans ({bans}) go on", broken.jail),
        };
    }
    for jail in status.jails.iter().filter(|jail| jail.paused) {
        text += &format!("; {} is paused", jail.name);
    }
    for jail in deaf {
        let waits: Vec<&SourceStatus> =
            status.sources.iter().filter(|source| jail.sources.contains(&source.name)).collect();
        match waits.as_slice() {
            [only] => text += &format!("; {}: {}", jail.name, only.state),
            several => {
                let names: Vec<&str> = several.iter().map(|source| source.name.as_str()).collect();
                text += &format!("; {}: none of its logs can be read yet ({})", jail.name, names.join(", "));
            }
        }
    }
    text
}

/// Bans, in the order they are given.
pub fn bans(bans: &[BanStatus], now: Timestamp) -> String {
    let counts = bans.iter().any(|ban| ban.dropped.is_some());
    let mut rows = vec![row(&["JAIL", "BANNED", "SINCE", "ENDS IN", "DROPPED"])];
    rows.extend(bans.iter().map(|ban| {
        let left = ban.ends.map_or_else(|| "never".to_owned(), |ends| Span(ends.since(now)).to_string());
        let dropped = ban.dropped.map_or_else(|| "?".to_owned(), packets_and_bytes);
        vec![ban.jail.to_string(), ban.target.to_string(), ban.at.to_string(), left, dropped]
    }));
    if !counts {
        rows.iter_mut().for_each(|row| drop(row.pop()));
    }
    columns(&rows)
}

/// `44 (2.6 KiB)`.
pub(super) fn packets_and_bytes(Dropped { packets, bytes }: Dropped) -> String {
    let mut amount = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, larger);
    }
    match unit {
        "B" => format!("{packets} ({bytes} B)"),
        unit => format!("{packets} ({amount:.1} {unit})"),
    }
}

/// Who is never banned, and who says so.
pub fn ignored(ignored: &[IgnoredStatus]) -> String {
    let mut rows = vec![row(&["NEVER BANNED", "JAIL", "FROM"])];
    rows.extend(ignored.iter().map(|who| {
        let jail = who.jail.as_ref().map_or_else(|| "all".to_owned(), ToString::to_string);
        vec![brief(&who.net), jail, who.from.clone()]
    }));
    columns(&rows)
}

/// Who would have been banned, and who nearly.
pub fn replayed(replayed: &Replayed) -> String {
    let mut rows = vec![row(&["JAIL", "WOULD BE BANNED", "AT", "FOR"])];
    rows.extend(replayed.bans.iter().map(|ban| {
        let length = ban.ends.map_or_else(|| "ever".to_owned(), |ends| Span(ends.since(ban.at)).to_string());
        vec![ban.jail.to_string(), ban.target.to_string(), ban.at.to_string(), length]
    }));
    let mut text = columns(&rows);
    if !replayed.nearly.is_empty() {
        let mut rows = vec![row(&["JAIL", "NEARLY", "FAILURES"])];
        rows.extend(replayed.nearly.iter().map(|near| {
            let failures = format!("{} of {}", near.failures, near.maxretry);
            vec![near.jail.to_string(), near.target.to_string(), failures]
        }));
        text += "\n";
        text += &columns(&rows);
    }
    let Replayed { lines, failures, bans, .. } = replayed;
    text + &format!("\n{lines} lines, {failures} failures, {} bans\n", bans.len())
}

pub(super) fn row(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Rows of cells as wide as their widest, two spaces apart, nothing behind the last.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        text += line.trim_end();
        text += "\n";
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::Block;
    use crate::status::BrokenStatus;

    pub(in crate::tell) fn sample() -> Status {
        Status {
            schema: 1,
            version: "0.1.0".to_owned(),
            pid: 7,
            started: Timestamp::from_millis(0),
            loaded: Timestamp::from_millis(0),
            audited: None,
            now: Timestamp::from_millis(60_000),
            repairs: Repairs::default(),
            pending: 0,
            jails: vec![JailStatus {
                name: "sshd".parse().unwrap(),
                rule: "sshd".to_owned(),
                mode: "normal".to_owned(),
                ports: "22/tcp".to_owned(),
                paused: false,
                block: Block::Drop,
                hooks: vec![Hook::Prerouting],
                maxretry: 5,
                findtime: "10m".to_owned(),
                bantime: "1h".to_owned(),
                extend_on_knock: None,
                failing: 2,
                failed_total: 12,
                banned: 1,
                banned_total: 3,
                forgotten_total: 0,
                dropped: Some(Dropped { packets: 44, bytes: 2_640 }),
                sources: vec!["/var/log/auth.log".to_owned()],
            }],
            sources: vec![SourceStatus {
                name: "/var/log/auth.log".to_owned(),
                state: "following".to_owned(),
                lines: 300,
                behind: 0,
                overlong: 2,
                lost: 0,
                last_line: Some(Timestamp::from_millis(57_000)),
            }],
            broken: Vec::new(),
            auto: Vec::new(),
            ignored: Vec::new(),
            troubles: Vec::new(),
        }
    }

    #[test]
    fn the_status_is_read_at_a_glance() {
        let wanted = "\
1 jail ok

JAIL  BANNED  TOTAL  FAILING  FAILED  DROPPED       PORTS   TERMS
sshd  1       3      2        12      44 (2.6 KiB)  22/tcp  5 in 10m: 1h

SOURCE             STATE      LINES  LOST  TOO LONG  LAST LINE
/var/log/auth.log  following  300    0     2         3s ago
";
        assert_eq!(status(&sample()), wanted);
    }

    #[test]
    fn a_jail_with_a_hook_of_its_own_shows_it() {
        let mut jail = sample().jails.remove(0);
        assert_eq!(hooks(&jail), "");
        jail.hooks = vec![Hook::Input, Hook::Forward];
        assert_eq!(hooks(&jail), " at input, forward");
    }

    #[test]
    fn who_is_spared_by_hand_is_named() {
        let mut status = sample();
        status.ignored = (1..13)
            .map(|n| format!("192.0.2.{n}/32").parse().unwrap())
            .chain(["2001:db8::/32".parse().unwrap()])
            .collect();
        let text = super::status(&status);
        assert!(text.contains("\n  never banned, by hand: 192.0.2.1, 192.0.2.2, "), "{text}");
        assert!(text.contains(", 192.0.2.10 and 3 more (nftjail ignore list)\n"), "{text}");
        let jail = Some("sshd".parse().unwrap());
        let list = [(None, "hand"), (jail, "ignoreip (a.yaml:3)")].map(|(jail, from)| IgnoredStatus {
            net: "192.0.2.0/24".parse().unwrap(),
            jail,
            from: from.to_owned(),
        });
        let wanted = "\
NEVER BANNED  JAIL  FROM
192.0.2.0/24  all   hand
192.0.2.0/24  sshd  ignoreip (a.yaml:3)
";
        assert_eq!(ignored(&list), wanted);
    }

    #[test]
    fn what_was_forgotten_early_is_said() {
        let mut flooded = sample();
        flooded.jails[0].forgotten_total = 12_500;
        let wanted =
            "1 jail ok\n  sshd: 12500 addresses were forgotten early, those with the fewest failures first";
        assert!(status(&flooded).starts_with(wanted), "{}", status(&flooded));
    }

    #[test]
    fn a_jail_that_hears_nothing_is_on_the_first_line() {
        let mut deaf = sample();
        deaf.sources[0].state = "waiting for the file to appear".to_owned();
        assert_eq!(truth(&deaf), "0 jails ok, 1 waiting; sshd: waiting for the file to appear");
        deaf.jails[0].sources.push("/var/log/secure".to_owned());
        deaf.sources.push(SourceStatus { name: "/var/log/secure".to_owned(), ..deaf.sources[0].clone() });
        let wanted = "0 jails ok, 1 waiting; sshd: none of its logs can be read yet (/var/log/auth.log, /var/log/secure)";
        assert_eq!(truth(&deaf), wanted);
        deaf.sources[1].state = "following".to_owned();
        assert_eq!(truth(&deaf), "1 jail ok");
        deaf.jails[0].paused = true;
        assert_eq!(truth(&deaf), "1 jail ok; sshd is paused");
    }

    #[test]
    fn a_broken_jail_is_on_the_first_line_and_an_automatic_one_says_why() {
        let mut odd = sample();
        let why =
            "a.yaml:7:11: unknown rule \"wbe\": did you mean web?\n 7 |     rule: wbe\n   |           ^"
                .to_owned();
        odd.broken = vec![BrokenStatus { jail: "web".parse().unwrap(), why: vec![why], banned: 0 }];
        let off = "no log, no unit, nothing listens on 21/tcp".to_owned();
        odd.auto = vec![
            AutoStatus {
                jail: "sshd".parse().unwrap(),
                on: true,
                why: "ssh.service is installed".to_owned(),
            },
            AutoStatus { jail: "vsftpd".parse().unwrap(), on: false, why: off },
        ];
        let wanted = "\
1 jail ok, 1 BROKEN; web does not run
  a.yaml:7:11: unknown rule \"wbe\": did you mean web?
   7 |     rule: wbe
     |           ^

JAIL  BANNED  TOTAL  FAILING  FAILED  DROPPED       PORTS   TERMS
sshd  1       3      2        12      44 (2.6 KiB)  22/tcp  5 in 10m: 1h

AUTO    IS   BECAUSE
sshd    on   ssh.service is installed
vsftpd  off  no log, no unit, nothing listens on 21/tcp

";
        assert_eq!(status(&odd).split("SOURCE").next().unwrap(), wanted);
        odd.broken[0].banned = 3;
        assert_eq!(truth(&odd), "1 jail ok, 1 BROKEN; web does not run, only its bans (3) go on");
    }

    #[test]
    fn bans_are_listed_as_they_are_given() {
        let ban = |target: &str, ends: Option<i64>| BanStatus {
            jail: "sshd".parse().unwrap(),
            target: target.parse().unwrap(),
            at: Timestamp::from_millis(0),
            ends: ends.map(Timestamp::from_millis),
            dropped: None,
        };
        let mut list = [ban("192.0.2.1", None), ban("2001:db8::/64", Some(90_000))];
        let wanted = "\
JAIL  BANNED         SINCE                     ENDS IN
sshd  192.0.2.1      1970-01-01T00:00:00.000Z  never
sshd  2001:db8::/64  1970-01-01T00:00:00.000Z  1m30s
";
        assert_eq!(bans(&list, Timestamp::from_millis(0)), wanted);
        list[0].dropped = Some(Dropped { packets: 3, bytes: 180 });
        let wanted = "\
JAIL  BANNED         SINCE                     ENDS IN  DROPPED
sshd  192.0.2.1      1970-01-01T00:00:00.000Z  never    3 (180 B)
sshd  2001:db8::/64  1970-01-01T00:00:00.000Z  1m30s    ?
";
        assert_eq!(bans(&list, Timestamp::from_millis(0)), wanted);
    }
}
