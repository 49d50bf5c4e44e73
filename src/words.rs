//! What the keys of a jail can say where a number or a text will not do.
#![forbid(unsafe_code)]

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::jail::FORGET;
use crate::jail::bantime::{Growth, Increment};
use crate::jail::prefix::PrefixLaw;
use crate::model::{Bantime, Span, Target};
use crate::yaml::{self, Many, Text};

/// The longest that a growing ban gets where nothing is said: five weeks.
const MAXTIME: Duration = Duration::from_secs(35 * 86_400);
/// How many banned addresses of a network ban it, and within which time, where nothing is said: more than chance or a
/// few infected customers behind one carrier-grade NAT bring about, a sixteenth of a /24.
const PREFIX_OFFENDERS: u32 = 16;
const PREFIX_FINDTIME: Duration = Duration::from_secs(86_400);
/// The most that a jail may ask for.
const PREFIX_OFFENDERS_MAX: u32 = 10_000;
/// How long a log-in makes a friend; none where it never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FriendFor(pub Option<Duration>);

impl FromStr for FriendFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(FriendFor(None)),
            _ => Ok(FriendFor(Some(text.parse::<Span>().map_err(|error| format!("{error}, or never"))?.0))),
        }
    }
}

/// For how long a banned host that tries again stays banned after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extend {
    Never,
    /// As long as the jail's `bantime`.
    Bantime,
    By(Duration),
}

impl FromStr for Extend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "false" => Ok(Extend::Never),
            "true" => Ok(Extend::Bantime),
            _ => match text.parse::<Span>().map(|span| span.0) {
                Ok(length) => Ok(Extend::By(length)),
                Err(error) => Err(format!("{error}, or true for the jail's bantime, or false")),
            },
        }
    }
}

impl Extend {
    /// None where nothing is extended, also because no ban ends.
    pub fn length(self, bantime: Bantime) -> Option<Duration> {
        match (self, bantime) {
            (Extend::By(length), _) | (Extend::Bantime, Bantime::For(length)) => Some(length),
            (Extend::Bantime, Bantime::Forever) | (Extend::Never, _) => None,
        }
    }
}

/// By what a jail counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountBy {
    /// Failures of an address.
    Addr,
    /// Addresses that try the same user.
    User,
    /// Banned addresses of a network.
    Prefix,
}

impl FromStr for CountBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "addr" => Ok(CountBy::Addr),
            "user" => Ok(CountBy::User),
            "prefix" => Ok(CountBy::Prefix),
            _ => Err(yaml::unknown("word", text, &["addr", "user", "prefix"])),
        }
    }
}

/// Failures that are alike in this count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distinct {
    Path,
}

/// Whether a jail runs: `true`, `false`, or `auto`, which is where its service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enabled {
    Yes,
    No,
    Auto,
}

impl FromStr for Enabled {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "true" => Ok(Enabled::Yes),
            "false" => Ok(Enabled::No),
            "auto" => Ok(Enabled::Auto),
            _ => Err("write true, false or auto"),
        }
    }
}

/// When whole networks are banned, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrefixKeys {
    v4: Option<Many<u8>>,
    v6: Option<Many<u8>>,
    offenders: Option<u32>,
    findtime: Option<Text<Span>>,
    force: Option<bool>,
}

impl PrefixKeys {
    pub fn law(&self) -> Result<PrefixLaw, String> {
        let lengths = |key: &Option<Many<u8>>, otherwise: &[u8]| {
            key.as_ref().map_or_else(|| otherwise.to_vec(), |lengths| lengths.0.clone())
        };
        let (v4, v6) = (lengths(&self.v4, &[24]), lengths(&self.v6, &[56, 48]));
        let hosts = ["192.0.2.1", "2001:db8::1"].map(|addr| Target::of(addr.parse().expect("an address")));
        for (lengths, host) in [(&v4, hosts[0]), (&v6, hosts[1])] {
            for length in lengths {
                let wrong = match host.within(*length) {
                    None => "no network that can be banned: v4 is from 8 to 31, v6 from 16 to 63",
                    Some(net) if net.needs_force() && self.force != Some(true) => {
                        "wider than /16 (v6: /32): add force: true if you mean it"
                    }
                    Some(_) => continue,
                };
                return Err(format!("/{length} is {wrong}"));
            }
        }
        let offenders = self.offenders.unwrap_or(PREFIX_OFFENDERS);
        if !(2..=PREFIX_OFFENDERS_MAX).contains(&offenders) {
            return Err(format!("offenders must be from 2 to {PREFIX_OFFENDERS_MAX}"));
        }
        Ok(PrefixLaw { v4, v6, offenders, findtime: self.findtime.map_or(PREFIX_FINDTIME, |span| span.0.0) })
    }
}

/// How bans grow, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IncrementKeys {
    factor: Option<u32>,
    steps: Option<Vec<Text<Span>>>,
    maxtime: Option<Text<Span>>,
    rndtime: Option<Text<Span>>,
    overalljails: Option<bool>,
    forget: Option<Text<Span>>,
    forever_at: Option<u32>,
}

impl IncrementKeys {
    pub fn increment(&self) -> Result<Increment, &'static str> {
        let growth = match (self.factor, &self.steps) {
            (Some(_), Some(_)) => return Err("factor and steps exclude each other: keep one"),
            (Some(0), None) => return Err("a factor of 0 would end every ban: write 2 to double them"),
            (None, Some(steps)) if steps.is_empty() => return Err("steps need at least one length"),
            (None, Some(steps)) => Growth::Steps(steps.iter().map(|step| step.0.0).collect()),
            (factor, None) => Growth::Factor(factor.unwrap_or(2)),
        };
        let length = |key: &Option<Text<Span>>, otherwise| key.as_ref().map_or(otherwise, |span| span.0.0);
        Ok(Increment {
            growth,
            maxtime: length(&self.maxtime, MAXTIME),
            rndtime: length(&self.rndtime, Duration::ZERO),
            overalljails: self.overalljails.unwrap_or(false),
            forget: length(&self.forget, FORGET),
            forever_at: self.forever_at.filter(|number| *number > 0),
        })
    }
}
