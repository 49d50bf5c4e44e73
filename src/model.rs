//! The nouns every stage speaks.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use crate::target::Target;
pub use crate::time::{Bantime, Span, Timestamp};

/// A journal entry. Who may have written it was asked before: `program` is only what the writer calls itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub host: &'a [u8],
    pub program: &'a [u8],
    pub pid: &'a [u8],
    pub message: &'a [u8],
    /// The message is a line that a container wrote; the other fields tell of who passed it on.
    pub contained: bool,
    /// When the journal took it.
    pub at: Timestamp,
}

/// A jail's name: `[a-z][a-z0-9_-]*`, at most 64 bytes, so that it can name sets and chains as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JailName(Arc<str>);

impl JailName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JailName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase());
        let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if !first || !rest {
            return Err(format!(
                "\"{text}\" cannot name a jail: use a-z, 0-9, - and _, beginning with a letter"
            ));
        }
        if text.len() > 64 {
            return Err(format!("\"{text}\" is longer than 64 characters"));
        }
        if text == "ignore" {
            return Err("\"ignore\" is the name of the never-banned sets: choose another".to_owned());
        }
        Ok(JailName(text.into()))
    }
}

impl fmt::Display for JailName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for JailName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for JailName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The protocol of a port, by its number in the IP header (IANA).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl Protocol {
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// What a jail's bans close: everything, or these ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    All,
    /// Not empty; sorted, each pair once.
    Some(BTreeSet<(Protocol, u16)>),
}

impl fmt::Display for Ports {
    /// `all`, or `22/tcp 53/udp`, with runs of ports folded: `8000-8010/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ports::Some(ports) = self else { return f.pad("all") };
        let mut runs: Vec<(Protocol, u16, u16)> = Vec::new();
        for &(protocol, port) in ports {
            match runs.last_mut() {
                Some((same, _, last)) if *same == protocol && last.checked_add(1) == Some(port) => {
                    *last = port
                }
                _ => runs.push((protocol, port, port)),
            }
        }
        let texts: Vec<String> = runs
            .into_iter()
            .map(|(protocol, first, last)| match first == last {
                true => format!("{first}/{}", protocol.name()),
                false => format!("{first}-{last}/{}", protocol.name()),
            })
            .collect();
        f.pad(&texts.join(" "))
    }
}

/// Stands for a text of which only equality matters, such as a user's name.
pub type Mark = NonZeroU64;

/// One failed attempt of one address, as a jail counts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub addr: IpAddr,
    pub at: Timestamp,
    /// How many failures it counts as; at least 1.
    pub weight: u32,
    /// How long it bans where it is the last straw, if not for the jail's `bantime`.
    pub bantime: Option<Bantime>,
    /// Whom it tried to be.
    pub user: Option<Mark>,
    /// What it asked for.
    pub path: Option<Mark>,
}

/// A ban as decided: from `at` on, for `bantime`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    pub jail: JailName,
    pub target: Target,
    pub at: Timestamp,
    pub bantime: Bantime,
}

impl Ban {
    pub fn end(&self) -> Option<Timestamp> {
        self.bantime.end(self.at)
    }
}

/// What is to be remembered of a target in a jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    pub jail: JailName,
    pub target: Target,
    /// Of the failures that count.
    pub times: Vec<Timestamp>,
    /// How often it was banned, and when last.
    pub offender: Option<(u32, Timestamp)>,
    /// When it logged in last.
    pub friend: Option<Timestamp>,
}

/// The only thing that crosses to the side that may write to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Ban(Ban),
    Release { jail: JailName, target: Target },
}

impl Change {
    pub fn jail(&self) -> &JailName {
        match self {
            Change::Ban(ban) => &ban.jail,
            Change::Release { jail, .. } => jail,
        }
    }

    pub fn target(&self) -> Target {
        match self {
            Change::Ban(ban) => ban.target,
            Change::Release { target, .. } => *target,
        }
    }
}

/// Packets and bytes that a jail's bans dropped, by the kernel's own counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dropped {
    pub packets: u64,
    pub bytes: u64,
}

/// What a banned host meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Block {
    /// Silence: it waits until it gives up.
    #[default]
    Drop,
    /// A refusal at once: a reset for TCP, port unreachable for everything else.
    Reject,
}

/// What becomes of the connections that a host has when it is banned; its packets are dropped in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kill {
    /// They hang until their programs give them up.
    #[default]
    Nothing,
    /// Their sockets on this host are destroyed (SOCK_DESTROY).
    Sockets,
}

/// Where on its way through the kernel a packet meets a jail's bans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// As it arrives, whoever it is for; ports are those that the sender sees.
    Prerouting,
    /// What is for this host, after destination NAT.
    Input,
    /// What is only passed on, after destination NAT.
    Forward,
}

