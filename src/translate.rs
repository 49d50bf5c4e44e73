//! A configuration of fail2ban becomes one of ours: jail by jail, with a note on all that is otherwise.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use crate::filters::KNOWN;
use crate::ini::{self, DEFAULT, Layers, Value};
use crate::jargon::{jail_name, yaml};
use crate::terms::{EVERY_JAIL, Notes, Section, Terms, meant};
use crate::theirs::{Imported, JailReader, KEYS, Page, World};
use crate::yaml::Fault;

/// Reads everything and says what it becomes; every fault there is, where there are any.
pub fn translate(world: &World) -> Result<Imported, Vec<Fault>> {
    let one = |fault| vec![fault];
    let layers = jails(world).map_err(one)?;
    let beyond = |key: &str, value: Option<&Value>| match (key, value) {
        ("fail2ban_version", None) => Some("1.0.2".to_owned()),
        ("fail2ban_confpath", None) => Some("/etc/fail2ban".to_owned()),
        (_, None) if key.starts_with("known/") => Some(KNOWN.to_string()),
        _ => None,
    };
    let mut out = Imported::default();
    let defaults = Section { layers: &layers, name: DEFAULT, beyond: &beyond };
    let mut faults = Vec::new();
    let common = Terms::read(&defaults, EVERY_JAIL, &mut out.notes).map_err(one)?;
    let mut pages: BTreeMap<String, Page> = BTreeMap::new();
    let mut off = 0;
    for name in layers.sections() {
        let section = Section { layers: &layers, name, beyond: &beyond };
        match section.get("enabled") {
            Ok(Some(text)) if meant(&text) => {}
            Err(fault) => {
                faults.push(fault);
                continue;
            }
            _ => {
                off += 1;
                continue;
            }
        }
        let ours = free_name(&jail_name(name), &pages);
        let mut jail = JailReader { world, section, common: &common, name: ours.clone(), out: &mut out };
        match jail.read() {
            Ok(found) => {
                if ours != name && !found.is_empty() {
                    out.notes
                        .changed(&ours, format!("was called {name}, which cannot name a set of nftables"));
                }
                pages.extend(found);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    for_all(&defaults, world, &mut out.notes).map_err(one)?;
    if off > 0 {
        out.notes.done("jails that are off", format!("{off} left out"));
    }
    write(&common, pages, &mut out);
    Ok(out)
}

fn jails(world: &World) -> Result<Layers, Fault> {
    let mut files = vec!["jail.conf".to_owned()];
    files.extend((world.list)("jail.d", ".conf")?);
    files.push("jail.local".to_owned());
    files.extend((world.list)("jail.d", ".local")?);
    let layers = ini::layers(&files, world.read)?;
    match layers.sections().next().is_some() || layers.has(DEFAULT) {
        true => Ok(layers),
        false => Err(Fault::whole("jail.conf", "neither this nor jail.local is there, or both are empty")),
    }
}

fn free_name(name: &str, taken: &BTreeMap<String, Page>) -> String {
    let mut free = name.to_owned();
    for number in 2.. {
        if !taken.contains_key(&free) {
            break;
        }
        free = format!("{name}-{number}");
    }
    free
}

/// What holds for the whole of fail2ban and has no jail.
fn for_all(defaults: &Section, world: &World, notes: &mut Notes) -> Result<(), Fault> {
    if defaults.filled("usedns")?.is_none_or(|text| !matches!(text.as_str(), "no" | "raw")) {
        notes.changed(EVERY_JAIL, "no name is looked up: a line that names a host by its name bans nobody");
    }
    let files = ["fail2ban.conf".to_owned()].into_iter().chain((world.list)("fail2ban.d", ".conf")?);
    let files: Vec<String> =
        files.chain(["fail2ban.local".to_owned()]).chain((world.list)("fail2ban.d", ".local")?).collect();
    let global = ini::layers(&files, world.read)?;
    for (key, usual, todo) in [
        ("loglevel", "INFO", "say it on the command line: nftjail run --log LEVEL"),
        (
            "logtarget",
            "/var/log/fail2ban.log",
            "the log goes to standard error, which systemd keeps in the journal",
        ),
        ("dbpurgeage", "1d", "earlier bans are forgotten one by one: increment: {forget: 30d}"),
    ] {
        let said = global.raw("Definition", key).map(|value| value.text.trim());
        if let Some(said) = said.filter(|said| *said != usual) {
            notes.left("fail2ban.conf", format!("{key} = {said}: {todo}"));
        }
    }
    Ok(())
}

/// Writes the pages; what all jails say goes into the defaults. Rules of jails that were left out go.
fn write(common: &Terms, mut pages: BTreeMap<String, Page>, out: &mut Imported) {
    let used: Vec<&str> =
        pages.iter().map(|(name, page)| page.get("rule").map_or(name.as_str(), String::as_str)).collect();
    let rule = |file: &str| file.strip_prefix("rules/").and_then(|name| name.strip_suffix(".yaml")).map(yaml);
    out.files.retain(|file, _| rule(file).is_none_or(|rule| used.contains(&rule.as_str())));
    let Terms { maxretry, findtime, bantime, ignoreip, .. } = common;
    let mut text = format!(
        "# Made by nftjail import. Each jail has a file of its own in nftjail.d.\ndefaults:\n  maxretry: {maxretry}\n  findtime: {findtime}\n  bantime: {bantime}\n"
    );
    for key in ["increment", "block", "hook", "tz"] {
        let first = pages.values().next().and_then(|page| page.get(key)).cloned();
        if let Some(first) = first.filter(|first| pages.values().all(|page| page.get(key) == Some(first))) {
            text += &format!("  {key}: {first}\n");
            pages.values_mut().for_each(|page| drop(page.remove(key)));
        }
    }
    if !ignoreip.is_empty() {
        text += "  ignoreip:\n";
        ignoreip.iter().for_each(|entry| text += &format!("    - {}\n", yaml(entry)));
    }
    // Without this key a jail for sshd would run.
    text += "jails: {}\n";
    text += &notify(&pages, &out.notify);
    out.files.insert("nftjail.yaml".to_owned(), text);
    for (name, page) in pages {
        let mut text = format!("jails:\n  {name}:\n");
        for key in KEYS {
            text += &page.get(key).map_or_else(String::new, |value| format!("    {key}: {value}\n"));
        }
        out.files.insert(format!("nftjail.d/{name}.yaml"), text);
    }
}

/// Who is told of bans, of the jails that there are.
fn notify(pages: &BTreeMap<String, Page>, notify: &BTreeMap<String, BTreeSet<String>>) -> String {
    let mut text = String::new();
    for (channel, jails) in notify {
        let jails: Vec<&str> =
            jails.iter().filter(|jail| pages.contains_key(*jail)).map(String::as_str).collect();
        if jails.is_empty() {
            continue;
        }
        let way = channel.split(':').next().unwrap_or_default();
        let number = 1 + text.matches(&format!("    {way}: ")).count();
        let name = if number == 1 { way.to_owned() } else { format!("{way}-{number}") };
        let jails = jails.join(", ");
        text += &format!("  {name}:\n    {channel}\n    events: [banned]\n    jails: [{jails}]\n");
    }
    if text.is_empty() { text } else { format!("notify:\n{text}") }
}
