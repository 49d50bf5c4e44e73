//! The configuration as it is written: the keys, and one file laid over another.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::acquire::journalmatch::Matches;
use crate::acquire::place::{Origin, Place};
use crate::detect::{Library, NORMAL};
use crate::host::Services;
use crate::jail::FORGET;
use crate::jail::bantime::{Growth, Increment};
use crate::model::{Bantime, Block, JailName, Span, plain};
use crate::never::{self, Entry};
use crate::ports;
use crate::yaml::{self, Fault, Location, Many, Spanned, Text};

/// The longest that a growing ban gets where nothing is said: five weeks.
const MAXTIME: Duration = Duration::from_secs(35 * 86_400);
/// The most failures that a jail may ask for: each is remembered with 8 bytes for each address.
const MAXRETRY_MAX: u32 = 1_000;
/// The most elements that one set may be told to hold.
const CAPACITY_MAX: u32 = 1 << 24;

/// One file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileSheet {
    defaults: Option<Keys>,
    jails: Option<BTreeMap<JailName, Spanned<Option<Keys>>>>,
}

/// The keys that jails and `defaults` share; what is left out is decided elsewhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    pub enabled: Option<bool>,
    pub rule: Option<Spanned<String>>,
    pub mode: Option<Spanned<String>>,
    pub logpath: Option<Many<Place>>,
    pub journalmatch: Option<Spanned<Many<String>>>,
    pub journal: Option<Text<Origin>>,
    pub port: Option<Spanned<Many<String>>>,
    pub maxretry: Option<Spanned<u32>>,
    pub findtime: Option<Text<Span>>,
    pub bantime: Option<Text<Bantime>>,
    pub increment: Option<Spanned<IncrementKeys>>,
    pub ignoreip: Option<Spanned<Many<Entry>>>,
    pub ban_local: Option<Spanned<bool>>,
    pub block: Option<Block>,
    pub capacity: Option<Spanned<u32>>,
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

/// The text of a file, kept for pointing at it.
pub type Source = Arc<(String, String)>;

/// What several files say of one jail, the later over the earlier.
#[derive(Clone, Debug)]
pub struct JailSheet {
    pub keys: Keys,
    pub source: Source,
    pub place: Location,
}

#[derive(Debug, Default)]
pub struct Sheet {
    pub defaults: Keys,
    /// None: no file has a `jails` key, and the built-in sshd jail serves.
    pub jails: Option<BTreeMap<JailName, JailSheet>>,
}

impl Sheet {
    pub fn read(path: &Path, library: &Library, services: &Services) -> Result<Sheet, Vec<Fault>> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|error| vec![unreadable(path, &error)])?;
        let text = String::from_utf8(bytes).map_err(|_| vec![Fault::whole(&name, "is not UTF-8 text")])?;
        let file: Option<FileSheet> = yaml::read(&name, &text).map_err(|fault| vec![fault])?;
        let FileSheet { defaults, jails } = file.unwrap_or_default();
        let defaults = defaults.unwrap_or_default();
        let source = Arc::new((name, text));
        let jails = jails.map(|jails| {
            jails
                .into_iter()
                .map(|(name, keys)| {
                    let place = keys.defined;
                    (name, JailSheet { keys: keys.value.unwrap_or_default(), source: source.clone(), place })
                })
                .collect::<BTreeMap<_, _>>()
        });
        let mut faults = defaults.faults(None, &source, library, services);
        let of_jails = [&defaults.rule, &defaults.mode].into_iter().flatten().map(|key| key.defined);
        for place in of_jails.chain(defaults.journalmatch.as_ref().map(|key| key.defined)) {
            faults.push(fault(&source, place, "this belongs to a jail, not to defaults"));
        }
        for (name, jail) in jails.iter().flatten() {
            if let Some(key) = &jail.keys.ban_local {
                faults.push(fault(&source, key.defined, "this belongs to defaults, not to a jail"));
            }
            faults.extend(jail.keys.faults(Some(name), &source, library, services));
        }
        if faults.is_empty() { Ok(Sheet { defaults, jails }) } else { Err(faults) }
    }

    /// Lays a later file over this one.
    pub fn absorb(&mut self, later: Sheet) {
        self.defaults = later.defaults.over(&self.defaults);
        let Some(jails) = later.jails else { return };
        let mine = self.jails.get_or_insert_default();
        for (name, jail) in jails {
            match mine.get_mut(&name) {
                Some(earlier) => earlier.keys = jail.keys.over(&earlier.keys),
                None => {
                    mine.insert(name, jail);
                }
            }
        }
    }
}

