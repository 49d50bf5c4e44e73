//! The configuration: read from YAML, merged over its files, resolved against the rules and this host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::detect::{Library, Rule};
use crate::host::Services;
use crate::jail::allow::Allow;
use crate::jail::bantime::{Growth, Increment};
use crate::jail::{FORGET, Terms};
use crate::model::{Bantime, Block, Cell, JailName, Layout, Ports, Protocol, Span, plain};
use crate::never::{self, Entry, Known};
use crate::yaml::{self, Fault, Location, Many, Spanned, Text};

/// Where the configuration is read from when nothing else is said.
pub const CONFIG_DIR: &str = "/etc/nftjail";

/// What the agent runs by.
#[derive(Clone, Debug)]
pub struct Config {
    /// In order of their names; those with `enabled: false` are left out.
    pub jails: Vec<JailConfig>,
    /// Whom no jail bans, beside those whom this host cannot do without.
    pub ignoreip: Vec<Entry>,
    /// Hosts of this host's local networks are banned like all others.
    pub ban_local: bool,
    /// What the files and names in every `ignoreip` stand for now.
    pub known: Known,
    /// The files it was read from; empty where there are none, and the built-in sshd jail serves.
    pub files: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct JailConfig {
    pub terms: Terms,
    pub rule: Arc<Rule>,
    pub mode: String,
    pub logpath: Vec<PathBuf>,
    pub ports: Ports,
    pub block: Block,
    pub capacity: u32,
    /// As it is written; `terms.ignoreip` is what it stood for when it was read.
    pub ignoreip: Vec<Entry>,
}

impl Config {
    /// Reads `place`, a file or a folder with `nftjail.yaml` and `nftjail.d/*.yaml`; without it [`CONFIG_DIR`].
    ///
    /// All faults are told at once. A folder without any file is no fault: the built-in sshd jail runs then.
    pub fn load(place: Option<&Path>, services: &Services) -> Result<Config, Vec<Fault>> {
        let files = files(place).map_err(|fault| vec![fault])?;
        let library = library(&rules_dir(place)).map_err(|fault| vec![fault])?;
        let mut faults = Vec::new();
        let mut sheet = Sheet::default();
        for path in &files {
            match Sheet::read(path, &library, services) {
                Ok(later) => sheet.absorb(later),
                Err(more) => faults.extend(more),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let ignoreip: Vec<Entry> = sheet.defaults.ignoreip().cloned().collect();
        let ban_local = sheet.defaults.ban_local.as_ref().is_some_and(|key| key.value);
        let mut jails = sheet.resolve(&library, services)?;
        let known = Known::new(jails.iter().flat_map(|jail| &jail.ignoreip).chain(&ignoreip));
        jails.iter_mut().for_each(|jail| jail.terms.ignoreip = Allow::new(&known.nets(&jail.ignoreip)));
        Ok(Config { jails, ignoreip, ban_local, known, files })
    }

    /// Whom no jail bans; `own` are those whom this host cannot do without.
    pub fn never(&self, own: &[IpNet]) -> Allow {
        Allow::new(self.known.nets(&self.ignoreip).iter().chain(own))
    }

    /// What the kernel must hold; `own` are those whom this host cannot do without.
    pub fn layout(&self, own: &[IpNet]) -> Layout {
        let cells = self
            .jails
            .iter()
            .map(|jail| Cell {
                jail: jail.terms.name.clone(),
                ports: jail.ports.clone(),
                block: jail.block,
                capacity: jail.capacity,
            })
            .collect();
        let loopback = ["127.0.0.0/8", "::1/128"].map(|net| net.parse().expect("a net"));
        let listed = self.known.nets(&self.ignoreip).into_iter();
        Layout { cells, never: listed.chain(own.iter().copied()).chain(loopback).collect() }
    }
}

/// The shipped rules, and those of a folder before them, where it is there.
pub fn library(dir: &Path) -> Result<Library, Fault> {
    let mut library = Library::shipped();
    match library.add_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unreadable(dir, &error)),
        _ => Ok(library),
    }
}

/// The folder of the user's own rules: `rules/` beside the configuration.
pub fn rules_dir(place: Option<&Path>) -> PathBuf {
    let place = place.unwrap_or(Path::new(CONFIG_DIR));
    let dir = if place.is_dir() { place } else { place.parent().unwrap_or(place) };
    dir.join("rules")
}

fn files(place: Option<&Path>) -> Result<Vec<PathBuf>, Fault> {
    let dir = place.unwrap_or(Path::new(CONFIG_DIR));
    if place.is_some() && !dir.is_dir() {
        return Ok(vec![dir.to_owned()]);
    }
    let mut files = Vec::new();
    let main = dir.join("nftjail.yaml");
    if main.exists() {
        files.push(main);
    }
    let drop_ins = dir.join("nftjail.d");
    let entries = match fs::read_dir(&drop_ins) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(unreadable(&drop_ins, &error)),
    };
    let mut more: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    more.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    more.sort();
    files.extend(more);
    Ok(files)
}

