//! The verbs and their printing; the only file that knows exit codes.

use std::cmp::Reverse;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use jiff::tz::TimeZone;
use serde::Serialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::check;
use crate::config::{self, Config};
use crate::control::{self, Failed, Period, Request, Response, Unanswered, Whom};
use crate::daemon;
use crate::doctor;
use crate::host::{self, Services};
use crate::matching::Wishes as Seen;
use crate::model::{Bantime, JailName, Target, plain};
use crate::moving;
use crate::nft::Refusal;
use crate::replay;
use crate::selftest::{self, Untested, Wishes};
use crate::status::BanStatus;
use crate::tell::{escape, findings, past, screen};
use crate::teller::{self, Untold};
use crate::top::{self, Unseen};
use crate::trial;
use crate::verbs::{Cli, Ignore, Order, Verb};
use crate::yaml::{self, Fault};

fn ignore(socket: &Path, what: Ignore) -> Result<ExitCode, Trouble> {
    match what {
        Ignore::Add { net, force } => told(socket, &Request::IgnoreAdd { net, force }),
        Ignore::Remove { net } => told(socket, &Request::IgnoreRemove { net }),
        Ignore::List { json } => {
            let Response::Ignored(ignored) = ask(socket, &Request::IgnoreList)? else { return Err(astray()) };
            if json { print_json(&ignored) } else { print(&screen::ignored(&ignored)) }
        }
    }
}

fn replayed(
    place: Option<&Path>,
    only: Option<&JailName>,
    files: &[PathBuf],
    json: bool,
) -> Result<ExitCode, Trouble> {
    let mut config = Config::load(place, &Services::of_this_host()).map_err(bad_configuration)?;
    if let Some(only) = only {
        let names: Vec<String> = config.jails.iter().map(|jail| jail.terms.name.to_string()).collect();
        config.jails.retain(|jail| jail.terms.name == *only);
        if config.jails.is_empty() {
            return Err(Trouble::NotFound(yaml::unknown("jail", only.as_str(), &names)));
        }
    }
    let (now, zone) = (host::now(), TimeZone::system());
    let replayed = replay::run(&config, files, now, &zone, !json).map_err(Trouble::Failed)?;
    if json { print_json(&replayed) } else { print(&screen::replayed(&replayed)) }
}

/// What goes wrong, by exit code.
pub enum Trouble {
    Failed(String),
    NotReachable(String),
    NotAllowed(String),
    NotFound(String),
    BadConfiguration(String),
}

impl Trouble {
    fn tell(self) -> ExitCode {
        let (code, message) = match self {
            Trouble::Failed(message) => (1, message),
            Trouble::NotReachable(message) => (3, message),
            Trouble::NotAllowed(message) => (4, message),
            Trouble::NotFound(message) => (5, message),
            Trouble::BadConfiguration(message) => (6, message),
        };
        eprintln!("nftjail: {message}");
        ExitCode::from(code)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        // Whoever closed our standard output has seen enough.
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        Trouble::Failed(plain(&error))
    }
}

impl From<Unanswered> for Trouble {
    fn from(unanswered: Unanswered) -> Self {
        let message = unanswered.to_string();
        match unanswered {
            Unanswered::NotRunning(_) => Trouble::NotReachable(message),
            Unanswered::NotAllowed(_) => Trouble::NotAllowed(message),
            Unanswered::Broken(_) => Trouble::Failed(message),
        }
    }
}

impl From<Unseen> for Trouble {
    fn from(unseen: Unseen) -> Self {
        match unseen {
            Unseen::Agent(unanswered) => unanswered.into(),
            Unseen::Terminal(error) => Trouble::Failed(format!("this is no terminal: {}", plain(&error))),
        }
    }
}

impl From<Untested> for Trouble {
    fn from(untested: Untested) -> Self {
        match untested {
            Untested::Agent(unanswered) => unanswered.into(),
            Untested::Kernel(refusal @ Refusal::NotPermitted) => Trouble::NotAllowed(refusal.to_string()),
            Untested::Kernel(refusal) => Trouble::Failed(refusal.to_string()),
            Untested::Config(faults) => bad_configuration(faults),
        }
    }
}

pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(trouble) => trouble.tell(),
    }
}

fn run(cli: Cli) -> Result<ExitCode, Trouble> {
    let Cli { config, socket, verb } = cli;
    match verb {
        Verb::Run { state, log, stdin: _, jail, clock_offset } => {
            host::set_clock_offset(clock_offset);
            run_agent(&daemon::Places { config, socket, state, stdin: jail }, log)
        }
        Verb::Check => print(&check::run(config.as_deref()).map_err(Trouble::BadConfiguration)?),
        Verb::Status { jail, json } => {
            let answer = ask(&socket, &Request::Status { jail })?;
            let Response::Status(status) = answer else { return Err(astray()) };
            if json { print_json(&status) } else { print(&screen::status(&status)) }
        }
        Verb::Bans { jail, within, sort, limit, json } => {
            let answer = ask(&socket, &Request::Bans { jail })?;
            let Response::Bans(mut bans) = answer else { return Err(astray()) };
            bans.retain(|ban| within.is_none_or(|net| net.contains(&ban.target.net())));
            in_order(&mut bans, sort);
            bans.truncate(limit.unwrap_or(usize::MAX));
            if json { print_json(&bans) } else { print(&screen::bans(&bans, host::now())) }
        }
        Verb::Why { target, json } => {
            let answer = ask(&socket, &Request::Why { target })?;
            let Response::Why(why) = answer else { return Err(astray()) };
            if json { print_json(&why) } else { print(&past::why(&why)) }
        }
        Verb::History { within, since, jail, json, csv } => {
            let period = Period { since: host::now().minus(since.0), jail, within };
            history(&socket, period, json, csv)
        }
        Verb::Watch { jail, json } => tell_all(&socket, jail, json),
        Verb::Top => top::run(&socket).map(|()| ExitCode::SUCCESS).map_err(Trouble::from),
        Verb::LogLevel { level } => told(&socket, &Request::LogLevel { level }),
        Verb::Ban { jail, targets, bantime, stdin, force } => {
            let targets = targets_with(targets, stdin)?;
            if !force {
                spare_too_many(&targets)?;
                spare_this_session(&targets)?;
            }
            ban(&socket, &jail, &targets, bantime)
        }
        Verb::Unban { whom, jail, .. } => {
            told(&socket, &Request::Unban { whom: whom.unwrap_or(Whom::Everybody), jail })
        }
        Verb::Ignore { what } => ignore(&socket, what),
        Verb::Attempt { jail, addr } => told(&socket, &Request::Attempt { jail, addr }),
        Verb::Pause { jail } => told(&socket, &Request::Pause { jail, paused: true }),
        Verb::Resume { jail } => told(&socket, &Request::Pause { jail, paused: false }),
        Verb::Reload => told(&socket, &Request::Reload),
        Verb::Match { rule, mode, rules, json, missed, explain, file, given } => {
            let rules = rules.unwrap_or_else(|| config::rules_dir(config.as_deref()));
            given.matched((&rules, rule.as_deref(), &mode), &file, Seen { json, missed, explain })
        }
        Verb::Replay { jail, json, files } => replayed(config.as_deref(), jail.as_ref(), &files, json),
        Verb::Doctor { json } => {
            let checkup = doctor::run(config.as_deref(), &socket);
            let printed = if json { print_json(&checkup) } else { print(&findings::text(&checkup)) };
            printed.map(|_| yes_or_no(checkup.well))
        }
        Verb::Selftest { dry_run, packets } => {
            let tested = selftest::run(config.as_deref(), &socket, Wishes { dry_run, packets })?;
            print(&tested.text).map(|_| yes_or_no(tested.works))
        }
        Verb::Tell { state } => tell(config.as_deref(), &socket, &state),
        Verb::Try { log, rule } => {
            trial::run(log.as_deref(), &rule).map(|()| ExitCode::SUCCESS).map_err(Trouble::Failed)
        }
        Verb::Moving(verb) => moving::run(verb, config.as_deref(), &socket),
    }
}

