//! The configuration: read from YAML, merged over its files, resolved against the rules and this host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::acquire::place::Place;
use crate::detect::{Library, NORMAL, Rule};
use crate::host::Services;
use crate::jail::Terms;
use crate::jail::allow::Allow;
use crate::model::{Bantime, Block, Cell, Hook, JailName, Kill, Layout, Ports, Span};
use crate::never::{Entry, Known};
use crate::ports;
use crate::service::{Traces, own_logs};
use crate::sheet::{CAPACITY_MAX, Enabled, JailSheet, Keys, Sheet, fault, unreadable};
use crate::status::AutoStatus;
use crate::yaml::{self, Fault, Location, Many, Spanned, Text};

/// Where the configuration is read from when nothing else is said.
pub const CONFIG_DIR: &str = "/etc/nftjail";

/// What the agent runs by.
#[derive(Clone, Debug)]
pub struct Config {
    /// In order of their names; those that are not enabled are left out, and those that are broken.
    pub jails: Vec<JailConfig>,
    pub broken: Vec<Broken>,
    /// Those that run only where their service is.
    pub auto: Vec<AutoStatus>,
    /// Whom no jail bans, beside those whom this host cannot do without.
    pub ignoreip: List,
    /// Nor these, who only pass on what others send.
    pub trusted_proxies: List,
    /// Hosts of this host's local networks are banned like all others.
    pub ban_local: bool,
    /// Nobody else may change our table.
    pub owner: bool,
    /// What the files and names in every `ignoreip` stand for now.
    pub known: Known,
    /// What was asked for and cannot be had, in words.
    pub troubles: Vec<String>,
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
    pub kill: Kill,
    pub hooks: BTreeSet<Hook>,
    pub capacity: u32,
    /// As it is written; `terms.ignoreip` is what it stood for when it was read.
    pub ignoreip: Vec<Entry>,
}

/// A jail that cannot run. The bans that it has go on, by what of it can be understood.
#[derive(Clone, Debug)]
pub struct Broken {
    pub terms: Terms,
    cell: Cell,
    /// Not empty.
    pub faults: Vec<Fault>,
}

/// Whom nobody bans, and where that is written: `FILE:LINE`.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub entries: Vec<Entry>,
    pub at: String,
}

impl List {
    fn new(key: Option<Spanned<Many<Entry>>>, at: Option<String>) -> List {
        List { entries: entries(key), at: at.unwrap_or_default() }
    }
}

fn entries(key: Option<Spanned<Many<Entry>>>) -> Vec<Entry> {
    key.map_or_else(Vec::new, |key| key.value.0)
}

impl Config {
    /// Reads `place`, a file or a folder with `nftjail.yaml` and `nftjail.d/*.yaml`; without it [`CONFIG_DIR`].
    ///
    /// All faults are told at once. A folder without any file is no fault: the built-in sshd jail runs then.
    pub fn load(place: Option<&Path>, services: &Services) -> Result<Config, Vec<Fault>> {
        let config = Config::load_sound(place, services)?;
        match config.broken.is_empty() {
            true => Ok(config),
            false => Err(config.broken.into_iter().flat_map(|broken| broken.faults).collect()),
        }
    }

