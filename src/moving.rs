//! The verbs for whoever comes from fail2ban: their arguments, and who does them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::tz::TimeZone;

use crate::cli::{Trouble, print, print_json};
use crate::compare;
use crate::config::{self, Config};
use crate::detect::Rule;
use crate::habits::{self, Wrong};
use crate::host::{self, Services};
use crate::import;
use crate::matching;
use crate::model::plain;
use crate::never;
use crate::takeover;
use crate::yaml;

#[derive(Subcommand)]
pub enum Verb {
    /// Take over what fail2ban has: its configuration, and the bans that stand
    ///
    /// With --output, writes nftjail.yaml, nftjail.d/, rules/ and report.txt into a new folder, and prints the report:
    /// what was translated, what with a change, and what was not. With --database, puts the bans into the kernel, which
    /// holds them from then on, with or without an agent.
    Import {
        /// Where fail2ban's configuration is
        #[arg(default_value = import::FAIL2BAN_DIR)]
        from: PathBuf,
        /// The folder to write, which must not be there yet, or be empty
        #[arg(long, value_name = "DIR", required_unless_present = "database")]
        output: Option<PathBuf>,
        /// fail2ban's database: mostly /var/lib/fail2ban/fail2ban.sqlite3
        #[arg(long, value_name = "FILE")]
        database: Option<PathBuf>,
        /// Where the agent keeps its state
        #[arg(long, value_name = "DIR", default_value = "/var/lib/nftjail")]
        state: PathBuf,
    },
    /// Who was banned by fail2ban and who would be by nftjail, with the lines that explain each difference
    ///
    /// Judges the logs that the configured jails read, with their older parts, as the agent would have.
    Compare {
        /// fail2ban's own log; its older parts are read too
        #[arg(long, value_name = "FILE", default_value = compare::LOG)]
        fail2ban_log: PathBuf,
        /// So many days back
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=366))]
        days: u32,
        #[arg(long)]
        json: bool,
        /// Logs for every jail instead of those that each reads, the oldest first
        logs: Vec<PathBuf>,
    },
    /// Understand the words of fail2ban-client, and print what it prints
    ///
    /// status [JAIL], banned, set JAIL banip|unbanip|addignoreip|delignoreip|attempt|idle, get JAIL banip|banned|bantime|…,
    /// unban, reload, ping, version. Exit code 255 where something is wrong, as there.
    F2b {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// What fail2ban-regex takes beside a log.
#[derive(Args)]
pub struct Given {
    /// A rule, a filter of fail2ban by its name or file, or a pattern in its words
    regex: Option<String>,
    /// A pattern of lines that do not count
    ignoreregex: Option<String>,
    #[arg(short, long, hide = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[arg(long, hide = true)]
    print_all_matched: bool,
}

impl Given {
    /// The rule that is meant, or else the one that `--rule` names.
    fn rule(&self, rules: &Path, named: Option<&str>, mode: &str) -> Result<Rule, Trouble> {
        let library = config::library(rules).map_err(|fault| Trouble::BadConfiguration(fault.to_string()))?;
        let bad = |bad: crate::detect::BadRule| Trouble::BadConfiguration(bad.to_string());
        match (named, &self.regex) {
            (Some(name), _) => library.compile(name, Some(mode)).map_err(bad),
            (None, Some(regex)) => {
                let filters = Path::new(import::FAIL2BAN_DIR);
                import::rule_of(regex, self.ignoreregex.as_deref(), mode, filters, &library)
                    .map_err(Trouble::Failed)
            }
            (None, None) => Err(Trouble::Failed("name a rule: --rule NAME".to_owned())),
        }
    }

    /// Runs a rule over a log; where a pattern is given and no such file is there, the name is a line of one.
    pub fn matched(
        &self,
        (rules, named, mode): (&Path, Option<&str>, &str),
        log: &Path,
        wishes: matching::Wishes,
    ) -> Result<ExitCode, Trouble> {
        let rule = self.rule(rules, named, mode)?;
        if self.regex.is_none() || log == Path::new("-") || log.exists() {
            matching::run(rule, log, wishes)?;
        } else {
            let mut file = tempfile::NamedTempFile::new()?;
            file.write_all(log.as_os_str().as_encoded_bytes())?;
            matching::run(rule, file.path(), wishes)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Does what a verb asks for.
pub fn run(verb: Verb, config: Option<&Path>, socket: &Path) -> Result<ExitCode, Trouble> {
    match verb {
        Verb::Import { from, output, database, state } => {
            if let Some(output) = &output {
                print(&import::run(&from, output).map_err(Trouble::BadConfiguration)?)?;
            }
            let Some(database) = database else { return Ok(ExitCode::SUCCESS) };
            let config = output.as_deref().or(config);
            let told = takeover::run(&database, config, &state, socket).map_err(|stopped| match stopped {
                takeover::Stopped::BadConfiguration(why) => Trouble::BadConfiguration(why),
                takeover::Stopped::NotAllowed(why) => Trouble::NotAllowed(why),
                takeover::Stopped::Failed(why) => Trouble::Failed(why),
            })?;
            print(&told)
        }
        Verb::Compare { fail2ban_log, days, json, logs } => {
            compared(config, &fail2ban_log, days, json, &logs)
        }
        Verb::F2b { words } => match habits::run(socket, &words) {
            Ok(text) => print(&(text + "\n")),
            Err(Wrong::Silent(why)) => {
                eprintln!("nftjail: {why}");
                Ok(ExitCode::from(255))
            }
            Err(Wrong::Refused(why)) => {
                eprintln!("nftjail: {why}");
                print(&(why + "\n")).map(|_| ExitCode::from(255))
            }
        },
    }
}

fn compared(
    place: Option<&Path>,
    theirs: &Path,
    days: u32,
    json: bool,
    logs: &[PathBuf],
) -> Result<ExitCode, Trouble> {
    let config = Config::load(place, &Services::of_this_host())
        .map_err(|faults| Trouble::BadConfiguration(yaml::told(&faults)))?;
    let own = never::of_this_host(config.ban_local).map_err(|error| Trouble::Failed(plain(&error)))?;
    let now = host::now();
    let since = now.minus(Duration::from_secs(u64::from(days) * 86_400));
    let compared = compare::run(&config, &own, theirs, logs, (since, now), &TimeZone::system());
    let compared = compared.map_err(Trouble::Failed)?;
    if json { print_json(&compared) } else { print(&compare::text(&compared)) }
}
