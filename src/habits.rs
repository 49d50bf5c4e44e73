//! The words of fail2ban-client and what it prints, for scripts and monitoring that know no other.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::tz::TimeZone;

use crate::control::{self, Failed, Request, Response, Unanswered, Whom};
use crate::model::{Bantime, JailName, Span, Target};
use crate::status::{BanStatus, IgnoredStatus, JailStatus, Status, brief};

/// What is said to whoever asked: on standard output, or an error, after which the exit code is 255.
pub type Said = Result<String, Wrong>;

#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The agent does not answer.
    Silent(String),
    /// Said on standard output too, as scripts expect it.
    Refused(String),
}

fn refused<T>(text: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Refused(text.into()))
}

/// Runs one command of fail2ban-client.
pub fn run(socket: &Path, words: &[String]) -> Said {
    let ask = |request: Request| ask(socket, &request);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["ping", ..] => ask(Request::IgnoreList).map(|_| "Server replied: pong".to_owned()),
        ["version"] => Ok(env!("CARGO_PKG_VERSION").to_owned()),
        ["status"] => Ok(overview(&status(&ask, None)?)),
        ["status", "--all", flavor @ ..] => every_status(&ask, flavor),
        ["status", jail, flavor @ ..] => one_status(&ask, jail, flavor),
        ["banned"] => Ok(banned(&bans(&ask, None)?, &status(&ask, None)?)),
        ["banned", whom @ ..] => banned_where(&ask, whom),
        ["unban", "--all"] => {
            let count = bans(&ask, None)?.len();
            unban(&ask, Whom::Everybody, None).map(|_| count.to_string())
        }
        ["unban", whom @ ..] if !whom.is_empty() => unban_each(&ask, whom, None, false),
        ["reload", ..] => ask(Request::Reload).map(|_| "OK".to_owned()),
        ["set", jail, rest @ ..] => set(&ask, &name(jail)?, rest),
        ["get", jail, rest @ ..] => get(&ask, &name(jail)?, rest),
        ["start" | "stop" | "restart", ..] => refused(
            "an agent is started and stopped by systemd: systemctl start nftjail; bans stay in the kernel meanwhile",
        ),
        _ => refused("Invalid command"),
    }
}

type Ask<'a> = dyn Fn(Request) -> Result<Response, Wrong> + 'a;

fn ask(socket: &Path, request: &Request) -> Result<Response, Wrong> {
    match control::ask(socket, request) {
        Ok(Response::Failed { why: Failed::NotFound, message }) if message.starts_with("unknown jail") => {
            let name = message.split('"').nth(1).unwrap_or_default();
            refused(format!("Sorry but the jail '{name}' does not exist"))
        }
        Ok(Response::Failed { message, .. }) => refused(message),
        Ok(response) => Ok(response),
        Err(unanswered @ Unanswered::NotRunning(_)) => Err(Wrong::Silent(unanswered.to_string())),
        Err(unanswered) => refused(unanswered.to_string()),
    }
}

fn name(text: &str) -> Result<JailName, Wrong> {
    text.parse().or_else(|_| refused(format!("Sorry but the jail '{text}' does not exist")))
}

fn status(ask: &Ask, jail: Option<JailName>) -> Result<Status, Wrong> {
    match ask(Request::Status { jail })? {
        Response::Status(status) => Ok(*status),
        _ => refused("the agent answered something else than was asked"),
    }
}

/// The bans of a jail or of all, those that end first before others.
fn bans(ask: &Ask, jail: Option<JailName>) -> Result<Vec<BanStatus>, Wrong> {
    match ask(Request::Bans { jail })? {
        Response::Bans(mut bans) => {
            bans.sort_by_key(|ban| (ban.ends.is_none(), ban.ends, ban.target));
            Ok(bans)
        }
        _ => refused("the agent answered something else than was asked"),
    }
}

fn overview(status: &Status) -> String {
    let names: Vec<&str> = status.jails.iter().map(|jail| jail.name.as_str()).collect();
    format!("Status\n|- Number of jail:\t{}\n`- Jail list:\t{}", names.len(), names.join(", "))
}

fn every_status(ask: &Ask, flavor: &[&str]) -> Said {
    let all = status(ask, None)?;
    let each = all.jails.iter().map(|jail| one_status(ask, jail.name.as_str(), flavor));
    Ok(format!("{}\n{}", overview(&all), each.collect::<Result<Vec<_>, _>>()?.join("\n")))
}

fn one_status(ask: &Ask, jail: &str, flavor: &[&str]) -> Said {
    let short = match flavor {
        [] | ["basic"] => false,
        ["short"] => true,
        _ => return refused("Invalid command (no such flavor of status: there are basic and short)"),
    };
    let jail = name(jail)?;
    let status = status(ask, Some(jail.clone()))?;
    let Some(found) = status.jails.into_iter().find(|found| found.name == jail) else {
        return refused(format!("Sorry but the jail '{jail}' does not run: nftjail status {jail}"));
    };
    let bans = if short { None } else { Some(bans(ask, Some(jail))?) };
    Ok(jail_status(&found, bans.as_deref()))
}

