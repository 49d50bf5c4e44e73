//! One jail of fail2ban: how it bans, where it reads and how it counts, in the words of our configuration.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use crate::acquire::journalmatch::Matches;
use crate::acquire::place::Place;
use crate::deeds::{self, Ban, Deed};
use crate::detect::{Library, NORMAL};
use crate::filters::{self, KNOWN};
use crate::ini::{Read, Value};
use crate::jargon::{self, Named, list_of_named, named, yaml, yaml_list};
use crate::serving::Served;
use crate::terms::{Notes, Section, Terms};
use crate::yaml::Fault;

/// The names of the files in a folder that end with this, sorted.
pub type List<'w> = dyn Fn(&str, &str) -> Result<Vec<String>, Fault> + 'w;

/// What is asked of the world.
pub struct World<'w> {
    pub read: &'w Read<'w>,
    pub list: &'w List<'w>,
    pub library: &'w Library,
    /// Why a port is none on this host.
    pub wrong_port: &'w dyn Fn(&str) -> Option<String>,
}

/// What a configuration became.
#[derive(Clone, Debug, Default)]
pub struct Imported {
    /// Each file, by its path below the folder of the new configuration.
    pub files: BTreeMap<String, String>,
    pub notes: Notes,
    /// Who is told of the bans of which jails.
    pub notify: BTreeMap<String, BTreeSet<String>>,
}

/// Hears the other jails where it names no log.
const RECIDIVE: &str = "recidive";

/// The order in which a jail's keys are written.
pub const KEYS: [&str; 15] = [
    "enabled",
    "rule",
    "mode",
    "logpath",
    "journal",
    "journalmatch",
    "port",
    "maxretry",
    "findtime",
    "bantime",
    "increment",
    "ignoreip",
    "block",
    "hook",
    "tz",
];

pub type Page = BTreeMap<&'static str, String>;

pub struct JailReader<'j> {
    pub world: &'j World<'j>,
    pub section: Section<'j>,
    pub common: &'j Terms,
    /// Ours.
    pub name: String,
    pub out: &'j mut Imported,
}