    /// As [`Config::load`], but a jail that is not in order only stands in `broken`, as long as another can run.
    pub fn load_sound(place: Option<&Path>, services: &Services) -> Result<Config, Vec<Fault>> {
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
            faults.extend(sheet.jails.into_iter().flatten().flat_map(|(_, jail)| jail.faults));
            return Err(faults);
        }
        let ignoreip = List::new(sheet.defaults.ignoreip.clone(), sheet.ignoreip_at.take());
        let trusted_proxies = List::new(sheet.defaults.trusted_proxies.clone(), sheet.trusted_at.take());
        let is_set = |key: &Option<Spanned<bool>>| key.as_ref().is_some_and(|key| key.value);
        let (ban_local, owner) = (is_set(&sheet.defaults.ban_local), is_set(&sheet.defaults.owner));
        let Resolved { mut jails, broken, auto } = resolve(sheet, &library, services);
        if jails.is_empty() && !broken.is_empty() {
            return Err(broken.into_iter().flat_map(|broken| broken.faults).collect());
        }
        let own = jails.iter().flat_map(|jail| &jail.ignoreip);
        let known = Known::new(own.chain(&ignoreip.entries).chain(&trusted_proxies.entries));
        jails.iter_mut().for_each(|jail| jail.terms.ignoreip = Allow::new(&known.nets(&jail.ignoreip)));
        let troubles = Vec::new();
        Ok(Config {
            jails,
            broken,
            auto,
            ignoreip,
            trusted_proxies,
            ban_local,
            owner,
            known,
            troubles,
            files,
        })
    }

    /// The terms of all jails, the broken last.
    pub fn terms(&self) -> Vec<Terms> {
        let sound = self.jails.iter().map(|jail| &jail.terms);
        sound.chain(self.broken.iter().map(|broken| &broken.terms)).cloned().collect()
    }

    /// Goes without what this kernel does not have.
    pub fn heed(&mut self, can_own: bool) {
        if self.owner && !can_own {
            self.owner = false;
            self.troubles.push(
                "owner: this kernel cannot do it, Linux 6.9 can: others may change our table, and it is then put back"
                    .to_owned(),
            );
        }
    }

    /// Whom no jail bans by what is written.
    fn listed(&self) -> Vec<IpNet> {
        [&self.ignoreip, &self.trusted_proxies]
            .iter()
            .flat_map(|list| self.known.nets(&list.entries))
            .collect()
    }

    /// Whom no jail bans; `own` are those whom this host cannot do without, and those who were added by hand.
    pub fn never(&self, own: &[IpNet]) -> Allow {
        Allow::new(self.listed().iter().chain(own))
    }

    pub fn proxies(&self) -> Allow {
        Allow::new(&self.known.nets(&self.trusted_proxies.entries))
    }

    /// What the kernel must hold; `own` as for [`Config::never`].
    pub fn layout(&self, own: &[IpNet]) -> Layout {
        let sound = self.jails.iter().map(|jail| Cell {
            jail: jail.terms.name.clone(),
            ports: jail.ports.clone(),
            block: jail.block,
            hooks: jail.hooks.clone(),
            capacity: jail.capacity,
        });
        let cells = sound.chain(self.broken.iter().map(|broken| broken.cell.clone())).collect();
        let loopback = ["127.0.0.0/8", "::1/128"].map(|net| net.parse().expect("a net"));
        Layout {
            cells,
            owned: self.owner,
            never: self.listed().into_iter().chain(own.iter().copied()).chain(loopback).collect(),
        }
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

/// What the sheets come to.
#[derive(Default)]
struct Resolved {
    jails: Vec<JailConfig>,
    broken: Vec<Broken>,
    auto: Vec<AutoStatus>,
}

fn resolve(sheet: Sheet, library: &Library, services: &Services) -> Resolved {
    let built_in = || {
        let name: JailName = "sshd".parse().expect("a jail's name");
        let source = Arc::new(("built-in configuration".to_owned(), String::new()));
        let (keys, place, faults) = (Keys::default(), Location::UNKNOWN, Vec::new());
        BTreeMap::from([(name, JailSheet { keys, source, place, faults })])
    };
    let mut resolved = Resolved::default();
    let traces = Traces::default();
    for (name, mut jail) in sheet.jails.unwrap_or_else(built_in) {
        // `ignoreip` of the defaults holds for every jail already, in the kernel too.
        let keys = Keys { ignoreip: jail.keys.ignoreip.clone(), ..jail.keys.over(&sheet.defaults) };
        let (enabled, names_log) = (keys.enabled.map(|key| key.0), keys.logpath.is_some());
        if enabled == Some(Enabled::No) && jail.faults.is_empty() {
            continue;
        }
        let sound = match jail.faults.is_empty() {
            true => resolve_jail(&keys, &name, &jail.keys, library, services),
            false => Err(None),
        };
        match sound {
            Err(message) => {
                jail.faults.extend(message.map(|message| fault(&jail.source, jail.place, message)));
                resolved.broken.push(broken(&keys, name, jail, library, services));
            }
            Ok(sound) if enabled == Some(Enabled::Auto) => {
                let trace = trace(&sound, names_log, &traces);
                let on = trace.is_ok();
                resolved.auto.push(AutoStatus { jail: name, on, why: trace.unwrap_or_else(|why| why) });
                resolved.jails.extend(on.then_some(sound));
            }
            Ok(sound) => resolved.jails.push(sound),
        }
    }
    resolved
}

/// What shows that the service of a jail is on this host, or that nothing does.
fn trace(jail: &JailConfig, names_log: bool, traces: &Traces) -> Result<String, String> {
    if jail.terms.hears_bans {
        return Ok("it hears the other jails".to_owned());
    }
    let named = || jail.logpath.iter().filter_map(Place::file).map(Path::to_owned).collect();
    let logs = if names_log { named() } else { own_logs(jail.rule.logpath()) };
    traces.of(&logs, jail.rule.units(), &jail.ports)
}

fn rule_name(keys: &Keys, name: &JailName) -> String {
    keys.rule.as_ref().map_or_else(|| name.to_string(), |rule| rule.value.clone())
}

/// `own` are the jail's keys without the defaults: what a rule asks for goes before those, since a scanner is
/// known by its first request.
fn resolve_jail(
    keys: &Keys,
    name: &JailName,
    own: &Keys,
    library: &Library,
    services: &Services,
) -> Result<JailConfig, Option<String>> {
    let rule_name = rule_name(keys, name);
    if !library.has(&rule_name) {
        let names: Vec<&str> = library.names().collect();
        let unknown = yaml::unknown("rule", &rule_name, &names);
        return Err(Some(format!("{unknown} (a jail that is not named after its rule needs the key rule)")));
    }
    let mode = keys.mode.as_ref().map_or_else(|| NORMAL.to_owned(), |mode| mode.value.clone());
    let rule = library
        .compile(&rule_name, Some(&mode).filter(|mode| *mode != NORMAL).map(String::as_str))
        .map_err(|bad| bad.to_string())?;
    if keys.distinct.is_some() && !rule.names_paths() {
        return Err(Some(format!(
            "no pattern of the rule {rule_name} says which path was asked for, so distinct: path would count nothing \
             as one: leave it out, or write a rule with <PATH>"
        )));
    }
    // A jail recidive that names no log hears the bans of the other jails themselves.
    let hears_bans = rule_name == RECIDIVE && keys.logpath.is_none();
    let logpath = match &keys.logpath {
        Some(Many(paths)) => paths.clone(),
        None if hears_bans => Vec::new(),
        None => default_logpath(rule.logpath()),
    };
    if let Some(path) = logpath.iter().filter_map(Place::file).find(|path| !path.is_absolute()) {
        let path = path.display();
        return Err(Some(format!(
            "logpath \"{path}\" does not name a file from the root: write /path/to/it"
        )));
    }
    let ports = ports::ports(keys.port.as_ref().map_or(rule.port(), |port| &port.value.0), services)?;
    let terms = terms(keys, name, own, rule.maxretry(), hears_bans);
    let Cell { block, hooks, capacity, .. } = cell(keys, name, Ports::All);
    let ignoreip = entries(keys.ignoreip.clone());
    let kill = keys.kill.unwrap_or_default();
    Ok(JailConfig {
        terms,
        rule: Arc::new(rule),
        mode,
        logpath,
        ports,
        block,
        kill,
        hooks,
        capacity,
        ignoreip,
    })
}

fn terms(keys: &Keys, name: &JailName, own: &Keys, rule: Option<u32>, hears_bans: bool) -> Terms {
    let (findtime, bantime) = match hears_bans {
        true => (own.findtime.or(RECIDIVE_FINDTIME), own.bantime.or(RECIDIVE_BANTIME)),
        false => (keys.findtime, keys.bantime),
    };
    let maxretry = number(&own.maxretry).or(rule).or(number(&keys.maxretry));
    Terms {
        name: name.clone(),
        maxretry: maxretry.unwrap_or(MAXRETRY),
        findtime: findtime.map_or(TEN_MINUTES, |span| span.0.0),
        bantime: bantime.map_or(Bantime::For(TEN_MINUTES), |time| time.0),
        increment: keys.increment.as_ref().and_then(|key| key.value.increment().ok()),
        distinct: keys.distinct.is_some(),
        user_addrs: keys.user_addrs(),
        friend_for: keys.friend_for(),
        ignoreip: Allow::default(),
        hears_bans,
    }
}

fn number(key: &Option<Spanned<u32>>) -> Option<u32> {
    key.as_ref().map(|number| number.value)
}

fn cell(keys: &Keys, name: &JailName, ports: Ports) -> Cell {
    let hooks = keys.hook.as_ref().map_or_else(BTreeSet::new, |hook| hook.value.0.iter().copied().collect());
    Cell {
        jail: name.clone(),
        ports,
        block: keys.block.unwrap_or_default(),
        hooks: if hooks.is_empty() { [Hook::Prerouting].into() } else { hooks },
        capacity: number(&keys.capacity).unwrap_or(CAPACITY).clamp(1, CAPACITY_MAX),
    }
}

/// What is left of a jail that cannot run: its bans hold on its ports, or on all where those are not understood.
fn broken(keys: &Keys, name: JailName, sheet: JailSheet, library: &Library, services: &Services) -> Broken {
    let file = library.file(&rule_name(keys, &name)).ok();
    let words = keys.port.as_ref().map(|port| &port.value.0).or(file.as_ref().map(|file| &file.port));
    let ports = words.and_then(|words| ports::ports(words, services).ok()).unwrap_or(Ports::All);
    let terms = terms(keys, &name, &sheet.keys, None, false);
    Broken { terms, cell: cell(keys, &name, ports), faults: sheet.faults }
}

/// The first log that is there, since distributions differ; all of them where none is, to wait for.
fn default_logpath(candidates: &[String]) -> Vec<Place> {
    let candidates = || candidates.iter().map(|path| Place::File(path.into()));
    match candidates().find(|place| place.file().is_some_and(Path::exists)) {
        Some(place) => vec![place],
        None => candidates().collect(),
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
    fn a_jail_counts_as_it_is_told() {
        let terms =
            |keys: &str| load(&format!("jails: {{nginx-scan: {{{keys}}}}}")).unwrap().jails.remove(0).terms;
        let day = Duration::from_secs(86_400);
        let plain = terms("port: 80");
        assert_eq!((plain.distinct, plain.user_addrs, plain.friend_for), (false, None, Some(day)));
        let told = terms("distinct: path, count_by: [addr, user], friend_for: never");
        assert_eq!((told.distinct, told.user_addrs, told.friend_for), (true, Some(8), None));
        let told = terms("count_by: [addr, user], user_addrs: 3, friend_for: 2d");
        assert_eq!((told.user_addrs, told.friend_for), (Some(3), Some(2 * day)));
        assert_eq!(terms("count_by: addr, user_addrs: 3").user_addrs, None);
    }

    #[test]
    fn what_cannot_be_counted_is_pointed_at() {
        for (text, line, column, message) in [
            (
                "jails:\n  sshd:\n    distinct: path\n",
                3,
                5,
                "no pattern of the rule sshd says which path was asked for, so distinct: path would count nothing as \
                 one: leave it out, or write a rule with <PATH>",
            ),
            ("defaults: {distinct: path}\n", 1, 22, "this belongs to a jail, not to defaults"),
            ("jails: {sshd: {distinct: paht}}\n", 1, 26, "unknown word \"paht\": did you mean path?"),
            (
                "defaults: {count_by: [user]}\n",
                1,
                22,
                "addresses are what is banned: write [addr, user] to count users as well",
            ),
            ("defaults: {count_by: [addr, usr]}\n", 1, 29, "unknown word \"usr\": did you mean user?"),
            ("defaults: {user_addrs: 65}\n", 1, 24, "this must be from 1 to 64"),
            (
                "defaults: {friend_for: 0}\n",
                1,
                24,
                "\"0\" is not a length of time: write 90s, 10m, 1h30m, 2d or 1w, or never",
            ),
        ] {
            let fault = load(text).unwrap_err().remove(0);
            assert_eq!((fault.line, fault.column, fault.message.as_str()), (line, column, message));
        }
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
