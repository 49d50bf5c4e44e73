//! The configuration: read from YAML, merged over its files, resolved against the rules and this host.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::acquire::journal;
use crate::acquire::journalmatch::Matches;
use crate::acquire::place::{Origin, Place};
use crate::detect::{Library, NORMAL, Rule};
use crate::host::Services;
use crate::jail::Terms;
use crate::jail::allow::Allow;
use crate::model::{Bantime, Block, Cell, JailName, Layout, Ports, Span};
use crate::never::{Entry, Known};
use crate::ports;
use crate::sheet::{JailSheet, Keys, Sheet, fault, matches, unreadable};
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
    pub logpath: Vec<Place>,
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
        let mut jails = resolve(sheet, &library, services)?;
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

/// The rule of the jail for those whom others ban again and again.
const RECIDIVE: &str = "recidive";
/// Five bans in a day ban for a week where the jail itself says nothing, as everybody knows it.
const RECIDIVE_FINDTIME: Option<Text<Span>> = Some(Text(Span(Duration::from_secs(86_400))));
const RECIDIVE_BANTIME: Option<Text<Bantime>> = Some(Text(Bantime::For(Duration::from_secs(7 * 86_400))));
const TEN_MINUTES: Duration = Duration::from_secs(600);
/// How many failures ban where neither jail, defaults nor rule say.
const MAXRETRY: u32 = 5;
/// Elements for each family of a jail: about 80 MB of kernel memory when it is full.
const CAPACITY: u32 = 1 << 20;

/// What the sheets come to, jail by jail.
fn resolve(sheet: Sheet, library: &Library, services: &Services) -> Result<Vec<JailConfig>, Vec<Fault>> {
    let built_in = || {
        let name: JailName = "sshd".parse().expect("a jail's name");
        let source = Arc::new(("built-in configuration".to_owned(), String::new()));
        let sheet = JailSheet { keys: Keys::default(), source, place: Location::UNKNOWN };
        BTreeMap::from([(name, sheet)])
    };
    let mut resolved = Vec::new();
    let mut faults = Vec::new();
    for (name, jail) in sheet.jails.unwrap_or_else(built_in) {
        let own = jail.keys.clone();
        // `ignoreip` of the defaults holds for every jail already, in the kernel too.
        let keys = Keys { ignoreip: own.ignoreip.clone(), ..jail.keys.over(&sheet.defaults) };
        if keys.enabled == Some(false) {
            continue;
        }
        match resolve_jail(keys, name, &own, library, services) {
            Ok(jail) => resolved.push(jail),
            Err(message) => faults.push(fault(&jail.source, jail.place, message)),
        }
    }
    if faults.is_empty() { Ok(resolved) } else { Err(faults) }
}

/// `own` are the jail's keys without the defaults: what a rule asks for goes before those, since a scanner is
/// known by its first request.
fn resolve_jail(
    keys: Keys,
    name: JailName,
    own: &Keys,
    library: &Library,
    services: &Services,
) -> Result<JailConfig, String> {
    let ignoreip = keys.ignoreip().cloned().collect();
    let rule_name = keys.rule.as_ref().map_or_else(|| name.to_string(), |rule| rule.value.clone());
    if !library.has(&rule_name) {
        let names: Vec<&str> = library.names().collect();
        let unknown = yaml::unknown("rule", &rule_name, &names);
        return Err(format!("{unknown} (a jail that is not named after its rule needs the key rule)"));
    }
    let mode = keys.mode.as_ref().map_or_else(|| NORMAL.to_owned(), |mode| mode.value.clone());
    let rule = library
        .compile(&rule_name, Some(&mode).filter(|mode| *mode != NORMAL).map(String::as_str))
        .map_err(|bad| bad.to_string())?;
    // A jail recidive that names no log hears the bans of the other jails themselves.
    let hears_bans = rule_name == RECIDIVE && keys.logpath.is_none() && !asks_journal(own);
    let logpath = if hears_bans { Vec::new() } else { logpath(&keys, own, &rule)? };
    let ports = ports::ports(keys.port.as_ref().map_or(rule.port(), |port| &port.value.0), services)?;
    let increment = keys.increment.map(|key| key.value.increment()).transpose()?;
    let (findtime, bantime) = match hears_bans {
        true => (own.findtime.or(RECIDIVE_FINDTIME), own.bantime.or(RECIDIVE_BANTIME)),
        false => (keys.findtime, keys.bantime),
    };
    let number = |key: &Option<Spanned<u32>>| key.as_ref().map(|number| number.value);
    let maxretry = number(&own.maxretry).or(rule.maxretry()).or(number(&keys.maxretry));
    let terms = Terms {
        name,
        maxretry: maxretry.unwrap_or(MAXRETRY),
        findtime: findtime.map_or(TEN_MINUTES, |span| span.0.0),
        bantime: bantime.map_or(Bantime::For(TEN_MINUTES), |time| time.0),
        increment,
        ignoreip: Allow::default(),
        hears_bans,
    };
    let (block, capacity) = (keys.block.unwrap_or_default(), number(&keys.capacity).unwrap_or(CAPACITY));
    Ok(JailConfig { terms, rule: Arc::new(rule), mode, logpath, ports, block, capacity, ignoreip })
}