impl Hook {
    pub const ALL: [Hook; 3] = [Hook::Prerouting, Hook::Input, Hook::Forward];

    pub fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
        }
    }
}

impl FromStr for Hook {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hook = Hook::ALL.into_iter().find(|hook| hook.name() == text);
        hook.ok_or_else(|| format!("\"{text}\" is no hook: there are prerouting, input, forward"))
    }
}

/// What follows when a banned host tries again, beside that it is in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Knock {
    /// It stays banned until it was silent for so long.
    pub extends: Option<Duration>,
    /// Each ban counts its packets.
    pub counts: bool,
    pub log: Log,
}

/// Where the kernel tells of each packet that a jail's bans drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Log {
    #[default]
    Nothing,
    /// The kernel's own log, so many a second at the most.
    Kernel,
    /// Whoever listens to this group of NFLOG; every packet.
    Nflog(u16),
}

impl FromStr for Log {
    type Err = String;

    /// `nothing`, `kernel`, or `nflog:GROUP`, which is also what a `logpath` calls it.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("nflog:")) {
            ("nothing", _) => Ok(Log::Nothing),
            ("kernel", _) => Ok(Log::Kernel),
            (_, Some(group)) => group.parse().map(Log::Nflog).map_err(|_| NFLOG_GROUP.to_owned()),
            _ => Err("write nothing, kernel, or nflog: and a group, as nflog:5".to_owned()),
        }
    }
}

/// What a group of NFLOG is, for those who wrote something else.
pub const NFLOG_GROUP: &str = "a group of nflog is a number from 0 to 65535, as nflog:5";

/// What the kernel must hold for one jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub jail: JailName,
    pub ports: Ports,
    pub block: Block,
    /// Not empty.
    pub hooks: BTreeSet<Hook>,
    /// The most elements each of its two sets may hold.
    pub capacity: u32,
    pub knock: Knock,
}

/// What the kernel must hold for all jails, in the order of their rules.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Layout {
    pub cells: Vec<Cell>,
    /// Nobody else may change the table, not even by `nft flush ruleset`.
    pub owned: bool,
    /// Never dropped by any jail; may overlap.
    pub never: Vec<IpNet>,
}

/// What happened, for those who are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A failure was counted: so many of `maxretry` now.
    Failed { jail: JailName, addr: IpAddr, at: Timestamp, count: u32, maxretry: u32 },
    /// A stranger is to be banned at this failure, because so many addresses have tried the same user, whose name is
    /// as the attacker wrote it.
    Series { jail: JailName, addr: IpAddr, user: String, addrs: u32 },
    /// A failure of somebody who is never banned.
    Ignored { jail: JailName, addr: IpAddr },
    /// A ban was due, but would have ended before it began: the line is that old.
    Overdue { ban: Ban },
    /// The kernel holds a new ban.
    Banned { ban: Ban },
    /// The kernel holds a ban for longer than before.
    Extended { ban: Ban },
    /// A banned host tried again, and the kernel holds it for longer than its ban was.
    Knocked { ban: Ban },
    /// Somebody had taken a ban out of the kernel; it holds it again.
    PutBack { ban: Ban },
    /// Somebody damaged our table, who in words; it is whole again.
    Repaired { by: String },
    /// Somebody put a ban into the kernel beside us; it is believed from now on.
    Adopted { ban: Ban, by: String },
    /// A ban that the kernel held at the start is believed again.
    Restored { ban: Ban },
    /// A ban was lifted by hand.
    Released { jail: JailName, target: Target },
    /// A ban ran out; the kernel dropped it by itself.
    Ended { ban: Ban },
    /// The kernel did not take a change.
    Refused { jail: JailName, target: Target, why: String },
}

/// An I/O error in plain words, without the "(os error 13)" that helps nobody.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let mut letters = text.split(" (os error").next().unwrap_or_default().chars();
    letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jail_names_fit_nft_as_they_are() {
        for name in ["sshd", "nginx-http-auth", "a_1"] {
            assert!(name.parse::<JailName>().is_ok());
        }
        for name in ["", "3proxy", "-x", "SSH", "a b", "ignore", "a.b", &"x".repeat(65)] {
            assert!(name.parse::<JailName>().is_err(), "{name}");
        }
    }

    #[test]
    fn runs_of_ports_fold() {
        let ports = [(Protocol::Tcp, 22), (Protocol::Tcp, 80), (Protocol::Tcp, 81), (Protocol::Udp, 82)];
        assert_eq!(Ports::Some(ports.into_iter().collect()).to_string(), "22/tcp 80-81/tcp 82/udp");
    }
}
