//! The configuration: read from YAML, merged over its files, resolved against the rules and this host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use jiff::tz::TimeZone;

use crate::acquire::place::Place;
use crate::detect::Library;
use crate::host::Services;
use crate::jail::Terms;
use crate::jail::allow::Allow;
use crate::model::{Cell, JailName, Layout};
use crate::never::{Entry, Known};
use crate::notices::Notices;
use crate::resolve::{Broken, JailConfig, Resolved, give_stdin, resolve};
use crate::sheet::{Sheet, unreadable};
use crate::status::AutoStatus;
use crate::yaml::{Fault, Many, Spanned};

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
    /// Who is told what.
    pub notices: Notices,
    /// What was asked for and cannot be had, in words.
    pub troubles: Vec<String>,
    /// The files it was read from; empty where there are none, and the built-in sshd jail serves.
    pub files: Vec<PathBuf>,
}

/// Whom nobody bans, and where that is written: `FILE:LINE`.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub entries: Vec<Entry>,
    pub at: String,
}

impl List {
    fn new(key: Option<Spanned<Many<Entry>>>, at: Option<String>) -> List {
        List { entries: key.map_or_else(Vec::new, |key| key.value.0), at: at.unwrap_or_default() }
    }
}

impl Config {
    /// Reads `place`, a file or a folder with `nftjail.yaml` and `nftjail.d/*.yaml`; without it [`CONFIG_DIR`].
    ///
    /// All faults are told at once. A folder without any file is no fault: the built-in sshd jail runs then.
    pub fn load(place: Option<&Path>, services: &Services) -> Result<Config, Vec<Fault>> {
        Config::load_for(place, services, None)
    }

    /// The same, but this jail reads standard input in place of its logs. Where the files have no jails at all, it is
    /// the only one, and named after its rule.
    pub fn load_for(
        place: Option<&Path>,
        services: &Services,
        stdin: Option<&JailName>,
    ) -> Result<Config, Vec<Fault>> {
        let config = Config::load_sound(place, services, stdin)?;
        match config.broken.is_empty() {
            true => Ok(config),
            false => Err(config.broken.into_iter().flat_map(|broken| broken.faults).collect()),
        }
    }

    /// The same, but a jail that is not in order only stands in `broken`, as long as another can run.
    pub fn load_sound(
        place: Option<&Path>,
        services: &Services,
        stdin: Option<&JailName>,
    ) -> Result<Config, Vec<Fault>> {
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
        if let Some(name) = stdin {
            give_stdin(&mut sheet, name)?;
        }
        let ignoreip = List::new(sheet.defaults.ignoreip.clone(), sheet.ignoreip_at.take());
        let trusted_proxies = List::new(sheet.defaults.trusted_proxies.clone(), sheet.trusted_at.take());
        let is_set = |key: &Option<Spanned<bool>>| key.as_ref().is_some_and(|key| key.value);
        let (ban_local, owner) = (is_set(&sheet.defaults.ban_local), is_set(&sheet.defaults.owner));
        let notices = std::mem::take(&mut sheet.notices);
        let Resolved { mut jails, broken, auto } = resolve(sheet, &library, services);
        if jails.is_empty() && !broken.is_empty() {
            return Err(broken.into_iter().flat_map(|broken| broken.faults).collect());
        }
        let own = jails.iter().flat_map(|jail| &jail.ignoreip);
        let known = Known::new(own.chain(&ignoreip.entries).chain(&trusted_proxies.entries));
        jails.iter_mut().for_each(|jail| jail.terms.ignoreip = Allow::new(&known.nets(&jail.ignoreip)));
        Ok(Config {
            notices,
            jails,
            broken,
            auto,
            ignoreip,
            trusted_proxies,
            ban_local,
            owner,
            known,
            troubles: Vec::new(),
            files,
        })
    }

    /// The terms of all jails, the broken last.
    pub fn terms(&self) -> Vec<Terms> {
        let sound = self.jails.iter().map(|jail| &jail.terms);
        sound.chain(self.broken.iter().map(|broken| &broken.terms)).cloned().collect()
    }