impl JailReader<'_> {
    /// The jail's page by its name, and perhaps that of a jail beside it; none where it cannot be one, which the notes
    /// then say.
    pub fn read(&mut self) -> Result<Vec<(String, Page)>, Fault> {
        let Some(ban) = self.ban()? else { return Ok(Vec::new()) };
        let Some(served) = self.rule()? else { return Ok(Vec::new()) };
        let mut page = Page::new();
        if served.rule != self.name {
            page.insert("rule", yaml(&served.rule));
        }
        if served.mode != NORMAL {
            page.insert("mode", yaml(&served.mode));
        }
        if served.rule != RECIDIVE && !self.sources(&served, &mut page)? {
            return Ok(Vec::new());
        }
        if served.rule == RECIDIVE {
            self.changed("hears the bans of the other jails themselves, not a log of them");
        }
        self.ports(&ban, &served, &mut page)?;
        self.terms(&served, &mut page)?;
        for change in &ban.changes {
            self.changed(change);
        }
        page.extend(ban.block.map(|block| ("block", block.to_owned())));
        page.extend(ban.hook.map(|hook| ("hook", hook.to_owned())));
        if let Some(command) = self.section.filled("ignorecommand")? {
            page.insert("enabled", "false".to_owned());
            self.left(format!(
                "ignorecommand = {command}: no program is asked whom to spare. The jail is there and off: list them in \
                 ignoreip, then take `enabled: false` out"
            ));
        }
        self.told(&served, &page);
        let beside = match &served.more {
            Some(rule) => self.beside(rule, &served, &page)?,
            None => None,
        };
        Ok([(self.name.clone(), page)].into_iter().chain(beside).collect())
    }

    /// The page of a jail with the same terms, whose rule knows neither logs nor ports.
    fn beside(&mut self, name: &str, served: &Served, page: &Page) -> Result<Option<(String, Page)>, Fault> {
        let mut page = page.clone();
        page.remove("rule");
        page.remove("mode");
        let Ok(rule) = self.world.library.file(&served.rule) else { return Ok(None) };
        if !rule.port.is_empty() {
            page.entry("port").or_insert_with(|| yaml_list(&rule.port));
        }
        if page.remove("journal").is_some() && !rule.journalmatch.is_empty() {
            page.entry("journalmatch").or_insert_with(|| yaml_list(&rule.journalmatch));
        }
        if !page.contains_key("journalmatch") && !page.contains_key("logpath") {
            let logs = self.logs()?;
            page.insert("logpath", yaml_list(if logs.is_empty() { &rule.logpath } else { &logs }));
        }
        Ok(Some((name.to_owned(), page)))
    }

    pub fn changed(&mut self, text: &str) {
        self.out.notes.changed(&self.name, text);
    }

    pub fn left(&mut self, text: impl Into<String>) {
        self.out.notes.left(&self.name, text);
    }

    fn told(&mut self, served: &Served, page: &Page) {
        let mode = if served.mode == NORMAL { String::new() } else { format!(", mode {}", served.mode) };
        let keys: Vec<String> = KEYS
            .iter()
            .filter(|key| !matches!(**key, "rule" | "mode"))
            .filter_map(|key| Some(format!("; {key} {}", page.get(key)?)))
            .collect();
        let of = if served.own { "your own patterns" } else { "rule" };
        let name = if served.own { String::new() } else { format!(" {}", served.rule) };
        self.out.notes.done(&self.name, format!("{of}{name}{mode}{}", keys.concat()));
    }

    /// How the jail bans; none where it does something else.
    fn ban(&mut self) -> Result<Option<Ban>, Fault> {
        let text = self.section.filled("action")?.unwrap_or_default();
        let actions = list_of_named(&text).map_err(|why| self.section.fault("action", why))?;
        let protocol = self.section.filled("protocol")?.unwrap_or_else(|| "tcp".to_owned());
        let port = self.section.filled("port")?.unwrap_or_else(|| "0:65535".to_owned());
        let ports = jargon::ports(jargon::without_note(&port), &protocol);
        let chain = self.section.filled("chain")?.unwrap_or_default();
        let mut bans: Vec<Ban> = Vec::new();
        let mut others = BTreeSet::new();
        for action in &actions {
            let definition = filters::layers("action.d", &action.name, self.world.read)?;
            match deeds::deed(action, definition.as_ref(), &ports, &chain) {
                Deed::Ban(ban) => bans.push(ban),
                Deed::Allow => {
                    self.left("lets hosts in instead of keeping them out: open the port in your firewall's own ruleset");
                    return Ok(None);
                }
                Deed::Tell { channel, change } => {
                    self.changed(&format!("action {}: {change}", action.name));
                    self.out.notify.entry(channel).or_default().insert(self.name.clone());
                }
                Deed::Other(todo) => drop(others.insert((action.name.clone(), todo))),
            }
        }
        for (name, todo) in others {
            self.left(format!("action {name}: {todo}"));
        }
        let Some(mut ban) = bans.pop() else {
            self.left("none of its actions keeps a host out of this host, so the jail was left out");
            return Ok(None);
        };
        for other in bans {
            ban.block = ban.block.or(other.block);
            ban.hook = ban.hook.or(other.hook);
            ban.changes.extend(
                other.changes.into_iter().filter(|change| !ban.changes.contains(change)).collect::<Vec<_>>(),
            );
            let more: Vec<String> =
                other.ports.into_iter().filter(|port| !ban.ports.contains(port)).collect();
            ban.ports.extend(more);
        }
        if ban.ports.iter().any(|port| port == "all") {
            ban.ports = vec!["all".to_owned()];
        }
        Ok(Some(ban))
    }

    pub fn logs(&self) -> Result<Vec<String>, Fault> {
        let text = self.section.filled("logpath")?.unwrap_or_default();
        let without_end =
            |line: &str| line.trim_end_matches(" tail").trim_end_matches(" head").trim().to_owned();
        Ok(text.lines().map(str::trim).map(without_end).filter(|line| !line.is_empty()).collect())
    }

    /// Where the jail's lines come from; false where there is nothing to read.
    fn sources(&mut self, served: &Served, page: &mut Page) -> Result<bool, Fault> {
        let backend = self.section.filled("backend")?.unwrap_or_default();
        let backend = named(&backend).map_err(|why| self.section.fault("backend", why))?;
        let matches = self.section.filled("journalmatch")?;
        if backend.name == "systemd" {
            return self.journal(served, &backend, matches, page);
        }
        let mut logs = Vec::new();
        for log in self.logs()? {
            match log.parse::<Place>() {
                Ok(Place::File(path)) if !path.is_absolute() => {
                    self.left(format!("logpath {log}: it does not begin at the root: write the whole path"));
                }
                Ok(_) => logs.push(log),
                Err(why) => self.left(format!("logpath {log}: {why}")),
            }
        }
        let library = self.world.library;
        let known = if served.own {
            Vec::new()
        } else {
            library.file(&served.rule).map_or_else(|_| Vec::new(), |file| file.logpath)
        };
        let section = &self.section;
        let shipped = |value: &Value| {
            let name = value.file();
            name == "jail.conf" || name.starts_with("paths-")
        };
        let is_default = section.layers.raw(section.name, "logpath").is_none_or(shipped);
        let is_plain = |log: &String| known.contains(log) && !log.contains(['*', '?', '[']);
        if served.own && logs.is_empty() {
            self.left("it names no log, so the jail was left out: give it a logpath");
            return Ok(false);
        }
        // Where nobody chose, the rule finds the log that this host has, or the journal.
        if !(logs.is_empty() || is_default && logs.iter().all(is_plain)) {
            page.insert("logpath", yaml_list(&logs));
        }
        Ok(true)
    }

    fn journal(
        &mut self,
        served: &Served,
        backend: &Named,
        matches: Option<String>,
        page: &mut Page,
    ) -> Result<bool, Fault> {
        let own: Vec<String> =
            matches.map_or_else(Vec::new, |text| text.lines().map(str::to_owned).collect());
        let own = if own.is_empty() { served.journalmatch.clone() } else { own };
        let lines: Vec<&str> = own
            .iter()
            .map(|line| line.trim())
            .filter(|line| !line.is_empty() && !line.contains(KNOWN))
            .collect();
        let mut words: Vec<String> = lines.join(" + ").split_whitespace().map(str::to_owned).collect();
        let place = backend.option("journalpath").or(backend.option("namespace"));
        if backend.option("journalfiles").is_some() {
            self.left("journalfiles: name the folder with `journal: /path`");
        }
        if words.is_empty() && served.own {
            if served.program.is_empty() {
                self.left(
                    "it reads all of the journal: name what counts with journalmatch; the jail was left out",
                );
                return Ok(false);
            }
            words = served.program.iter().map(|name| format!("SYSLOG_IDENTIFIER={name}")).collect();
            self.changed("reads what root's programs write under the names that the filter knows, not the whole journal");
        }
        if !words.is_empty() {
            if let Err(why) = words.join(" ").parse::<Matches>() {
                self.left(format!("journalmatch {}: {why}", words.join(" ")));
                return Ok(false);
            }
            page.insert("journalmatch", yaml_list(&words));
        }
        if !served.own && words.is_empty() {
            let file = self.world.library.file(&served.rule).ok();
            if file.is_none_or(|file| file.journalmatch.is_empty() && file.units.is_empty()) {
                self.left("the rule does not know what its service writes to the journal: add journalmatch to the jail");
                return Ok(false);
            }
        }
        if place.is_some() || words.is_empty() {
            page.insert("journal", yaml(place.unwrap_or("system")));
        }
        Ok(true)
    }

    fn ports(&mut self, ban: &Ban, served: &Served, page: &mut Page) -> Result<(), Fault> {
        let mut ports = Vec::new();
        for port in &ban.ports {
            match (self.world.wrong_port)(port) {
                None => ports.push(port.clone()),
                Some(why) => self.left(format!("port {port}: {why}")),
            }
        }
        let rule = if served.own {
            Vec::new()
        } else {
            self.world.library.file(&served.rule).map_or_else(|_| Vec::new(), |file| file.port)
        };
        let sorted = |ports: &[String]| ports.iter().cloned().collect::<BTreeSet<_>>();
        if ports.is_empty() && rule.is_empty() {
            ports.push("all".to_owned());
        }
        if !ports.is_empty() && sorted(&ports) != sorted(&rule) {
            page.insert("port", yaml_list(&ports));
        }
        Ok(())
    }

    fn terms(&mut self, served: &Served, page: &mut Page) -> Result<(), Fault> {
        let terms = Terms::read(&self.section, &self.name, &mut self.out.notes)?;
        let common = self.common;
        let library = self.world.library;
        let of_rule =
            if served.own { None } else { library.file(&served.rule).ok().and_then(|file| file.maxretry) };
        if terms.maxretry != of_rule.unwrap_or(common.maxretry) {
            page.insert("maxretry", terms.maxretry.to_string());
        }
        let is_recidive = served.rule == RECIDIVE;
        if terms.findtime != common.findtime || is_recidive {
            page.insert("findtime", terms.findtime);
        }
        if terms.bantime != common.bantime || is_recidive {
            page.insert("bantime", terms.bantime);
        }
        page.extend(terms.increment.map(|increment| ("increment", increment)));
        page.extend(terms.tz.map(|tz| ("tz", yaml(&tz))));
        let more: Vec<String> =
            terms.ignoreip.iter().filter(|entry| !common.ignoreip.contains(entry)).cloned().collect();
        if !more.is_empty() {
            page.insert("ignoreip", yaml_list(&more));
        }
        let missing: Vec<&String> =
            common.ignoreip.iter().filter(|entry| !terms.ignoreip.contains(entry)).collect();
        if !missing.is_empty() {
            let names: Vec<&str> = missing.iter().map(|entry| entry.as_str()).collect();
            self.changed(&format!(
                "spares {} as well: ignoreip of the defaults holds for every jail",
                names.join(", ")
            ));
        }
        Ok(())
    }
}
