//! Which rule of ours serves a jail of fail2ban: the one that bears its filter's name, or one made from the user's own.
#![forbid(unsafe_code)]

use crate::detect::NORMAL;
use crate::dialect;
use crate::failregex;
use crate::filters::{self, KNOWN};
use crate::ini::{self, Layers};
use crate::jargon::{Named, jail_name, named};
use crate::shapes::Filter;
use crate::theirs::{Imported, JailReader};
use crate::yaml::Fault;

/// Rules of ours that have no filter of their name in fail2ban; one that a user has made is that user's.
const OURS_ALONE: [&str; 21] = [
    "apache-scan",
    "authelia",
    "caddy",
    "cockpit",
    "freeradius",
    "gitea",
    "home-assistant",
    "jellyfin",
    "lemonldap-ng",
    "mosquitto",
    "nextcloud",
    "nginx-scan",
    "portscan",
    "postgresql",
    "prosody",
    "qpsmtpd",
    "redis",
    "smbd",
    "ssh-ddos",
    "tinyproxy",
    "wordpress",
];

/// What an earlier fail2ban called its filters, or many people call their copies.
const ALIASES: [(&str, &str); 5] = [
    ("ssh", "sshd"),
    ("nginx-req-limit", "nginx-limit-req"),
    ("apache", "apache-auth"),
    ("couriersmtp", "courier-smtp"),
    ("courierauth", "courier-auth"),
];

/// Which rule serves a jail.
pub struct Served {
    pub rule: String,
    pub mode: String,
    /// It is made from a filter, whose logs it does not know.
    pub own: bool,
    pub program: Vec<String>,
    pub journalmatch: Vec<String>,
    /// A rule beside it, for a jail of its own.
    pub more: Option<String>,
}

