//! A jail as it is meant: what the sheets say of it, its rule and this host come together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::acquire::journal;
use crate::acquire::journalmatch::Matches;
use crate::acquire::place::{Channel, Origin, Place};
use crate::detect::{Library, NORMAL, Rule};
use crate::host::Services;
use crate::jail::Terms;
use crate::jail::allow::Allow;
use crate::model::{Bantime, Block, Cell, Hook, JailName, Kill, Knock, Log, Ports, Span};
use crate::never::Entry;
use crate::ports;
use crate::service::{Traces, is_there, own_logs};
use crate::sheet::{self, CAPACITY_MAX, JailSheet, Keys, Sheet, fault, matches};
use crate::status::AutoStatus;
use crate::words::Enabled;
use crate::yaml::{self, Fault, Location, Many, Spanned, Text};

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
    pub knock: Knock,
    /// The zone of the dates in its logs, where it says one.
    pub zone: Option<TimeZone>,
    /// As it is written; `terms.ignoreip` is what it stood for when it was read.
    pub ignoreip: Vec<Entry>,
}

/// A jail that cannot run. The bans that it has go on, by what of it can be understood.
#[derive(Clone, Debug)]
pub struct Broken {
    pub terms: Terms,
    pub cell: Cell,
    /// Not empty.
    pub faults: Vec<Fault>,
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
pub struct Resolved {
    pub jails: Vec<JailConfig>,
    pub broken: Vec<Broken>,
    pub auto: Vec<AutoStatus>,
}

/// One jail with nothing said of it.
fn built_in(name: JailName) -> BTreeMap<JailName, JailSheet> {
    let source = Arc::new(("built-in configuration".to_owned(), String::new()));
    let (keys, place, faults) = (Keys::default(), Location::UNKNOWN, Vec::new());
    BTreeMap::from([(name, JailSheet { keys, source, place, faults })])
}

/// This jail reads standard input in place of its logs. Where there are no jails at all, it is the only one.
pub fn give_stdin(sheet: &mut Sheet, name: &JailName) -> Result<(), Vec<Fault>> {
    let jails = sheet.jails.get_or_insert_with(|| built_in(name.clone()));
    let names: Vec<String> = jails.keys().map(ToString::to_string).collect();
    let Some(jail) = jails.get_mut(name) else {
        return Err(vec![Fault::whole("--jail", yaml::unknown("jail", name.as_str(), &names))]);
    };
    jail.keys.logpath = Some(Many(vec![Place::Stream(Channel::Stdin)]));
    jail.keys.command = None;
    jail.keys.enabled = Some(Text(Enabled::Yes));
    Ok(())
}

pub fn resolve(sheet: Sheet, library: &Library, services: &Services) -> Resolved {
    let mut resolved = Resolved::default();
    let traces = Traces::default();
    for (name, mut jail) in sheet.jails.unwrap_or_else(|| built_in("sshd".parse().expect("a jail's name"))) {
        // `ignoreip` of the defaults holds for every jail already, in the kernel too.
        let keys = Keys { ignoreip: jail.keys.ignoreip.clone(), ..jail.keys.over(&sheet.defaults) };
        let enabled = keys.enabled.map_or(Enabled::Yes, |key| key.0);
        if enabled == Enabled::No && jail.faults.is_empty() {
            continue;
        }
        let sound = match jail.faults.is_empty() {
            true => resolve_jail(&keys, &name, &jail.keys, library, services).map_err(Some),
            false => Err(None),
        };
        let sound = sound.and_then(|sound| match in_another_zone(&sound, &resolved.jails) {
            Some(message) => Err(Some(message)),
            None => Ok(sound),
        });
        match sound {
            Err(message) => {
                jail.faults.extend(message.map(|message| fault(&jail.source, jail.place, message)));
                resolved.broken.push(broken(&keys, name, jail, library, services));
            }
            Ok(sound) if enabled == Enabled::Auto => {
                let names_log = keys.logpath.is_some() || keys.command.is_some();
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
    let logs = if names_log { jail.logpath.clone() } else { own_logs(logs_of(&jail.rule)?) };
    traces.of(&logs, jail.rule.units(), &jail.ports)
}

/// A log has one zone. A jail that says none takes what another says of the same log.
fn in_another_zone(jail: &JailConfig, others: &[JailConfig]) -> Option<String> {
    let zone = jail.zone.as_ref()?;
    let disagrees = |other: &&JailConfig| other.zone.as_ref().is_some_and(|known| known != zone);
    let shared = |other: &JailConfig| jail.logpath.iter().find(|path| other.logpath.contains(path));
    let (other, path) = others.iter().filter(disagrees).find_map(|other| Some((other, shared(other)?)))?;
    let name = &other.terms.name;
    Some(format!("{path} cannot be in two time zones: give this jail the same tz as {name}, or none"))
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
) -> Result<JailConfig, String> {
    keys.prefix_law(own)?;
    let rule_name = rule_name(keys, name);
    if !library.has(&rule_name) {
        let names: Vec<&str> = library.names().collect();
        let unknown = yaml::unknown("rule", &rule_name, &names);
        return Err(format!("{unknown} (a jail that is not named after its rule needs the key rule)"));
    }
    let mode = keys.mode.as_ref().map_or_else(|| NORMAL.to_owned(), |mode| mode.value.clone());
    let rule = library
        .compile(&rule_name, Some(&mode).filter(|mode| *mode != NORMAL).map(String::as_str))
        .map_err(|bad| bad.to_string())?;
    if keys.distinct.is_some() && !rule.names_paths() {
        return Err(format!(
            "no pattern of the rule {rule_name} says which path was asked for, so distinct: path would count nothing \
             as one: leave it out, or write a rule with <PATH>"
        ));
    }
    // A jail recidive that names no log hears the bans of the other jails themselves.
    let hears_bans =
        rule_name == RECIDIVE && keys.logpath.is_none() && keys.command.is_none() && !asks_journal(own);
    let logpath = if hears_bans { Vec::new() } else { places(keys, own, &rule)? };
    if let Some(path) = logpath.iter().filter_map(Place::file).find(|path| !path.is_absolute()) {
        let path = path.display();
        return Err(format!("logpath \"{path}\" does not name a file from the root: write /path/to/it"));
    }
    let ports = ports::ports(keys.port.as_ref().map_or(rule.port(), |port| &port.value.0), services)?;
    let terms = terms(keys, name, own, rule.maxretry(), hears_bans);
    let Cell { ports, block, hooks, capacity, knock, .. } = cell(keys, &terms, ports);
    Ok(JailConfig {
        terms,
        rule: Arc::new(rule),
        mode,
        logpath,
        ports,
        block,
        kill: keys.kill.unwrap_or_default(),
        hooks,
        capacity,
        knock,
        zone: keys.tz.as_ref().map(|tz| sheet::zone(&tz.value)).transpose()?,
        ignoreip: keys.ignoreip.as_ref().map_or_else(Vec::new, |key| key.value.0.clone()),
    })
}

fn terms(keys: &Keys, name: &JailName, own: &Keys, rule: Option<u32>, hears_bans: bool) -> Terms {
    let (findtime, bantime) = match hears_bans {
        true => (own.findtime.or(RECIDIVE_FINDTIME), own.bantime.or(RECIDIVE_BANTIME)),
        false => (keys.findtime, keys.bantime),
    };
    let bantime = bantime.map_or(Bantime::For(TEN_MINUTES), |time| time.0);
    let maxretry = number(&own.maxretry).or(rule).or(number(&keys.maxretry));
    Terms {
        name: name.clone(),
        maxretry: maxretry.unwrap_or(MAXRETRY),
        findtime: findtime.map_or(TEN_MINUTES, |span| span.0.0),
        bantime,
        increment: keys.increment.as_ref().and_then(|key| key.value.increment().ok()),
        distinct: keys.distinct.is_some(),
        user_addrs: keys.user_addrs(),
        friend_for: keys.friend_for(),
        ignoreip: Allow::default(),
        hears_bans,
        prefix: keys.prefix_law(own).ok().flatten(),
        extend_on_knock: keys.extend_on_knock.and_then(|key| key.0.length(bantime)),
    }
}

fn number(key: &Option<Spanned<u32>>) -> Option<u32> {
    key.as_ref().map(|number| number.value)
}

fn cell(keys: &Keys, terms: &Terms, ports: Ports) -> Cell {
    let hooks = keys.hook.as_ref().map_or_else(BTreeSet::new, |hook| hook.value.0.iter().copied().collect());
    Cell {
        jail: terms.name.clone(),
        ports,
        block: keys.block.unwrap_or_default(),
        hooks: if hooks.is_empty() { [Hook::Prerouting].into() } else { hooks },
        capacity: number(&keys.capacity).unwrap_or(CAPACITY).clamp(1, CAPACITY_MAX),
        knock: Knock {
            extends: terms.extend_on_knock,
            counts: keys.counters.unwrap_or(false),
            log: keys.log.map_or_else(Log::default, |key| key.0),
        },
    }
}

/// What is left of a jail that cannot run: its bans hold on its ports, or on all where those are not understood.
fn broken(keys: &Keys, name: JailName, sheet: JailSheet, library: &Library, services: &Services) -> Broken {
    let file = library.file(&rule_name(keys, &name)).ok();
    let words = keys.port.as_ref().map(|port| &port.value.0).or(file.as_ref().map(|file| &file.port));
    let ports = words.and_then(|words| ports::ports(words, services).ok()).unwrap_or(Ports::All);
    let terms = terms(keys, &name, &sheet.keys, None, false);
    let cell = cell(keys, &terms, ports);
    Broken { terms, cell, faults: sheet.faults }
}

/// What a jail reads: the logs, the journal and the command that it names, else what its rule says. `own` are the
/// jail's keys without the defaults.
fn places(keys: &Keys, own: &Keys, rule: &Rule) -> Result<Vec<Place>, String> {
    let origin = keys.journal.as_ref().map_or_else(Origin::default, |origin| origin.0.clone());
    let wrong = |message| format!("the rule {}: {message}", rule.name());
    let of_rule = match rule.journalmatch() {
        [] => None,
        words => Some(matches(words).map_err(wrong)?),
    };
    let named = |keys: &Keys| keys.logpath.as_ref().map(|Many(places)| places.clone());
    let command =
        keys.command.as_ref().map(|command| Place::Stream(Channel::Command(command.value.0.clone())));
    if !asks_journal(own) {
        let places = match named(keys) {
            Some(places) => places,
            None if command.is_some() => Vec::new(),
            None => default_logpath(rule, of_rule.map(|matches| (origin, matches)))?,
        };
        return Ok(places.into_iter().chain(command).collect());
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
    let places = named(own).unwrap_or_default().into_iter().chain(command);
    Ok(places.chain([Place::Journal(origin, matches)]).collect())
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
fn default_logpath(rule: &Rule, in_journal: Option<(Origin, Matches)>) -> Result<Vec<Place>, String> {
    let candidates = logs_of(rule)?;
    let found = candidates.iter().find(|log| is_there(log)).cloned();
    let in_journal = || in_journal.filter(|(origin, _)| journal::is_there(origin));
    Ok(match found.or_else(|| in_journal().map(|(origin, matches)| Place::Journal(origin, matches))) {
        Some(place) => vec![place],
        None => candidates,
    })
}

/// The logs that a rule knows, the likeliest first.
pub fn logs_of(rule: &Rule) -> Result<Vec<Place>, String> {
    let logs = rule.logpath().iter().map(|text| text.parse());
    logs.collect::<Result<_, String>>()
        .map_err(|wrong| format!("the logpath of the rule {}: {wrong}", rule.name()))
}
