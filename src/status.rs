//! The nouns of asking: how the agent stands, whom it bans, what it would have done.
#![forbid(unsafe_code)]

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Bantime, Block, Dropped, Hook, JailName, Target, Timestamp};

/// Everything that can be asked of a running agent at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// 1; another number means that fields changed their meaning.
    pub schema: u32,
    pub version: String,
    pub pid: u32,
    pub started: Timestamp,
    /// When the configuration was read.
    pub loaded: Timestamp,
    /// When the kernel was last compared with what is believed; none while nobody is banned.
    pub audited: Option<Timestamp>,
    pub now: Timestamp,
    /// Changes that the kernel has not answered yet.
    pub pending: usize,
    pub jails: Vec<JailStatus>,
    /// Jails that cannot run; the others do.
    pub broken: Vec<BrokenStatus>,
    /// Jails that run only where their service is.
    pub auto: Vec<AutoStatus>,
    pub sources: Vec<SourceStatus>,
    pub repairs: Repairs,
    /// Whom an administrator spares by hand, over restarts.
    pub ignored: Vec<IpNet>,
    /// What is wrong as a whole; empty where all is well.
    pub troubles: Vec<String>,
}

/// How often somebody else changed our table since the start, so that it had to be put back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    pub total: u64,
    /// When the last repair was, and who had made it necessary.
    pub last: Option<Timestamp>,
    pub by: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailStatus {
    pub name: JailName,
    pub rule: String,
    pub mode: String,
    pub ports: String,
    /// It counts nothing for now, by hand.
    pub paused: bool,
    pub block: Block,
    pub hooks: Vec<Hook>,
    pub maxretry: u32,
    pub findtime: String,
    pub bantime: String,
    /// A banned host that tries again stays banned until it was silent for so long; none where a ban just ends.
    pub extend_on_knock: Option<String>,
    /// Addresses that have failed lately and are not banned for it.
    pub failing: usize,
    /// Failures counted since the start.
    pub failed_total: u64,
    pub banned: usize,
    /// Bans the kernel took since the start.
    pub banned_total: u64,
    /// Addresses with failures, friends and users tried in series that were forgotten before their time, because there
    /// were too many.
    pub forgotten_total: u64,
    /// None where the kernel could not be asked.
    pub dropped: Option<Dropped>,
    pub sources: Vec<String>,
}

/// A jail that cannot run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenStatus {
    pub jail: JailName,
    /// What is wrong, and where.
    pub why: Vec<String>,
    /// The bans that it had go on.
    pub banned: usize,
}

/// A jail with `enabled: auto`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoStatus {
    pub jail: JailName,
    pub on: bool,
    /// What shows that its service is there, or what was looked for in vain.
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    pub name: String,
    /// What begins with `following`, or what it waits for, in words.
    pub state: String,
    pub lines: u64,
    /// Bytes that are written and not read yet.
    pub behind: u64,
    /// Lines that were dropped as longer than 8 KiB.
    pub overlong: u64,
    /// Lines that the kernel dropped because they came faster than they were read.
    pub lost: u64,
    pub last_line: Option<Timestamp>,
}

impl SourceStatus {
    /// Whether lines are read from it.
    pub fn is_read(&self) -> bool {
        self.state.starts_with("following")
    }
}

/// One ban as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanStatus {
    pub jail: JailName,
    pub target: Target,
    pub at: Timestamp,
    /// None: it never ends.
    pub ends: Option<Timestamp>,
    /// The packets of it that were dropped, where the jail counts them for each ban.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<Dropped>,
}

/// What `nftjail doctor` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checkup {
    /// 1; another number means that fields changed their meaning.
    pub schema: u32,
    /// Nothing is bad.
    pub well: bool,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// In one word, for `grep`.
    pub about: &'static str,
    pub what: String,
    /// What to do about it, where there is something to do.
    pub todo: Option<String>,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing.
    Note,
    /// Somebody must do something.
    Bad,
}

/// Somebody who is never banned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoredStatus {
    pub net: IpNet,
    /// None: no jail bans it.
    pub jail: Option<JailName>,
    /// Who says so, in words.
    pub from: String,
}

/// An address, or a network with its prefix.
pub fn brief(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// What would have happened, had the agent watched these logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// 1; another number means that fields changed their meaning.
    pub schema: u32,
    pub lines: u64,
    pub failures: u64,
    /// In the order in which they would have begun.
    pub bans: Vec<BanStatus>,
    /// Never banned, but with at least half of the failures that ban; the nearest first.
    pub nearly: Vec<Nearly>,
}

