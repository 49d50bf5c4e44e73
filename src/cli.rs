//! The verbs and their printing; the only file that knows exit codes.

use std::io::{self, BufRead, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ipnet::IpNet;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::check;
use crate::config::Config;
use crate::control::{self, Failed, Request, Response, Unanswered, Whom};
use crate::daemon;
use crate::detect::NORMAL;
use crate::doctor;
use crate::host::{self, Services};
use crate::matching;
use crate::model::{Bantime, JailName, Target, plain};
use crate::never;
use crate::nft::Refusal;
use crate::replay;
use crate::selftest::{self, Untested, Wishes};
use crate::tell::{findings, screen};
use crate::trial;
use crate::verbs;
use crate::yaml::{self, Fault};

#[derive(Parser)]
#[command(name = "nftjail", version, about, max_term_width = 100)]
struct Cli {
    /// Configuration: a file, or a folder with nftjail.yaml and nftjail.d/*.yaml
    #[arg(long, global = true, value_name = "FILE_OR_DIR")]
    config: Option<PathBuf>,
    /// Where the agent listens
    #[arg(long, global = true, value_name = "PATH", default_value = control::SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Watch the logs and ban, until told to stop
    Run {
        /// Where positions, failures and bans are kept over a restart
        #[arg(long, value_name = "DIR", default_value = "/var/lib/nftjail")]
        state: PathBuf,
        /// How much to say: error, warn, info or debug
        #[arg(long, value_name = "LEVEL", default_value = "info")]
        log: tracing::Level,
        /// Let one jail read standard input in place of its logs, and stop cleanly when that ends
        #[arg(long, requires = "jail")]
        stdin: bool,
        /// The jail that reads standard input; a rule's name will do where nothing is configured
        #[arg(long, value_name = "JAIL", requires = "stdin")]
        jail: Option<JailName>,
        /// Let the clock run so many seconds off, as if it were then
        #[arg(long, hide = true, value_name = "SECONDS", default_value_t = 0, allow_negative_numbers = true)]
        clock_offset: i64,
    },
    /// Read configuration and rules as the agent would, run every sample, say what is wrong
    Check,
    /// How the jails stand
    Status {
        jail: Option<JailName>,
        #[arg(long)]
        json: bool,
    },
    /// Who is banned
    Bans {
        jail: Option<JailName>,
        #[arg(long)]
        json: bool,
    },
    /// Ban addresses or networks by hand
    Ban {
        jail: JailName,
        #[arg(value_name = "ADDR_OR_NET", required_unless_present = "stdin")]
        targets: Vec<Target>,
        /// For how long: 10m, 1h30m, 1w, forever; the jail's own bantime where left out
        #[arg(long = "for", value_name = "BANTIME")]
        bantime: Option<Bantime>,
        /// Read addresses from standard input, one in each line
        #[arg(long)]
        stdin: bool,
        /// Even if this very session comes from there, or a network is wider than /16 (IPv6: /32)
        #[arg(long)]
        force: bool,
    },
    /// Lift bans: of an address, of a network, or all
    Unban {
        #[arg(value_name = "ADDR_OR_NET", required_unless_present = "all", conflicts_with = "all")]
        whom: Option<Whom>,
        /// Everybody's
        #[arg(long)]
        all: bool,
        /// In this jail only
        #[arg(long)]
        jail: Option<JailName>,
    },
    /// Whom nobody bans, whatever the configuration says: kept over restarts
    Ignore {
        #[command(subcommand)]
        what: Ignore,
    },
    /// Count one failure of an address, as if a log had shown it
    Attempt {
        jail: JailName,
        #[arg(value_name = "ADDR")]
        addr: IpAddr,
    },
    /// Let a jail count nothing for now; its bans stay
    Pause { jail: JailName },
    /// Let a paused jail listen again
    Resume { jail: JailName },
    /// Read the configuration again; bans and counts stay
    Reload,
    /// Show which lines of a log a rule counts, exactly as the agent would
    Match {
        #[arg(long, required_unless_present = "regex", conflicts_with = "regex")]
        rule: Option<String>,
        #[arg(long, default_value = NORMAL)]
        mode: String,
        /// A folder of rules that come before the shipped ones
        #[arg(long, value_name = "DIR")]
        rules: Option<PathBuf>,
        /// One JSON object for each line
        #[arg(long)]
        json: bool,
        /// Show the lines that no pattern fits instead
        #[arg(long, alias = "print-all-missed")]
        missed: bool,
        /// Show how far the nearest pattern came with each of those
        #[arg(long)]
        explain: bool,
        /// A log, plain, gzip or zstd; or - for standard input; where REGEX is given, also a line
        #[arg(default_value = "-")]
        file: PathBuf,
        #[command(flatten)]
        given: verbs::Given,
    },
    /// Judge old logs as the agent would have: who is banned, when, for how long, and who nearly
    Replay {
        /// With this jail only
        #[arg(long)]
        jail: Option<JailName>,
        #[arg(long)]
        json: bool,
        /// Logs, plain, gzip or zstd, the oldest first
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Look at agent, kernel and host: what is well, what is worth knowing, what needs you
    ///
    /// Changes nothing, and works without the agent, too. Exit code 1 where something is BAD.
    Doctor {
        #[arg(long)]
        json: bool,
    },
    /// Prove every jail: a line in its log, a ban in the kernel, a rule that drops, an end by itself
    ///
    /// Writes one line about an address that nobody has (192.0.2.213) into each log that the configuration names,
    /// made from the rule's own sample and dated now. The agent bans the address for two seconds; nothing of it is
    /// counted, told or kept. Prints one line, for timers and monitoring: exit code 0 where all works that can be
    /// probed, 1 where something fails, 3 where the agent does not run.
    Selftest {
        /// Show the lines, and write nothing
        #[arg(long)]
        dry_run: bool,
        /// Send a packet from the banned address, too: through an interface nftjailtest that exists for a moment
        #[arg(long)]
        packets: bool,
    },
    /// See it work in a throwaway network namespace: real log, real bans, real packets
    Try {
        /// Your own log instead of the bundled one
        log: Option<PathBuf>,
        /// The rule that reads it
        #[arg(long, default_value = "sshd")]
        rule: String,
    },
    #[command(flatten)]
    Coming(verbs::Verb),
}

#[derive(Subcommand)]
enum Ignore {
    /// Never ban an address or a network from now on, and lift its bans
    Add {
        #[arg(value_name = "ADDR_OR_NET", value_parser = never::net)]
        net: IpNet,
        /// Even if it is wider than an IPv4 /8 or an IPv6 /16
        #[arg(long)]
        force: bool,
    },
    /// Ban it again like all others
    Remove {
        #[arg(value_name = "ADDR_OR_NET", value_parser = never::net)]
        net: IpNet,
    },
    /// Everybody who is never banned, and who says so
    List {
        #[arg(long)]
        json: bool,
    },
}

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
            watch(&daemon::Places { config, socket, state, stdin: jail }, log)
        }
        Verb::Check => print(&check::run(config.as_deref()).map_err(Trouble::BadConfiguration)?),
        Verb::Status { jail, json } => {
            let answer = ask(&socket, &Request::Status { jail })?;
            let Response::Status(status) = answer else { return Err(astray()) };
            if json { print_json(&status) } else { print(&screen::status(&status)) }
        }
        Verb::Bans { jail, json } => {
            let answer = ask(&socket, &Request::Bans { jail })?;
            let Response::Bans(bans) = answer else { return Err(astray()) };
            if json { print_json(&bans) } else { print(&screen::bans(&bans, host::now())) }
        }
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
            let library = verbs::library(rules, config.as_deref())?;
            let rule = given.rule(rule.as_deref(), &mode, &library)?;
            matching::run(rule, &given.log(&file)?, matching::Wishes { json, missed, explain })?;
            Ok(ExitCode::SUCCESS)
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
        Verb::Try { log, rule } => {
            trial::run(log.as_deref(), &rule).map_err(Trouble::Failed)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Coming(verb) => verbs::run(verb, config.as_deref(), &socket),
    }
}

fn watch(places: &daemon::Places, log: tracing::Level) -> Result<ExitCode, Trouble> {
    tracing_subscriber::fmt()
        .with_max_level(log)
        .with_target(false)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
    daemon::run(places).map_err(|stopped| match stopped {
        daemon::Stopped::BadConfiguration(message) => Trouble::BadConfiguration(message),
        daemon::Stopped::NotAllowed(message) => Trouble::NotAllowed(message),
        daemon::Stopped::Failed(message) => Trouble::Failed(message),
    })?;
    Ok(ExitCode::SUCCESS)
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
    match control::ask(socket, request)? {
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
    print(&(text + "\n"))
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