impl JailReader<'_> {
    /// The rule that serves the jail, made from its filter where that is the user's own.
    pub fn rule(&mut self) -> Result<Option<Served>, Fault> {
        let text = self.section.filled("filter")?.unwrap_or_else(|| self.section.name.to_owned());
        let mut wanted = named(&text).map_err(|why| self.section.fault("filter", why))?;
        let own_regex = self.section.filled("failregex")?;
        let files = filters::layers("filter.d", &wanted.name, self.world.read)?;
        if files.is_none()
            && let Some((_, now)) = ALIASES.iter().find(|(old, _)| *old == wanted.name)
        {
            self.changed(&format!("the filter {} is the rule {now}", wanted.name));
            wanted.name = (*now).to_owned();
        }
        let is_theirs = self.world.library.has(&wanted.name) && !OURS_ALONE.contains(&wanted.name.as_str());
        if is_theirs {
            let builds_on = own_regex.as_deref().is_none_or(|text| text.contains(KNOWN));
            let local = self.local_patterns(&wanted, own_regex.as_deref())?;
            if builds_on && local.as_ref().is_none_or(|(_, builds_on)| *builds_on) {
                let more = match local {
                    Some((patterns, _)) => self.more_patterns(&wanted, patterns)?,
                    None => None,
                };
                return Ok(Some(Served { more, ..self.shipped(&wanted)? }));
            }
        }
        let Some(files) = files.or_else(|| own_regex.is_some().then(Layers::default)) else {
            self.left(format!("its filter {} is not there: nothing says which lines count", wanted.name));
            return Ok(None);
        };
        let name = match own_regex.is_some() {
            true => self.name.clone(),
            false => jail_name(&wanted.name),
        };
        self.made(&wanted, &files, &name)
    }

    /// The patterns that a user has put over a shipped filter, in its `.local` file or in the jail, and whether they
    /// come beside the filter's own.
    fn local_patterns(
        &self,
        wanted: &Named,
        own: Option<&str>,
    ) -> Result<Option<(Vec<String>, bool)>, Fault> {
        if let Some(own) = own {
            return Ok(Some((own_lines(own), own.contains(KNOWN))));
        }
        let [_, local] = filters::files("filter.d", &wanted.name);
        let Some(bytes) = (self.world.read)(&local)? else { return Ok(None) };
        let file = ini::parse(&local, &bytes)?;
        let Some(value) = file.own("Definition", "failregex") else { return Ok(None) };
        let builds_on = value.text.contains("%(known/failregex)s");
        let all = filters::layers("filter.d", &wanted.name, self.world.read)?.unwrap_or_default();
        let text = all.expand("Definition", value, &|name, value| match (name, value) {
            ("known/failregex", _) => Some(KNOWN.to_string()),
            ("__prefix_line", Some(_)) => Some(dialect::PREFIX.to_string()),
            ("_apache_error_client", Some(_)) => Some(dialect::APACHE.to_string()),
            _ => None,
        })?;
        Ok(Some((own_lines(&text), builds_on)))
    }

    /// A rule for a jail beside this one, of patterns that a user has added to a shipped filter.
    fn more_patterns(&mut self, wanted: &Named, patterns: Vec<String>) -> Result<Option<String>, Fault> {
        let files = filters::layers("filter.d", &wanted.name, self.world.read)?.unwrap_or_default();
        let filter = filters::filter(&wanted.name, wanted, &files, &|_| Ok(None))?;
        let name = format!("{}-more", self.name);
        let translated = failregex::translate(&Filter {
            name: name.clone(),
            failregex: patterns,
            prefregex: None,
            ignoreregex: Vec::new(),
            ..filter
        });
        for (pattern, why) in &translated.refused {
            self.left(format!("{pattern}\n{why}"));
        }
        let Some(rule) = translated.rule else { return Ok(None) };
        self.out.files.insert(format!("rules/{name}.yaml"), rule);
        self.changed(&format!(
            "your patterns beside the filter's have a jail of their own, {name}, which counts by itself"
        ));
        Ok(Some(name))
    }

    fn shipped(&mut self, wanted: &Named) -> Result<Served, Fault> {
        let rule = wanted.name.clone();
        let file =
            self.world.library.file(&rule).map_err(|bad| self.section.fault("filter", bad.to_string()))?;
        let mode = wanted.option("mode").unwrap_or(NORMAL);
        let known = mode == NORMAL || file.modes.contains_key(mode);
        if !known {
            let modes: Vec<&str> = file.modes.keys().map(String::as_str).collect();
            self.left(format!(
                "mode {mode}: the rule {rule} has none of that name, but {}: normal serves",
                modes.join(", ")
            ));
        }
        for (option, value) in wanted
            .options
            .iter()
            .filter(|(option, _)| !matches!(option.as_str(), "mode" | "logtype" | "backend"))
        {
            self.left(format!("option {option}={value} of the filter {rule}: our rule has no such switch"));
        }
        for key in ["ignoreregex", "prefregex", "datepattern", "maxlines"] {
            if let Some(text) = self.section.filled(key)? {
                let shown = dialect::shown(&text);
                self.left(format!(
                    "{key} = {shown}: a jail has none here; copy the rule {rule} to rules/ and add it there"
                ));
            }
        }
        let mode = if known { mode } else { NORMAL }.to_owned();
        Ok(Served { rule, mode, own: false, program: Vec::new(), journalmatch: Vec::new(), more: None })
    }

    /// A rule made from the user's own filter; where nothing of it can count, ours of the same name.
    fn made(&mut self, wanted: &Named, files: &Layers, name: &str) -> Result<Option<Served>, Fault> {
        let section = &self.section;
        let jail = |key: &str| match key {
            "failregex" | "ignoreregex" | "prefregex" | "datepattern" | "maxlines" => section.filled(key),
            _ => Ok(None),
        };
        let mut filter = filters::filter(name, wanted, files, &jail)?;
        filter.failregex.retain(|pattern| !pattern.contains(KNOWN));
        filter.ignoreregex.retain(|pattern| !pattern.contains(KNOWN));
        filter.logpath = self.logs()?;
        let journalmatch = std::mem::take(&mut filter.journalmatch);
        if self.world.library.has(name) {
            filter.name = format!("{name}-own");
        }
        let mut translated = failregex::translate(&filter);
        let known = |name: &str, out: &Imported| out.files.get(&format!("rules/{name}.yaml")).cloned();
        if known(&filter.name, self.out).is_some_and(|other| translated.rule.as_ref() != Some(&other)) {
            // Another jail has other options.
            filter.name = format!("{}-{}", filter.name, self.name);
            translated = failregex::translate(&filter);
        }
        if known(&filter.name, self.out).is_none() {
            for (pattern, why) in &translated.refused {
                self.left(format!("{pattern}\n{why}"));
            }
            for change in &translated.changes {
                self.changed(change);
            }
        }
        let Some(rule) = translated.rule else {
            if self.world.library.has(name) {
                self.changed(&format!("our rule {name} serves instead of the filter of that name"));
                return self.shipped(wanted).map(Some);
            }
            self.left(match filter.failregex.is_empty() {
                true => format!("its filter {} has no failregex", wanted.name),
                false => "no pattern of it could be translated, so the jail was left out".to_owned(),
            });
            return Ok(None);
        };
        self.out.files.insert(format!("rules/{}.yaml", filter.name), rule);
        let (rule, program) = (filter.name, translated.program);
        Ok(Some(Served { rule, mode: NORMAL.to_owned(), own: true, program, journalmatch, more: None }))
    }
}

fn own_lines(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains(KNOWN))
        .map(str::to_owned)
        .collect()
}