fn history(socket: &Path, period: Period, json: bool, csv: bool) -> Result<ExitCode, Trouble> {
    let request = if csv { Request::Past(period) } else { Request::History(period) };
    match ask(socket, &request)? {
        Response::Past(all) => print(&past::csv(&all)),
        Response::History(history) if json => print_json(&history),
        Response::History(history) => print(&past::history(&history)),
        _ => Err(astray()),
    }
}

fn log_to_stderr(log: tracing::Level) -> reload::Handle<LevelFilter, tracing_subscriber::Registry> {
    let (level, handle) = reload::Layer::new(LevelFilter::from_level(log));
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    tracing_subscriber::registry().with(level).with(lines).init();
    handle
}

fn tell(config: Option<&Path>, socket: &Path, state: &Path) -> Result<ExitCode, Trouble> {
    let _ = log_to_stderr(tracing::Level::INFO);
    teller::run(config, socket, state).map_err(|untold| match untold {
        Untold::BadConfiguration(faults) => bad_configuration(faults),
        Untold::NotReachable(message) => Trouble::NotReachable(message),
        Untold::Failed(message) => Trouble::Failed(message),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn run_agent(places: &daemon::Places, log: tracing::Level) -> Result<ExitCode, Trouble> {
    let handle = log_to_stderr(log);
    // It fails only where nothing is logged any more.
    let set_level = Box::new(move |level| drop(handle.reload(LevelFilter::from_level(level))));
    daemon::run(places, set_level).map_err(|stopped| match stopped {
        daemon::Stopped::BadConfiguration(message) => Trouble::BadConfiguration(message),
        daemon::Stopped::NotAllowed(message) => Trouble::NotAllowed(message),
        daemon::Stopped::Failed(message) => Trouble::Failed(message),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what happens until the agent ends, or nobody reads it.
fn tell_all(socket: &Path, jail: Option<JailName>, json: bool) -> Result<ExitCode, Trouble> {
    if let Some(jail) = &jail {
        ask(socket, &Request::Status { jail: Some(jail.clone()) })?;
    }
    let (mut stream, first) = control::watch(socket, jail)?;
    accepted(first)?;
    while let Some(response) = control::next(&mut stream)? {
        let text = match response {
            Response::News(news) if json => escape::json(&json_line(&news)?),
            Response::News(news) => past::news(&news),
            Response::Missed(count) if json => json_line(&serde_json::json!({"schema": 1, "missed": count}))?,
            Response::Missed(count) => {
                format!("({count} events were missed: they came faster than they were read)\n")
            }
            _ => return Err(astray()),
        };
        print(&text)?;
    }
    Err(Trouble::NotReachable("the agent ended".to_owned()))
}

fn json_line<T: Serialize>(value: &T) -> Result<String, Trouble> {
    Ok(serde_json::to_string(value).map_err(io::Error::from)? + "\n")
}

fn in_order(bans: &mut [BanStatus], order: Order) {
    match order {
        Order::Ends => bans.sort_by_key(|ban| (ban.ends.is_none(), ban.ends, ban.target)),
        Order::Since => bans.sort_by_key(|ban| (Reverse(ban.at), ban.target)),
        Order::Addr => bans.sort_by_key(|ban| ban.target),
        Order::Jail => bans.sort_by(|a, b| (&a.jail, a.target).cmp(&(&b.jail, b.target))),
    }
}

fn yes_or_no(yes: bool) -> ExitCode {
    if yes { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the session that SSH_CONNECTION tells of (ssh(1): client, its port, server, its port) comes from here.
fn comes_from(session: &str, target: Target) -> bool {
    // A link-local address names its interface too: fe80::1%eth0.
    let client = session.split([' ', '%']).next().and_then(|client| client.parse().ok());
    client.is_some_and(|client| target.covers(Target::of(client)))
}

fn ask(socket: &Path, request: &Request) -> Result<Response, Trouble> {
    accepted(control::ask(socket, request)?)
}

fn accepted(response: Response) -> Result<Response, Trouble> {
    match response {
        Response::Failed { why, message } => Err(match why {
            Failed::Refused => Trouble::Failed(message),
            Failed::NotAllowed => Trouble::NotAllowed(message),
            Failed::NotFound => Trouble::NotFound(message),
            Failed::BadConfiguration => Trouble::BadConfiguration(message),
        }),
        answer => Ok(answer),
    }
}

/// So many addresses go into one request, which may not be larger than 64 KiB.
const BANS_AT_ONCE: usize = 1_000;

fn ban(
    socket: &Path,
    jail: &JailName,
    targets: &[Target],
    bantime: Option<Bantime>,
) -> Result<ExitCode, Trouble> {
    for some in targets.chunks(BANS_AT_ONCE) {
        told(socket, &Request::Ban { jail: jail.clone(), targets: some.to_vec(), bantime })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The targets, and those that standard input names, where it is to be read.
fn targets_with(mut targets: Vec<Target>, stdin: bool) -> Result<Vec<Target>, Trouble> {
    let lines = stdin.then(|| io::stdin().lock().lines());
    for (number, line) in lines.into_iter().flatten().enumerate() {
        let line = line?;
        if !line.trim().is_empty() {
            let wrong = |why| Trouble::Failed(format!("line {}: {why}; nobody was banned", number + 1));
            targets.push(line.trim().parse().map_err(wrong)?);
        }
    }
    Ok(targets)
}

fn spare_too_many(targets: &[Target]) -> Result<(), Trouble> {
    let Some(wide) = targets.iter().find(|target| target.needs_force()) else { return Ok(()) };
    let why = "it is wider than /16 (IPv6: /32): say --force if you mean it";
    Err(Trouble::Failed(format!("{wide} is not banned: {why}")))
}

fn spare_this_session(targets: &[Target]) -> Result<(), Trouble> {
    let session = std::env::var("SSH_CONNECTION").unwrap_or_default();
    match targets.iter().find(|target| comes_from(&session, **target)) {
        None => Ok(()),
        Some(target) => {
            let why = "your own ssh session comes from there, and would end: say --force if you mean it";
            Err(Trouble::Failed(format!("{target} is not banned: {why}")))
        }
    }
}

fn astray() -> Trouble {
    Trouble::Failed("the agent answered something else than was asked: it is of another version".to_owned())
}

fn told(socket: &Path, request: &Request) -> Result<ExitCode, Trouble> {
    let Response::Done(text) = ask(socket, request)? else { return Err(astray()) };
    print(&(text + "\n"))
}

pub fn print(text: &str) -> Result<ExitCode, Trouble> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

pub fn print_json<T: Serialize>(value: &T) -> Result<ExitCode, Trouble> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    print(&(escape::json(&text) + "\n"))
}

fn bad_configuration(faults: Vec<Fault>) -> Trouble {
    Trouble::BadConfiguration(yaml::told(&faults))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_of_ssh_comes_from_its_first_word() {
        for (session, target, wanted) in [
            ("203.0.113.9 50000 198.51.100.1 22", "203.0.113.9", true),
            ("203.0.113.9 50000 198.51.100.1 22", "198.51.100.1", false),
            ("2001:db8:66::9 50000 2001:db8:51::1 22", "2001:db8:66::/64", true),
            ("fe80::9%eth0 50000 fe80::1%eth0 22", "fe80::/64", true),
            ("203.0.113.9 50000 198.51.100.1 22", "203.0.113.0/28", true),
            ("203.0.113.9 50000 198.51.100.1 22", "203.0.113.16/28", false),
            ("2001:db8:66::9 50000 2001:db8:51::1 22", "2001:db8::/32", true),
            ("", "203.0.113.9", false),
        ] {
            assert_eq!(comes_from(session, target.parse().unwrap()), wanted, "{session}");
        }
    }
}