fn jail_status(jail: &JailStatus, bans: Option<&[BanStatus]>) -> String {
    let JailStatus { name, failing, failed_total, banned, banned_total, .. } = jail;
    let files = jail.sources.iter().all(|source| source.starts_with('/'));
    let title = if files { "File list" } else { "Journal matches" };
    let (sources, mark) = (jail.sources.join(" "), if bans.is_some() { "|-" } else { "`-" });
    let mut text = format!(
        "Status for the jail: {name}\n|- Filter\n|  |- Currently failed:\t{failing}\n|  |- Total failed:\t{failed_total}\n\
         |  `- {title}:\t{sources}\n`- Actions\n   |- Currently banned:\t{banned}\n   {mark} Total banned:\t{banned_total}"
    );
    if let Some(bans) = bans {
        let targets: Vec<String> = bans.iter().map(|ban| ban.target.to_string()).collect();
        text += &format!("\n   `- Banned IP list:\t{}", targets.join(" "));
    }
    text
}

/// A list as Python prints it.
fn python(texts: impl IntoIterator<Item = String>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| format!("'{text}'")).collect();
    format!("[{}]", texts.join(", "))
}

fn banned(bans: &[BanStatus], status: &Status) -> String {
    let mut jails: BTreeMap<&str, Vec<String>> =
        status.jails.iter().map(|jail| (jail.name.as_str(), Vec::new())).collect();
    for ban in bans {
        jails.entry(ban.jail.as_str()).or_default().push(ban.target.to_string());
    }
    let jails: Vec<String> =
        jails.into_iter().map(|(name, targets)| format!("{{'{name}': {}}}", python(targets))).collect();
    format!("[{}]", jails.join(", "))
}

fn target(text: &str) -> Result<Target, Wrong> {
    text.parse().or_else(|why: String| refused(why))
}

fn banned_where(ask: &Ask, whom: &[&str]) -> Said {
    let bans = bans(ask, None)?;
    let jails = |text: &&str| {
        let target = target(text)?;
        let held = bans.iter().filter(|ban| ban.target.covers(target));
        Ok(python(held.map(|ban| ban.jail.to_string())))
    };
    let jails: Vec<String> = whom.iter().map(jails).collect::<Result<_, Wrong>>()?;
    Ok(format!("[{}]", jails.join(", ")))
}

/// Whether anybody was freed.
fn unban(ask: &Ask, whom: Whom, jail: Option<JailName>) -> Result<bool, Wrong> {
    match ask(Request::Unban { whom, jail }) {
        Ok(_) => Ok(true),
        Err(Wrong::Refused(text))
            if text.contains(" is banned in ") || text.contains(" is not banned in ") =>
        {
            Ok(false)
        }
        Err(wrong) => Err(wrong),
    }
}

fn unban_each(ask: &Ask, whom: &[&str], jail: Option<&JailName>, report: bool) -> Said {
    let held = bans(ask, jail.cloned())?;
    let (mut count, mut absent) = (0, Vec::new());
    for text in whom {
        let whom: Whom = text.parse().or_else(|why: String| refused(why))?;
        let freed = held.iter().filter(|ban| whom.covers(ban.target)).count();
        match unban(ask, whom, jail.cloned())? {
            true => count += freed.max(1),
            false => absent.push((*text).to_owned()),
        }
    }
    if report && !absent.is_empty() {
        return refused(format!("not banned: {}", python(absent)));
    }
    Ok(count.to_string())
}

fn set(ask: &Ask, jail: &JailName, words: &[&str]) -> Said {
    match words {
        ["banip", whom @ ..] if !whom.is_empty() => {
            let targets: Vec<Target> = whom.iter().map(|text| target(text)).collect::<Result<_, _>>()?;
            let count = targets.len();
            ask(Request::Ban { jail: jail.clone(), targets, bantime: None }).map(|_| count.to_string())
        }
        ["unbanip", "--report-absent", whom @ ..] if !whom.is_empty() => {
            unban_each(ask, whom, Some(jail), true)
        }
        ["unbanip", whom @ ..] if !whom.is_empty() => unban_each(ask, whom, Some(jail), false),
        ["addignoreip", nets @ ..] if !nets.is_empty() => ignore(ask, jail, nets, true),
        ["delignoreip", nets @ ..] if !nets.is_empty() => ignore(ask, jail, nets, false),
        ["attempt", addr, ..] => {
            let addr = addr.parse().or_else(|_| refused(format!("{addr} is no address")))?;
            ask(Request::Attempt { jail: jail.clone(), addr }).map(|_| "1".to_owned())
        }
        ["idle", on @ ("on" | "off")] => {
            let paused = *on == "on";
            ask(Request::Pause { jail: jail.clone(), paused })?;
            Ok(if paused { "True" } else { "False" }.to_owned())
        }
        [key, ..] => refused(format!("{key} is set in the configuration, then: nftjail reload")),
        [] => refused("Invalid command"),
    }
}

