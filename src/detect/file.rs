//! A rule as written in YAML.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use crate::yaml::Spanned;
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, IntoDeserializer};

use super::header::Format;
use super::json::{Fields, Wish};

/// One rule file: what a service logs, which of it counts, and lines that prove it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleFile {
    /// The rule's name, and the file's without `.yaml`.
    pub rule: Spanned<String>,
    /// One sentence for people.
    pub about: String,
    /// How lines are wrapped. Of several, the first that fits a line is taken; see [`super::Detector`].
    pub format: OneOrMany<Format>,
    /// Whose lines, where the format names programs; a name may end with `*`. Empty: everybody's.
    #[serde(default)]
    pub program: Vec<String>,
    /// Of which modules, where apache's error log names one; a name may end with `*`. Empty: of all.
    #[serde(default)]
    pub module: Vec<String>,
    /// The systemd units that show that the service exists.
    #[serde(default)]
    pub units: Vec<String>,
    /// What to ask the journal for, in journalctl's own terms: `FIELD=VALUE`, where equal fields are
    /// alternatives, unequal ones must all hold, and `+` begins another set. Trusted fields begin with `_`.
    #[serde(default)]
    pub journalmatch: Vec<String>,
    /// Where the log may be; the first that exists is followed unless the jail says otherwise.
    #[serde(default)]
    pub logpath: Vec<String>,
    /// What a ban closes unless the jail says otherwise.
    #[serde(default)]
    pub port: Vec<String>,
    /// How many failures are too many unless the jail says otherwise.
    pub maxretry: Option<u32>,
    /// Narrows the message to `<CONTENT>`; a message that it does not match is nobody's.
    pub prefilter: Option<Spanned<String>>,
    /// What joins the lines of one connection.
    pub session: Option<Spanned<Session>>,
    /// Where JSON keeps what.
    pub fields: Option<Fields>,
    #[serde(default)]
    pub failregex: Vec<Spanned<Pattern>>,
    #[serde(default)]
    pub ignoreregex: Vec<Spanned<Pattern>>,
    #[serde(default)]
    pub successregex: Vec<Spanned<Pattern>>,
    #[serde(default)]
    pub sessionregex: Vec<Spanned<Pattern>>,
    #[serde(default)]
    pub modes: BTreeMap<String, Spanned<Mode>>,
    pub samples: Vec<Spanned<Sample>>,
}

/// What joins lines into a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Session {
    /// The host and process that the header names.
    #[serde(rename = "pid")]
    Pid,
    /// What `<SESSION>` matched, or the field `session` of JSON.
    #[serde(rename = "<SESSION>")]
    Captured,
}

/// A pattern: its regular expression alone, or with more to say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Pattern {
    /// Without it, every message fits.
    pub regex: Option<String>,
    /// How many failures a match counts as; 1 without it.
    pub weight: Option<u32>,
    /// How long a ban for this lasts, where one match deserves another length than the jail's.
    pub bantime: Option<String>,
    /// The session is over after this line.
    #[serde(default)]
    pub ends: bool,
    /// Why the pattern may be used although an attacker might steer it.
    pub r#unsafe: Option<String>,
    /// What the fields of a JSON line must be.
    pub r#where: Option<Wish>,
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrMap;
        impl<'de> de::Visitor<'de> for TextOrMap {
            type Value = Pattern;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a regular expression, or a map with `regex` and more")
            }

            fn visit_str<E: de::Error>(self, regex: &str) -> Result<Pattern, E> {
                Ok(Pattern { regex: Some(regex.to_owned()), ..Pattern::default() })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Pattern, A::Error> {
                Pattern::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(TextOrMap)
    }
}

/// What a mode adds. Its patterns stand before the rule's own.
#[derive(Debug)]
pub enum Mode {
    /// These modes together, in this order; `normal` stands for the rule's own failregex.
    All(Vec<String>),
    Own(Patterns),
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOrMap;
        impl<'de> de::Visitor<'de> for ListOrMap {
            type Value = Mode;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of modes, or a map of patterns")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Mode, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Mode::All)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Mode, A::Error> {
                Patterns::deserialize(MapAccessDeserializer::new(map)).map(Mode::Own)
            }
        }
        deserializer.deserialize_any(ListOrMap)
    }
}

/// The patterns of a mode.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patterns {
    #[serde(default)]
    pub failregex: Vec<Spanned<Pattern>>,
    #[serde(default)]
    pub ignoreregex: Vec<Spanned<Pattern>>,
    #[serde(default)]
    pub successregex: Vec<Spanned<Pattern>>,
    #[serde(default)]
    pub sessionregex: Vec<Spanned<Pattern>>,
    /// Whether the rule's own failregex count too.
    #[serde(default = "yes")]
    pub base: bool,
}

fn yes() -> bool {
    true
}

/// A line, or the lines of one connection, with what the last of them must come to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    pub line: Option<String>,
    pub lines: Option<Vec<String>>,
    /// Whom it counts for; without it, it must not count.
    pub addr: Option<IpAddr>,
    /// The user it must name.
    pub user: Option<String>,
    /// The path it must name.
    pub path: Option<String>,
    /// As how many failures it must count.
    pub count: Option<u32>,
    /// In which modes; without it, in none.
    pub mode: Option<OneOrMany<String>>,
    /// Text in it was chosen by an attacker to name a victim.
    #[serde(default)]
    pub hostile: bool,
}

impl Sample {
    /// The lines, in order.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.line.iter().chain(self.lines.iter().flatten()).map(String::as_str)
    }
}

/// One value or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub fn as_slice(&self) -> &[T] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value or a list of values")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(OneOrMany::Many)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
                T::deserialize(value.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
                T::deserialize(value.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
                T::deserialize(value.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
                T::deserialize(value.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
                T::deserialize(value.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                T::deserialize(().into_deserializer()).map(OneOrMany::One)
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}