/// What a jail reads: the logs and the journal that it names, else those of its rule.
fn logpath(keys: &Keys, own: &Keys, rule: &Rule) -> Result<Vec<Place>, String> {
    let origin = keys.journal.as_ref().map_or_else(Origin::default, |origin| origin.0.clone());
    let wrong = |message| format!("the rule {}: {message}", rule.name());
    let of_rule = match rule.journalmatch() {
        [] => None,
        words => Some(matches(words).map_err(wrong)?),
    };
    if !asks_journal(own) {
        return Ok(match &keys.logpath {
            Some(Many(places)) => places.clone(),
            None => default_logpath(rule.logpath(), of_rule.map(|matches| (origin, matches))),
        });
    }
    let matches = match &own.journalmatch {
        Some(words) => matches(&words.value.0)?,
        None => of_rule.or_else(|| of_units(rule.units())).ok_or_else(|| {
            wrong(
                "it does not say what its service writes to the journal: add journalmatch to the jail"
                    .to_owned(),
            )
        })?,
    };
    let files = own.logpath.iter().flat_map(|Many(places)| places.clone());
    Ok(files.chain([Place::Journal(origin, matches)]).collect())
}

fn asks_journal(own: &Keys) -> bool {
    own.journalmatch.is_some() || own.journal.is_some()
}

/// All that these units write; `a@.service` stands for each of its instances.
fn of_units(units: &[String]) -> Option<Matches> {
    let words: Vec<String> =
        units.iter().map(|unit| format!("_SYSTEMD_UNIT={}", unit.replace("@.", "@*."))).collect();
    matches(&words).ok()
}

/// The first log that is there, since distributions differ; else the journal, where there is one and the service
/// writes to it; else all logs, to wait for.
fn default_logpath(candidates: &[String], in_journal: Option<(Origin, Matches)>) -> Vec<Place> {
    let candidates = || candidates.iter().map(|path| Place::File(path.into()));
    match candidates().find(|place| place.file().is_some_and(Path::exists)) {
        Some(place) => vec![place],
        None => match in_journal.filter(|(origin, _)| journal::is_there(origin)) {
            Some((origin, matches)) => vec![Place::Journal(origin, matches)],
            None => candidates().collect(),
        },
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

    fn places(text: &str) -> Vec<String> {
        let jails = load(text).unwrap().jails;
        jails.iter().flat_map(|jail| &jail.logpath).map(ToString::to_string).collect()
    }

    #[test]
    fn a_jail_that_asks_for_the_journal_reads_what_it_names_or_what_its_rule_does() {
        let match_and_log = "jails: {sogo-auth: {journalmatch: [_UID=0, A=b, +, _UID=1], logpath: /x}}";
        assert_eq!(places(match_and_log), ["/x", "journal (_UID=0 A=b + _UID=1)"]);
        assert_eq!(
            places("jails: {sogo-auth: {journalmatch: CONTAINER_NAME=a}}"),
            ["journal (_UID=0 CONTAINER_NAME=a)"]
        );
        let units = "_SYSTEMD_UNIT=sogo.service _SYSTEMD_UNIT=sogod.service";
        assert_eq!(places("jails: {sogo-auth: {journal: web}}"), [format!("journal web ({units})")]);
        assert_eq!(
            places("jails: {nginx-scan: {journal: system}}"),
            ["journal (_SYSTEMD_UNIT=nginx.service _SYSTEMD_UNIT=lighttpd.service)"]
        );
        assert_eq!(
            places("jails: {postgresql: {journal: /var/log/journal}}"),
            [
                "journal /var/log/journal (_SYSTEMD_UNIT=postgresql.service _SYSTEMD_UNIT=postgresql@*.service)"
            ]
        );
        let defaults = "defaults: {journal: /nonexistent, logpath: /y}\njails: {sogo-auth: {}}";
        assert_eq!(places(defaults), ["/y"]);
    }

    #[test]
    fn where_there_is_no_journal_the_logs_of_the_rule_are_waited_for() {
        assert_eq!(
            places("defaults: {journal: /nonexistent}\njails: {sogo-auth: {}}"),
            ["/var/log/sogo/sogo.log"]
        );
    }

    #[test]
    fn a_mistake_about_the_journal_is_pointed_at() {
        let told = |text: &str| load(text).unwrap_err()[0].clone();
        let fault = told("jails:\n  sshd:\n    journalmatch: ssh.service\n");
        assert_eq!((fault.line, fault.column), (3, 19));
        assert!(fault.message.starts_with("\"ssh.service\" is no match: write FIELD=VALUE"), "{fault}");
        let fault = told("defaults: {journalmatch: _UID=0}\n");
        assert_eq!(fault.message, "this belongs to a jail, not to defaults");
        let fault = told("jails: {sshd: {journal: a/b}}\n");
        assert!(fault.message.contains("\"a/b\" is no journal: write system"), "{fault}");
        let fault = told("jails: {portsentry: {journal: system, rule: nextcloudy}}\n");
        assert!(fault.message.contains("unknown rule"), "{fault}");
    }
}