/// Whom nobody bans is the same for all jails here.
fn ignore(ask: &Ask, jail: &JailName, nets: &[&str], add: bool) -> Said {
    for text in nets {
        let net = crate::never::net(text).or_else(refused)?;
        ask(if add { Request::IgnoreAdd { net, force: false } } else { Request::IgnoreRemove { net } })?;
    }
    ignored(ask, jail)
}

fn ignored(ask: &Ask, jail: &JailName) -> Said {
    let Response::Ignored(all) = ask(Request::IgnoreList)? else {
        return refused("no list of the ignored came");
    };
    let of_jail = |who: &&IgnoredStatus| who.jail.as_ref().is_none_or(|of| of == jail);
    let nets: Vec<String> = all.iter().filter(of_jail).map(|who| brief(&who.net)).collect();
    Ok(listed("These IP addresses/networks are ignored:", "No IP address/network is ignored", &nets))
}

fn listed(title: &str, nothing: &str, entries: &[String]) -> String {
    let Some((last, others)) = entries.split_last() else { return nothing.to_owned() };
    let lines: String = others.iter().map(|entry| format!("\n|- {entry}")).collect();
    format!("{title}{lines}\n`- {last}")
}

fn get(ask: &Ask, jail: &JailName, words: &[&str]) -> Said {
    let of_jail = || -> Result<JailStatus, Wrong> {
        let found = status(ask, Some(jail.clone()))?.jails.into_iter().find(|found| found.name == *jail);
        found.map_or_else(|| refused(format!("Sorry but the jail '{jail}' does not exist")), Ok)
    };
    let targets = || -> Result<Vec<String>, Wrong> {
        Ok(bans(ask, Some(jail.clone()))?.iter().map(|ban| ban.target.to_string()).collect())
    };
    match words {
        ["banip", "--with-time"] => {
            let lines: Vec<String> = bans(ask, Some(jail.clone()))?.iter().map(with_time).collect();
            Ok(lines.join("\n"))
        }
        ["banip"] => Ok(targets()?.join(" ")),
        ["banip", separator] => Ok(targets()?.join(separator)),
        ["banned"] => Ok(python(targets()?)),
        ["banned", whom @ ..] => {
            let bans = bans(ask, Some(jail.clone()))?;
            let held = |text: &&str| -> Result<String, Wrong> {
                let target = target(text)?;
                Ok(u8::from(bans.iter().any(|ban| ban.target.covers(target))).to_string())
            };
            Ok(format!("[{}]", whom.iter().map(held).collect::<Result<Vec<_>, _>>()?.join(", ")))
        }
        ["bantime"] => Ok(seconds(&of_jail()?.bantime)),
        ["findtime"] => Ok(seconds(&of_jail()?.findtime)),
        ["maxretry"] => Ok(of_jail()?.maxretry.to_string()),
        ["ignoreip"] => ignored(ask, jail),
        ["logpath"] => {
            let sources = of_jail()?.sources;
            let files: Vec<String> = sources.into_iter().filter(|source| source.starts_with('/')).collect();
            Ok(listed("Current monitored log file(s):", "No file is currently monitored", &files))
        }
        [key, ..] => refused(format!("{key} is not asked for in this way: nftjail status --json {jail}")),
        [] => refused("Invalid command"),
    }
}

/// A length of time in seconds; -1 where it is for ever.
fn seconds(text: &str) -> String {
    match text.parse::<Bantime>() {
        Ok(Bantime::For(length)) => length.as_secs().to_string(),
        _ => "-1".to_owned(),
    }
}

fn with_time(ban: &BanStatus) -> String {
    let local = |at: crate::model::Timestamp| {
        let at = jiff::Timestamp::from_millisecond(at.as_millis()).unwrap_or_default();
        at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    };
    let (length, end) = match ban.ends {
        Some(end) => (Span(end.since(ban.at)).0.as_secs().to_string(), local(end)),
        None => ("-1".to_owned(), "9999-12-31 23:59:59".to_owned()),
    };
    format!("{} \t{} + {length} = {end}", ban.target, local(ban.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_look_as_scripts_expect_them() {
        assert_eq!(python(["192.0.2.1".to_owned(), "192.0.2.2".to_owned()]), "['192.0.2.1', '192.0.2.2']");
        let entries = ["a", "b"].map(str::to_owned);
        assert_eq!(listed("T:", "none", &entries), "T:\n|- a\n`- b");
        assert_eq!(listed("T:", "none", &[]), "none");
        assert_eq!((seconds("1h30m"), seconds("forever")), ("5400".to_owned(), "-1".to_owned()));
    }

    #[test]
    fn nobody_who_answers_is_told_as_such() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let nowhere = Path::new("/nonexistent/control.sock");
        assert!(matches!(run(nowhere, &words("ping")), Err(Wrong::Silent(_))));
        assert!(matches!(run(nowhere, &words("status sshd")), Err(Wrong::Silent(_))));
        assert_eq!(run(nowhere, &words("frobnicate")), refused("Invalid command"));
        assert_eq!(
            run(nowhere, &words("set SSHD! banip")),
            refused("Sorry but the jail 'SSHD!' does not exist")
        );
    }
}
