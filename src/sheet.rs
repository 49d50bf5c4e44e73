//! The configuration as it is written: the keys, and one file laid over another.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::acquire::journalmatch::Matches;
use crate::acquire::place::{Origin, Place};
use crate::detect::{Library, NORMAL};
use crate::host::{self, Services};
use crate::jail::friend::FRIEND_FOR;
use crate::jail::prefix::PrefixLaw;
use crate::model::{Bantime, Block, Hook, JailName, Kill, Log, Span, plain};
use crate::never::{self, Entry};
use crate::notices::{self, Notices};
use crate::ports;
use crate::words::{CountBy, Distinct, Enabled, Extend, FriendFor, IncrementKeys, PrefixKeys};
use crate::yaml::{self, Fault, Location, Many, Spanned, Text};

/// The most failures that a jail may ask for: each is remembered with 8 bytes for each address.
const MAXRETRY_MAX: u32 = 1_000;
/// The most elements that one set may be told to hold.
pub const CAPACITY_MAX: u32 = 1 << 24;

/// The most addresses that a series may be told to begin after: each is remembered for each user.
const USER_ADDRS_MAX: u32 = 64;
/// A series begins after so many addresses where nothing is said.
const USER_ADDRS: u32 = 8;
/// One file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileSheet {
    defaults: Option<Keys>,
    jails: Option<BTreeMap<JailName, Spanned<Option<Keys>>>>,
    notify: Option<notices::Sheet>,
    metrics: Option<Spanned<String>>,
}

/// The keys that jails and `defaults` share; what is left out is decided elsewhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    pub enabled: Option<Text<Enabled>>,
    pub rule: Option<Spanned<String>>,
    pub mode: Option<Spanned<String>>,
    pub logpath: Option<Many<Place>>,
    pub command: Option<Spanned<Many<String>>>,
    pub journalmatch: Option<Spanned<Many<String>>>,
    pub journal: Option<Text<Origin>>,
    pub port: Option<Spanned<Many<String>>>,
    pub maxretry: Option<Spanned<u32>>,
    pub findtime: Option<Text<Span>>,
    pub bantime: Option<Text<Bantime>>,
    pub increment: Option<Spanned<IncrementKeys>>,
    pub ignoreip: Option<Spanned<Many<Entry>>>,
    pub trusted_proxies: Option<Spanned<Many<Entry>>>,
    pub ban_local: Option<Spanned<bool>>,
    pub owner: Option<Spanned<bool>>,
    pub block: Option<Block>,
    pub kill: Option<Kill>,
    pub hook: Option<Spanned<Many<Hook>>>,
    pub capacity: Option<Spanned<u32>>,
    pub friend_for: Option<Text<FriendFor>>,
    pub count_by: Option<Spanned<Many<CountBy>>>,
    pub user_addrs: Option<Spanned<u32>>,
    pub distinct: Option<Spanned<Distinct>>,
    pub tz: Option<Spanned<String>>,
    pub prefix: Option<Spanned<PrefixKeys>>,
    pub extend_on_knock: Option<Text<Extend>>,
    pub counters: Option<bool>,
    pub log: Option<Text<Log>>,
}

/// What is wrong with the words of a command.
fn misread(words: &[String]) -> Option<&'static str> {
    match words {
        [] => Some("name a program and its arguments: [podman, logs, --follow, web]"),
        [only] if only.contains(char::is_whitespace) => {
            Some("no shell reads this: write each word by itself, as [podman, logs, --follow, web]")
        }
        words if words[0].is_empty() || words.iter().any(|word| word.contains('\0')) => {
            Some("no program can be called so")
        }
        _ => None,
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
    /// What is wrong with it alone.
    pub faults: Vec<Fault>,
}

#[derive(Debug, Default)]
pub struct Sheet {
    pub defaults: Keys,
    /// Where `ignoreip` and `trusted_proxies` of the defaults are written: `FILE:LINE`.
    pub ignoreip_at: Option<String>,
    pub trusted_at: Option<String>,
    /// None: no file has a `jails` key, and the built-in sshd jail serves.
    pub jails: Option<BTreeMap<JailName, JailSheet>>,
    /// Who is told what.
    pub notices: Notices,
}

