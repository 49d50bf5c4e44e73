//! The nouns of asking: how the agent stands, whom it bans, what it would have done.
#![forbid(unsafe_code)]

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Block, Dropped, Hook, JailName, Target, Timestamp};

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
