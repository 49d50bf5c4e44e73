//! The nouns every stage speaks; this room imports no other.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// A moment, in milliseconds since 1970-01-01T00:00:00Z. Handed in, never read from a clock here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_millis(ms: i64) -> Self {
        Timestamp(ms)
    }

    pub const fn as_millis(self) -> i64 {
        self.0
    }

    pub fn plus(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_add(duration_ms(duration)))
    }

    pub fn minus(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_sub(duration_ms(duration)))
    }

    /// How long after `earlier` this is; zero where it is not later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0) as u64)
    }
}

fn duration_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC, to the millisecond.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{}", time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ")),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Timestamp(time.as_millisecond()))
    }
}

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

/// Whom a ban is for: one IPv4 address or one IPv6 /64, which is what one customer is given (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(IpNet);

impl Target {
    /// The target that an address is judged and banned as; IPv4-mapped IPv6 counts as IPv4.
    pub fn of(addr: IpAddr) -> Self {
        Target(match addr.to_canonical() {
            IpAddr::V4(v4) => IpNet::V4(Ipv4Net::from(v4)),
            IpAddr::V6(v6) => {
                let network = Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64));
                IpNet::V6(Ipv6Net::new_assert(network, 64))
            }
        })
    }

    /// The first address of the target: the key that its set holds.
    pub fn network(self) -> IpAddr {
        self.0.network()
    }

    pub fn net(self) -> IpNet {
        self.0
    }

    pub fn is_v4(self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpNet::V4(v4) => f.pad(&v4.addr().to_string()),
            IpNet::V6(v6) => f.pad(&v6.to_string()),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    /// Takes an address, `ADDRESS/32` or an IPv6 `PREFIX/64`; anything wider is refused.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Target::of(addr));
        }
        match text.parse::<IpNet>() {
            Ok(IpNet::V4(v4)) if v4.prefix_len() == 32 => Ok(Target::of(v4.addr().into())),
            Ok(IpNet::V6(v6)) if v6.prefix_len() >= 64 => Ok(Target::of(v6.addr().into())),
            Ok(net) => Err(format!("{net} is a whole network: name one IPv4 address or one IPv6 /64")),
            Err(_) => Err(format!("\"{text}\" is not an IP address")),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How long a ban lasts. The kernel reads a timeout of 0 as forever, so 0 cannot be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bantime {
    /// At least one millisecond.
    For(Duration),
    Forever,
}

impl Bantime {
    /// The end of a ban that begins at `start`; none where it never ends.
    pub fn end(self, start: Timestamp) -> Option<Timestamp> {
        match self {
            Bantime::For(duration) => Some(start.plus(duration)),
            Bantime::Forever => None,
        }
    }
}

impl fmt::Display for Bantime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bantime::For(duration) => f.pad(&Span(*duration).to_string()),
            Bantime::Forever => f.pad("forever"),
        }
    }
}

impl FromStr for Bantime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "forever" => Ok(Bantime::Forever),
            _ => Ok(Bantime::For(text.parse::<Span>()?.0)),
        }
    }
}

/// Exact to the second: `forever`, or `5400s`.
impl Serialize for Bantime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Bantime::For(duration) => serializer.collect_str(&format_args!("{}s", duration.as_secs())),
            Bantime::Forever => serializer.serialize_str("forever"),
        }
    }
}

impl<'de> Deserialize<'de> for Bantime {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A length of time as people write it: `90s`, `10m`, `1h30m`, `2d`, `1w`; from 1 second to 10 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

const UNITS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
const SPAN_MAX_S: u64 = 10 * 365 * 86_400;

impl fmt::Display for Span {
    /// The two largest units that say it, rounded down: `6d23h`, `59m59s`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_secs();
        let mut text = String::new();
        let mut parts = 0;
        for (unit, seconds) in UNITS {
            if left >= seconds && parts < 2 {
                text += &format!("{}{unit}", left / seconds);
                parts += 1;
                left %= seconds;
            } else if parts == 1 {
                break;
            }
        }
        f.pad(if text.is_empty() { "0s" } else { &text })
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a length of time: write 90s, 10m, 1h30m, 2d or 1w");
        let mut seconds: u64 = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            let after = &rest[digits..];
            let (unit, factor) = UNITS.iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(bad)?;
            seconds =
                number.checked_mul(*factor).and_then(|part| seconds.checked_add(part)).ok_or_else(bad)?;
            rest = &after[unit.len()..];
        }
        match seconds {
            0 => Err(bad()),
            1..=SPAN_MAX_S => Ok(Span(Duration::from_secs(seconds))),
            _ => Err(format!("\"{text}\" is more than ten years")),
        }
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
    Some(std::collections::BTreeSet<(Protocol, u16)>),
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

/// One failed attempt of one address, as a jail counts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub addr: IpAddr,
    pub at: Timestamp,
    /// How many failures it counts as; at least 1.
    pub weight: u32,
    /// How long it bans where it is the last straw, if not for the jail's `bantime`.
    pub bantime: Option<Bantime>,
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

/// What is to be remembered of a target in a jail: the times of the failures that count, and how often it was
/// banned, when last.
pub type Memory = (JailName, Target, Vec<Timestamp>, Option<(u32, Timestamp)>);

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

/// What the kernel must hold for one jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub jail: JailName,
    pub ports: Ports,
    pub block: Block,
    /// The most elements each of its two sets may hold.
    pub capacity: u32,
}

/// What the kernel must hold for all jails, in the order of their rules.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Layout {
    pub cells: Vec<Cell>,
    /// Never dropped by any jail; may overlap.
    pub never: Vec<IpNet>,
}

/// What happened, for those who are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A failure was counted: so many of `maxretry` now.
    Failed { jail: JailName, addr: IpAddr, at: Timestamp, count: u32, maxretry: u32 },
    /// A failure of somebody who is never banned.
    Ignored { jail: JailName, addr: IpAddr },
    /// A ban was due, but would have ended before it began: the line is that old.
    Overdue { ban: Ban },
    /// The kernel holds a new ban.
    Banned { ban: Ban },
    /// The kernel holds a ban for longer than before.
    Extended { ban: Ban },
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
    fn ipv6_is_judged_by_its_64_and_mapped_addresses_as_ipv4() {
        let target = |text: &str| Target::of(text.parse().unwrap()).to_string();
        assert_eq!(target("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(target("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!("2001:db8::/48".parse::<Target>().unwrap_err().split(':').next(), Some("2001"));
        assert!("0.0.0.0/0".parse::<Target>().is_err());
    }

    #[test]
    fn spans_read_and_print_as_people_write_them() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h30m", 5_400), ("1w", 604_800)] {
            assert_eq!(text.parse::<Span>(), Ok(Span(Duration::from_secs(seconds))));
        }
        for text in ["", "0s", "10", "-1", "1.5h", "m", "99999999999999999999s", "11d 2h", "1000w", "10mm"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert_eq!(Span(Duration::from_secs(604_799)).to_string(), "6d23h");
        assert_eq!(Span(Duration::from_millis(900)).to_string(), "0s");
        assert_eq!(Span(Duration::from_secs(3_605)).to_string(), "1h");
        assert_eq!("forever".parse::<Bantime>(), Ok(Bantime::Forever));
    }

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