/// Somebody who came near a ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nearly {
    pub jail: JailName,
    pub target: Target,
    /// The most failures that counted at once.
    pub failures: u32,
    pub maxretry: u32,
}

/// Something that happened, as programs are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// 1; another number means that fields changed their meaning.
    pub schema: u32,
    pub at: Timestamp,
    pub event: Happened,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// How long a ban lasts, from when it was decided on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bantime: Option<Bantime>,
    /// When a ban ends; none where it never does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<Timestamp>,
    /// The last lines that led to a ban, as they were written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
    /// All of it in a sentence, with nothing in it that moves a cursor.
    pub text: String,
}

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// A failure was counted.
    Failed,
    /// A stranger is to be banned at once: his is one of many addresses that tried the same user.
    Series,
    /// Somebody who is never banned failed.
    Ignored,
    /// A ban was due that would be over by now.
    Overdue,
    Banned,
    Extended,
    /// A banned host tried again, and stays banned for longer.
    Knocked,
    /// A ban that somebody took out of the kernel is back.
    PutBack,
    /// Our table, which somebody damaged, is whole again.
    Repaired,
    /// Somebody banned a host in the kernel beside us.
    Adopted,
    /// A ban of an earlier run is believed again.
    Restored,
    /// A ban was lifted by hand.
    Unbanned,
    /// A ban ran out.
    Ended,
    /// The kernel refused a ban.
    Refused,
}

impl Happened {
    /// All kinds, by the names that configuration and JSON use.
    pub const ALL: [(Happened, &'static str); 14] = [
        (Happened::Failed, "failed"),
        (Happened::Series, "series"),
        (Happened::Ignored, "ignored"),
        (Happened::Overdue, "overdue"),
        (Happened::Banned, "banned"),
        (Happened::Extended, "extended"),
        (Happened::Knocked, "knocked"),
        (Happened::PutBack, "put_back"),
        (Happened::Repaired, "repaired"),
        (Happened::Adopted, "adopted"),
        (Happened::Restored, "restored"),
        (Happened::Unbanned, "unbanned"),
        (Happened::Ended, "ended"),
        (Happened::Refused, "refused"),
    ];

    pub fn name(self) -> &'static str {
        Happened::ALL.into_iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

/// Why somebody is banned, or is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// 1; another number means that fields changed their meaning.
    pub schema: u32,
    pub target: Target,
    pub now: Timestamp,
    /// Jails that ban it, or count something against it.
    pub jails: Vec<WhyJail>,
    /// Who says that it is never banned.
    pub never: Vec<IgnoredStatus>,
    /// Earlier bans and what became of them, the last first.
    pub past: Vec<Past>,
}

/// What one jail holds against somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyJail {
    pub jail: JailName,
    pub rule: String,
    pub ports: String,
    pub ban: Option<BanStatus>,
    /// The wider network whose ban keeps it out, too.
    pub network: Option<Target>,
    pub kernel: Kernel,
    /// How many of its bans are remembered, this one among them.
    pub bans: u32,
    /// Failures that count now, and how many ban.
    pub failures: u32,
    pub maxretry: u32,
    /// It logged in not long ago, which makes a jail patient.
    pub friend: bool,
    /// The last lines against it up to the ban, oldest first.
    pub lines: Vec<Evidence>,
    /// The last lines since.
    pub since: Vec<Evidence>,
}

/// What the kernel answers when it is asked for one ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// It was not asked: there is no ban.
    NotAsked,
    Holds {
        /// By its own clock; none: forever.
        ends: Option<Timestamp>,
    },
    /// It does not hold the ban that is believed. The next audit, or the end of the ban, will set it right.
    Misses,
    /// It could not be asked, and why.
    Silent(String),
}

/// A line of a log, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub at: Timestamp,
    pub text: String,
}

/// A ban, or the end of one by hand, as the state remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub at: Timestamp,
    pub event: Happened,
    pub jail: JailName,
    pub target: Target,
    /// None: the ban never ends, or it was lifted.
    pub ends: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
}

/// Bans over a time, counted in every way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// 1; another number means that fields changed their meaning.
    pub schema: u32,
    pub since: Timestamp,
    pub bans: u64,
    /// Bans of each day in UTC, the last day first.
    pub days: Vec<Count>,
    /// The most banned, most first.
    pub jails: Vec<Count>,
    pub targets: Vec<Count>,
    /// Of an IPv4 /24 or an IPv6 /48.
    pub networks: Vec<Count>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub of: String,
    pub bans: u64,
}