impl Sheet {
    /// Reads one file. An error is what no jail can be trusted after, such as an `ignoreip` that is not understood;
    /// what is wrong with a jail alone goes with the jail.
    pub fn read(path: &Path, library: &Library, services: &Services) -> Result<Sheet, Vec<Fault>> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|error| vec![unreadable(path, &error)])?;
        let text = String::from_utf8(bytes).map_err(|_| vec![Fault::whole(&name, "is not UTF-8 text")])?;
        let file: Option<FileSheet> = yaml::read(&name, &text).map_err(|fault| vec![fault])?;
        let FileSheet { defaults, jails, notify, metrics } = file.unwrap_or_default();
        let notices = notices::resolve(notify.unwrap_or_default(), metrics, &name, &text);
        let defaults = defaults.unwrap_or_default();
        let source = Arc::new((name, text));
        let mut faults = defaults.faults(None, &source, library, services);
        let notices = notices.unwrap_or_else(|more| {
            faults.extend(more);
            Notices::default()
        });
        let rule = defaults.rule.as_ref().map(|key| key.defined);
        let mode = defaults.mode.as_ref().map(|key| key.defined);
        let distinct = defaults.distinct.as_ref().map(|key| key.defined);
        let command = defaults.command.as_ref().map(|key| key.defined);
        let journalmatch = defaults.journalmatch.as_ref().map(|key| key.defined);
        for place in [rule, mode, distinct, command, journalmatch].into_iter().flatten() {
            faults.push(fault(&source, place, "this belongs to a jail, not to defaults"));
        }
        let read = |(name, keys): (JailName, Spanned<Option<Keys>>)| {
            let (place, keys) = (keys.defined, keys.value.unwrap_or_default());
            let mut faults = keys.faults(Some(&name), &source, library, services);
            let ban_local = keys.ban_local.as_ref().map(|key| key.defined);
            let proxies = keys.trusted_proxies.as_ref().map(|key| key.defined);
            let owner = keys.owner.as_ref().map(|key| key.defined);
            for place in ban_local.into_iter().chain(proxies).chain(owner) {
                faults.push(fault(&source, place, "this belongs to defaults, not to a jail"));
            }
            (name, JailSheet { keys, source: source.clone(), place, faults })
        };
        let jails = jails.map(|jails| jails.into_iter().map(read).collect::<BTreeMap<_, _>>());
        let at = |key: &Option<Spanned<_>>| {
            key.as_ref().map(|key: &Spanned<Many<Entry>>| format!("{}:{}", source.0, key.defined.line()))
        };
        let (ignoreip_at, trusted_at) = (at(&defaults.ignoreip), at(&defaults.trusted_proxies));
        if faults.is_empty() {
            return Ok(Sheet { defaults, ignoreip_at, trusted_at, jails, notices });
        }
        faults.extend(jails.into_iter().flatten().flat_map(|(_, jail)| jail.faults));
        Err(faults)
    }

    /// Lays a later file over this one.
    pub fn absorb(&mut self, later: Sheet) {
        self.defaults = later.defaults.over(&self.defaults);
        self.ignoreip_at = later.ignoreip_at.or(self.ignoreip_at.take());
        self.trusted_at = later.trusted_at.or(self.trusted_at.take());
        self.notices.absorb(later.notices);
        let Some(jails) = later.jails else { return };
        let mine = self.jails.get_or_insert_default();
        for (name, jail) in jails {
            match mine.get_mut(&name) {
                Some(earlier) => {
                    earlier.keys = jail.keys.over(&earlier.keys);
                    earlier.faults.extend(jail.faults);
                }
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

/// The zone that `tz` names, or why there is none.
pub fn zone(text: &str) -> Result<TimeZone, String> {
    host::zone(text).map_err(|names| {
        let near = yaml::near(text, &names).map(|near| format!(": did you mean {near}?"));
        let ways = ": write a name such as Europe/Berlin (where tzdata is installed), UTC, or an offset such as +02:00";
        format!("unknown time zone \"{}\"{}", text.escape_debug(), near.unwrap_or_else(|| ways.to_owned()))
    })
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
        if let Some(hook) = self.hook.as_ref().filter(|hook| hook.value.0.is_empty()) {
            faults.push(fault(source, hook.defined, "name one: prerouting, input or forward"));
        }
        for key in [&self.ignoreip, &self.trusted_proxies].into_iter().flatten() {
            let wrong = key.value.0.iter().filter_map(Entry::file).flat_map(|list| never::read(list).err());
            faults.extend(wrong.flatten().map(|wrong| match wrong.line {
                0 => fault(source, key.defined, format!("{}: {}", wrong.file, wrong.message)),
                _ => wrong,
            }));
        }
        if let Some(key) = self.count_by.as_ref().filter(|key| !key.value.0.contains(&CountBy::Addr)) {
            let message =
                "addresses are what is banned: write [addr, user] or [addr, prefix] to count others as well";
            faults.push(fault(source, key.defined, message));
        }
        let misread = [
            self.port.as_ref().map(|key| (key.defined, ports::ports(&key.value.0, services).err())),
            self.tz.as_ref().map(|key| (key.defined, zone(&key.value).err())),
            self.command.as_ref().map(|key| (key.defined, misread(&key.value.0).map(str::to_owned))),
            self.journalmatch.as_ref().map(|key| (key.defined, matches(&key.value.0).err())),
            self.increment.as_ref().map(|key| (key.defined, key.value.increment().err().map(str::to_owned))),
            self.prefix.as_ref().map(|key| (key.defined, key.value.law().err())),
        ];
        for (place, message) in misread.into_iter().flatten() {
            faults.extend(message.map(|message| fault(source, place, message)));
        }
        faults.extend(self.numbers_out_of_range(source));
        faults
    }

    fn numbers_out_of_range(&self, source: &Source) -> Vec<Fault> {
        let (maxretry, capacity) = ((&self.maxretry, MAXRETRY_MAX), (&self.capacity, CAPACITY_MAX));
        let numbers = [maxretry, capacity, (&self.user_addrs, USER_ADDRS_MAX)];
        let wrong = |(key, most): (&Option<Spanned<u32>>, u32)| {
            let number = key.as_ref().filter(|number| !(1..=most).contains(&number.value))?;
            Some(fault(source, number.defined, format!("this must be from 1 to {most}")))
        };
        numbers.into_iter().filter_map(wrong).collect()
    }

    pub fn friend_for(&self) -> Option<Duration> {
        self.friend_for.map_or(Some(FRIEND_FOR), |key| key.0.0)
    }

    /// When whole networks are banned; `own` are a jail's keys without the defaults.
    pub fn prefix_law(&self, own: &Keys) -> Result<Option<PrefixLaw>, String> {
        let counts = self.count_by.as_ref().is_some_and(|key| key.value.0.contains(&CountBy::Prefix));
        if own.prefix.is_some() && !counts {
            return Err("prefix means nothing without count_by: [addr, prefix]".to_owned());
        }
        let keys = self.prefix.as_ref().map_or_else(PrefixKeys::default, |key| key.value.clone());
        counts.then(|| keys.law()).transpose()
    }

    /// After how many addresses a series begins; none where users are not counted.
    pub fn user_addrs(&self) -> Option<u32> {
        let counts = self.count_by.as_ref().is_some_and(|key| key.value.0.contains(&CountBy::User));
        counts.then(|| self.user_addrs.as_ref().map_or(USER_ADDRS, |key| key.value))
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
            command: upper.command.or(below.command),
            journalmatch: upper.journalmatch.or(below.journalmatch),
            journal: upper.journal.or(below.journal),
            port: upper.port.or(below.port),
            maxretry: upper.maxretry.or(below.maxretry),
            findtime: upper.findtime.or(below.findtime),
            bantime: upper.bantime.or(below.bantime),
            increment: upper.increment.or(below.increment),
            ignoreip: upper.ignoreip.or(below.ignoreip),
            block: upper.block.or(below.block),
            hook: upper.hook.or(below.hook),
            trusted_proxies: upper.trusted_proxies.or(below.trusted_proxies),
            ban_local: upper.ban_local.or(below.ban_local),
            owner: upper.owner.or(below.owner),
            kill: upper.kill.or(below.kill),
            capacity: upper.capacity.or(below.capacity),
            friend_for: upper.friend_for.or(below.friend_for),
            count_by: upper.count_by.or(below.count_by),
            user_addrs: upper.user_addrs.or(below.user_addrs),
            distinct: upper.distinct.or(below.distinct),
            tz: upper.tz.or(below.tz),
            prefix: upper.prefix.or(below.prefix),
            extend_on_knock: upper.extend_on_knock.or(below.extend_on_knock),
            counters: upper.counters.or(below.counters),
            log: upper.log.or(below.log),
        }
    }
}