    /// The zone of the dates in a log, where one of its jails says it.
    pub fn zone_of(&self, log: &Place) -> Option<&TimeZone> {
        let mut heard = self.jails.iter().filter(|jail| jail.logpath.contains(log));
        heard.find_map(|jail| jail.zone.as_ref())
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
            knock: jail.knock,
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

/// The files of a configuration, in the order in which they are read.
pub fn files(place: Option<&Path>) -> Result<Vec<PathBuf>, Fault> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::jail::prefix::PrefixLaw;
    use crate::model::{Block, Knock, Log};
    use crate::resolve::logs_of;

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
    fn what_follows_when_a_banned_host_tries_again_is_as_it_is_told() {
        let knock = |keys: &str| {
            let config = load(&format!("jails: {{sshd: {{port: 22, {keys}}}}}")).unwrap();
            let cell = config.layout(&[]).cells.remove(0);
            assert_eq!(config.jails[0].terms.extend_on_knock, cell.knock.extends);
            cell.knock
        };
        let extends = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(knock("maxretry: 5"), Knock::default());
        let told = knock("extend_on_knock: 1h, counters: true, log: 'nflog:5'");
        assert_eq!(told, Knock { extends: extends(3_600), counts: true, log: Log::Nflog(5) });
        assert_eq!(knock("extend_on_knock: true, bantime: 7m, log: kernel").extends, extends(420));
        assert_eq!(knock("extend_on_knock: true, bantime: forever").extends, None);
        assert_eq!(knock("extend_on_knock: false, counters: false, log: nothing"), Knock::default());
        let jails = "jails: {dovecot: {port: 993, extend_on_knock: false}, sshd: {port: 22}}";
        let config = load(&format!("defaults: {{extend_on_knock: 2m}}\n{jails}")).unwrap();
        let extended: Vec<_> = config.jails.iter().map(|jail| jail.terms.extend_on_knock).collect();
        assert_eq!(extended, [None, extends(120)]);
    }

    #[test]
    fn what_cannot_be_done_with_a_knock_is_pointed_at() {
        for (text, column, message) in [
            (
                "defaults: {extend_on_knock: maybe}\n",
                29,
                "\"maybe\" is not a length of time: write 90s, 10m, 1h30m, 2d or 1w, or true for the jail's bantime, or \
                 false",
            ),
            ("defaults: {log: nflog}\n", 17, "write nothing, kernel, or nflog: and a group, as nflog:5"),
            (
                "defaults: {log: 'nflog:70000'}\n",
                17,
                "a group of nflog is a number from 0 to 65535, as nflog:5",
            ),
            ("defaults: {counters: yes}\n", 22, "write true or false"),
        ] {
            let fault = load(text).unwrap_err().remove(0);
            assert_eq!((fault.column, fault.message.as_str()), (column, message));
        }
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
                "addresses are what is banned: write [addr, user] or [addr, prefix] to count others as well",
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
    fn a_zone_belongs_to_a_log() {
        let zone = |text: &str, log: &str| load(text).unwrap().zone_of(&log.parse().unwrap()).cloned();
        let jails = "jails: {sshd: {logpath: /a, tz: UTC}, sshd-slow: {rule: sshd, logpath: [/a, /b]}}";
        assert_eq!(
            (zone(jails, "/a"), zone(jails, "/b"), zone(jails, "/c")),
            (Some(TimeZone::UTC), None, None)
        );
        let jails = "defaults: {tz: '+02:00'}\njails: {sshd: {logpath: /a}}";
        assert_eq!(zone(jails, "/a"), Some(TimeZone::fixed(jiff::tz::offset(2))));
        for (text, seconds) in [("+0200", 7200), ("-03:30", -12_600), ("+14:00", 50_400)] {
            let jails = format!("jails: {{sshd: {{logpath: /a, tz: '{text}'}}}}");
            let offset = jiff::tz::Offset::from_seconds(seconds).unwrap();
            assert_eq!(zone(&jails, "/a"), Some(TimeZone::fixed(offset)));
        }
        let jails = "jails: {sshd: {logpath: /a, tz: Europe/Berlin}}";
        assert_eq!(zone(jails, "/a"), Some(TimeZone::get("Europe/Berlin").unwrap()));
    }

    #[test]
    fn a_zone_that_is_none_is_pointed_at() {
        let told = |text: &str| load(text).unwrap_err()[0].clone();
        let fault = told("jails:\n  sshd:\n    tz: Europe/Berln\n");
        assert_eq!((fault.line, fault.column), (3, 9));
        assert_eq!(fault.message, "unknown time zone \"Europe/Berln\": did you mean Europe/Berlin?");
        for text in ["+2", "+25:00", "+02:60", "+2:000", "++200", "+", "Middle-earth/Bree", "\"\"", "é"] {
            let fault = told(&format!("defaults: {{tz: {text}}}\n"));
            assert!(
                fault.message.contains("write a name such as Europe/Berlin"),
                "{text}: {}",
                fault.message
            );
        }
    }

    #[test]
    fn a_command_is_a_source_beside_the_logs_that_are_named_or_alone() {
        let places = |text: &str| -> Vec<String> {
            load(text).unwrap().jails[0].logpath.iter().map(ToString::to_string).collect()
        };
        let command = "command: [podman, logs, --since, 0, web]";
        assert_eq!(places(&format!("jails: {{sshd: {{{command}}}}}")), ["command:podman logs --since 0 web"]);
        assert_eq!(
            places(&format!("jails: {{sshd: {{logpath: /var/log/a, {command}}}}}")),
            ["/var/log/a", "command:podman logs --since 0 web"]
        );
        let config = load(&format!("jails: {{recidive: {{{command}}}}}")).unwrap();
        assert!(!config.jails[0].terms.hears_bans, "it reads what the command prints");
    }

    #[test]
    fn a_command_for_a_shell_and_a_place_that_cannot_be_are_pointed_at() {
        for (text, line, wanted) in [
            (
                "jails:\n  sshd:\n    command: podman logs web\n",
                3,
                "no shell reads this: write each word by itself",
            ),
            ("jails:\n  sshd:\n    command: []\n", 3, "name a program and its arguments"),
            ("defaults:\n  command: [tail]\n", 2, "this belongs to a jail, not to defaults"),
            ("jails:\n  sshd:\n    logpath:\n      - fifi:/run/x\n", 4, "did you mean fifo?"),
            ("jails:\n  sshd:\n    logpath: udp:198.51.100.1:514\n", 3, "can be reached from other hosts"),
        ] {
            let fault = load(text).unwrap_err()[0].clone();
            assert!(fault.line == line && fault.message.contains(wanted), "{fault}");
        }
    }

    #[test]
    fn a_log_cannot_be_in_two_zones() {
        let text =
            "jails:\n  sshd: {logpath: /a, tz: UTC}\n  sshd-slow: {rule: sshd, logpath: /a, tz: '+01:00'}\n";
        let fault = load(text).unwrap_err()[0].clone();
        assert_eq!(fault.line, 3);
        let wanted = "/a cannot be in two time zones: give this jail the same tz as sshd, or none";
        assert_eq!(fault.message, wanted);
    }

    #[test]
    fn networks_are_banned_by_the_jails_that_count_by_them() {
        let law = |text: &str| load(text).unwrap().jails[0].terms.prefix.clone();
        assert_eq!(law("jails: {sshd: {port: 22}}"), None);
        let counts = "count_by: [addr, prefix]";
        let usual = law(&format!("jails: {{sshd: {{port: 22, {counts}}}}}")).unwrap();
        assert_eq!((&usual.v4[..], &usual.v6[..], usual.offenders), (&[24][..], &[56, 48][..], 16));
        let own = "prefix: {v4: [12, 24], v6: 32, offenders: 3, findtime: 1h, force: true}";
        let law_of = |jail: &str| law(&format!("defaults: {{{own}}}\njails: {{sshd: {{port: 22{jail}}}}}"));
        let findtime = Duration::from_secs(3_600);
        let wanted = PrefixLaw { v4: vec![12, 24], v6: vec![32], offenders: 3, findtime };
        assert_eq!(law_of(&format!(", {counts}")), Some(wanted));
        assert_eq!(law_of(""), None);
    }

    #[test]
    fn a_pattern_that_is_not_understood_is_pointed_at() {
        let fault =
            load("jails:\n  sshd:\n    logpath: [/var/log/auth.log, /var/log/**/auth.log]\n").unwrap_err();
        assert_eq!((fault[0].line, fault[0].column), (3, 34));
        assert_eq!(fault[0].message, "\"**\" is not understood: write one * for each folder on the way");
    }

    #[test]
    fn every_shipped_rule_names_logs_that_can_be_followed() {
        let library = Library::shipped();
        for name in library.names() {
            let rule = library.compile(name, None).unwrap();
            assert!(logs_of(&rule).is_ok(), "{name}");
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
