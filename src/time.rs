//! Moments, and lengths of time as people write them; nothing here reads a clock.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

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

pub const UNITS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