fn unreadable(path: &Path, error: &io::Error) -> Fault {
    Fault::whole(&path.display().to_string(), format!("cannot be read: {}", plain(error)))
}

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
struct Keys {
    enabled: Option<bool>,
    rule: Option<Spanned<String>>,
    mode: Option<Spanned<String>>,
    logpath: Option<Many<PathBuf>>,
    port: Option<Spanned<Many<String>>>,
    maxretry: Option<Spanned<u32>>,
    findtime: Option<Text<Span>>,
    bantime: Option<Text<Bantime>>,
    increment: Option<Spanned<IncrementKeys>>,
    ignoreip: Option<Spanned<Many<Entry>>>,
    ban_local: Option<Spanned<bool>>,
    block: Option<Block>,
    capacity: Option<Spanned<u32>>,
}

/// How bans grow, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IncrementKeys {
    factor: Option<u32>,
    steps: Option<Vec<Text<Span>>>,
    maxtime: Option<Text<Span>>,
    rndtime: Option<Text<Span>>,
    overalljails: Option<bool>,
    forget: Option<Text<Span>>,
    forever_at: Option<u32>,
}

impl IncrementKeys {
    fn increment(&self) -> Result<Increment, &'static str> {
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
type Source = Arc<(String, String)>;

/// What several files say of one jail, the later over the earlier.
#[derive(Clone, Debug)]
struct JailSheet {
    keys: Keys,
    source: Source,
    place: Location,
}

#[derive(Debug, Default)]
struct Sheet {
    defaults: Keys,
    /// None: no file has a `jails` key, and the built-in sshd jail serves.
    jails: Option<BTreeMap<JailName, JailSheet>>,
}

impl Sheet {
    fn read(path: &Path, library: &Library, services: &Services) -> Result<Sheet, Vec<Fault>> {
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
        for key in [&defaults.rule, &defaults.mode].into_iter().flatten() {
            faults.push(fault(&source, key.defined, "this belongs to a jail, not to defaults"));
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
    fn absorb(&mut self, later: Sheet) {
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

    fn resolve(self, library: &Library, services: &Services) -> Result<Vec<JailConfig>, Vec<Fault>> {
        let built_in = || {
            let name: JailName = "sshd".parse().expect("a jail's name");
            let source = Arc::new(("built-in configuration".to_owned(), String::new()));
            let sheet = JailSheet { keys: Keys::default(), source, place: Location::UNKNOWN };
            BTreeMap::from([(name, sheet)])
        };
        let mut resolved = Vec::new();
        let mut faults = Vec::new();
        for (name, jail) in self.jails.unwrap_or_else(built_in) {
            let own = jail.keys.clone();
            // `ignoreip` of the defaults holds for every jail already, in the kernel too.
            let keys = Keys { ignoreip: own.ignoreip.clone(), ..jail.keys.over(&self.defaults) };
            if keys.enabled == Some(false) {
                continue;
            }
            match keys.resolve(name, &own, library, services) {
                Ok(jail) => resolved.push(jail),
                Err(message) => faults.push(fault(&jail.source, jail.place, message)),
            }
        }
        if faults.is_empty() { Ok(resolved) } else { Err(faults) }
    }
}

fn fault(source: &Source, place: Location, message: impl Into<String>) -> Fault {
    Fault::at(&source.0, &source.1, place, message)
}

/// The rule of the jail for those whom others ban again and again.
const RECIDIVE: &str = "recidive";
/// Five bans in a day ban for a week where the jail itself says nothing, as everybody knows it.
const RECIDIVE_FINDTIME: Option<Text<Span>> = Some(Text(Span(Duration::from_secs(86_400))));
const RECIDIVE_BANTIME: Option<Text<Bantime>> = Some(Text(Bantime::For(Duration::from_secs(7 * 86_400))));
const TEN_MINUTES: Duration = Duration::from_secs(600);
/// The mode of a rule that adds nothing.
pub const NORMAL: &str = "normal";
/// How many failures ban where neither jail, defaults nor rule say.
const MAXRETRY: u32 = 5;
/// The longest that a growing ban gets where nothing is said: five weeks.
const MAXTIME: Duration = Duration::from_secs(35 * 86_400);
/// The most failures that a jail may ask for: each is remembered with 8 bytes for each address.
const MAXRETRY_MAX: u32 = 1_000;
/// The most elements that one set may be told to hold.
const CAPACITY_MAX: u32 = 1 << 24;
/// Elements for each family of a jail: about 80 MB of kernel memory when it is full.
const CAPACITY: u32 = 1 << 20;

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
            && let Err(message) = ports(&port.value.0, services)
        {
            faults.push(fault(source, port.defined, message));
        }
        if let Some(increment) = &self.increment
            && let Err(message) = increment.value.increment()
        {
            faults.push(fault(source, increment.defined, message));
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

    fn ignoreip(&self) -> impl Iterator<Item = &Entry> {
        self.ignoreip.iter().flat_map(|key| &key.value.0)
    }

    /// These keys, and those of `below` where nothing is said.
    fn over(&self, below: &Keys) -> Keys {
        let upper = self.clone();
        let below = below.clone();
        Keys {
            enabled: upper.enabled.or(below.enabled),
            rule: upper.rule.or(below.rule),
            mode: upper.mode.or(below.mode),
            logpath: upper.logpath.or(below.logpath),
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

    /// `own` are the jail's keys without the defaults: what a rule asks for goes before those, since a scanner is
    /// known by its first request.
    fn resolve(
        self,
        name: JailName,
        own: &Keys,
        library: &Library,
        services: &Services,
    ) -> Result<JailConfig, String> {
        let ignoreip = self.ignoreip().cloned().collect();
        let rule_name = self.rule.map_or_else(|| name.to_string(), |rule| rule.value);
        if !library.has(&rule_name) {
            let names: Vec<&str> = library.names().collect();
            let unknown = yaml::unknown("rule", &rule_name, &names);
            return Err(format!("{unknown} (a jail that is not named after its rule needs the key rule)"));
        }
        let mode = self.mode.map_or_else(|| NORMAL.to_owned(), |mode| mode.value);
        let rule = library
            .compile(&rule_name, Some(&mode).filter(|mode| *mode != NORMAL).map(String::as_str))
            .map_err(|bad| bad.to_string())?;
        // A jail recidive that names no log hears the bans of the other jails themselves.
        let hears_bans = rule_name == RECIDIVE && self.logpath.is_none();
        let logpath = match self.logpath {
            Some(Many(paths)) => paths,
            None if hears_bans => Vec::new(),
            None => default_logpath(rule.logpath()),
        };
        let ports = ports(self.port.as_ref().map_or(rule.port(), |port| &port.value.0), services)?;
        let increment = self.increment.map(|keys| keys.value.increment()).transpose()?;
        let (findtime, bantime) = match hears_bans {
            true => (own.findtime.or(RECIDIVE_FINDTIME), own.bantime.or(RECIDIVE_BANTIME)),
            false => (self.findtime, self.bantime),
        };
        let number = |key: &Option<Spanned<u32>>| key.as_ref().map(|number| number.value);
        let maxretry = number(&own.maxretry).or(rule.maxretry()).or(number(&self.maxretry));
        let terms = Terms {
            name,
            maxretry: maxretry.unwrap_or(MAXRETRY),
            findtime: findtime.map_or(TEN_MINUTES, |span| span.0.0),
            bantime: bantime.map_or(Bantime::For(TEN_MINUTES), |time| time.0),
            increment,
            ignoreip: Allow::default(),
            hears_bans,
        };
        let (block, capacity) = (self.block.unwrap_or_default(), number(&self.capacity).unwrap_or(CAPACITY));
        Ok(JailConfig { terms, rule: Arc::new(rule), mode, logpath, ports, block, capacity, ignoreip })
    }
}

/// The first log that is there, since distributions differ; all of them where none is, to wait for.
fn default_logpath(candidates: &[String]) -> Vec<PathBuf> {
    let candidates = || candidates.iter().map(PathBuf::from);
    match candidates().find(|path| path.exists()) {
        Some(path) => vec![path],
        None => candidates().collect(),
    }
}

/// Ports as people write them: `ssh`, `2222`, `8000-8010`, `53/udp`, `https/tcp`, or `all` by itself.
fn ports(words: &[String], services: &Services) -> Result<Ports, String> {
    if words.iter().any(|word| word == "all") {
        return match words.len() {
            1 => Ok(Ports::All),
            _ => Err("\"all\" stands for every port: leave the others out".to_owned()),
        };
    }
    let mut ports = BTreeSet::new();
    for word in words {
        ports.extend(port(word, services)?);
    }
    if ports.is_empty() {
        return Err("no port is named here: name one, or write all".to_owned());
    }
    Ok(Ports::Some(ports))
}

fn port(word: &str, services: &Services) -> Result<Vec<(Protocol, u16)>, String> {
    let (place, protocol) = match word.split_once('/') {
        Some((place, name)) => {
            let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
            (
                place,
                Some(
                    protocol
                        .ok_or_else(|| yaml::unknown("protocol", name, &Protocol::ALL.map(Protocol::name)))?,
                ),
            )
        }
        None => (word, None),
    };
    if place.starts_with(|c: char| c.is_ascii_digit()) {
        let (first, last) = place.split_once('-').unwrap_or((place, place));
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        return match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => {
                Ok((first..=last).map(|port| (protocol.unwrap_or(Protocol::Tcp), port)).collect())
            }
            _ => Err(format!("\"{word}\" is not a port: ports go from 1 to 65535, a range from low to high")),
        };
    }
    let known = services.ports(place).iter().filter(|(of, _)| protocol.is_none_or(|wanted| wanted == *of));
    let known: Vec<(Protocol, u16)> = known.copied().collect();
    match known.is_empty() {
        true => Err(yaml::unknown("service", word, &services.names())),
        false => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, Vec<Fault>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nftjail.yaml");
        fs::write(&path, text).unwrap();
        Config::load(Some(&path), &Services::of_this_host())
    }

    #[test]
    fn a_jail_blocks_as_it_says_itself_then_as_the_defaults_say() {
        let blocks = |text: &str| -> Vec<Block> {
            load(text).unwrap().layout(&[]).cells.iter().map(|cell| cell.block).collect()
        };
        assert_eq!(blocks("jails: {sshd: {port: 22}}"), [Block::Drop]);
        assert_eq!(blocks("jails: {sshd: {port: 22, block: reject}}"), [Block::Reject]);
        let jails = "jails: {dovecot: {port: 993, block: drop}, sshd: {port: 22}}";
        assert_eq!(blocks(&format!("defaults: {{block: reject}}\n{jails}")), [Block::Drop, Block::Reject]);
    }

    #[test]
    fn a_mistyped_block_is_pointed_at() {
        let told = |text: &str| load(text).unwrap_err()[0].clone();
        let fault = told("jails:\n  sshd:\n    block: rejct\n");
        assert_eq!((fault.line, fault.column), (3, 12));
        assert_eq!(fault.message, "unknown word \"rejct\": did you mean reject?");
        let fault = told("defaults: {block: deny}\n");
        assert_eq!(fault.message, "unknown word \"deny\": there are drop, reject");
    }
}
