//! The verbs and their printing; the only file that knows exit codes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::acquire::splitter::LINE_BYTES_MAX;
use crate::config::{self, Config};
use crate::control::{self, Failed, Request, Response, Unanswered};
use crate::daemon;
use crate::detect::answer::answer;
use crate::detect::{Clock, Detector};
use crate::host::{self, Services};
use crate::model::{Bantime, JailName, Target};
use crate::tell::screen;
use crate::trial;

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
    /// Ban an address by hand
    Ban {
        jail: JailName,
        #[arg(value_name = "ADDR")]
        target: Target,
        /// For how long: 10m, 1h30m, 1w, forever; the jail's own bantime where left out
        #[arg(long = "for", value_name = "BANTIME")]
        bantime: Option<Bantime>,
    },
    /// Lift the bans of an address
    Unban {
        #[arg(value_name = "ADDR")]
        target: Target,
        /// In this jail only
        #[arg(long)]
        jail: Option<JailName>,
    },
    /// Read the configuration again; bans and counts stay
    Reload,
    /// Show which lines of a log a rule counts, exactly as the agent would
    Match {
        #[arg(long)]
        rule: String,
        #[arg(long, default_value = "normal")]
        mode: String,
        /// A folder of rules that come before the shipped ones
        #[arg(long, value_name = "DIR")]
        rules: Option<PathBuf>,
        /// One JSON object for each line
        #[arg(long)]
        json: bool,
        /// A log, or - for standard input
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// See it work in a throwaway network namespace: real log, real bans, real packets
    Try {
        /// Your own log instead of the bundled one
        log: Option<PathBuf>,
        /// The rule that reads it
        #[arg(long, default_value = "sshd")]
        rule: String,
    },
}

/// What goes wrong, by exit code.
enum Trouble {
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
        Trouble::Failed(host::plain(&error))
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

pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(trouble) => trouble.tell(),
    }
}

fn run(cli: Cli) -> Result<ExitCode, Trouble> {
    let Cli { config, socket, verb } = cli;
    match verb {
        Verb::Run { state, log, clock_offset } => {
            tracing_subscriber::fmt()
                .with_max_level(log)
                .with_target(false)
                .with_writer(io::stderr)
                .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
                .init();
            host::set_clock_offset(clock_offset);
            daemon::run(&daemon::Places { config, socket, state }).map_err(|stopped| match stopped {
                daemon::Stopped::BadConfiguration(message) => Trouble::BadConfiguration(message),
                daemon::Stopped::NotAllowed(message) => Trouble::NotAllowed(message),
                daemon::Stopped::Failed(message) => Trouble::Failed(message),
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Check => check(config.as_deref()),
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
        Verb::Ban { jail, target, bantime } => told(&socket, &Request::Ban { jail, target, bantime }),
        Verb::Unban { target, jail } => told(&socket, &Request::Unban { target, jail }),
        Verb::Reload => told(&socket, &Request::Reload),
        Verb::Match { rule, mode, rules, json, file } => {
            let rules = rules.unwrap_or_else(|| config::rules_dir(config.as_deref()));
            matching(&rules, &rule, &mode, &file, json)
        }
        Verb::Try { log, rule } => {
            trial::run(log.as_deref(), &rule).map_err(Trouble::Failed)?;
            Ok(ExitCode::SUCCESS)
        }
    }
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

fn astray() -> Trouble {
    Trouble::Failed("the agent answered something else than was asked: it is of another version".to_owned())
}

fn told(socket: &Path, request: &Request) -> Result<ExitCode, Trouble> {
    let Response::Done(text) = ask(socket, request)? else { return Err(astray()) };
    print(&(text + "\n"))
}

fn print(text: &str) -> Result<ExitCode, Trouble> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn print_json<T: Serialize>(value: &T) -> Result<ExitCode, Trouble> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    print(&(text + "\n"))
}

fn check(place: Option<&Path>) -> Result<ExitCode, Trouble> {
    let faults = |faults: Vec<crate::yaml::Fault>| {
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Trouble::BadConfiguration(format!("the configuration is not in order\n{}", texts.join("\n")))
    };
    let config = Config::load(place, &Services::of_this_host()).map_err(faults)?;
    let library = config::library(&config::rules_dir(place)).map_err(|fault| faults(vec![fault]))?;
    let bad: Vec<String> = library.check().iter().map(ToString::to_string).collect();
    if !bad.is_empty() {
        return Err(Trouble::BadConfiguration(format!("the rules are not in order\n{}", bad.join("\n"))));
    }
    let mut text = String::new();
    for jail in &config.jails {
        let name = &jail.terms.name;
        for path in &jail.logpath {
            let state = match File::open(path) {
                Ok(_) => "ok".to_owned(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    "is not there yet, will be waited for".to_owned()
                }
                Err(error) => format!("cannot be read: {}", host::plain(&error)),
            };
            text += &format!("{name}: {} {state}\n", path.display());
        }
    }
    let count = config.jails.len();
    let rules = library.names().count();
    text += &format!(
        "{count} {} ok; {rules} rules prove themselves\n",
        if count == 1 { "jail" } else { "jails" }
    );
    print(&text)
}

fn matching(rules: &Path, rule: &str, mode: &str, file: &Path, json: bool) -> Result<ExitCode, Trouble> {
    let library = config::library(rules).map_err(|fault| Trouble::BadConfiguration(fault.to_string()))?;
    let mode = Some(mode).filter(|mode| *mode != config::NORMAL);
    let rule = library.compile(rule, mode).map_err(|bad| Trouble::BadConfiguration(bad.to_string()))?;
    let mut detector = Detector::new(vec![Arc::new(rule)]);
    let mut input: Box<dyn BufRead> = match file.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(BufReader::new(
            File::open(file)
                .map_err(|error| Trouble::Failed(format!("{}: {}", file.display(), host::plain(&error))))?,
        )),
    };
    let (now, zone) = (host::now(), TimeZone::system());
    let mut out = BufWriter::new(io::stdout().lock());
    let mut line = Vec::new();
    let (mut number, mut failures) = (0, 0_u64);
    while read_line(&mut input, &mut line)? {
        number += 1;
        let answer = answer(&mut detector, number, &line, Clock::Written { now, zone: &zone });
        failures += u64::from(answer.failure);
        if json {
            serde_json::to_writer(&mut out, &answer).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        } else if answer.failure {
            let addr = answer.addr.map_or_else(|| "-".to_owned(), |addr| addr.to_string());
            writeln!(out, "{number}: {addr}  {}", String::from_utf8_lossy(&line).escape_debug())?;
        }
    }
    if !json {
        writeln!(out, "{failures} of {number} lines count as failures")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The next line without its newline and carriage return; one that is too long to be looked at comes back empty.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let chunk = input.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        any = true;
        let (piece, used, ended) = match chunk.iter().position(|byte| *byte == b'\n') {
            Some(at) => (&chunk[..at], at + 1, true),
            None => (chunk, chunk.len(), false),
        };
        if line.len() <= LINE_BYTES_MAX {
            line.extend_from_slice(piece);
        }
        input.consume(used);
        if ended {
            break;
        }
    }
    if line.len() > LINE_BYTES_MAX {
        line.clear();
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(any)
}