pub fn fault(source: &Source, place: Location, message: impl Into<String>) -> Fault {
    Fault::at(&source.0, &source.1, place, message)
}

pub fn unreadable(path: &Path, error: &io::Error) -> Fault {
    Fault::whole(&path.display().to_string(), format!("cannot be read: {}", plain(error)))
}

/// The words of `journalmatch` as one.
pub fn matches(words: &[String]) -> Result<Matches, String> {
    words.join(" ").parse()
}

impl Keys {
    /// What is wrong with a value by itself, each told at its place.
    fn faults(
        &self,
        jail: Option<&JailName>,
        source: &Source,
        library: &Library,
        services: &Services,
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Some(rule) = self.rule.as_ref().filter(|rule| !library.has(&rule.value)) {
            faults.push(fault(
                source,
                rule.defined,
                yaml::unknown("rule", &rule.value, &library.names().collect::<Vec<_>>()),
            ));
        }
        let rule = self.rule.as_ref().map(|rule| rule.value.as_str()).or(jail.map(JailName::as_str));
        if let (Some(file), Some(mode)) = (rule.and_then(|rule| library.file(rule).ok()), &self.mode) {
            let modes: Vec<&str> =
                std::iter::once(NORMAL).chain(file.modes.keys().map(String::as_str)).collect();
            if !modes.contains(&mode.value.as_str()) {
                faults.push(fault(source, mode.defined, yaml::unknown("mode", &mode.value, &modes)));
            }
        }
        if let Some(port) = &self.port
            && let Err(message) = ports::ports(&port.value.0, services)
        {
            faults.push(fault(source, port.defined, message));
        }
        if let Some(increment) = &self.increment
            && let Err(message) = increment.value.increment()
        {
            faults.push(fault(source, increment.defined, message));
        }
        if let Some(key) = &self.journalmatch
            && let Err(message) = matches(&key.value.0)
        {
            faults.push(fault(source, key.defined, message));
        }
        for list in self.ignoreip().filter_map(Entry::file) {
            let place = self.ignoreip.as_ref().map_or(Location::UNKNOWN, |key| key.defined);
            faults.extend(never::read(list).err().into_iter().flatten().map(|wrong| match wrong.line {
                0 => fault(source, place, format!("{}: {}", wrong.file, wrong.message)),
                _ => wrong,
            }));
        }
        for (key, most) in [(&self.maxretry, MAXRETRY_MAX), (&self.capacity, CAPACITY_MAX)] {
            if let Some(number) = key.as_ref().filter(|number| !(1..=most).contains(&number.value)) {
                faults.push(fault(source, number.defined, format!("this must be from 1 to {most}")));
            }
        }
        faults
    }

    pub fn ignoreip(&self) -> impl Iterator<Item = &Entry> {
        self.ignoreip.iter().flat_map(|key| &key.value.0)
    }

    /// These keys, and those of `below` where nothing is said.
    pub fn over(&self, below: &Keys) -> Keys {
        let upper = self.clone();
        let below = below.clone();
        Keys {
            enabled: upper.enabled.or(below.enabled),
            rule: upper.rule.or(below.rule),
            mode: upper.mode.or(below.mode),
            logpath: upper.logpath.or(below.logpath),
            journalmatch: upper.journalmatch.or(below.journalmatch),
            journal: upper.journal.or(below.journal),
            port: upper.port.or(below.port),
            maxretry: upper.maxretry.or(below.maxretry),
            findtime: upper.findtime.or(below.findtime),
            bantime: upper.bantime.or(below.bantime),
            increment: upper.increment.or(below.increment),
            ignoreip: upper.ignoreip.or(below.ignoreip),
            block: upper.block.or(below.block),
            ban_local: upper.ban_local.or(below.ban_local),
            capacity: upper.capacity.or(below.capacity),
        }
    }
}
