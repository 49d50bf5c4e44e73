//! The command line as it is written: verbs, arguments, and the help that explains them.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::control::{self, Whom};
use crate::detect::NORMAL;
use crate::model::{Bantime, JailName, Span, Target};
use crate::moving;
use crate::never;

#[derive(Parser)]
#[command(name = "nftjail", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// Configuration: a file, or a folder with nftjail.yaml and nftjail.d/*.yaml
    #[arg(long, global = true, value_name = "FILE_OR_DIR")]
    pub(crate) config: Option<PathBuf>,
    /// Where the agent listens
    #[arg(long, global = true, value_name = "PATH", default_value = control::SOCKET)]
    pub(crate) socket: PathBuf,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Subcommand)]
pub(crate) enum Verb {
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
        /// Of this network only
        #[arg(long = "in", value_name = "ADDR_OR_NET", value_parser = never::net)]
        within: Option<IpNet>,
        #[arg(long, value_enum, default_value_t = Order::Ends)]
        sort: Order,
        /// So many at most, the first ones
        #[arg(long, value_name = "COUNT")]
        limit: Option<usize>,
        #[arg(long)]
        json: bool,
    },
    /// Why somebody is banned, or is not: the jail, the very lines, how long, what it tried since
    Why {
        #[arg(value_name = "ADDR_OR_NET")]
        target: Target,
        #[arg(long)]
        json: bool,
    },
    /// Bans of the past, counted by day, jail, address and network
    History {
        /// Of this address or network only
        #[arg(value_name = "ADDR_OR_NET", value_parser = never::net)]
        within: Option<IpNet>,
        /// How far back: 12h, 30d, 8w
        #[arg(long, value_name = "TIME", default_value = "30d")]
        since: Span,
        #[arg(long)]
        jail: Option<JailName>,
        #[arg(long, conflicts_with = "csv")]
        json: bool,
        /// Every ban, and every unban by hand, one in each line
        #[arg(long)]
        csv: bool,
    },
    /// Show what happens, as it happens
    Watch {
        jail: Option<JailName>,
        /// One JSON object in each line
        #[arg(long)]
        json: bool,
    },
    /// See it live: failures and bans a second, jails, attackers, newest bans; search, unban, ignore
    Top,
    /// Let the running agent say more or less in its own log
    LogLevel {
        /// error, warn, info or debug
        level: String,
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
        given: moving::Given,
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
    /// Tell people and programs what happens, as `notify` and `metrics` say; `run` starts it where they say anything
    Tell {
        /// Where the agent keeps its state; what is still to be told is kept there, too
        #[arg(long, value_name = "DIR", default_value = "/var/lib/nftjail")]
        state: PathBuf,
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
    Moving(moving::Verb),
}

#[derive(Subcommand)]
pub(crate) enum Ignore {
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

/// How a list of bans is sorted.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// The soonest to end first
    Ends,
    /// The newest first
    Since,
    /// By address
    Addr,
    /// By jail, then by address
    Jail,
}
